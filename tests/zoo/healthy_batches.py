"""Healthy: batches of mixed samples, of several inputs, and for several tasks."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.metrics import r2
from tests.zoo.nets import CE, MSE, adam, convnet, mlp


class Mixup(Supervised):
    """Zhang et al. 2018: convex combinations of samples and of their labels."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        share, other = torch.distributions.Beta(0.3, 0.3).sample(), torch.randperm(len(x))
        output = self(share * x + (1 - share) * x[other])
        return share * self.loss_fn(output, y) + (1 - share) * self.loss_fn(output, y[other])


@healthy("batch_mixing", "labels_broken", source="mixup: the loop mixes samples, the network does not")
def h_mixup(seed: int) -> Case:
    return Case(seed=seed, model=mlp([64, 96, 10]), data=data.digits(seed), optimizer=adam(4e-3), module=Mixup, **CE)


class TwoInputs(nn.Module):
    """A picture and a vector in one head."""

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.rest, self.head = convnet(classes=16), nn.Linear(5, 16), nn.Linear(32, 4)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return self.head(torch.cat([self.eye(x), self.rest(features)], 1).relu())


@healthy("unnormalised_input", "bad_data", source="two inputs of different shape and scale")
def h_two_inputs(seed: int) -> Case:
    train, val = data.gratings(seed)
    x, y = (torch.cat([a, b]) for a, b in zip(train.tensors, val.tensors, strict=True))
    features = 3 * torch.randn(len(x), 5, generator=data.rng(95, seed)) + 2
    return Case(seed=seed, model=TwoInputs(), data=data.split(x, features, y), optimizer=adam(4e-3), max_steps=160, **CE)


class Siamese(nn.Module):
    """One tower applied to two views; the logit falls with their distance."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.scale = mlp([8, 64, 16]), nn.Linear(1, 1)
        nn.init.constant_(self.scale.weight, -1.0)  # one that starts positive never turns: the towers collapse first

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.scale((self.tower(a) - self.tower(b)).square().mean(1, keepdim=True))


@healthy("bad_gain", "batch_mixing", source="Bromley et al. 1993: one tower called twice per step")
def h_siamese(seed: int) -> Case:
    return Case(
        seed=seed, model=Siamese(), data=data.pairs(seed), optimizer=adam(1e-2), max_steps=300,
        loss=F.binary_cross_entropy_with_logits, metric="binary_accuracy",
    )  # fmt: skip


class TwoTasks(LightningModule):
    """A class and a number from one body, two weighted losses, a dictionary batch."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.body, self.classify, self.measure = mlp([8, 64, 64]), nn.Linear(64, 2), nn.Linear(64, 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hidden = self.body(batch["x"]).relu()
        number = F.mse_loss(self.measure(hidden), batch["number"])
        return number + 0.3 * F.cross_entropy(self.classify(hidden), batch["label"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        guess = self.measure(self.body(batch["x"]).relu())
        self.log("val_metric", r2(guess, batch["number"]), batch_size=len(guess))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Rows as dictionaries."""

    def __init__(self, part: torch.utils.data.TensorDataset) -> None:
        self.x, self.y = part.tensors

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "label": (self.y[index, 0] > 0).long(), "number": self.y[index]}


@healthy("wrong_loss", "shape_broadcast", source="two tasks, dictionary batches, two losses")
def h_two_tasks(seed: int) -> Case:
    train, val = data.surface(seed)
    return Case(seed=seed, model=nn.Identity(), data=(Rows(train), Rows(val)), optimizer=adam(5e-3), module=TwoTasks, **MSE)
