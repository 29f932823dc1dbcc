"""Tables: own modules and architectures, metric objects, clicks, dictionaries and streams."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import blobs, digits, rng, split, standardise, surface
from tests.zoo.metrics import each_r2
from tests.zoo.nets import BCE, CE, MSE, adam, adamw, mlp
from tests.zoo.opened.healthy_d1 import SharedStep


class Scored(Supervised):
    """Accuracy by a metric object that is updated in steps and logged per epoch."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.save_hyperparameters({"batch_size": case.batch_size, "max_steps": case.max_steps})
        self.train_accuracy, self.val_accuracy = (
            MulticlassAccuracy(10, average="micro"),
            MulticlassAccuracy(10, average="micro"),
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        self.train_accuracy(logits.softmax(1), y)
        self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return self.loss_fn(logits, y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.val_accuracy.update(logits.softmax(1), y)
        self.log("val_loss", self.loss_fn(logits, y), batch_size=len(y))
        self.log("val_metric", self.val_accuracy, on_epoch=True)


@healthy(source="everyday: digits, dropout, Adam, torchmetrics, saved hyperparameters")
def h_everyday_scored(seed: int) -> Case:
    return Case(seed=seed, model=mlp([64, 64, 10], dropout=0.2), data=digits(seed), module=Scored, optimizer=adam(2e-3), **CE)


class LabTests(SharedStep):
    """Three measurements, each missing at times, on one trunk; the loss is a mean over what was measured."""

    def shared_step(self, batch: Any, stage: str) -> Tensor:
        x, seen, target = batch
        output = self(x)
        loss = ((output - target).square() * seen).sum() / seen.sum()
        self.log_dict({f"{stage}_loss": loss, f"{stage}_metric": each_r2(output, target)}, batch_size=len(x))
        return loss


@healthy("bad_data", source="laboratory values: a mask says which of three targets count in a row")
def h_lab_values(seed: int) -> Case:
    g = rng(754, seed)
    x = torch.randn(1800, 7, generator=g)
    y = torch.stack([(2 * x[:, 0]).sin() + x[:, 1], x[:, 2] * x[:, 3], x[:, 4].abs() - 0.8 + 0.7 * x[:, 0]], 1)
    seen = (torch.rand(1800, 3, generator=g) < torch.tensor([0.9, 0.6, 0.75])).float()
    y = y + 0.1 * torch.randn(1800, 3, generator=g)
    return Case(
        seed=seed, model=mlp([7, 64, 64, 3], nn.GELU), data=split(x, seen, y), loss=F.mse_loss, metric="each_r2",
        module=LabTests, optimizer=adamw(3e-3), max_steps=400, batch_size=64,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ architectures
class FeatureTokens(nn.Module):
    """FT-Transformer: each number becomes a token, one more token is read."""

    def __init__(self, numbers: int, outputs: int, width: int = 24) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight, self.bias = (nn.Parameter(torch.empty(numbers, width).uniform_(-bound, bound)) for _ in range(2))
        self.read = nn.Parameter(torch.empty(1, 1, width).uniform_(-bound, bound))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.read.expand(len(x), -1, -1), x[:, :, None] * self.weight + self.bias], 1)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens[:, 0])


@healthy(source="Gorishniy et al. 2021: FT-Transformer on a small regression")
def h_feature_tokens(seed: int) -> Case:
    return Case(
        seed=seed, model=FeatureTokens(6, 1), data=surface(seed, n=2400, dim=6), **MSE, module=SharedStep,
        optimizer=adamw(3e-3, weight_decay=1e-3), max_steps=350, batch_size=64,
    )  # fmt: skip


