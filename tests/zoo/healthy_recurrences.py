"""Healthy: recurrences written out step by step, and what only looks like a cut or a forgetful one."""

import torch
from torch import Tensor, nn

from tests.zoo import data, more_data
from tests.zoo.case import Case, healthy
from tests.zoo.nets import CE, adam, normal


class Cells(nn.Module):
    """An LSTM cell in a loop, its last state read; the state is detached before every `cut`-th step, never for 0."""

    def __init__(self, cut: int = 0, units: int = 24) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(2, units), nn.Linear(units, 2)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), self.cell.hidden_size)
        for t, now in enumerate(x.unbind(1)):
            if self.cut and t % self.cut == 0:
                h, c = h.detach(), c.detach()
            h, c = self.cell(now, (h, c))
        return self.head(h)


@healthy("detached_subgraph", "bad_gain", source="an LSTM cell in a loop that has to remember the first step")
def h_memory_cells(seed: int) -> Case:
    return Case(seed=seed, model=Cells(), data=more_data.openings(seed), optimizer=adam(8e-3), max_steps=250, **CE)


@healthy("detached_subgraph", source="Williams and Peng 1990: gradients go back four steps, enough for what is new at the end")
def h_truncated_steps(seed: int) -> Case:
    x = [torch.utils.data.TensorDataset(d.tensors[0].flip(1), d.tensors[1]) for d in more_data.openings(seed)]
    return Case(seed=seed, model=Cells(cut=4), data=(x[0], x[1]), optimizer=adam(5e-3), max_steps=150, **CE)


class Matrices(nn.Module):
    """A tanh recurrence of plain matrices; `leak` is the part of the state that passes unchanged, `per_step` reads every state."""

    def __init__(self, features: int = 2, outputs: int = 2, leak: float = 0.0, per_step: bool = False, units: int = 32) -> None:
        super().__init__()
        self.into = nn.Parameter(torch.randn(features, units) * features**-0.5)
        self.turn = nn.Parameter(nn.init.orthogonal_(torch.empty(units, units)))
        self.bias, self.head = nn.Parameter(torch.zeros(units)), nn.Linear(units, outputs)
        self.leak, self.per_step = leak, per_step

    def forward(self, x: Tensor) -> Tensor:
        state, states = x.new_zeros(len(x), len(self.turn)), []
        for t in range(x.shape[1]):
            new = torch.tanh(x[:, t] @ self.into + state @ self.turn + self.bias)
            state = self.leak * state + (1 - self.leak) * new
            states.append(state)
        return self.head(torch.stack(states, 1)).transpose(1, 2) if self.per_step else self.head(state)


@healthy("bad_gain", "init_vanishing", source="Saxe et al. 2014: orthogonal recurrent weights, matrices by hand")
def h_order_by_hand(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Matrices(),
        data=more_data.openings(seed, length=18),
        optimizer=adam(2e-3),
        max_steps=350,
        trainer={"gradient_clip_val": 1.0},
        **CE,
    )


@healthy(
    "bad_gain",
    "init_vanishing",
    source="Jaeger et al. 2007: a leaky integrator keeps its state, small recurrent weights or not",
)
def h_leaky_integrator(seed: int) -> Case:
    model = Matrices(3, 4, leak=0.9)
    normal(0.01)(model.turn)
    return Case(seed=seed, model=model, data=data.walks(seed), optimizer=adam(5e-3), **CE)


@healthy("bad_gain", "init_vanishing", source="Zhang et al. 2023, section 9.5: N(0, .01) everywhere, a loss at every step")
def h_tiny_rnn_language(seed: int) -> Case:
    model = Matrices(12, 12, per_step=True)
    for p in (model.into, model.turn):
        normal(0.01)(p)
    net = nn.Sequential(nn.Embedding.from_pretrained(torch.eye(12)), model)
    return Case(
        seed=seed, model=net, data=data.next_token(seed), optimizer=adam(1e-2), max_steps=250, frozen=["model.0.weight"], **CE
    )


class Recycling(nn.Module):
    """Jumper et al. 2021, section 1.10: what the last pass made goes in again beside the same input, without gradients."""

    def __init__(self, passes: int = 5) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5 + 24, 24), nn.Linear(24, 3)
        self.passes = passes

    def forward(self, x: Tensor) -> Tensor:
        made = x.new_zeros(len(x), 24)
        for _ in range(self.passes):
            made = torch.relu(self.body(torch.cat([x, made.detach()], 1)))
        return self.head(made)


@healthy("detached_subgraph", source="Jumper et al. 2021: recycling, only the last pass has gradients")
def h_refined_recycling(seed: int) -> Case:
    return Case(seed=seed, model=Recycling(), data=more_data.arcs(seed), optimizer=adam(8e-3), max_steps=250, **CE)
