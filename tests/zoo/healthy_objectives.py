"""Healthy, second set: losses that compare, rank, weigh, bound or go below zero."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import more_data as data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import digits, replace
from tests.zoo.healthy_tables import standard_target
from tests.zoo.nets import CE, MSE, adam, mlp, sgd


# ------------------------------------------------------------------------------------------ comparing
class Comparing(Supervised):
    """A tower for an anchor and two candidates; a batch becomes (anchor, right, wrong)."""

    def pieces(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        anchor, a, b, which = batch
        swap = which[:, None] == 1
        return self(anchor), self(torch.where(swap, b, a)), self(torch.where(swap, a, b))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return self.loss_fn(*self.pieces(batch))

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        anchor, right, wrong = self.pieces(batch)
        better = (anchor - right).square().sum(1) < (anchor - wrong).square().sum(1)
        self.log("val_metric", better.float().mean(), batch_size=len(anchor))


@healthy("wrong_loss", "batch_mixing", "loss_sign", source="Schroff et al. 2015: triplet loss with a margin")
def h_triplet(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 64, 16]), data=data.judgements(seed), optimizer=adam(5e-3), module=Comparing,
        loss=nn.TripletMarginLoss(margin=1.0), metric="accuracy", max_steps=250,
    )  # fmt: skip


def info_nce(anchor: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    """The right candidate against all other samples' candidates, at a temperature of 0.2."""
    anchor, right, wrong = (F.normalize(v, dim=1) for v in (anchor, right, wrong))
    scores = torch.cat([anchor @ right.T, (anchor * wrong).sum(1, keepdim=True)], 1) / 0.2
    return F.cross_entropy(scores, torch.arange(len(anchor)))


@healthy("batch_mixing", "wrong_loss", source="van den Oord et al. 2018: InfoNCE against the batch and a hard negative")
def h_info_nce(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 64, 16], nn.GELU), data=data.judgements(seed), optimizer=adam(5e-3), module=Comparing,
        loss=info_nce, metric="accuracy", max_steps=250, batch_size=64,
    )  # fmt: skip


def variance_covariance(anchor: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    """Bardes et al. 2022 (VICReg): pull together, keep each feature's spread over the batch, decorrelate."""
    together = F.mse_loss(anchor, right)
    spread = F.relu(1 - (anchor.var(0) + 1e-4).sqrt()).mean()
    covariance = anchor.T.cov()
    return 25 * together + 25 * spread + (covariance - covariance.diag().diag()).square().sum() / anchor.shape[1]


@healthy("batch_mixing", "loss_reduction", "unnormalised_target", source="Bardes et al. 2022: VICReg, statistics over a batch")
def h_variance_covariance(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 64, 8]), data=data.judgements(seed), optimizer=adam(5e-3), module=Comparing,
        loss=variance_covariance, metric="accuracy", max_steps=250, batch_size=64,
    )  # fmt: skip


class Ranking(Supervised):
    """Rendle et al. 2009: the log-odds that the right candidate scores higher, minus in front."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        anchor, a, b, which = batch
        difference = self.model(torch.cat([anchor, b], 1)) - self.model(torch.cat([anchor, a], 1))
        return -F.logsigmoid((2 * which[:, None] - 1) * difference).mean()

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        anchor, a, b, which = batch
        difference = self.model(torch.cat([anchor, b], 1)) - self.model(torch.cat([anchor, a], 1))
        self.log("val_metric", ((difference[:, 0] > 0) == (which == 1)).float().mean(), batch_size=len(which))


@healthy("wrong_loss", "loss_sign", "bad_bias_init", source="Rendle et al. 2009 (BPR): pairwise ranking; the last bias cancels")
def h_pairwise_ranking(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([12, 64, 32, 1]), data=data.judgements(seed), optimizer=adam(8e-3), module=Ranking,
        max_steps=300, **CE,
    )  # fmt: skip


class CosineHead(nn.Module):
    """Cosines with learnt class directions, times 16."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(classes, dim))

    def forward(self, x: Tensor) -> Tensor:
        return 16 * F.normalize(x, dim=1) @ F.normalize(self.directions, dim=1).T


def large_margin(output: Tensor, target: Tensor) -> Tensor:
    """Wang et al. 2018 (CosFace): the right class's cosine is lowered by 0.2 first."""
    return F.cross_entropy(output - 3.2 * F.one_hot(target, output.shape[1]), target)


@healthy(
    "wrong_loss", "bad_gain", "init_exploding", source="Wang et al. 2018: large-margin cosine loss, far above log C at first"
)
def h_large_margin_cosine(seed: int) -> Case:
    model = nn.Sequential(mlp([5, 64, 16]), CosineHead(16, 3))
    return Case(seed=seed, model=model, data=data.arcs(seed), optimizer=adam(5e-3), loss=large_margin, metric="accuracy")


