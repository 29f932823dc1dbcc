"""Biases that silence or decide a layer."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.diagnosis.rules.looking import adam, alarms, findings, mlp, vectors


def test_biases_that_silence_a_layer_are_named() -> None:
    model = mlp(16, 64, 64, 4)
    nn.init.constant_(model[0].bias, -5.0)
    found = findings(model)
    assert (found[0].rule, found[0].where) == ("dead_relu", "0")
    assert "0.bias" in found[0].message
    assert "bad_bias_init" not in {f.rule for f in found}


def test_biases_that_saturate_a_layer_are_the_cause() -> None:
    model = mlp(16, 64, 64, 4, act=nn.Tanh)
    nn.init.constant_(model[0].bias, -8.0)
    found = findings(model)
    assert (found[0].rule, found[0].where) == ("bad_bias_init", "0.bias")
    assert {f.rule for f in found if f.caused_by is found[0]} >= {"saturation"}


def test_a_shifted_batch_norm_is_named() -> None:
    model = nn.Sequential(nn.Linear(16, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))
    nn.init.constant_(model[1].bias, -6.0)
    found = findings(model)
    assert (found[0].rule, found[0].where) == ("dead_relu", "0")
    assert "1.bias" in found[0].message


@pytest.mark.parametrize("loss", [F.cross_entropy, lambda z, y: F.binary_cross_entropy_with_logits(z, F.one_hot(y, 4).float())])
def test_a_head_that_is_certain_is_found(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = mlp(16, 64, 4)
    model[-1].bias.data = torch.tensor([0.0, 40.0, -40.0, 20.0])
    assert alarms(model, loss=loss, steps=1)[0] == "bad_bias_init"


def poisson(output: Tensor, target: Tensor) -> Tensor:
    return (output.exp() - target * output).mean()


@pytest.mark.parametrize(("bias", "rules"), [(14.0, ["bad_bias_init"]), (math.log(14.0), [])])
def test_a_mean_in_the_bias_in_front_of_an_exponential_is_found(bias: float, rules: list[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 16)
    model = mlp(16, 64, 1)
    nn.init.constant_(model[-1].bias, bias)
    found = findings(model, (x, torch.poisson(14 * (0.3 * x[:, :1]).exp())), poisson)
    assert [f.rule for f in found if f.severity != "note"][:1] == rules


@pytest.mark.parametrize(("bias", "said"), [(4.6, ["bad_bias_init"]), (3.2, ["bad_bias_init"]), (-4.6, []), (1.0, [])])
def test_a_prior_with_its_sign_turned_is_found(bias: float, said: list[str]) -> None:
    """Focal loss of rare positives, as detectors have it."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 16), (torch.rand(32, 40) < 0.03).float()
    model = mlp(16, 64, 40)
    nn.init.normal_(model[-1].weight, std=0.01)
    nn.init.constant_(model[-1].bias, bias)

    def focal(output: Tensor, target: Tensor) -> Tensor:
        p = output.sigmoid().clamp(1e-6, 1 - 1e-6)
        return -(target * (1 - p) ** 2 * p.log() + (1 - target) * p**2 * (1 - p).log()).mean()

    assert [rule for rule in alarms(model, (x, y), focal, optimizer=adam) if rule == "bad_bias_init"] == said


def test_a_prior_in_the_bias_is_silent() -> None:
    x, _ = vectors()
    y = (torch.arange(32) == 0).long()
    model = mlp(16, 64, 2)
    model[-1].bias.data = torch.tensor([0.97, 0.03]).log()
    assert alarms(model, (x, y)) == []


class Recurrent(nn.Module):
    def __init__(self, forget: float, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = kind(4, 32, batch_first=True), nn.Linear(32, 4)
        for bias in (self.rnn.bias_ih_l0, self.rnn.bias_hh_l0):
            bias.data[32:64] = forget / 2

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.unflatten(1, (4, 4)))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(("forget", "said"), [(-12.0, ["bad_bias_init"]), (-1.9, ["bad_bias_init"]), (1.0, []), (-1.0, [])])
def test_closed_gates_of_the_memory_are_found(forget: float, said: list[str], kind: type[nn.RNNBase]) -> None:
    assert alarms(Recurrent(forget, kind)) == said


@pytest.mark.parametrize(("bias", "said"), [(0.0, []), (40.0, ["bad_bias_init"])])
def test_a_bias_that_is_certain_leaves_no_gradient_and_is_the_cause(bias: float, said: list[str]) -> None:
    model, (x, y) = mlp(16, 32, 1), vectors(classes=2)
    with torch.no_grad():
        model[-1].bias.fill_(bias)
    assert alarms(model, (x, y.float()[:, None]), F.binary_cross_entropy_with_logits) == said
