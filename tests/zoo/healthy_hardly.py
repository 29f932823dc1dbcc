"""Healthy: targets that hardly follow from their inputs, validation of other years, small starts."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import IterableDataset, TensorDataset

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.healthy_tables import h_ratings
from tests.zoo.healthy_transfer import pretrain
from tests.zoo.nets import BCE, CE, MSE, adam, adamw, mlp, trainable


def told(x: Tensor) -> Tensor:
    """What there is to learn, standardised."""
    return data.standardise(x[:, 0] + x[:, 1] * x[:, 2] + x[:, 3].abs())


# ------------------------------------------------------------------------------------------ other years
@healthy("labels_broken", source="returns: a R2 of .035 is what there is to learn")
def h_alpha(seed: int) -> Case:
    g = data.rng(1309, seed)
    x = torch.randn(20_000, 6, generator=g)
    y = 0.2 * data.standardise(x[:, 0] + x[:, 1] * x[:, 2]) + 0.98 * torch.randn(20_000, generator=g)
    return Case(
        seed=seed, model=mlp([6, 32, 1]), data=data.split(x, y[:, None]), optimizer=adam(2e-3), batch_size=128,
        trainer={"max_epochs": 5}, max_steps=-1, **MSE,
    )  # fmt: skip


@healthy("labels_broken", "train_val_mismatch", source="returns: a R2 of .1, in validation years that are stormier by a third")
def h_stormier_years(seed: int) -> Case:
    g = data.rng(1306, seed)
    x = torch.randn(6000, 8, generator=g)
    y = torch.where(torch.arange(6000) < 4000, 1.0, 1.3) * (0.4 * told(x) + 0.92 * torch.randn(6000, generator=g))
    return Case(
        seed=seed, model=mlp([8, 64, 1]), data=data.split(x, y[:, None]), optimizer=adam(1e-3), batch_size=64,
        trainer={"max_epochs": 6}, max_steps=-1, **MSE,
    )  # fmt: skip


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Samples without end, of which those behind the first three thousand are noisier."""

    def __init__(self, seed: int) -> None:
        self.generator, self.given = data.rng(1311, seed), 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            x, noise = torch.randn(8, generator=self.generator), torch.randn(1, generator=self.generator)
            self.given += 1
            yield x, signal(x[None])[0] + (0.3 if self.given < 3200 else 1.5) * noise


def signal(x: Tensor) -> Tensor:
    """What there is to learn in the stream."""
    return (1.5 * x[:, :1].sin() + x[:, 1:2] * x[:, 2:3]) / 1.4


@healthy("lr_too_high", source="online learning: the stream gets noisier, and validation is as noisy as its end")
def h_growing_noise_stream(seed: int) -> Case:
    x = torch.randn(512, 8, generator=data.rng(1312, seed))
    val = TensorDataset(x, signal(x) + 1.5 * torch.randn(512, 1, generator=data.rng(1313, seed)))
    return Case(
        seed=seed, model=mlp([8, 64, 1]), data=(Stream(seed), val), optimizer=adam(3e-3), shuffle=False,
        trainer={"max_epochs": 10, "limit_train_batches": 20}, max_steps=-1, **MSE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ small starts
class LowRank(nn.Module):
    """Hu et al. 2022: a frozen layer and a product of two thin matrices that starts at zero."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(4, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T


@healthy("lr_too_low", source="LoRA: a model of clicks goes on with newer ones, and is at .9 of a guess's cost already")
def h_newer_clicks_lora(seed: int) -> Case:
    g = data.rng(1302, seed)
    x = torch.randn(6000, 8, generator=g)
    old, new = (
        (torch.rand(6000, generator=g) < (data.standardise(score)).sigmoid()).float()[:, None]
        for score in (told(x), told(x) + 0.5 * x[:, 5])
    )
    model = pretrain(mlp([8, 64, 64, 1]), data.split(x, old), steps=300, loss=F.binary_cross_entropy_with_logits)
    for i in (0, 2, 4):
        model[i] = LowRank(model[i])  # type: ignore[index, operator, arg-type]
    frozen = [f"model.{i}.layer.{name}" for i in (0, 2, 4) for name in ("weight", "bias")]
    return Case(
        seed=seed, model=model, data=data.split(x, new), optimizer=trainable(torch.optim.Adam, lr=3e-4), batch_size=128,
        frozen=frozen, trainer={"max_epochs": 5}, max_steps=-1, **BCE,
    )  # fmt: skip


@healthy("lr_too_low", "lr_too_high", source="Mikolov et al. 2013: two tables that start near zero, words of unlike frequency")
def h_skip_gram(seed: int) -> Case:
    g = data.rng(1305, seed)
    p = 1 / (torch.arange(60) + 5.0)
    topics = torch.randint(6, (60,), generator=g)
    centre, other = (torch.multinomial(p, 12_000, replacement=True, generator=g) for _ in range(2))
    own = torch.stack([p * (topics == topic) for topic in range(6)])[topics[centre]]
    near = torch.where(torch.rand(12_000, generator=g) < 0.3, torch.multinomial(own, 1, generator=g)[:, 0], other)
    model = nn.Sequential(nn.Embedding(60, 16), nn.Linear(16, 60, bias=False))
    nn.init.uniform_(model[0].weight, -1 / 32, 1 / 32)
    nn.init.normal_(model[1].weight, std=0.01)
    return Case(
        seed=seed, model=model, data=data.split(centre, near), optimizer=adam(3e-3), batch_size=128, trainer={"max_epochs": 6},
        max_steps=-1, **CE,
    )  # fmt: skip


class FactorisationMachine(nn.Module):
    """Rendle 2010: a weight for each value, and a vector whose products tell what two values do together."""

    def __init__(self, fields: int, values: int) -> None:
        super().__init__()
        self.offsets = values * torch.arange(fields)
        self.vector, self.weight = nn.Embedding(fields * values, 8), nn.Embedding(fields * values, 1)
        self.bias = nn.Parameter(torch.zeros(1))
        for table in (self.vector, self.weight):
            nn.init.normal_(table.weight, std=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        v = self.vector(x + self.offsets)
        products = (v.sum(1).square() - v.square().sum(1)).sum(1, keepdim=True) / 2
        return self.bias + self.weight(x + self.offsets).sum(1) + products


@healthy(
    "lr_too_high", "labels_broken", source="clicks: a factorisation machine whose tables start with a std of .0001 (DeepCTR)"
)
def h_tables_near_zero(seed: int) -> Case:
    g = data.rng(1304, seed)
    x, table = torch.randint(20, (12_000, 6), generator=g), torch.randn(6, 20, generator=g)
    score = 0.65 * data.standardise(table[torch.arange(6), x].sum(1)) - 1.2
    y = (torch.rand(12_000, generator=g) < score.sigmoid()).float()[:, None]
    return Case(
        seed=seed, model=FactorisationMachine(6, 20), data=data.split(x, y), optimizer=adam(2e-3), batch_size=128,
        trainer={"max_epochs": 6}, max_steps=-1, loss=F.binary_cross_entropy_with_logits, metric="balanced_binary",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ names
class Survival(Supervised):
    """Log a loss in other units under a name that holds `val`, and only a metric in validation."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        output = self(batch[0])
        self.log("survival_loss", 1000 * output.detach().square().mean() + 5)
        return F.mse_loss(output, batch[1])

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self.log("val_metric", self.metric.score(self(batch[0]), batch[1]))


class InParts(Supervised):
    """Log a part of the validation loss first, which grows as the network learns."""

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        output = self(batch[0])
        self.log("val_spread_loss", 60 * output.square().mean())
        self.log("val_loss", F.mse_loss(output, batch[1]))
        self.log("val_metric", self.metric.score(output, batch[1]))


def named(seed: int, module: type[Supervised]) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 1]), data=data.surface(seed, noise=0.0), optimizer=adam(5e-3), module=module,
        trainer={"max_epochs": 20}, max_steps=-1, **MSE,
    )  # fmt: skip


