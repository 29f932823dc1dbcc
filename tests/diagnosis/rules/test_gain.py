"""Gains that no vanishing or exploding signal shows: of norms, of SELU layers, and of recurrent weights."""

import pytest
import torch
from torch import Tensor, nn

from tests.diagnosis.rules.looking import alarms, fill, mlp


@pytest.mark.parametrize(("draw", "said"), [(None, ["bad_gain"]), ("linear", [])])
def test_selu_needs_a_gain_of_one(draw: str | None, said: list[str]) -> None:
    model = mlp(*[16] + [64] * 12 + [4], act=nn.SELU)
    if draw:
        fill(model, lambda w: nn.init.kaiming_normal_(w, nonlinearity=draw))
    assert alarms(model, steps=1) == said


def test_shallow_selu_nets_are_silent() -> None:
    assert alarms(mlp(16, 64, 64, 4, act=nn.SELU)) == []


class Unrolled(nn.Module):
    """A recurrent net, called step by step: a cell of torch's, one of plain layers, or one of bare matrices."""

    def __init__(self, gain: float, *, by_hand: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.by_hand = nn.Linear(32, 4), by_hand
        if by_hand:
            self.read, self.step = nn.Linear(2, 32), nn.Linear(32, 32, bias=False)
        else:
            self.cell = nn.RNNCell(2, 32)
        nn.init.orthogonal_(self.step.weight if by_hand else self.cell.weight_hh, gain)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 32)
        for part in x.view(len(x), 8, 2).unbind(1):
            if self.by_hand == "matrices":
                state = torch.tanh(part @ self.read.weight.t() + state @ self.step.weight + self.read.bias)
            else:
                state = (self.read(part) + self.step(state)).tanh() if self.by_hand else self.cell(part, state)
        return self.head(state)


@pytest.mark.parametrize("by_hand", ["", "layers", "matrices"])
@pytest.mark.parametrize(("gain", "rules"), [(6.0, ["bad_gain"]), (1.0, [])])
def test_a_recurrent_gain_that_saturates_the_state_is_found(gain: float, rules: list[str], by_hand: str) -> None:
    assert [rule for rule in alarms(Unrolled(gain, by_hand=by_hand)) if rule == "bad_gain"] == rules


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda p: nn.init.normal_(p, 0, 0.1), ["bad_gain"]),
        (lambda p: nn.init.normal_(p, 1, 0.1), []),
        (lambda p: nn.init.normal_(p, 0.1, 0.1) if p.ndim == 1 else p, []),  # RepVGG
        (lambda p: nn.init.normal_(p, 0, 0.1) if p.ndim > 1 else p, []),
    ],
)
def test_gains_of_norms_are_not_to_be_drawn_about_zero(draw, said: list[str]) -> None:
    torch.manual_seed(0)
    blocks = [part for _ in range(3) for part in (nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU())]
    model = nn.Sequential(nn.Linear(16, 64), *blocks, nn.Linear(64, 4))
    for parameter in model.parameters():
        draw(parameter)
    assert [rule for rule in alarms(model, steps=1) if rule == "bad_gain"] == said
