"""Recurrences that a forward writes out: which of their steps learn, and what is none."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_training.diagnosis.evidence import collect
from lit_training.diagnosis.rules.detached import detached_subgraph
from lit_training.tracing.probe import Probe
from tests.diagnosis.rules.looking import alarms, findings

CLASSES, FEATURES, STEPS, UNITS = 4, 3, 12, 16
GENERATOR = torch.Generator().manual_seed(0)
SEQUENCES = torch.randn(32, STEPS, FEATURES, generator=GENERATOR), torch.arange(32) % CLASSES


# ------------------------------------------------------------------------------------------ cut off at each step
class Stepped(nn.Module):
    """A cell in a loop, what is cut off of its state before each step, and what comes in at each."""

    def __init__(self, cell: str = "GRUCell", cut: str = "all", reads: str = "steps") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.reads = cut, reads
        self.joined = nn.Linear(FEATURES + UNITS, UNITS)
        self.cell = getattr(nn, cell)(FEATURES, UNITS) if cell else None
        self.head = nn.Linear(UNITS, CLASSES)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.cell is None:
            return (torch.tanh(self.joined(torch.cat([x, state[0]], 1))),)
        new = self.cell(x, state if isinstance(self.cell, nn.LSTMCell) else state[0])
        return new if isinstance(new, tuple) else (new,)

    def forward(self, x: Tensor) -> Tensor:
        state: tuple[Tensor, ...] = (x.new_zeros(len(x), UNITS),) * 2
        if self.reads == "first":
            state = (F.pad(x[:, 0], (0, UNITS - FEATURES)),) * 2
        outputs = []
        for t in range(x.shape[1]):
            if self.cut == "all" or (self.cut == "every third" and t % 3 == 0):
                state = tuple(part.detach() for part in state)
            elif self.cut == "one part":
                state = (state[0].detach(), *state[1:])
            with torch.set_grad_enabled(self.cut != "no_grad" or t == STEPS - 1):
                state = self.step(x[:, 0 if self.reads == "first" else t], state)
            outputs.append(self.head(state[0]))
        return torch.stack(outputs).mean(0) if self.cut == "loss at each" else outputs[-1]


@pytest.mark.parametrize("cell", ["GRUCell", "LSTMCell", "RNNCell", ""])
def test_a_state_that_is_cut_off_at_every_step_is_found(cell: str) -> None:
    assert "detached_subgraph" in alarms(Stepped(cell), SEQUENCES)


@pytest.mark.parametrize("cut", ["", "every third", "no_grad", "loss at each"])
def test_truncation_after_more_steps_or_with_a_loss_at_each_is_silent(cut: str) -> None:
    assert "detached_subgraph" not in alarms(Stepped(cut=cut), SEQUENCES)


def test_a_cell_whose_other_state_goes_on_is_silent() -> None:
    assert "detached_subgraph" not in alarms(Stepped("LSTMCell", "one part"), SEQUENCES)


def test_recycling_on_the_same_input_is_no_recurrence() -> None:
    assert "detached_subgraph" not in alarms(Stepped("", reads="first"), SEQUENCES)


class Rollout(nn.Module):
    """Brandstetter et al. 2022: pushed forward from a given state under known forcing, only the last step learns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step = nn.Linear(FEATURES + CLASSES, CLASSES)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        state, forcing = batch
        for t in range(STEPS):
            state = state.detach() + self.step(torch.cat([state.detach(), forcing[:, t]], 1))
        return state


def test_a_rollout_from_a_given_state_is_silent() -> None:
    batch = torch.randn(32, CLASSES), SEQUENCES[0]
    model = Rollout()
    with Probe(model, 32, batch) as probe:
        loss = model(batch).square().mean()
        probe.differentiate(loss)
        loss.backward()
    assert detached_subgraph(collect(probe, loss=loss)) == []


# ------------------------------------------------------------------------------------------ forgetting
class Vanilla(nn.Module):
    """A recurrent net of matrices."""

    def __init__(self, fill: Callable[[Tensor], object], read: str = "last", units: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.turn = nn.Parameter(torch.randn(FEATURES, units)), nn.Parameter(torch.empty(units, units))
        self.head, self.read = nn.Linear(units, CLASSES), read
        fill(self.turn)

    def forward(self, x: Tensor) -> Tensor:
        state, states = x.new_zeros(len(x), len(self.turn)), []
        for t in range(x.shape[1]):
            turned = state @ self.turn
            new = torch.tanh(x[:, 0 if self.read == "same" else t] @ self.into + turned)
            state = 0.5 * state + 0.5 * new if self.read == "leaky" else new
            states.append(state)
        return self.head(torch.stack(states).mean(0) if self.read == "mean" else state)


def small(weight: Tensor) -> Tensor:
    return nn.init.normal_(weight, std=0.01)


def default(weight: Tensor) -> Tensor:
    return nn.init.uniform_(weight, -(len(weight) ** -0.5), len(weight) ** -0.5)


def test_recurrent_weights_that_let_the_state_vanish_are_found() -> None:
    found = [f for f in findings(Vanilla(small), SEQUENCES) if f.severity != "note"]
    assert [(f.rule, f.where) for f in found] == [("bad_gain", "turn")]
    assert found[0].evidence["gain"] == pytest.approx(0.01 * 32**0.5, rel=0.1)


@pytest.mark.parametrize("fill", [default, nn.init.orthogonal_, nn.init.xavier_normal_])
def test_usual_recurrent_weights_are_silent(fill: Callable[[Tensor], object]) -> None:
    assert "bad_gain" not in alarms(Vanilla(fill), SEQUENCES)


@pytest.mark.parametrize(
    "net", [Vanilla(small, "mean"), Vanilla(small, "leaky"), Vanilla(small, "same"), Vanilla(small, units=256)]
)
def test_small_weights_are_silent_where_gradients_arrive_otherwise_or_nothing_new_comes_in(net: nn.Module) -> None:
    assert "bad_gain" not in alarms(net, SEQUENCES)


@pytest.mark.parametrize(("kind", "told"), [(nn.RNN, True), (nn.GRU, False), (nn.LSTM, False)])
def test_small_weights_of_torch_layers_are_found_unless_gates_keep_the_state(kind: type[nn.RNNBase], told: bool) -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([kind(FEATURES, 32, batch_first=True), nn.Linear(32, CLASSES)])
    nn.init.normal_(net[0].weight_hh_l0, std=0.01)
    net.forward = lambda x: net[1](net[0](x)[0][:, -1])  # type: ignore[method-assign]
    assert ("bad_gain" in alarms(net, SEQUENCES)) == told
