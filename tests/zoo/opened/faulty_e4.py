"""Faulty steps, faulty mixing of samples, losses that are not numbers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo import data, more_data
from tests.zoo.case import Case, faulty, healthy
from tests.zoo.metrics import METRICS
from tests.zoo.nets import BCE, CE, adam, mlp, sgd


# ------------------------------------------------------------------------------------------ steps by hand
class Handwritten(LightningModule):
    """Manual optimisation over accumulated batches, dictionaries as batches."""

    every = 2

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.criterion, self.make = case.model, case.loss, case.optimizer
        self.score = METRICS[case.metric].score

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        loss = self.criterion(self.net(batch["x"]), batch["y"])
        self.manual_backward(loss / self.every)
        if (batch_idx + 1) % self.every == 0:
            optimizer.step()
            optimizer.zero_grad()
        self.log("loss", loss, batch_size=len(batch["y"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        output = self.net(batch["x"])
        self.log("val_loss", self.criterion(output, batch["y"]), batch_size=len(output))
        self.log("val_metric", self.score(output, batch["y"]), batch_size=len(output))

    def configure_optimizers(self) -> Any:
        return self.make(self.net)


class Overlong(Handwritten):
    every = 64


class Erased(Handwritten):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        loss = self.criterion(self.net(batch["x"]), batch["y"])
        self.manual_backward(loss)
        optimizer.zero_grad()
        optimizer.step()
        self.log("loss", loss, batch_size=len(batch["y"]))
        return loss


def as_dict(samples: list[Sequence[Tensor]]) -> dict[str, Tensor]:
    return {"x": torch.stack([x for x, _ in samples]), "y": torch.stack([y for _, y in samples])}


@healthy("no_update", "gradients_not_zeroed", source="manual optimisation that steps every second batch")
def h_every_second_batch(seed: int) -> Case:
    model = mlp([5, 32, 32, 3])
    return Case(
        seed=seed, model=model, data=more_data.arcs(seed), collate=as_dict, module=Handwritten, optimizer=sgd(0.1),
        trainer={"max_epochs": 12}, max_steps=-1, **CE,
    )  # fmt: skip


@faulty(
    "no_update", "gradients_not_zeroed", twin="h_every_second_batch", source="accumulation over more batches than an epoch has"
)
def f_every_second_age(case: Case) -> None:
    case.module = Overlong


@faulty("no_update", twin="h_every_second_batch", source="gradients zeroed between backward and step")
def f_every_step_after_zeroing(case: Case) -> None:
    case.module = Erased


# ------------------------------------------------------------------------------------------ looking things up
def questions(seed: int, n: int = 1800, slots: int = 6, dim: int = 8) -> data.Split:
    """Slots `[n, slots, dim + 4]` of keys and one-hot values, a noisy copy of one key; its value is the class."""
    g = data.rng(4405, seed)
    keys, values = torch.randn(n, slots, dim, generator=g), torch.randint(4, (n, slots), generator=g)
    which = torch.randint(slots, (n,), generator=g)
    rows = torch.arange(n)
    query = keys[rows, which] + 0.3 * torch.randn(n, dim, generator=g)
    return data.split(torch.cat([keys, 2.0 * F.one_hot(values, 4)], 2), query, values[rows, which])


class LookUp(nn.Module):
    """One query attends to the slots."""

    def __init__(self, dim: int = 8, width: int = 16) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(dim, width), nn.Linear(dim + 4, width), nn.Linear(dim + 4, width)
        self.out = mlp([width, 32, 4])

    def weigh(self, scores: Tensor) -> Tensor:
        return (scores / self.q.out_features**0.5).softmax(dim=1)

    def forward(self, slots: Tensor, query: Tensor) -> Tensor:
        scores = torch.einsum("nd,nsd->ns", self.q(query), self.k(slots))
        return self.out(torch.einsum("ns,nsd->nd", self.weigh(scores), self.v(slots)))


class AcrossRows(LookUp):
    def weigh(self, scores: Tensor) -> Tensor:
        return (scores / self.q.out_features**0.5).softmax(dim=0)


class Glaring(LookUp):
    def weigh(self, scores: Tensor) -> Tensor:
        return (scores * 40 * self.q.out_features**0.5).softmax(dim=1)


@healthy(source="single-query attention over a few slots")
def h_look_up_slots(seed: int) -> Case:
    return Case(seed=seed, model=LookUp(), data=questions(seed), optimizer=adam(1e-2), max_steps=400, **CE)


@faulty("batch_mixing", twin="h_look_up_slots", source="softmax of attention over dimension 0, the batch")
def f_look_up_across_rows(case: Case) -> None:
    case.model = AcrossRows()


@faulty(
    "saturation", twin="h_look_up_slots", source="attention scores multiplied, not divided, by a scale: one-hot from the start"
)
def f_look_up_glaring(case: Case) -> None:
    case.model = Glaring()


# ------------------------------------------------------------------------------------------ channels first, time first
class TimeFirst(nn.Module):
    """A GRU that wants time first, a class for every step."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(2, 16, bidirectional=True), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.gru(x.transpose(0, 1))
        return self.out(h).permute(1, 2, 0)


