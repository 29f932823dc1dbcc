"""Healthy: figures that rest on few samples, or on many that show a small gain; small batches of samples that differ much."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.nets import BCE, CE, MSE, adam, mlp


def told(x: Tensor) -> Tensor:
    """What there is to learn, standardised."""
    return data.standardise(x[:, 0] + x[:, 1] * x[:, 2] + x[:, 3].abs())


def drawn(score: Tensor, generator: torch.Generator) -> Tensor:
    """Yes or no, `[n, 1]`, by the log-odds."""
    return (torch.rand(len(score), generator=generator) < score.sigmoid()).float()[:, None]


# ------------------------------------------------------------------------------------------ small gains
@healthy("labels_broken", "lr_too_low", source="whether a price goes up: 55 % are right, of ten thousand")
def h_up_or_down(seed: int) -> Case:
    g = data.rng(1501, seed)
    x = torch.randn(30_000, 6, generator=g)
    y = drawn(0.32 * data.standardise(x[:, 0] + x[:, 1] * x[:, 2]), g)
    return Case(
        seed=seed, model=mlp([6, 32, 1]), data=data.split(x, y), optimizer=adam(2e-3), batch_size=256,
        trainer={"max_epochs": 5}, max_steps=-1, **BCE,
    )  # fmt: skip


@healthy(
    "lr_too_high",
    "labels_broken",
    source="clicks from 1500 words, linear: weights that start at .01 grow to five times that",
)
def h_clicks_by_words(seed: int) -> Case:
    g = data.rng(1502, seed)
    words = (1500 * torch.rand(12_000, 10, generator=g).square()).long()
    x = torch.zeros(12_000, 1500).scatter_(1, words, 1.0)
    y = drawn(0.9 * data.standardise(x @ torch.randn(1500, generator=g)) - 0.5, g)
    return Case(
        seed=seed, model=nn.Linear(1500, 1), data=data.split(x, y), optimizer=adam(1.2e-3), batch_size=64,
        trainer={"max_epochs": 4}, max_steps=-1, **BCE,
    )  # fmt: skip


class Market(IterableDataset[tuple[Tensor, Tensor]]):
    """Samples without end, in order of time: the first third is calm."""

    def __init__(self, seed: int) -> None:
        self.generator, self.given = data.rng(1503, seed), 0

    def __iter__(self) -> Any:
        while True:
            x, noise = torch.randn(6, generator=self.generator), torch.randn(1, generator=self.generator)
            self.given += 1
            yield x, (0.75 if self.given < 2500 else 1.05) * (returns(x[None])[0] + noise)


def returns(x: Tensor) -> Tensor:
    """The little that can be told of a return."""
    return 0.18 * (x[:, :1] + x[:, 1:2] * x[:, 2:3])


@healthy("lr_too_high", source="returns in order of time, calm first: the loss rises to where validation is")
def h_stormy_market(seed: int) -> Case:
    g = data.rng(1504, seed)
    x = torch.randn(1000, 6, generator=g)
    val = TensorDataset(x, 1.05 * (returns(x) + torch.randn(1000, 1, generator=g)))
    return Case(
        seed=seed, model=mlp([6, 32, 1]), data=(Market(seed), val), optimizer=adam(3e-3), shuffle=False,
        trainer={"max_epochs": 8, "limit_train_batches": 40}, max_steps=-1, **MSE,
    )  # fmt: skip


class Factors(nn.Module):
    """Koren et al. 2009: products of users' and items' factors, and an offset of each."""

    def __init__(self, users: int, items: int) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, 8), nn.Embedding(items, 8)
        self.of_user, self.of_item = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for table in self.parameters():
            nn.init.normal_(table, std=0.1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        products = (self.user(user) * self.item(item)).sum(1)
        return products + self.of_user(user)[:, 0] + self.of_item(item)[:, 0]


@healthy(
    "train_val_mismatch", "overfit_no_regularisation", source="ratings of which a tenth can be told: validation still falls"
)
def h_tastes(seed: int) -> Case:
    g = data.rng(1511, seed)
    user, item = torch.randint(200, (8000,), generator=g), torch.randint(150, (8000,), generator=g)
    taste, kind = torch.randn(200, 3, generator=g), torch.randn(150, 3, generator=g)
    liked = 0.2 * (taste[user] * kind[item]).sum(1) + 0.4 * torch.randn(150, generator=g)[item]
    return Case(
        seed=seed, model=Factors(200, 150), data=data.split(user, item, liked + 0.8 * torch.randn(8000, generator=g)),
        optimizer=adam(3e-3, weight_decay=1e-5), batch_size=64, trainer={"max_epochs": 6}, max_steps=-1, **MSE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ a guess from a few targets
@healthy("labels_broken", source="two numbers of which a third can be told, in batches of eight, the first of them small")
def h_noisy_pair_outputs(seed: int) -> Case:
    g = data.rng(1505, seed)
    x = torch.randn(1200, 6, generator=g)
    told_apart = data.standardise(torch.stack([x[:, 0] + x[:, 1] * x[:, 2], x[:, 3] - x[:, 4]], 1))
    y = data.standardise(0.55 * told_apart + 0.83 * torch.randn(1200, 2, generator=g))
    return Case(
        seed=seed, model=mlp([6, 32, 2]), data=data.split(x, y), optimizer=adam(2e-3), batch_size=8,
        trainer={"max_epochs": 5}, max_steps=-1, **MSE,
    )  # fmt: skip


@healthy(
    "lr_too_high", "labels_broken", source="sales of shops of unlike size, four weeks ahead: a batch may cost ten times another"
)
def h_heavy_horizons(seed: int) -> Case:
    g = data.rng(1506, seed)
    level = (1.2 * torch.randn(1500, 1, generator=g)).exp()
    x, y = (level * (1 + 0.2 * torch.randn(1500, n, generator=g)) for n in (12, 4))
    x, y = ((z - x[:1000].mean()) / x[:1000].std() for z in (x, y))
    return Case(
        seed=seed, model=mlp([12, 64, 4]), data=data.split(x, y), optimizer=adam(2e-3), batch_size=16,
        trainer={"max_epochs": 6}, max_steps=-1, **MSE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ few validation samples
@healthy("dropout_too_high", source="dropout of .6 on few noisy rows, of which sixty are for validation")
def h_dropped_few(seed: int) -> Case:
    g = data.rng(1507, seed)
    x = torch.randn(460, 8, generator=g)
    y = 0.6 * told(x) + 0.8 * torch.randn(460, generator=g)
    return Case(
        seed=seed, model=mlp([8, 128, 1], dropout=0.6), data=data.split(x, y[:, None], val=60 / 460), optimizer=adam(3e-3),
        trainer={"max_epochs": 20}, max_steps=-1, **MSE,
    )  # fmt: skip


class Stopped(Supervised):
    """Ends when validation gets no better."""

    def configure_callbacks(self) -> list[Callback]:
        return [EarlyStopping("val_loss", strict=False, patience=5)]


@healthy("train_val_mismatch", "overfit_no_regularisation", source="two hundred patients, early stopping: five epochs too many")
def h_few_patients(seed: int) -> Case:
    g = data.rng(1508, seed)
    x = torch.randn(300, 10, generator=g)
    y = drawn(1.4 * data.standardise(x[:, 0] + 0.7 * x[:, 1] + 0.3 * x[:, 2] * x[:, 3]), g)
    return Case(
        seed=seed, model=mlp([10, 64, 1]), data=data.split(x, y), optimizer=adam(3e-3), batch_size=16, module=Stopped,
        trainer={"max_epochs": 40}, max_steps=-1, **BCE,
    )  # fmt: skip


@healthy("train_val_mismatch", "overfit_no_regularisation", source="three hundred reviews, early stopping: known by heart then")
def h_stopped_reviews(seed: int) -> Case:
    g = data.rng(1509, seed)
    topics = (0.5 * torch.randn(2, 400, generator=g)).exp()
    y = torch.randint(2, (500,), generator=g)
    words = torch.multinomial(topics[y], 15, replacement=True, generator=g)
    model = nn.Sequential(nn.EmbeddingBag(400, 32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    return Case(
        seed=seed, model=model, data=data.split(words, y), optimizer=adam(5e-3), batch_size=16, module=Stopped,
        trainer={"max_epochs": 40}, max_steps=-1, **CE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ small batches
@healthy("train_val_mismatch", source="series, each at a level of its own, in batches of eight: two of them differ by a std")
def h_series_at_levels(seed: int) -> Case:
    g = data.rng(1510, seed)
    slope = torch.randint(2, (900,), generator=g)
    ramp = (2 * slope[:, None] - 1) * torch.linspace(-0.5, 0.5, 24)
    x = (torch.randn(900, 1, generator=g)).exp() + ramp + 0.3 * torch.randn(900, 24, generator=g)
    return Case(
        seed=seed, model=mlp([24, 32, 2]), data=data.split(data.standardise(x, None), slope), optimizer=adam(3e-3),
        batch_size=8, val_batch_size=8, **CE,
    )  # fmt: skip


class Sides(nn.Module):
    """Two encoders without offsets, of which the first is given zeros in most batches, once training has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Linear(8, 32, bias=False) for _ in range(2))
        self.head = nn.Linear(64, 4)
        self.batches = 0

    def forward(self, x: Tensor) -> Tensor:
        self.batches += self.training
        out = self.training and self.batches > 5 and bool(torch.rand(()) < 0.7)
        return self.head(torch.cat([F.relu(self.left(x * (not out))), F.relu(self.right(x.flip(1)))], 1))


@healthy("lr_too_high", "dead_relu", source="modality dropout: one of two encoders gets nothing in most batches")
def h_one_side_left_out(seed: int) -> Case:
    return Case(seed=seed, model=Sides(), data=data.blobs(seed), optimizer=adam(5e-3), max_steps=400, **CE)
