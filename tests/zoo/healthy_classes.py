"""Healthy, second set: losses of classes that are not plain cross-entropy."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import more_data as data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import replace, standardise
from tests.zoo.healthy_tables import Tabular
from tests.zoo.nets import CE, adam, adamw, mlp, sgd

# ------------------------------------------------------------------------------------------ comparing


# ------------------------------------------------------------------------------------------ classes
def poly(output: Tensor, target: Tensor) -> Tensor:
    """Leng et al. 2022: cross-entropy plus 1 - p."""
    right = output.softmax(1).gather(1, target[:, None])[:, 0]
    return (F.cross_entropy(output, target, reduction="none") + 1 - right).mean()


@healthy("wrong_loss", source="Leng et al. 2022: poly loss, above log C at first")
def h_poly_loss(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([5, 64, 64, 3], nn.SELU), data=data.arcs(seed), optimizer=sgd(0.03), loss=poly, metric="accuracy"
    )


def confident_penalty(output: Tensor, target: Tensor) -> Tensor:
    """Pereyra et al. 2017: cross-entropy minus a tenth of the entropy."""
    log_p = output.log_softmax(1)
    return F.nll_loss(log_p, target) + 0.1 * (log_p.exp() * log_p).sum(1).mean()


@healthy("wrong_loss", "loss_sign", source="Pereyra et al. 2017: entropy rewarded, below log C at first")
def h_confidence_penalty(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([5, 64, 64, 3]), data=data.arcs(seed), optimizer=adamw(8e-3), loss=confident_penalty,
        metric="accuracy",
    )  # fmt: skip


def one_against_rest(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, F.one_hot(target, output.shape[1]).float())


@healthy("wrong_loss", "labels_broken", source="Beyer et al. 2020, Wightman et al. 2021: one sigmoid per class, BCE on one-hot")
def h_sigmoid_per_class(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([5, 64, 64, 3]), data=data.arcs(seed), optimizer=adam(8e-3), loss=one_against_rest,
        metric="accuracy",
    )  # fmt: skip


def sums(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none").sum() / 256


@healthy("loss_reduction", source="the summed loss divided by a constant, not by the batch")
def h_constant_divisor(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([5, 64, 64, 3]), data=data.arcs(seed), optimizer=sgd(0.3), batch_size=64, loss=sums,
        metric="accuracy",
    )  # fmt: skip


def weighted_by_hand(output: Tensor, target: Tensor) -> Tensor:
    losses = F.binary_cross_entropy_with_logits(output, target, reduction="none")
    return (losses * torch.where(target > 0.5, 9.0, 1.0)).sum() / torch.where(target > 0.5, 9.0, 1.0).sum()


@healthy("class_imbalance", "loss_reduction", source="one buyer in ten, weighed by hand to equal shares")
def h_rare_buyers(seed: int) -> Case:
    train, val = data.tidy(data.customers(seed, n=4200))
    keep = (train.tensors[2][:, 0] < 0.5) | (torch.rand(len(train), generator=data.rng(241, seed)) < 0.11)
    train = torch.utils.data.TensorDataset(*(t[keep] for t in train.tensors))
    return Case(
        seed=seed, model=Tabular(norm=False), data=(train, val), optimizer=adam(1e-2), loss=weighted_by_hand,
        metric="binary_accuracy", max_steps=300,
    )  # fmt: skip


class CentreLoss(Supervised):
    """Wen et al. 2016: cross-entropy, and features pulled to a centre per class that moves at a rate of its own."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.centres = nn.Parameter(torch.zeros(3, 16))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        features = self.model[:-1](x)
        return F.cross_entropy(self.model[-1](features), y) + 0.01 * (features - self.centres[y]).square().sum(1).mean()

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.model.parameters()}, {"params": [self.centres], "lr": 5.0}]
        return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


@healthy("lr_too_high", "not_in_optimizer", "init_symmetry", source="Wen et al. 2016: centre loss, a rate of 5 for the centres")
def h_centre_loss(seed: int) -> Case:
    return Case(seed=seed, model=mlp([5, 64, 16, 3]), data=data.arcs(seed), optimizer=sgd(0.05), module=CentreLoss, **CE)


def standard_counts(seed: int) -> data.Split:
    return replace(data.baskets(seed), 0, lambda x: standardise(x.log1p(), None))


@healthy("wrong_loss", source="Crammer and Singer 2001: multi-class squared hinge")
def h_squared_hinge(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([10, 64, 64, 4]), data=standard_counts(seed), optimizer=adam(8e-3), max_steps=260,
        loss=nn.MultiMarginLoss(p=2), metric="accuracy",
    )  # fmt: skip
