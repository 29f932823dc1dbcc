"""What the first batches hold."""

import pytest
import torch
from torch import Tensor, nn

from tests.diagnosis.rules.fitting import found
from tests.diagnosis.rules.looking import adam, alarms, mlp, vectors


@pytest.mark.parametrize(
    ("value", "places", "rules"),
    [(-999.0, 0.03, ["bad_data"]), (-999.0, 0.0, []), (-9.0, 0.03, [])],
)
def test_a_code_for_what_is_missing_is_told_from_inputs_of_another_scale(value: float, places: float, rules: list[str]) -> None:
    x, y = vectors()
    missing = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < places
    assert alarms(mlp(16, 32, 4), (x.masked_fill(missing, value), y)) == rules


class Compares(nn.Module):
    """Takes what is below all else for what is missing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(16, 32, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x.masked_fill(x == x.amin(0), 0))
        return out


@pytest.mark.parametrize(
    ("value", "dtype", "net", "rules"),
    [
        (-999.0, torch.float, mlp(16, 32, 4), ["bad_data"]),
        (-3.0, torch.float, mlp(16, 32, 4), []),
        (-999.0, torch.float, Compares(), []),
        (0.0, torch.uint8, mlp(16, 32, 4), []),
    ],
)
def test_a_code_that_was_standardised_with_its_column_is_seen(
    value: float, dtype: torch.dtype, net: nn.Module, rules: list[str]
) -> None:
    """A byte leaves no room for it: a column of a few bright pixels has three dark ones, and is 50 times as far from them."""
    x, y = vectors()
    if dtype == torch.uint8:
        x = 250 + (x > 0) + (x > 1) + (x > -1).float() + (x > 0.5)
    missing = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.12
    x = x.masked_fill(missing, value)
    assert alarms(net, ((x - x.mean(0)) / x.std(0), y)) == rules


def test_large_numbers_of_which_some_come_again_are_no_code() -> None:
    x, y = vectors()
    x[:, 3] *= 300
    x[:4, 3] = x[:, 3].max() + 1
    assert alarms(mlp(16, 32, 4), (x, y))[0] == "unnormalised_input"


def test_a_column_that_is_large_everywhere_holds_no_code() -> None:
    x, y = vectors()
    x[:, 3] = -999
    assert alarms(mlp(16, 32, 4), (x, y))[0] == "unnormalised_input"


@pytest.mark.parametrize(
    ("kinds", "val_kinds", "steps", "rules"),
    [(12, 400, 12, ["bad_data"]), (400, 400, 12, []), (12, 12, 12, [])],
)
def test_a_few_samples_that_come_again_and_again_are_found(kinds: int, val_kinds: int, steps: int, rules: list[str]) -> None:
    """If validation holds no more different ones, there are no more."""
    x, y = vectors(400)
    train, val = (torch.arange(400) % n for n in (kinds, val_kinds))
    assert found(x[train], y[train], val=(x[val], y[val]), steps=steps) == rules


def test_a_small_training_set_that_is_passed_through_four_times_is_no_repetition() -> None:
    x, y = vectors(400)
    assert "bad_data" not in found(x[:16], y[:16], val=(x[100:], y[100:]), steps=12)


@pytest.mark.parametrize(("own", "rules"), [(True, []), (False, ["bad_data"])])
def test_empty_samples_with_targets_of_their_own_are_a_state(own: bool, rules: list[str]) -> None:
    x, y = vectors(64)
    empty = torch.arange(64) % 3 == 0
    y = torch.where(empty, 0, 1 + y % 3) if own else y
    assert alarms(mlp(16, 32, 4), (x.masked_fill(empty[:, None], 0), y)) == rules


@pytest.mark.parametrize(("own", "rules"), [(True, []), (False, ["bad_data"])])
def test_a_number_far_from_its_column_is_a_state_where_targets_are_of_their_own(own: bool, rules: list[str]) -> None:
    x, y = vectors(64)
    stands = torch.arange(64) % 4 == 0
    y = torch.where(stands, 0, 1 + y % 3) if own else y
    x[:, 0] = torch.where(stands, 0, 50 + 0.02 * x[:, 0])
    assert alarms(mlp(16, 32, 4), ((x - x.mean(0)) / x.std(0), y)) == rules


@pytest.mark.parametrize("one_hot", [True, False])
def test_one_hot_columns_have_few_combinations(one_hot: bool) -> None:
    months, days = torch.arange(256) % 12, torch.arange(256) // 12 % 3
    x = torch.cat([nn.functional.one_hot(months, 12), nn.functional.one_hot(days, 3)], 1).float()
    pattern = torch.rand(12, 15, generator=torch.Generator().manual_seed(1)).round()
    said = alarms(mlp(15, 32, 4), (x if one_hot else pattern[months], (months + days) % 4), optimizer=adam)
    assert ("bad_data" in said) != one_hot