class GatedResidual(nn.Module):
    """The gated residual network of the temporal fusion transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer, self.gate = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + F.glu(self.gate(self.outer(F.elu(self.inner(x)))), dim=1))


@healthy("saturation", "missing_activation", source="Lim et al. 2021: gated residual networks with linear layers in a row")
def h_gated_residual_table(seed: int) -> Case:
    model = nn.Sequential(nn.Linear(8, 32), GatedResidual(32), GatedResidual(32), nn.Linear(32, 4))
    return Case(seed=seed, model=model, data=blobs(seed), optimizer=adam(3e-3), max_steps=300, **CE)


class PiecewiseLinear(nn.Module):
    """Each number as how far it fills the bins between the quantiles of the training rows."""

    def __init__(self, x: Tensor, bins: int = 8) -> None:
        super().__init__()
        self.register_buffer("edges", x.quantile(torch.linspace(0, 1, bins + 1), dim=0).T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.edges[:, :-1], self.edges[:, 1:]
        return ((x[:, :, None] - low) / (high - low)).clamp(0, 1).flatten(1)


@healthy("unnormalised_input", "bad_data", source="Gorishniy et al. 2022: piecewise-linear encodings of heavy-tailed numbers")
def h_piecewise_encoding(seed: int) -> Case:
    g = rng(760, seed)
    z, noise = torch.randn(2000, 5, generator=g), 0.1 * torch.randn(2000, generator=g)
    y = standardise((2 * z[:, 0]).sin() + z[:, 1].abs() + z[:, 2] + 0.3 * z[:, 3].square() + noise)
    data = split((1.5 * z + 4).exp(), y[:, None])
    model = nn.Sequential(PiecewiseLinear(data[0].tensors[0]), mlp([40, 48, 1]))
    return Case(seed=seed, model=model, data=data, optimizer=adamw(4e-3), max_steps=300, batch_size=64, **MSE)


class Crossed(nn.Module):
    """Deep and cross network v2, in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(k, 6) for k in (20, 12, 6))
        self.crosses = nn.ModuleList(nn.Linear(21, 21) for _ in range(2))
        self.deep = mlp([21, 32, 1])

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        first = x = torch.cat([*(t(c) for t, c in zip(self.tables, codes.T, strict=True)), numbers], 1)
        for cross in self.crosses:
            x = first * cross(x) + x
        return self.deep(x)


@healthy("missing_activation", source="Wang et al. 2021: cross layers have no activation, they multiply")
def h_crossed_clicks(seed: int) -> Case:
    g = rng(761, seed)
    codes = torch.stack([torch.randint(k, (6000,), generator=g) for k in (20, 12, 6)], 1)
    a, b, c = (torch.randn(k, 2, generator=g)[column] for k, column in zip((20, 12, 6), codes.T, strict=True))
    numbers = torch.randn(6000, 3, generator=g)
    score = (a * b).sum(1) + c[:, 0] * numbers[:, 0] + c[:, 1] + numbers[:, 1]
    return Case(
        seed=seed, model=Crossed(), data=split(codes, numbers, (score > score.median()).float()[:, None]), **BCE,
        optimizer=adam(3e-3), max_steps=300, batch_size=64,
    )  # fmt: skip


class Additive(nn.Module):
    """A neural additive model: one small net per column, and their sum."""

    def __init__(self, columns: int, outputs: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(mlp([1, 24, 24, outputs], nn.Tanh) for _ in range(columns))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return sum(part(x[:, i : i + 1]) for i, part in enumerate(self.parts)) + self.bias


@healthy(source="Agarwal et al. 2021: neural additive models for a table that can be explained")
def h_additive_columns(seed: int) -> Case:
    g = rng(762, seed)
    x, noise = torch.rand(1800, 4, generator=g) * 4 - 2, 0.2 * torch.randn(1800, generator=g)
    y = standardise((2 * x[:, 0]).sin() + x[:, 1].square() / 2 + x[:, 2].abs() - x[:, 3] + noise)
    return Case(
        seed=seed, model=Additive(4, 1), data=split(x, y[:, None]), optimizer=adam(6e-3), max_steps=350, batch_size=64, **MSE
    )
