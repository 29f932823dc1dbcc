"""Dead and saturated units, gates that are stuck."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.diagnosis.rules.looking import alarms, fill, findings, mlp, vectors


def test_negative_weights_on_positive_inputs_are_dead() -> None:
    x, y = vectors()
    model = mlp(16, 64, 64, 4)
    with torch.no_grad():
        model[0].weight.abs_().neg_()
        model[0].bias.zero_()
    found = findings(model, (x.abs(), y))
    assert (found[0].rule, found[0].where) == ("dead_relu", "0")
    assert "100% of the 64 units" in found[0].message


def test_some_dead_units_small_layers_and_single_samples_are_silent() -> None:
    model = mlp(16, 64, 64, 4)
    model[0].bias.data[:30] = -20.0
    assert alarms(model) == []
    small = mlp(16, 64, 4, 64, 4)
    assert alarms(small) == []
    x, y = vectors(1)
    assert alarms(mlp(16, 64, 4), (x, y)) == []


def test_saturated_units_are_found() -> None:
    model = mlp(16, 64, 64, 4, act=nn.Tanh)
    with torch.no_grad():
        model[0].weight.mul_(15)
    found = findings(model)
    assert (found[0].rule, found[0].where) == ("saturation", "0")


class Speaker(nn.Module):
    """Words through a recurrent layer."""

    def __init__(self, kind: Callable[..., nn.Module], factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.rnn, self.head = nn.Embedding(50, 24), kind(24, 32, 2, batch_first=True), nn.Linear(32, 4)
        with torch.no_grad():
            for name, weight in self.rnn.named_parameters():
                if "weight" in name:
                    weight.mul_(factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.words(x))[0][:, -1])


def spoken() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randint(50, (32, 12), generator=g), torch.randint(4, (32,), generator=g)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("factor", "said"), [(1.0, []), (10.0, ["saturation"])])
def test_gates_that_are_stuck_are_found(kind: Callable[..., nn.Module], factor: float, said: list[str]) -> None:
    found = [f for f in findings(Speaker(kind, factor), spoken()) if f.severity != "note"]
    assert [f.rule for f in found] == said
    assert all(f.where == "rnn" for f in found)


def test_a_trained_recurrent_layer_decides() -> None:
    model = Speaker(nn.LSTM, 10.0)
    with torch.no_grad():
        for weight in (model.rnn.weight_ih_l0, model.rnn.weight_hh_l0):
            weight.add_(5 * torch.ones(len(weight), 1) @ torch.ones(1, weight.shape[1]) / weight.shape[1] ** 0.5)
    assert "saturation" not in alarms(model, spoken())


@pytest.mark.parametrize("gain", [1.0, 5 / 3, 2.0])
def test_tanh_nets_that_are_scaled_right_are_silent(gain: float) -> None:
    assert alarms(fill(mlp(16, 64, 64, 64, 4, act=nn.Tanh), lambda w: nn.init.xavier_normal_(w, gain=gain))) == []
