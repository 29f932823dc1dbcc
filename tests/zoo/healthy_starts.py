"""Healthy: unusual first steps: sparse or constant inputs, gates nearly shut, heads of zeros, linear on purpose."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, healthy
from tests.zoo.nets import CE, MSE, adam, he, init_weights, lecun, mlp


def bags(seed: int, n: int = 1536, vocabulary: int = 6000, topical: int = 40) -> data.Split:
    """Bags of ten words `[n, vocabulary]`: the class is that of most words; few of all words ever occur."""
    g = data.rng(90, seed)
    classes, word = torch.randint(4, (topical,), generator=g), torch.randint(topical, (n, 10), generator=g)
    x = torch.zeros(n, vocabulary).scatter_(1, word * (vocabulary // topical), 1.0)
    return data.split(x, F.one_hot(classes[word], 4).sum(1).argmax(1))


@healthy("init_exploding", source="bag of words over a large vocabulary: hardly any input varies within a batch")
def h_bag_of_words(seed: int) -> Case:
    return Case(seed=seed, model=init_weights(mlp([6000, 64, 4]), he), data=bags(seed), optimizer=adam(3e-3), **CE)


class OperatorNetwork(nn.Module):
    """The product of what a branch makes of a function's values and a trunk of the places where the answer is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.trunk = mlp([20, 64, 32], nn.Tanh), mlp([1, 64, 32], nn.Tanh)

    def forward(self, function: Tensor, places: Tensor) -> Tensor:
        return torch.einsum("bk,bpk->bp", self.branch(function), self.trunk(places))


@healthy("init_vanishing", source="Lu et al. 2021 (DeepONet): the integral of a function, on one grid for all samples")
def h_operator_network(seed: int) -> Case:
    g, n = data.rng(91, seed), 1024
    amplitude, order, place = torch.randn(n, 4, 1, generator=g), torch.arange(1, 5)[:, None], torch.linspace(0, 1, 20)
    function = (amplitude * (math.pi * order * place).sin()).sum(1)
    integral = (amplitude * (1 - (math.pi * order * place).cos()) / order).sum(1)
    tensors = data.standardise(function, None), place[None, :, None].repeat(n, 1, 1), data.standardise(integral, None)
    return Case(seed=seed, model=OperatorNetwork(), data=data.split(*tensors), optimizer=adam(3e-3), max_steps=300, **MSE)


class Gated(nn.Module):
    """Residual branches behind gates that start nearly shut."""

    def __init__(self, bias: float = -5.0) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 64), nn.Linear(64, 4)
        self.branches = nn.ModuleList(mlp([64, 64, 64]) for _ in range(3))
        self.gates = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        for gate in self.gates:
            nn.init.constant_(gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for branch, gate in zip(self.branches, self.gates, strict=True):
            x = x + gate(x).sigmoid() * branch(x)
        return self.head(x.relu())


@healthy("bad_bias_init", "saturation", source="Srivastava et al. 2015: gates that open slowly, at -5")
def h_gates_nearly_shut(seed: int) -> Case:
    return Case(seed=seed, model=Gated(), data=data.blobs(seed), optimizer=adam(5e-3), **CE)


@healthy("saturation", source="hard tanh with bounds of its own: at 5, not at 1")
def h_clipped_at_five(seed: int) -> Case:
    model = init_weights(mlp([8, 64, 64, 4], lambda: nn.Hardtanh(-5, 5)), lecun)
    return Case(
        seed=seed,
        model=model,
        data=data.replace(data.blobs(seed), 0, lambda x: 2.5 * x),
        optimizer=adam(5e-3),
        max_steps=300,
        **CE,
    )


class LinearSystem(nn.Module):
    """`h' = A h + B u`, read out by C."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6, bias=False), nn.Linear(2, 6, bias=False), nn.Linear(6, 1, bias=False)
        nn.init.orthogonal_(self.a.weight, 0.9)

    def forward(self, u: Tensor) -> Tensor:
        state = self.b(u[:, 0])
        for t in range(1, u.shape[1]):
            state = self.a(state) + self.b(u[:, t])
        return self.c(state)


@healthy("missing_activation", source="system identification: a linear state space, unrolled")
def h_linear_system(seed: int) -> Case:
    u = torch.randn(1024, 12, 2, generator=data.rng(92, seed))
    kernel = 0.8 ** torch.arange(11, -1, -1) * (0.9 * torch.arange(12)).cos()
    y = u[..., 0] @ kernel + 0.5 * u[..., 1] @ kernel.flip(0)
    tensors = u, data.standardise(y[:, None])
    return Case(seed=seed, model=LinearSystem(), data=data.split(*tensors), optimizer=adam(1e-2), max_steps=300, **MSE)


class Rounded(nn.Module):
    """Activations in quarters, straight through, in front of a head of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 96), nn.Linear(96, 96), nn.Linear(96, 4)
        self.norms = nn.ModuleList(nn.BatchNorm1d(96) for _ in range(2))
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip((self.first, self.second), self.norms, strict=True):
            x = norm(layer(x)).clamp(-1, 1)
            x = x + ((4 * x).round() / 4 - x).detach()
        return self.head(x)


@healthy(
    "detached_subgraph", "wrong_hidden_activation", source="quantised activations: no gradient gets past a head of zeros yet"
)
def h_rounded_before_zero_head(seed: int) -> Case:
    return Case(seed=seed, model=Rounded(), data=data.blobs(seed), optimizer=adam(1e-2), max_steps=300, **CE)


class SelfConditioned(nn.Module):
    """A sentence classifier whose middle guess at each word goes back into its hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 48)
        self.convs = nn.ModuleList(nn.Conv1d(48, 48, 3, padding=1) for _ in range(2))
        self.guess, self.back, self.head = nn.Linear(48, 30), nn.Linear(30, 48), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.convs[0](self.embed(x).transpose(1, 2)).relu().transpose(1, 2)
        hidden = hidden + self.back(self.guess(hidden).softmax(-1))
        return self.head(self.convs[1](hidden.transpose(1, 2)).relu().mean(2))


@healthy("wrong_hidden_activation", source="Nozaki and Komatsu 2021: self-conditioning, a softmax beside a skip connection")
def h_self_conditioning(seed: int) -> Case:
    return Case(seed=seed, model=SelfConditioned(), data=data.words(seed), optimizer=adam(5e-3), **CE)
