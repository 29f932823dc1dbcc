"""Held-out healthy cases: equations, operators and dynamics."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import rng, split, standardise
from tests.zoo.nets import MSE, adam, mlp
from tests.zoo.opened.healthy_c1 import warm_cosine


def slope(u: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(u.sum(), x, create_graph=True)[0]


class Collocated(Supervised):
    """Trains on how far the equation is from holding at the points; the solution is only looked at to validate."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        x = batch[0].clone().requires_grad_()
        loss = self.residual(self.model(x), x)
        self.log("train_loss", loss)
        return loss

    def residual(self, u: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class Relaxing(Collocated):
    """u' = -u + sin 3t and u(0) = 1, t running from 0 to 4 as the input runs from -1 to 1."""

    def residual(self, u: Tensor, x: Tensor) -> Tensor:
        t = 2 * (x + 1)
        equation = slope(u, x) / 2 + u - (3 * t).sin()
        return equation.square().mean() + 10 * (self.model(-torch.ones(1, 1)) - 1).square().mean()


@healthy("wrong_loss", "wrong_hidden_activation", source="Raissi 2019: a physics-informed network that never sees a target")
def h_relaxing_equation_uc(seed: int) -> Case:
    x = 2 * torch.rand(1200, 1, generator=rng(760, seed)) - 1
    t = 2 * (x + 1)
    exact = 1.3 * (-t).exp() + ((3 * t).sin() - 3 * (3 * t).cos()) / 10
    return Case(
        seed=seed, model=mlp([1, 32, 32, 1], act=nn.Tanh), data=split(x, exact), module=Relaxing, optimizer=adam(1e-2),
        scheduler=warm_cosine(20, 800), batch_size=64, max_steps=800, **MSE,
    )  # fmt: skip


class Pinned(nn.Module):
    """A network times something that vanishes at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp([1, 32, 32, 1], act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return (1 - x.square()) * self.body(2 * x)


class Ritz(Collocated):
    """The energy whose minimum solves -u'' = f."""

    def residual(self, u: Tensor, x: Tensor) -> Tensor:
        force = math.pi**2 * ((math.pi * x).sin() + 0.5 * 2.25 * (1.5 * math.pi * x).cos())
        return (0.5 * slope(u, x).square() - force * u).mean()


@healthy("loss_sign", "wrong_loss", source="E 2018: deep Ritz method, the loss is an energy below zero")
def h_least_energy_uc(seed: int) -> Case:
    x = 2 * torch.rand(1200, 1, generator=rng(761, seed)) - 1
    exact = (math.pi * x).sin() + 0.5 * (1.5 * math.pi * x).cos()
    return Case(
        seed=seed, model=Pinned(), data=split(x, exact), module=Ritz, optimizer=adam(5e-3), scheduler=warm_cosine(10, 300),
        batch_size=100, max_steps=300, **MSE,
    )  # fmt: skip


class Sine(nn.Linear):
    """A linear layer and a fast sine, initialised so that each layer sees the same spread."""

    def __init__(self, a: int, b: int, rate: float, first: bool = False) -> None:
        super().__init__(a, b)
        self.rate = rate
        bound = 1 / a if first else math.sqrt(6 / a) / rate
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return (self.rate * super().forward(x)).sin()


@healthy("wrong_hidden_activation", "bad_gain", "init_vanishing", source="Sitzmann 2020: SIREN, sines of 30 x")
def h_fast_sines_uc(seed: int) -> Case:
    g = rng(762, seed)
    x = 2 * torch.rand(2400, 1, generator=g) - 1
    y = (20 * x).sin() + 0.5 * (31 * x + 1).cos() + x
    last = nn.Linear(48, 1)
    nn.init.uniform_(last.weight, -math.sqrt(6 / 48) / 30, math.sqrt(6 / 48) / 30)
    return Case(
        seed=seed, model=nn.Sequential(Sine(1, 48, 30.0, True), Sine(48, 48, 30.0), last), data=split(x, standardise(y)),
        optimizer=adam(1e-3), batch_size=64, max_steps=300, **MSE,
    )  # fmt: skip


def smooth(seed: int, n: int, points: int, waves: int = 4) -> Tensor:
    """Random periodic functions on a grid."""
    g, at = rng(764, seed), 2 * math.pi * torch.arange(points) / points
    k = torch.arange(1, waves + 1)
    size, phase = torch.randn(n, waves, 1, generator=g) / k[:, None], 6.3 * torch.rand(n, waves, 1, generator=g)
    return (size * (k[:, None] * at + phase).sin()).sum(1)


class BranchAndTrunk(nn.Module):
    """The scalar product of what is known of the function and of the place."""

    def __init__(self, sensors: int, width: int = 48) -> None:
        super().__init__()
        self.branch, self.trunk = mlp([sensors, width, width], act=nn.GELU), mlp([1, width, width], act=nn.GELU)
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, function: Tensor, place: Tensor) -> Tensor:
        return (self.branch(function) * F.gelu(self.trunk(place))).sum(1, keepdim=True) / 7 + self.shift


@healthy(source="Lu 2021: DeepONet learns to integrate, an everyday operator")
def h_branch_and_trunk_uc(seed: int) -> Case:
    f = smooth(seed, 3000, 32)
    where = torch.randint(32, (3000,), generator=rng(765, seed))
    y = (f.cumsum(1) - f.cumsum(1).mean(1, keepdim=True))[torch.arange(3000), where]
    place = (where.float() - 15.5)[:, None] / 9.2
    return Case(
        seed=seed, model=BranchAndTrunk(32), data=split(standardise(f, None), place, standardise(y)[:, None]),
        optimizer=adam(2e-3), batch_size=64, max_steps=350, **MSE,
    )  # fmt: skip


class Spectral(nn.Module):
    """A complex weight for each low frequency, next to a pointwise convolution."""

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat) / width)
        self.pointwise, self.modes = nn.Conv1d(width, width, 1), modes

    def forward(self, x: Tensor) -> Tensor:
        low = torch.einsum("nik,iok->nok", torch.fft.rfft(x)[..., : self.modes], self.weight)
        return F.gelu(torch.fft.irfft(F.pad(low, (0, x.shape[2] // 2 + 1 - self.modes)), n=x.shape[2]) + self.pointwise(x))


@healthy("init_vanishing", source="Li 2021: Fourier neural operator, complex parameters")
def h_fourier_operator_uc(seed: int) -> Case:
    f = standardise(smooth(seed, 1200, 32), None)
    spectrum, k = torch.fft.rfft(f + 0.4 * f.square()), torch.arange(17)
    y = torch.fft.irfft(spectrum * (-0.04 * k.square()).exp() * torch.polar(torch.ones(17), 0.7 * k), n=32)
    model = nn.Sequential(nn.Conv1d(1, 16, 1), Spectral(16, 8), Spectral(16, 8), nn.Conv1d(16, 1, 1))
    return Case(
        seed=seed,
        model=model,
        data=split(f[:, None], standardise(y, None)[:, None]),
        optimizer=adam(3e-3),
        max_steps=250,
        **MSE,
    )


def pushed(x: Tensor) -> Tensor:
    """A pendulum with friction: angle and speed."""
    return torch.stack([x[:, 1], -1.5 * x[:, 0].sin() - 0.15 * x[:, 1]], 1)


class Hamiltonian(nn.Module):
    """The motion that a learnt energy implies."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            by_q, by_p = slope(self.energy(x), x).split(1, 1)
        return torch.cat([by_p, -by_q], 1)


@healthy("wrong_hidden_activation", "saturation", source="Greydanus 2019: Hamiltonian network, its output is a gradient")
def h_hidden_energy_uc(seed: int) -> Case:
    g = rng(767, seed)
    x = torch.stack([2.5 * (2 * torch.rand(1500, generator=g) - 1), 1.2 * torch.randn(1500, generator=g)], 1)
    y = torch.stack([x[:, 1], -1.5 * x[:, 0].sin()], 1) + 0.1 * torch.randn(1500, 2, generator=g)
    return Case(
        seed=seed, model=Hamiltonian(), data=split(x, y), optimizer=adam(3e-3), max_steps=300,
        trainer={"inference_mode": False}, **MSE,
    )  # fmt: skip


class Library(nn.Module):
    """A sparse sum of given terms."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Linear(9, 2, bias=False)
        nn.init.zeros_(self.weights.weight)

    def forward(self, x: Tensor) -> Tensor:
        q, p = x.unbind(1)
        terms = [q, p, q.square() - 1, q * p, p.square() - 1, q**3 / 3, p * q.square(), q.sin(), q.cos()]
        return self.weights(torch.stack(terms, 1))


class Sparse(Supervised):
    """Squared error and the sum of absolute weights."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        x, y = batch
        return self.loss_fn(self(x), y) + 0.01 * self.model.weights.weight.abs().sum()


@healthy("missing_activation", "init_symmetry", source="Brunton 2016: SINDy by gradient descent, linear in a library of terms")
def h_library_of_terms_uc(seed: int) -> Case:
    g = rng(768, seed)
    x = torch.randn(1500, 2, generator=g)
    return Case(
        seed=seed, model=Library(), data=split(x, pushed(x) + 0.1 * torch.randn(1500, 2, generator=g)), module=Sparse,
        optimizer=adam(1e-2), max_steps=300, **MSE,
    )  # fmt: skip
