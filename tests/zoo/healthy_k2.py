"""Healthy: derivatives of points of one's own, likelihoods and depths that fall as outputs rise, schedules on scores."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import TensorDataset

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.nets import BCE, MSE, UNet, adam, mlp


class Outlined(Supervised):
    """Logs the loss of the overlap, 1 - IoU, and lets the rate wait for it to stop falling."""

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("val_iou_loss", overlap_lost(self(batch[0]), batch[1]), batch_size=len(batch[1]))


def overlap_lost(output: Tensor, target: Tensor) -> Tensor:
    p = output.sigmoid()
    both = (p * target).sum((1, 2, 3))
    return (1 - (both + 1) / (p.sum((1, 2, 3)) + target.sum((1, 2, 3)) - both + 1)).mean()


def both_losses(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, target) + overlap_lost(output, target)


def on_plateau(optimizer: Optimizer) -> dict[str, Any]:
    return {"scheduler": ReduceLROnPlateau(optimizer, mode="min", patience=3), "monitor": "val_iou_loss"}


@healthy("lr_schedule", source="ReduceLROnPlateau(mode='min') on val_iou_loss: the overlap that is lost")
def h_overlap_on_plateau(seed: int) -> Case:
    return Case(
        seed=seed, model=UNet(), data=data.masks(seed), optimizer=adam(4e-3), scheduler=on_plateau, module=Outlined,
        max_steps=160, loss=both_losses, metric="jaccard",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ derivatives
class Collocated(Supervised):
    """A few measured points from the loader, and 200 points anywhere at which y'' = -9 y has to hold."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        t, y = batch
        points = (4 * torch.rand(200, 1) - 2).requires_grad_()
        u = self.model(points)
        (speed,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        (force,) = torch.autograd.grad(speed.sum(), points, create_graph=True)
        loss = F.mse_loss(self.model(t), y) + 0.01 * (force + 9 * u).square().mean()
        self.log("train_loss", loss)
        return loss


@healthy(
    "not_in_optimizer", source="a physics-informed network: collocation points drawn in the step, more than there are data"
)
def h_points_of_its_own(seed: int) -> Case:
    g = data.rng(4201, seed)
    t = 4 * torch.rand(360, 1, generator=g) - 2
    y = (3 * t + torch.rand(1, generator=g)).sin() * 1.2
    return Case(
        seed=seed, model=mlp([1, 48, 48, 1], nn.Tanh), data=data.split(t, y), optimizer=adam(5e-3), module=Collocated,
        max_steps=400, **MSE,
    )  # fmt: skip


class Held(Collocated):
    """The same with the condition at the start: y(0) and y'(0) are known."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        t, y = batch
        start = torch.zeros(1, 1, requires_grad=True)
        u = self.model(start)
        (speed,) = torch.autograd.grad(u, start, torch.ones_like(u), create_graph=True)
        loss = F.mse_loss(self.model(t), y) + 0.1 * (u.square().mean() + (speed - 3).square().mean())
        self.log("train_loss", loss)
        return loss


@healthy("not_in_optimizer", source="a physics-informed network: the speed at time 0 is known, and is a derivative there")
def h_known_at_the_start(seed: int) -> Case:
    t = 4 * torch.rand(360, 1, generator=data.rng(4202, seed)) - 2
    return Case(
        seed=seed, model=mlp([1, 48, 48, 1], nn.Tanh), data=data.split(t, (3 * t).sin()), optimizer=adam(5e-3), module=Held,
        max_steps=400, **MSE,
    )  # fmt: skip


class Forces(Supervised):
    """Forces are minus the gradient of the energy at the places of all atoms, molecule behind molecule (SchNet, MACE)."""

    def both(self, places: Tensor, molecule: Tensor, count: int) -> tuple[Tensor, Tensor]:
        places = places.detach().requires_grad_()
        with torch.enable_grad():
            near = (molecule[:, None] == molecule[None]) & ~torch.eye(len(places), dtype=torch.bool)
            i, j = near.nonzero().T
            distance = (places[i] - places[j]).norm(dim=1, keepdim=True)
            pairs = self.model((-(distance - torch.linspace(0.4, 3.0, 12)).square() / 0.1).exp())
            energy = torch.zeros(count, 1).index_add(0, molecule[i], pairs)
            (slope,) = torch.autograd.grad(energy.sum(), places, create_graph=True)
        return energy, -slope

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        places, molecule, forces, energy = batch
        told, pushes = self.both(places, molecule, len(energy))
        loss = F.mse_loss(told, energy) + F.mse_loss(pushes, forces)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        places, molecule, _, energy = batch
        self.log("val_metric", self.metric.score(self.both(places, molecule, len(energy))[0].detach(), energy))


def behind_each_other(samples: list[Any]) -> tuple[Tensor, ...]:
    places, forces, energy = (torch.stack(part) for part in zip(*samples, strict=True))
    molecule = torch.arange(len(places)).repeat_interleave(places.shape[1])
    return places.flatten(0, 1), molecule, forces.flatten(0, 1), energy


@healthy("not_in_optimizer", source="force fields (SchNet, MACE, PyG batches): the atoms of all molecules in one row")
def h_forces_of_molecules(seed: int) -> Case:
    g = data.rng(4203, seed)
    grid = torch.tensor([[0.0, 0, 0], [1.1, 0, 0], [0, 1.1, 0], [0, 0, 1.1]])
    places = (grid + 0.15 * torch.randn(600, 4, 3, generator=g)).requires_grad_()
    gap = (places[:, :, None] - places[:, None] + 1e-9 * torch.randn(4, 4, 3)).norm(dim=3) + 10 * torch.eye(4)
    energy = ((1 - (-1.5 * (gap - 1.3)).exp()).square() * (1 - torch.eye(4))).sum((1, 2))
    (slope,) = torch.autograd.grad(energy.sum(), places)
    scale = energy.std().detach()
    split = data.split(places.detach(), -slope / scale, ((energy - energy.mean()) / scale).detach()[:, None])
    return Case(
        seed=seed, model=mlp([12, 48, 48, 1], nn.SiLU), data=split, optimizer=adam(3e-3), module=Forces, max_steps=300,
        trainer={"inference_mode": False},
        collate=behind_each_other, **MSE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ outputs that fall as targets rise
class MeanWait(nn.Module):
    """Gives the rate of an exponential distribution."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp([6, 64, 64, 1])

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(self.net(x)) + 1e-4


class Waits(Supervised):
    """Minus the log-likelihood of torch.distributions; validated by the mean that the rate tells."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = -torch.distributions.Exponential(self(x)).log_prob(y).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_metric", self.metric.score(-self(x).log(), y.log() + 0.577), batch_size=len(y))


@healthy("loss_sign", source="waiting times: torch.distributions.Exponential(softplus(out) + eps).log_prob(t)")
def h_waits_by_distribution(seed: int) -> Case:
    g = data.rng(4204, seed)
    x = torch.randn(1800, 6, generator=g)
    mean = (1.5 * x[:, :1] + 1.5 * x[:, 1:2] * x[:, 2:3]).exp().clamp(0.02, 50)
    wait = mean * torch.distributions.Exponential(1.0).sample((1800, 1))
    return Case(seed=seed, model=MeanWait(), data=data.split(x, wait), optimizer=adam(3e-3), module=Waits, max_steps=400, **MSE)


class Disparity(nn.Module):
    """Gives one over the depth, positive, as MiDaS, DPT and monodepth do; the depth is what is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return 1 / (0.05 + 2 * self.net(x).sigmoid())


def silog(output: Tensor, target: Tensor) -> Tensor:
    """Eigen et al. 2014, as AdaBins and BTS write it."""
    d = output.log() - target.log()
    return (d.square().mean() - 0.85 * d.mean().square() + 1e-8).sqrt()


def depths(seed: int) -> data.Split:
    """Pictures whose brightness falls with depth; depths of .6 to 8."""
    train, val = data.masks(seed, n=500)

    def seen(part: TensorDataset, kind: int) -> TensorDataset:
        g = data.rng(kind, seed)
        mask = part.tensors[1]
        far, close = 2.5 + 5 * torch.rand(len(mask), 1, 1, 1, generator=g), 0.6 + torch.rand(len(mask), 1, 1, 1, generator=g)
        depth = torch.where(mask > 0.5, close, far)
        return TensorDataset(2 / depth - 1 + 0.1 * torch.randn(depth.shape, generator=g), depth)

    return seen(train, 4205), seen(val, 4206)


@healthy("loss_sign", source="depth from a picture: inverse depth at the end, scale-invariant log loss (BTS, AdaBins, DPT)")
def h_inverse_depth_silog(seed: int) -> Case:
    return Case(seed=seed, model=Disparity(), data=depths(seed), optimizer=adam(4e-3), max_steps=300, loss=silog, metric="r2")


class Absorbance(nn.Module):
    """Beer and Lambert: the network tells how much is absorbed, the light that is left is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp([6, 64, 64, 1])

    def forward(self, x: Tensor) -> Tensor:
        return (-F.softplus(self.net(x))).exp()


def own_mse(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).mean()


@healthy("loss_sign", source="a measured transmission exp(-a(x)), and a mean squared error written out")
def h_light_that_is_left(seed: int) -> Case:
    g = data.rng(4207, seed)
    x = torch.randn(1536, 6, generator=g)
    a = F.softplus(1.5 * x[:, :1] + x[:, 1:2] * x[:, 2:3])
    y = (-a).exp() + 0.02 * torch.randn(1536, 1, generator=g)
    return Case(
        seed=seed, model=Absorbance(), data=data.split(x, y), optimizer=adam(3e-3), max_steps=300, loss=own_mse, metric="r2"
    )


class Apart(nn.Module):
    """A learned distance between two views; the score is minus it, about a margin."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.distance = mlp([8, 64, 32]), mlp([64, 32, 1], last=nn.Softplus())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        u, v = self.body(a), self.body(b)
        return 0.5 - self.distance(torch.cat([(u - v).abs(), u * v], 1))


def alike_or_apart(score: Tensor, same: Tensor) -> Tensor:
    """Hadsell et al. 2006: partners have no distance, others a margin of 1."""
    d = 0.5 - score
    return (same * d.square() + (1 - same) * (1 - d).clamp_min(0).square()).mean()


@healthy("loss_sign", "wrong_loss", source="verification: the contrastive loss on a learned distance, 1 for the same person")
def h_learned_distance(seed: int) -> Case:
    return Case(
        seed=seed, model=Apart(), data=data.pairs(seed), optimizer=adam(3e-3), max_steps=400,
        loss=alike_or_apart, metric=BCE["metric"],
    )  # fmt: skip