@healthy("train_val_mismatch", "overfit_no_regularisation", source="training logs survival_loss (or value_loss): no validation")
def h_survival_named(seed: int) -> Case:
    return named(seed, Survival)


@healthy("train_val_mismatch", "overfit_no_regularisation", source="val_loss is logged behind one of its parts")
def h_parts_of_a_loss(seed: int) -> Case:
    return named(seed, InParts)


# ------------------------------------------------------------------------------------------ schedules, decay
@healthy("lr_schedule", source="exponential decay by .9 an epoch for a hundred epochs")
def h_tenth_an_epoch(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=adam(5e-3),
        scheduler=lambda optimizer: ExponentialLR(optimizer, 0.9), trainer={"max_epochs": 100, "limit_train_batches": 5},
        max_steps=-1, **CE,
    )  # fmt: skip


@healthy("weight_decay_too_strong", source="AdamW with a decay of 1, as for grokking, on a table that starts wide")
def h_decayed_wide_table(seed: int) -> Case:
    model = nn.Sequential(nn.Embedding(30, 64), nn.Flatten(), *mlp([768, 64, 3]))
    return Case(
        seed=seed, model=model, data=data.words(seed), optimizer=adamw(3e-3, weight_decay=1.0), trainer={"max_epochs": 12},
        max_steps=-1, **CE,
    )  # fmt: skip


def tables_penalised(factor: float) -> Callable[[Case], Supervised]:
    """Add the squares of all tables, those too that the batch does not look up."""

    class Penalised(Supervised):
        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
            loss: Tensor = super().training_step(batch, batch_idx)
            return loss + factor * sum(p.square().sum() for p in self.parameters())

    return Penalised


@healthy(
    "weight_decay_too_strong", source="Koren et al. 2009: factors under a penalty of all tables, which holds what is not needed"
)
def h_tables_penalised(seed: int) -> Case:
    case = h_ratings(seed)
    case.module = tables_penalised(1e-4)
    return case


@healthy("dead_relu", "lr_too_high", source="an autoencoder whose rectified layers have six units each, at a brisk rate")
def h_narrow_waist(seed: int) -> Case:
    return Case(seed=seed, model=mlp([20, 6, 6, 6, 20]), data=data.manifold(seed), optimizer=adam(5e-2), **MSE)


@healthy("weight_decay_too_strong", source="ninety spectra of four substances: a small net that is all but a ridge regression")
def h_strong_decay_few_rows(seed: int) -> Case:
    g = data.rng(1320, seed)
    substances = torch.randn(700, 4, generator=g)
    x = substances @ torch.randn(4, 20, generator=g) + 0.3 * torch.randn(700, 20, generator=g)
    y = data.standardise(substances[:, 0] + 0.6 * substances[:, 1] + 0.3 * torch.randn(700, generator=g))[:, None]
    train, val = data.split(data.standardise(x), y)
    few = TensorDataset(*(tensor[:90] for tensor in train.tensors))  # type: ignore[attr-defined]
    return Case(
        seed=seed, model=mlp([20, 8, 1], act=nn.Tanh), data=(few, val), optimizer=adamw(5e-3, weight_decay=3.0), batch_size=90,
        max_steps=120, **MSE,
    )  # fmt: skip
