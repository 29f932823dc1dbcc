"""Implicit layers, flows, scores, energies; imitation."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tests.zoo.case import Case, healthy
from tests.zoo.data import blobs, rng, spirals, split
from tests.zoo.metrics import r2
from tests.zoo.nets import CE, MSE, adam, mlp
from tests.zoo.opened.healthy_d1 import SharedStep


# ------------------------------------------------------------------------------------------ implicit, continuous
class Flowing(nn.Module):
    """A neural ODE: eight Runge-Kutta steps of one field in an augmented space."""

    def __init__(self, dim: int = 2, extra: int = 3, classes: int = 2) -> None:
        super().__init__()
        self.extra, self.field, self.head = (
            extra,
            mlp([dim + extra + 1, 32, dim + extra], nn.Tanh),
            nn.Linear(dim + extra, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        z, h = F.pad(x, (0, self.extra)), 1 / 6

        def f(z: Tensor, t: float) -> Tensor:
            return 3 * self.field(F.pad(z, (0, 1), value=t))

        for i in range(6):
            t = i * h
            a = f(z, t)
            b = f(z + h / 2 * a, t + h / 2)
            c = f(z + h / 2 * b, t + h / 2)
            z = z + h / 6 * (a + 2 * b + 2 * c + f(z + h * c, t + h))
        return self.head(z)


@healthy("init_exploding", "wrong_hidden_activation", source="Dupont et al. 2019: an augmented neural ODE, Runge-Kutta by hand")
def h_augmented_flow(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Flowing(),
        data=spirals(seed),
        optimizer=adam(1e-2),
        max_steps=300,
        batch_size=64,
        module=SharedStep,
        **CE,
    )


class Projected(nn.Module):
    """A least-squares layer: coefficients of learnt atoms solve a small ridge system, then are read."""

    def __init__(self, dim: int, outputs: int, atoms: int = 6) -> None:
        super().__init__()
        self.lift, self.atoms = mlp([dim, 32, 16], nn.Tanh), nn.Parameter(torch.randn(16, atoms) / 4)
        self.head = mlp([atoms, 32, outputs])

    def forward(self, x: Tensor) -> Tensor:
        gram = self.atoms.T @ self.atoms + 0.1 * torch.eye(self.atoms.shape[1])
        return self.head(torch.linalg.solve(gram, self.atoms.T @ self.lift(x).T).T)


@healthy("saturation", source="differentiable optimisation: a ridge problem solved inside the forward pass")
def h_solved_inside(seed: int) -> Case:
    return Case(seed=seed, model=Projected(8, 4), data=blobs(seed, per_class=4), optimizer=adam(4e-3), max_steps=300, **CE)


# ------------------------------------------------------------------------------------------ energies, densities
class Coupling(nn.Module):
    def __init__(self, dim: int, flip: bool) -> None:
        super().__init__()
        self.flip, self.net = flip, mlp([dim // 2 + 3, 32, dim], nn.SiLU)
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, 1) if not self.flip else reversed(x.chunk(2, 1))
        scale, shift = self.net(torch.cat([a, kind], 1)).chunk(2, 1)
        b = b * scale.tanh().exp() + shift
        return torch.cat([b, a] if self.flip else [a, b], 1), scale.tanh().sum(1)


class KindFlow(nn.Module):
    """RealNVP given the class: log likelihoods of all classes, so that Bayes' rule tells the class."""

    def __init__(self, dim: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(dim, i % 2 == 1) for i in range(6))

    def forward(self, x: Tensor) -> Tensor:
        each = []
        for k in range(3):
            z, volume = x, 0.0
            for layer in self.layers:
                z, change = layer(z, F.one_hot(torch.full((len(x),), k), 3).float())
                volume = volume + change
            each.append(volume - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1))
        return torch.stack(each, 1)


@healthy(
    "wrong_loss", "loss_sign", source="Dinh et al. 2017: conditional flow by maximum likelihood, zero-initialised couplings"
)
def h_flow_bayes(seed: int) -> Case:
    return Case(
        seed=seed, model=KindFlow(), data=blobs(seed, n=2000, dim=4, classes=3, per_class=2, spread=0.5), metric="accuracy",
        loss=lambda out, y: -out.gather(1, y[:, None]).mean(), optimizer=adam(3e-3), max_steps=200, batch_size=64,
        trainer={"gradient_clip_val": 10.0},
    )  # fmt: skip