@healthy("wrong_loss", "lr_too_low", source="Gidaris and Komodakis 2018: a classifier of cosines with a fixed scale of 16")
def h_cosine_classes(seed: int) -> Case:
    model = nn.Sequential(mlp([64, 96, 32]), CosineHead(32, 10))
    return Case(seed=seed, model=model, data=digits(seed), optimizer=sgd(0.02), **CE)


# ------------------------------------------------------------------------------------------ numbers
def pinball(output: Tensor, target: Tensor) -> Tensor:
    levels = torch.tensor([0.1, 0.5, 0.9])
    error = target - output
    return torch.maximum(levels * error, (levels - 1) * error).mean()


class Middle(Supervised):
    """Validates the second of three outputs."""

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_metric", self.metric.score(self(x)[:, 1:2], y), batch_size=len(y))


@healthy("shape_broadcast", "wrong_loss", source="three quantiles of one number: (N, 3) against (N, 1) broadcasts on purpose")
def h_three_quantiles(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 3]), data=standard_target(seed), optimizer=adam(6e-3), module=Middle,
        loss=pinball, metric="r2", max_steps=300,
    )  # fmt: skip


def log_cosh(output: Tensor, target: Tensor) -> Tensor:
    error = output - target
    return (error + F.softplus(-2 * error) - math.log(2)).mean()


@healthy("wrong_loss", source="log-cosh loss")
def h_log_cosh(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 1], nn.SiLU), data=standard_target(seed), optimizer=adam(1.5e-2), max_steps=250,
        loss=log_cosh, metric="r2",
    )  # fmt: skip


class StudentT(nn.Module):
    """Negative log-likelihood of a Student distribution of 4 degrees whose scale is learnt here, in the criterion."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return -torch.distributions.StudentT(4.0, output, self.log_scale.exp()).log_prob(target).mean()


class WithCriterion(Supervised):
    """Optimises the criterion's parameters too."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@healthy(
    "not_in_optimizer", "loss_sign", source="a loss with a learnt parameter of its own; likelihood of a Student distribution"
)
def h_student_likelihood(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 1]), data=standard_target(seed), optimizer=adam(1e-2), module=WithCriterion,
        loss=StudentT(), metric="r2", max_steps=250,
    )  # fmt: skip


def gamma_deviance(output: Tensor, target: Tensor) -> Tensor:
    """Of a log mean, without the terms of the target alone."""
    return (output + target * (-output).exp()).mean()


@healthy(
    "wrong_loss", "unnormalised_target", source="gamma regression with a log link, targets of 14 +- 5, bias at the log mean"
)
def h_gamma_deviance(seed: int) -> Case:
    model = mlp([8, 64, 64, 1], nn.Tanh)
    nn.init.constant_(model[-1].bias, math.log(14))  # type: ignore[arg-type]
    split = replace(data.friedman(seed), 1, lambda y: y.clamp_min(0.5))
    return Case(seed=seed, model=model, data=split, optimizer=adam(8e-3), loss=gamma_deviance, metric="log_r2", max_steps=300)


def tweedie(output: Tensor, target: Tensor) -> Tensor:
    """Of power 1.5, for a log mean."""
    return 2 * (target * (-0.5 * output).exp() + (0.5 * output).exp()).mean()


@healthy("class_imbalance", "unnormalised_target", source="claims: most targets are zero, Tweedie deviance with a log link")
def h_tweedie(seed: int) -> Case:
    g = data.rng(240, seed)
    x = torch.randn(2400, 4, generator=g)
    rate = (0.9 * x[:, 0] + x[:, 1].sin() + 0.2).clamp_max(2.5).exp()
    claims = torch.poisson(rate, generator=g)
    split = data.split(x, claims[:, None])
    return Case(
        seed=seed, model=mlp([4, 48, 1]), data=split, optimizer=adam(8e-3), loss=tweedie, metric="log_r2", max_steps=250
    )


class Uncertain(Supervised):
    """Kendall et al. 2018: two tasks weighed by learnt uncertainties, so that the loss may fall below zero."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.log_variance = nn.Parameter(torch.zeros(2))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        errors = (self(x) - y).square().mean(0)
        return ((-self.log_variance).exp() * errors + self.log_variance).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


@healthy("loss_sign", "not_in_optimizer", "init_symmetry", source="Kendall et al. 2018: tasks weighed by learnt uncertainty")
def h_uncertain_tasks(seed: int) -> Case:
    return Case(seed=seed, model=mlp([48, 64, 2]), data=data.spectra(seed), optimizer=adam(8e-3), module=Uncertain, **MSE)
