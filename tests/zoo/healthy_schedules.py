"""Healthy: schedules, clipping, samples in an order of their own, decay and penalties."""

from collections.abc import Sequence

import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.nets import CE, MSE, adam, convnet, he, init_weights, mlp, sgd


@healthy("lr_schedule", "bn_stats", source="stochastic weight averaging over the last third")
def h_weight_averaging(seed: int) -> Case:
    averaging = StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=3, annealing_epochs=1)
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.05), max_steps=-1,
        trainer={"callbacks": [averaging], "max_epochs": 6}, **CE,
    )  # fmt: skip


@healthy("lr_schedule", "lr_too_low", source="cosine decay to zero at the last step")
def h_cosine_decay(seed: int) -> Case:
    def schedule(optimizer: torch.optim.Optimizer) -> object:
        return {"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200), "interval": "step"}

    return Case(seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.1), scheduler=schedule, **CE)


@healthy("lr_schedule", "lr_too_high", source="Smith 2018: one-cycle schedule, high in the middle")
def h_one_cycle(seed: int) -> Case:
    def schedule(optimizer: torch.optim.Optimizer) -> object:
        return {"scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=202), "interval": "step"}

    return Case(
        seed=seed, model=convnet(norm=nn.BatchNorm2d), data=data.gratings(seed), optimizer=sgd(0.01), scheduler=schedule, **CE
    )


@healthy("lr_schedule", source="the rate halved when the validation loss stalls")
def h_reduce_on_plateau(seed: int) -> Case:
    def schedule(optimizer: torch.optim.Optimizer) -> object:
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
        return {"scheduler": scheduler, "monitor": "val_loss"}

    return Case(
        seed=seed, model=mlp([64, 64, 10]), data=data.digits(seed), optimizer=sgd(0.1), scheduler=schedule, max_steps=240, **CE
    )


@healthy("clip_too_small", source="a tiny clipping norm under Adam, which divides it out again")
def h_tiny_clip_adam(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([8, 64, 64, 4]),
        data=data.blobs(seed),
        optimizer=adam(4e-3, eps=1e-12),
        trainer={"gradient_clip_val": 1e-3},
        **CE,
    )


@healthy("clip_too_small", source="clipping by value at 0.05 under SGD, which binds only at first")
def h_clip_by_value(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.05),
        trainer={"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}, **CE,
    )  # fmt: skip


@healthy("data_not_shuffled", source="not shuffled, and in no order either")
def h_unshuffled_random(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.05), shuffle=False, **CE)


@healthy("data_not_shuffled", source="a time series in its order: neighbouring targets are alike, the loader must not care")
def h_slow_drift(seed: int) -> Case:
    g = data.rng(96, seed)
    t = torch.arange(1536.0)
    season = torch.stack([(t / 25).sin(), (t / 25).cos()], 1)
    x = torch.cat([season, torch.randn(1536, 4, generator=g)], 1)
    y = season[:, 0] * x[:, 2] + x[:, 3].abs() + 0.3 * season[:, 1]
    return Case(
        seed=seed,
        model=mlp([6, 64, 64, 1]),
        data=data.split(x, data.standardise(y)[:, None]),
        optimizer=adam(5e-3),
        shuffle=False,
        **MSE,
    )


@healthy("data_not_shuffled", source="not shuffled, the rows interleaved with a stride of seven")
def h_interleaved_rows(seed: int) -> Case:
    split = data.reorder(data.blobs(seed), lambda y: torch.arange(len(y)) % 7)
    return Case(seed=seed, model=mlp([8, 64, 64, 4]), data=split, optimizer=sgd(0.05), shuffle=False, **CE)


@healthy("class_imbalance", source="ten balanced classes; the twin of a training set that lost most of eight")
def h_balanced_digits(seed: int) -> Case:
    return Case(seed=seed, model=mlp([64, 64, 10]), data=data.digits(seed), optimizer=adam(4e-3), **CE)


@healthy("unnormalised_target", source="three standardised outputs by SGD")
def h_several_outputs_sgd(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 3]), data=data.several(seed), optimizer=sgd(0.05), **MSE)


@healthy("weight_decay_too_strong", source="SGD with the usual decay of 5e-4 on everything")
def h_usual_decay(seed: int) -> Case:
    return Case(
        seed=seed,
        model=convnet(norm=nn.BatchNorm2d),
        data=data.gratings(seed),
        optimizer=sgd(0.05, weight_decay=5e-4),
        max_steps=160,
        **CE,
    )


class Penalised(Supervised):
    """An L1 penalty of the first layer in the loss."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = super().training_step(batch, batch_idx)
        return loss + 1e-4 * next(self.model.parameters()).abs().sum()


@healthy("weight_decay_too_strong", "loss_reduction", source="an L1 penalty in the loss: step-0 loss above log C")
def h_penalised(seed: int) -> Case:
    return Case(seed=seed, model=mlp([64, 96, 10]), data=data.digits(seed), optimizer=adam(4e-3), module=Penalised, **CE)


def penalised(factor: float) -> type[Supervised]:
    """Add a factor times the sum of all squared weights to the loss."""

    class Squares(Supervised):
        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
            loss: Tensor = super().training_step(batch, batch_idx)
            return loss + factor * sum(p.square().sum() for p in self.parameters())

    return Squares


@healthy("weight_decay_too_strong", "loss_reduction", source="L2 by hand in a wide net: at first most of the loss, and mild")
def h_wide_penalty(seed: int) -> Case:
    model = init_weights(mlp([64, 768, 768, 10]), he)
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=sgd(0.02), module=penalised(1e-3), **CE)
