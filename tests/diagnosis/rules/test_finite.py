"""The first loss or gradient that is not a number, and by which operation."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.diagnosis.rules.looking import findings, mlp, numbers


@pytest.mark.parametrize(
    ("op", "loss"),
    [
        ("log", lambda output, target: -(output - output.max() - 1).log().mean()),
        ("div", lambda output, target: ((output - output) / (output - output)).sum()),
        ("sqrt", lambda output, target: (output - 100).sqrt().mean()),
        ("exp", lambda output, target: (output * 0 + 1000).exp().mean()),
    ],
)
def test_the_operation_that_breaks_the_loss_is_named(op: str, loss) -> None:
    first = findings(mlp(16, 8, 1), numbers(), loss)[0]
    assert first.rule == "nan_loss"
    assert f"comes from {op}." in first.message


def test_a_root_at_zero_breaks_gradients_only() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return ((output - output.detach()).square().sum(1)).sqrt().mean()

    first = findings(mlp(16, 8, 1), numbers(), loss)[0]
    assert (first.rule, first.where) == ("nan_loss", "0.weight")
    assert "sqrt" in first.advice


def test_broken_inputs_are_bad_data_and_explain_the_rest() -> None:
    x, y = numbers()
    x[3, 2] = torch.nan
    found = findings(mlp(16, 8, 1), (x, y), F.mse_loss)
    assert [f.rule for f in found if f.severity != "note"] == ["bad_data"]


def test_infinity_inside_that_stays_inside_is_silent() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        masked = output.masked_fill(target > 0, -torch.inf)
        return F.mse_loss(masked.exp(), target)

    assert not [f for f in findings(mlp(16, 8, 1), numbers(), loss) if f.rule == "nan_loss"]


def test_the_direction_of_a_loss_that_is_not_finite_says_nothing() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().neg().mean() + (output - 100).log().mean()

    found = findings(mlp(16, 8, 1), numbers(), loss)
    assert [f.rule for f in found if f.severity != "note"] == ["nan_loss"]


@pytest.mark.parametrize(("lr", "rule"), [(1e-3, "nan_loss"), (1e4, "lr_too_high")])
def test_a_loss_that_breaks_after_a_small_update_is_no_rate(lr: float, rule: str) -> None:
    calls = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls.append(output)
        empty = len(calls) == 2 and lr < 1
        return F.mse_loss(output, target) * (torch.nan if empty else 1.0)

    net, batch = mlp(16, 8, 8, 1), numbers()
    first = findings(net, batch, loss, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=lr))[0]
    assert (first.rule, first.severity) == (rule, "error")
