"""Targets that do not fit the outputs, the rate or each other."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.diagnosis.rules.fitting import found


def test_targets_that_the_rate_does_not_fit_are_named(data) -> None:
    x, _ = data
    prices = 250_000 + 80_000 * x[:, 0]
    assert found(x, prices, loss="mse", outputs=1) == ["unnormalised_target"]
    assert found(x, prices, loss="mse", outputs=1, optimizer=torch.optim.Adam, lr=1e-3) == ["unnormalised_target"]
    assert found(x, 20 + 8 * x[:, 0], loss="mse", outputs=1, optimizer=torch.optim.Adam, lr=1e-2, steps=400) == []
    assert found(x, x[:, 0], loss="mse", outputs=1) == []


def test_a_size_that_a_usual_rate_hardly_moves_and_one_that_it_cannot_tell_apart_are_named(data) -> None:
    x, _ = data
    adam = {"loss": "mse", "outputs": 1, "optimizer": torch.optim.Adam}
    assert found(x, 700 * x[:, 0], lr=1e-3, steps=250, **adam) == ["unnormalised_target"]
    assert found(x, 700 * x[:, 0], lr=1e-1, steps=250, **adam) == []
    assert found(x, 0.001 * x[:, 0], lr=4e-3, steps=250, **adam) == ["unnormalised_target"]
    assert found(x, 0.1 * x[:, 0], lr=4e-3, steps=250, **adam) == []


TWO = {
    "mse": ("mse", True),
    "by hand": (lambda output, target: ((output - target) ** 2).mean(), True),
    "a sum of two": (lambda o, t: F.mse_loss(o[:, 0], t[:, 0]) + F.mse_loss(o[:, 1], t[:, 1]), True),
    "absolute": ("l1", False),
    "weighted": (lambda output, target: ((output - target) ** 2 * torch.tensor([1.0, 1e-4])).mean(), False),
    "a weighted sum": (lambda o, t: F.mse_loss(o[:, 0], t[:, 0]) + 1e-4 * F.mse_loss(o[:, 1], t[:, 1]), False),
    "scaled": (lambda output, target: F.mse_loss(output, target / torch.tensor([1.0, 90.0])), False),
}


@pytest.mark.parametrize("way", TWO)
def test_a_target_that_has_next_to_nothing_of_a_squared_error_is_named(data, way: str) -> None:
    x, _ = data
    loss, named = TWO[way]
    metres_and_grams = x[:, :2] * torch.tensor([1.0, 90.0])
    steps = {"optimizer": torch.optim.Adam, "lr": 1e-2, "steps": 250}
    assert found(x, metres_and_grams, loss=loss, outputs=2, **steps) == (["unnormalised_target"] if named else [])
    assert found(x, x[:, :2] * torch.tensor([1.0, 9.0]), loss=loss, outputs=2, **steps) == []


@pytest.mark.parametrize(("size", "weight", "said"), [(300, 1.0, ["unnormalised_target"]), (300, 1e-4, []), (3, 1.0, [])])
def test_a_cross_entropy_that_drowns_in_the_error_that_it_is_added_to_is_named(data, size, weight, said) -> None:
    x, y = data

    def of_both(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output[:, :4], target[:, 0].long()) + weight * F.mse_loss(output[:, 4], target[:, 1])

    both = torch.stack([y.float(), size + size / 7 * x[:, 0]], 1)
    assert found(x, both, loss=of_both, outputs=5, optimizer=torch.optim.Adam, lr=2e-3, steps=250) == said


def test_a_seldom_number_beside_a_large_one_is_left_alone(data) -> None:
    x, y = data
    seldom = torch.stack([0.5 * (y == 0), 90 * x[:, 0]], 1)
    assert found(x, seldom, loss="mse", outputs=2, optimizer=torch.optim.Adam, lr=1e-2, steps=250) == []


def test_targets_far_from_zero_for_their_spread_are_unnormalised() -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 6)
    assert found(x, 300 + x[:, 0], loss="mse", outputs=1, lr=1e-4) == ["unnormalised_target"]
    assert found(x, 20 + x[:, 0], loss="mse", outputs=1, lr=1e-4) == []
