"""Episodes, few shots, tasks told by a code."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.zoo.case import Case, healthy
from tests.zoo.data import rng, split, standardise
from tests.zoo.metrics import r2
from tests.zoo.nets import CE, MSE, adam, adamw, mlp
from tests.zoo.opened.healthy_d1 import SharedStep, figure


# ------------------------------------------------------------------------------------------ episodes
class Episodes(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Three shots of four unknown kinds, and a query `[6]` of one of them; its label is the last."""

    def __init__(self, seed: int, n: int, kinds: slice) -> None:
        self.generator, self.n, self.anew = rng(810, seed), n, kinds.start == 0
        g = rng(811, seed % 1000)
        self.lift = mlp_of(g)
        self.drawn = [self.draw() for _ in range(n)]

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        g = self.generator
        hidden = torch.randn(4, 1, 3, generator=g)
        shots = self.lift(hidden + 0.25 * torch.randn(4, 4, 3, generator=g))
        order = torch.randperm(4, generator=g)
        return shots[:, :3], shots[order, 3], order

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.draw() if self.anew else self.drawn[index]


def mlp_of(g: torch.Generator) -> Any:
    """A fixed warp of three hidden coordinates to six seen ones."""
    a, b = torch.randn(3, 12, generator=g) / 2, torch.randn(12, 6, generator=g) / 2
    return lambda z: (z @ a).sin() @ b


class Prototypical(LightningModule):
    """Each query against the mean of the embedded shots of each kind."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.encoder, self.build = case.model, case.optimizer

    def step(self, batch: Any) -> tuple[Tensor, Tensor]:
        shots, queries, label = batch
        prototypes = self.encoder(shots).mean(2)
        logits = -torch.cdist(self.encoder(queries), prototypes).square().transpose(1, 2)
        return F.cross_entropy(logits, label), (logits.argmax(1) == label).float().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch)[0]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss, right = self.step(batch)
        self.log_dict({"val_loss": loss, "val_metric": right}, batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        return self.build(self)


@healthy("labels_broken", source="Snell et al. 2017: prototypical networks, labels are drawn anew in each episode")
def h_episodes(seed: int) -> Case:
    data = Episodes(seed, 640, slice(0, 1)), Episodes(seed + 1000, 256, slice(1, 2))
    return Case(
        seed=seed,
        model=mlp([6, 64, 64, 16]),
        data=data,
        module=Prototypical,
        optimizer=adam(2e-3),
        max_steps=250,
        batch_size=16,
        **CE,
    )


class RidgeHead(LightningModule):
    """R2-D2: features are learnt through the closed-form ridge regression of each task's few points."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.features, self.log_ridge = case.model, nn.Parameter(torch.tensor(-2.0))
        self.build = case.optimizer

    def forward(self, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        seen, wanted = self.features(x), self.features(asked)
        gram = seen.transpose(1, 2) @ seen + self.log_ridge.exp() * torch.eye(seen.shape[2])
        return wanted @ torch.linalg.solve(gram, seen.transpose(1, 2) @ y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, asked, answer = batch
        return F.mse_loss(self(x, y, asked), answer[..., None])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, asked, answer = batch
        guess = self(x, y, asked)[..., 0]
        self.log_dict({"val_loss": F.mse_loss(guess, answer), "val_metric": flat_r2(guess, answer)}, batch_size=len(x))

    def configure_optimizers(self) -> Any:
        return self.build(self)


def flat_r2(output: Tensor, target: Tensor) -> Tensor:
    return r2(output.reshape(-1, 1), target.reshape(-1, 1))


FLAT = figure("d_flat_r2", flat_r2)


def sines(seed: int, n: int = 1500, shots: int = 10) -> Any:
    """Tasks of sines with their own height and phase: points seen, points asked, answers."""
    g = rng(812, seed)
    x = 6 * torch.rand(n, 2 * shots, 1, generator=g) - 3
    height, phase = 0.5 + torch.rand(n, 1, 1, generator=g), math.pi * torch.rand(n, 1, 1, generator=g)
    y = height * (1.5 * x + phase).sin() + 0.05 * torch.randn(x.shape, generator=g)
    return split(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:, 0])


@healthy("not_in_optimizer", source="Bertinetto et al. 2019: a differentiable ridge regression as head")
def h_ridge_head(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([1, 48, 48, 12], nn.Tanh), data=sines(seed), module=RidgeHead, loss=F.mse_loss, metric=FLAT,
        optimizer=adam(4e-3), max_steps=250, trainer={"gradient_clip_val": 5.0},
    )  # fmt: skip


def leaky() -> nn.Module:
    return nn.LeakyReLU(0.1)


class NeuralProcess(nn.Module):
    """A conditional neural process: the mean code of seen pairs, a density for each asked place."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.encode, self.decode = mlp([2, width, width, width], leaky), mlp([width + 1, width, width, 2], leaky)

    def forward(self, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        code = self.encode(torch.cat([x, y], 2)).mean(1, keepdim=True)
        return self.decode(torch.cat([code.expand(-1, asked.shape[1], -1), asked], 2))


def density(output: Tensor, target: Tensor) -> Tensor:
    return -torch.distributions.Normal(output[..., 0], 0.05 + F.softplus(output[..., 1])).log_prob(target).mean()


@healthy("wrong_loss", source="Garnelo et al. 2018: conditional neural processes on sines")
def h_conditional_process(seed: int) -> Case:
    return Case(
        seed=seed, model=NeuralProcess(), data=sines(seed, n=3000), loss=density, optimizer=adam(4e-3), max_steps=400,
        metric=figure("d_process", lambda out, y: flat_r2(out[..., 0], y)), module=SharedStep,
    )  # fmt: skip


class Modulated(nn.Module):
    """FiLM: a task code scales and shifts the hidden units; the scale is one plus what is generated."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 48), nn.Linear(48, 48), nn.Linear(48, 1)
        self.film = nn.Linear(3, 4 * 48)
        nn.init.normal_(self.film.weight, std=0.1)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        a, b, c, d = self.film(task).chunk(4, 1)
        x = F.relu((1 + a) * self.first(x) + b)
        return self.head(F.relu((1 + c) * self.second(x) + d))


@healthy("init_vanishing", source="Perez et al. 2018: FiLM layers conditioned on a task's description")
def h_film_tasks(seed: int) -> Case:
    g = rng(813, seed)
    x, task = torch.randn(2400, 4, generator=g), torch.randn(2400, 3, generator=g)
    y = task[:, 0] * x[:, 0] + task[:, 1] * (2 * x[:, 1]).sin() + x[:, 2].abs() * (task[:, 2] > 0)
    return Case(
        seed=seed, model=Modulated(), data=split(x, task, standardise(y)[:, None]), optimizer=adamw(3e-3), max_steps=400,
        batch_size=64, **MSE,
    )  # fmt: skip