class Denoised(LightningModule):
    """Score matching: the noise of a random level is foretold; judged at fixed noise."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net, self.build = case.model, case.optimizer

    def forward(self, seen: Tensor, level: Tensor) -> Tensor:
        return self.net(torch.cat([seen / (1 + level.square()).sqrt(), level.log()], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, noise = batch[0], torch.randn_like(batch[0])
        level = (torch.rand(len(x), 1) * 2.5 - 0.7).exp()
        return F.mse_loss(self(x + level * noise, level), noise)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, level, noise = batch
        guess = self(x + level * noise, level)
        self.log_dict({"val_loss": F.mse_loss(guess, noise), "val_metric": r2(guess, noise)}, batch_size=len(x))

    def configure_optimizers(self) -> Any:
        return self.build(self)


@healthy("labels_broken", "bad_data", source="Ho et al. 2020: denoising of random levels, the target is drawn in the step")
def h_denoised_rings(seed: int) -> Case:
    g = rng(814, seed)
    angle = 2 * math.pi * torch.rand(2400, 1, generator=g)
    x = 1.4 * torch.cat([angle.cos(), angle.sin()], 1) * (1 + 0.03 * torch.randn(2400, 1, generator=g))
    level = (torch.rand(2400, 1, generator=g) * 2.5 - 0.7).exp()
    return Case(
        seed=seed, model=mlp([3, 64, 64, 2], nn.SiLU), data=split(x, level, torch.randn(2400, 2, generator=g)), module=Denoised,
        optimizer=adam(3e-3), max_steps=400, batch_size=64, **MSE,
    )  # fmt: skip


class Energy(nn.Module):
    """How ill an action suits a state; the least energy on a grid is the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp([4, 64, 64, 1], nn.SiLU)
        self.register_buffer("grid", torch.linspace(-1, 1, 41))

    def energies(self, state: Tensor, actions: Tensor) -> Tensor:
        return self.net(torch.cat([state[:, None].expand(-1, actions.shape[1], -1), actions[:, :, None]], 2)).squeeze(2)

    def forward(self, state: Tensor) -> Tensor:
        return self.grid[self.energies(state, self.grid.expand(len(state), -1)).argmin(1)][:, None]


class ImplicitPolicy(LightningModule):
    """Implicit behaviour cloning: the expert's action against others that are drawn, by InfoNCE of energies."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.energy, self.build = case.model, case.optimizer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        state, action = batch
        actions = torch.cat([action, 2 * torch.rand(len(state), 24) - 1], 1)
        return F.cross_entropy(-self.energy.energies(state, actions), torch.zeros(len(state), dtype=torch.long))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        state, action = batch
        chosen = self.energy(state)
        self.log_dict({"val_mse": F.mse_loss(chosen, action), "val_metric": r2(chosen, action)}, batch_size=len(state))

    def configure_optimizers(self) -> Any:
        return self.build(self)


@healthy(
    "wrong_loss",
    "labels_broken",
    source="Florence et al. 2021: implicit behaviour cloning, the right answer is always the first",
)
def h_implicit_policy(seed: int) -> Case:
    g = rng(815, seed)
    state = torch.randn(2000, 3, generator=g)
    action = (state[:, 0] + (2 * state[:, 1]).sin() * 0.7).tanh() * 0.9 + 0.03 * torch.randn(2000, generator=g)
    return Case(
        seed=seed, model=Energy(), data=split(state, action.clamp(-1, 1)[:, None]), module=ImplicitPolicy, optimizer=adam(2e-3),
        max_steps=350, **MSE,
    )  # fmt: skip


@healthy("loss_reduction", source="everyday: an expert's steering is cloned, absolute error, dropout")
def h_cloned_steering(seed: int) -> Case:
    g = rng(816, seed)
    x = torch.randn(2000, 6, generator=g)
    y = (1.2 * x[:, 0] + 0.8 * x[:, 1] * (x[:, 2] > 0) + 0.05 * torch.randn(2000, generator=g)).tanh()
    return Case(
        seed=seed, model=mlp([6, 64, 64, 1], dropout=0.05, last=nn.Tanh()), data=split(x, y[:, None]), loss=F.l1_loss,
        metric="r2", optimizer=adam(2e-3), max_steps=350, batch_size=64,
    )  # fmt: skip
