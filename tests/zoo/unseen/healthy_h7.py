"""Healthy, held out: ways of training - mixing, averaging, scaling, scheduling, several optimisers and losses."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import blobs, curve, digits, surface
from tests.zoo.more_data import centred, friedman, shapes
from tests.zoo.nets import CE, MSE, ResNet, adam, adamw, convnet, mlp, sgd


class Mixup(Supervised):
    """Two rows and their labels in one, by a share from Beta(0.4, 0.4)."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        share, other = torch.distributions.Beta(0.4, 0.4).sample().item(), torch.randperm(len(x))
        output = self(share * x + (1 - share) * x[other])
        loss = share * self.loss_fn(output, y) + (1 - share) * self.loss_fn(output, y[other])
        self.log("train_loss", loss)
        return loss


@healthy("batch_mixing", "labels_broken", "train_val_mismatch", source="Zhang 2018, mixup: the training loss stays high")
def h_mixup_of_digits(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([64, 96, 96, 10]), data=digits(seed), **CE, module=Mixup, optimizer=adamw(3e-3), max_steps=260
    )


class Averaged(Supervised):
    """Validates with a moving average of the weights."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.average = copy.deepcopy(self.model).requires_grad_(False)

    def on_train_batch_end(self, *_: Any) -> None:
        keep = min(0.98, (1 + self.global_step) / (10 + self.global_step))
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.model.parameters(), strict=True):
                slow.lerp_(fast, 1 - keep)

    def forward(self, *inputs: Tensor) -> Any:
        return (self.model if self.training else self.average)(*inputs)


@healthy("frozen_by_accident", "not_in_optimizer", source="Tarvainen 2017: a moving average of the weights is what counts")
def h_moving_average_of_weights(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 1], act=nn.SiLU), data=surface(seed, 3000), **MSE, module=Averaged,
        optimizer=adam(5e-3), frozen=[f"average.{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias")], max_steps=300,
    )  # fmt: skip


@healthy("gradients_not_zeroed", "lr_schedule", source="four batches of eight for a step, everyday")
def h_four_times_eight(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=blobs(seed, 2400), **CE, optimizer=adam(4e-3), batch_size=8,
        trainer={"accumulate_grad_batches": 4}, max_steps=260,
    )  # fmt: skip


@healthy("lr_too_high", "lr_schedule", source="Smith 2018, one cycle up to a high rate, ResNet on pictures")
def h_one_cycle_up_and_down(seed: int) -> Case:
    def schedule(optimizer: Optimizer) -> dict[str, Any]:
        return {"scheduler": OneCycleLR(optimizer, 0.08, total_steps=201), "interval": "step"}

    return Case(
        seed=seed, model=ResNet(channels=3), data=centred(shapes(seed, 1080)), **CE, optimizer=sgd(0.02, weight_decay=5e-4),
        scheduler=schedule, max_steps=200,
    )  # fmt: skip


@healthy(
    "lr_too_high", "data_not_shuffled", source="L-BFGS with the whole table as one batch, as for small scientific problems"
)
def h_lbfgs_whole_table(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([1, 24, 24, 1], act=nn.Tanh), data=curve(seed, 900), **MSE, batch_size=600, shuffle=False,
        optimizer=lambda model: torch.optim.LBFGS(model.parameters(), 1.0, max_iter=8, line_search_fn="strong_wolfe"),
        max_steps=40,
    )  # fmt: skip


class ScaledTarget(nn.Module):
    """Knows mean and spread of the target from the training set and answers in its units."""

    def __init__(self, net: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", y.mean(0))
        self.register_buffer("spread", y.std(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.mean + self.spread * self.net(rescaled(x))


def rescaled(x: Tensor) -> Tensor:
    """Uniform inputs in [0, 1] to about unit variance."""
    return 3.46 * (x - 0.5)


@healthy(
    "unnormalised_target", "unnormalised_input", source="inputs and outputs are scaled inside the net, loss by the variance"
)
def h_scaled_inside(seed: int) -> Case:
    data = friedman(seed, 2400)
    spread = data[0].tensors[1].var()
    return Case(
        seed=seed, model=ScaledTarget(mlp([8, 64, 64, 1]), data[0].tensors[1]), data=data, metric="r2",
        loss=lambda output, target: F.mse_loss(output, target) / spread, optimizer=adam(4e-3), max_steps=280,
    )  # fmt: skip


@healthy("wrong_loss", source="a convnet with batch norm and Adam, smoothing of labels at 0.1")
def h_smoothed_labels(seed: int) -> Case:
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    model = convnet(3, 10, 4, 16, norm=nn.BatchNorm2d, bias=False)
    return Case(
        seed=seed,
        model=model,
        data=centred(shapes(seed, 1440)),
        loss=loss,
        metric="accuracy",
        optimizer=adamw(2e-3),
        max_steps=260,
    )
