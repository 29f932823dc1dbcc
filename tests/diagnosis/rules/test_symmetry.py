"""Units, factors and tables that start alike: which stay so, and which do not."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_training.diagnosis.evidence import collect
from lit_training.tracing.probe import Probe
from tests.diagnosis.rules.looking import alarms, fill, mlp, numbers


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_equal_units_stay_equal(value: float) -> None:
    assert alarms(fill(mlp(16, 64, 64, 4), lambda w: nn.init.constant_(w, value)))[0] == "init_symmetry"


class Ratings(nn.Module):
    """The product of two tables' rows, as recommenders have it; the last two inputs are codes."""

    def __init__(self, fill: Callable[[Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.users, self.items = nn.Embedding(8, 6), nn.Embedding(8, 6)
        fill(self.users.weight)
        fill(self.items.weight)

    def forward(self, x: Tensor) -> Tensor:
        codes = (x[:, :2] * 2 + 4).long().clamp(0, 7)
        return (self.users(codes[:, 0]) * self.items(codes[:, 1])).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("fill", "rules"),
    [
        (lambda w: nn.init.constant_(w, 0.3), ["init_symmetry"]),
        (lambda w: nn.init.normal_(w, std=0.3), []),
        (lambda w: w.data.copy_(torch.linspace(0.1, 0.6, 6).expand(8, 6)), []),  # rows start equal, factors do not
    ],
)
def test_factors_that_start_equal_stay_equal(fill: Callable[[Tensor], object], rules: list[str]) -> None:
    assert [rule for rule in alarms(Ratings(fill), numbers(), F.mse_loss) if rule == "init_symmetry"] == rules


class ZeroEnds(nn.Module):
    """A residual net as Fixup starts it: the last layer of each branch is zero, and so is the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
        self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 32)
        for layer in (self.last, self.head):
            nn.init.zeros_(layer.weight)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.last(torch.relu(self.first(x))))


class Factors(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 8, bias=False), nn.Linear(16, 8, bias=False)
        for layer in (self.a, self.b):
            nn.init.normal_(layer.weight, std=value)

    def forward(self, x):
        return (self.a(x) * self.b(x)).sum(1, keepdim=True)


def test_zero_ends_are_silent_and_zeros_that_nothing_moves_are_not() -> None:
    assert alarms(ZeroEnds()) == []
    assert alarms(Factors(0.0), numbers(), torch.nn.functional.mse_loss)[0] == "init_symmetry"
    assert alarms(Factors(0.1), numbers(), torch.nn.functional.mse_loss) == []


class Tagger(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], value: float | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = kind(4, 16, batch_first=True), nn.Linear(16, 4)
        for parameter in self.parameters():
            if value is not None:
                nn.init.constant_(parameter, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.view(-1, 4, 4))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_of_constant_weights_is_symmetric(kind: type[nn.RNNBase]) -> None:
    assert alarms(Tagger(kind, 0.1), steps=1)[0] == "init_symmetry"
    assert alarms(Tagger(kind, None), steps=1) == []


@pytest.mark.parametrize(("dtype", "equal"), [(torch.float32, False), (torch.bfloat16, True)])
def test_gradients_are_equal_up_to_the_rounding_of_what_layers_compute_with(dtype: torch.dtype, equal: bool) -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    nn.init.ones_(net[0].weight)
    with Probe(net, batch_size=8) as probe, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        net(torch.randn(8, 4))
    net[0].weight.grad = torch.ones(3, 4) + torch.tensor([0.0, 0.002, 0.005])[:, None]
    assert collect(probe).parameters["0.weight"].equal_gradients == equal
