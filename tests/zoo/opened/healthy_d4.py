"""Tables: evidence, spread and styles of modules and data sets."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from tests.zoo.case import Case, healthy
from tests.zoo.data import blobs, rng, split, standardise, surface
from tests.zoo.metrics import r2
from tests.zoo.nets import CE, MSE, adam, adamw, mlp, sgd


# ------------------------------------------------------------------------------------------ evidence, spread
def evidential(output: Tensor, target: Tensor) -> Tensor:
    """Expected squared error under a Dirichlet of `softplus + 1`."""
    alpha = F.softplus(output) + 1
    total = alpha.sum(1, keepdim=True)
    mean, truth = alpha / total, F.one_hot(target, output.shape[1])
    return ((truth - mean).square() + mean * (1 - mean) / (total + 1)).sum(1).mean()


@healthy("wrong_loss", source="Sensoy et al. 2018: evidential classification")
def h_evidence(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=blobs(seed), loss=evidential, metric="accuracy", optimizer=adam(3e-3),
        max_steps=300,
    )  # fmt: skip


class TwoHeads(LightningModule):
    """Mean and log variance; the first hundred steps learn the mean only."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.trunk, self.mean, self.log_var = case.model, nn.Linear(32, 1), nn.Linear(32, 1)
        self.build = case.optimizer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(x)
        return self.mean(hidden), self.log_var(hidden).clamp(-6, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        mean, log_var = self(x)
        if self.global_step < 100:
            return F.mse_loss(mean, y) + 0 * log_var.sum()
        return (0.5 * log_var + 0.5 * (y - mean).square() * (-log_var).exp()).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        mean, log_var = self(x)
        nll = F.gaussian_nll_loss(mean, y, log_var.exp())
        self.log_dict({"val_loss": nll, "val_metric": r2(mean, y)}, batch_size=len(y))

    def configure_optimizers(self) -> Any:
        return self.build(self)


@healthy("wrong_loss", "not_in_optimizer", source="Sluijterman et al. 2024: warm-up of the mean before the variance")
def h_variance_later(seed: int) -> Case:
    g = rng(763, seed)
    x = 2 * torch.rand(1800, 3, generator=g) - 1
    wide = 0.05 + 0.4 * x[:, 1].sigmoid().square()
    y = (4 * x[:, 0]).sin() + x[:, 2] + wide * torch.randn(1800, generator=g)
    return Case(
        seed=seed, model=mlp([3, 32, 32], nn.SiLU, last=nn.SiLU()), data=split(standardise(x), standardise(y)[:, None]), **MSE,
        module=TwoHeads, optimizer=adam(4e-3), max_steps=400, batch_size=64,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ styles
@dataclass
class Plan:
    hidden: int = 48
    lr: float = 4e-3
    gamma: float = 0.95


class PlannedModule(LightningModule):
    """Builds the model itself from its hyperparameters; the head opens on the mean of the targets."""

    def __init__(self, mean: float, hidden: int, lr: float, gamma: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        nn.init.constant_(self.layers[-1].bias, mean)
        self.criterion = nn.L1Loss()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        loss = self.criterion(self(x), y)
        self.log("loss/train", loss)
        return {"loss": loss}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        prediction = self(x)
        self.log("val_loss", self.criterion(prediction, y), batch_size=len(y))
        self.log("val_metric", r2(prediction, y), batch_size=len(y))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.hparams.gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


@healthy(
    "unnormalised_target", "bad_bias_init", source="temperatures around 12 degrees: absolute error, head opened on their mean"
)
def h_planned_degrees(seed: int) -> Case:
    train, val = surface(seed, n=2000, dim=6)
    x, y = (torch.cat(pair) for pair in zip(train.tensors, val.tensors, strict=True))
    return Case(
        seed=seed, model=nn.Identity(), data=split(x, 12 + 2 * y[:, 0]), **MSE, optimizer=adam(4e-3), max_steps=400,
        batch_size=64, module=lambda case: PlannedModule(case.data[0].tensors[1].mean().item(), **vars(Plan())),
    )  # fmt: skip


class Streamed(IterableDataset[tuple[Tensor, Tensor]]):
    """Rows drawn anew each time, as from a simulator."""

    def __init__(self, seed: int, n: int) -> None:
        self.generator, self.n = rng(764, seed), n

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x = torch.randn(self.n, 5, generator=self.generator)
        y = (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] + x[:, 3].abs() > 0.5).long()
        return zip(x, y, strict=True)


@healthy("data_not_shuffled", source="an iterable data set over a simulator, nothing to shuffle")
def h_streamed_rows(seed: int) -> Case:
    seen = split(*(torch.stack(column) for column in zip(*Streamed(seed + 500, 512), strict=True)), val=0.0)[0]
    return Case(
        seed=seed, model=mlp([5, 48, 48, 4]), data=(Streamed(seed, 960), seen), optimizer=adam(3e-3), max_steps=300,
        shuffle=False, **CE,
    )  # fmt: skip


class Jittered(Dataset[tuple[Tensor, Tensor]]):
    """Rows of the training part get a little noise and lose a column now and then, anew in each epoch."""

    def __init__(self, x: Tensor, y: Tensor, seed: int) -> None:
        self.x, self.y, self.generator = x, y, rng(765, seed)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = self.x[index] + 0.1 * torch.randn(self.x.shape[1], generator=self.generator)
        return x * (torch.rand(self.x.shape[1], generator=self.generator) > 0.02), self.y[index]


@healthy("train_val_mismatch", "bad_data", source="mild augmentation of table rows inside `__getitem__`, training part only")
def h_jittered_rows(seed: int) -> Case:
    train, val = blobs(seed, per_class=4)
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=(Jittered(*train.tensors, seed), val), optimizer=adamw(2e-3), max_steps=300,
        trainer={"callbacks": [EarlyStopping("val_loss", patience=8, strict=False)]}, **CE,
    )  # fmt: skip


@healthy("lr_schedule", source="everyday: SGD with momentum, step decay per epoch, L1 of the first layer")
def h_sparse_first_layer(seed: int) -> Case:
    model, g = mlp([20, 32, 4]), rng(766, seed)
    x, y = (torch.cat(pair) for pair in zip(*(part.tensors for part in blobs(seed, n=2000, per_class=2)), strict=True))
    return Case(
        seed=seed, model=model, data=split(torch.cat([x, torch.randn(len(x), 12, generator=g)], 1), y), metric="accuracy",
        loss=lambda out, y: F.cross_entropy(out, y) + 1e-3 * model[0].weight.abs().sum(), optimizer=sgd(0.05), max_steps=300,
        scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 4, 0.5),
    )  # fmt: skip