class Reshaped(TimeFirst):
    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.gru(x.reshape(x.shape[1], x.shape[0], -1))
        return self.out(h).reshape(x.shape[0], x.shape[1], -1).transpose(1, 2)


@healthy("batch_mixing", source="recurrent tagger that turns its batches to time first")
def h_time_first_tagger(seed: int) -> Case:
    return Case(seed=seed, model=TimeFirst(), data=more_data.regimes(seed), optimizer=adam(1e-2), max_steps=200, **CE)


@faulty("batch_mixing", twin="h_time_first_tagger", source="reshape where a transpose was meant")
def f_time_first_by_reshape(case: Case) -> None:
    case.model = Reshaped()


# ------------------------------------------------------------------------------------------ distances
def twins(seed: int) -> data.Split:
    """Pairs of views, some of which are the very same record; 1.0 if of one kind."""

    def with_copies(part: TensorDataset) -> TensorDataset:
        one, two, same = part.tensors
        copied = torch.arange(len(one)) % 40 == 7
        return TensorDataset(one, torch.where(copied[:, None], one, two), torch.where(copied[:, None], 1.0, same))

    train, val = data.pairs(seed)
    return with_copies(train), with_copies(val)


class Siamese(nn.Module):
    """The logit is a learnt threshold less a distance."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.threshold = mlp([8, 48, 48, 8]), nn.Parameter(torch.tensor(1.0))

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).square().sum(1, keepdim=True) + 1e-6).sqrt()

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        return self.threshold - self.distance(self.embed(one), self.embed(two))


class BareRoot(Siamese):
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().sum(1, keepdim=True).sqrt()


@healthy("nan_loss", source="siamese network; duplicates among the pairs, a root with an epsilon")
def h_siamese_with_duplicates(seed: int) -> Case:
    return Case(seed=seed, model=Siamese(), data=twins(seed), optimizer=adam(3e-3), max_steps=300, **BCE)


@faulty("nan_loss", twin="h_siamese_with_duplicates", source="gradient of a square root at a distance of zero")
def f_siamese_bare_root(case: Case) -> None:
    case.model = BareRoot()


# ------------------------------------------------------------------------------------------ mean and spread
def uneven(seed: int, n: int = 1536) -> data.Split:
    """A smooth curve of two inputs whose noise depends on the place."""
    g = data.rng(4406, seed)
    x = torch.randn(n, 2, generator=g)
    y = (2 * x[:, 0]).sin() + x[:, 1] + (0.05 + 0.35 * (x[:, 1] > 0)) * torch.randn(n, generator=g)
    return data.split(x, data.standardise(y)[:, None])


class MeanAndSpread(nn.Module):
    """Mean and standard deviation of a Gaussian (Nix & Weigend 1994)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp([2, 48, 48, 2], nn.SiLU)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.net(x).chunk(2, 1)
        return mean, (F.softplus(raw) + 1e-3).sqrt()


class RawSpread(MeanAndSpread):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.net(x).chunk(2, 1)
        return mean, raw.sqrt()


def gaussian(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    mean, spread = output
    return (spread.log() + 0.5 * ((target - mean) / spread).square() + 0.5 * math.log(2 * math.pi)).mean()


def gaussian_doubled(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    mean, spread = output
    return (spread.log() + 0.5 * ((target - mean.squeeze(1)) / spread).square()).mean()


@healthy("wrong_loss", source="heteroscedastic regression")
def h_mean_and_spread_e(seed: int) -> Case:
    return Case(
        seed=seed, model=MeanAndSpread(), data=uneven(seed), loss=gaussian, metric="mean_r2", optimizer=adam(5e-3),
        max_steps=300,
    )  # fmt: skip


@faulty(
    "nan_loss", "wrong_last_activation", twin="h_mean_and_spread_e", source="root of a predicted variance that may be negative"
)
def f_spread_left_raw(case: Case) -> None:
    case.model = RawSpread()


@faulty("shape_broadcast", twin="h_mean_and_spread_e", source="squeezed mean against a target [N, 1] inside a likelihood")
def f_spread_around_everyone(case: Case) -> None:
    case.loss = gaussian_doubled
