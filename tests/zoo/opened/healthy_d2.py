"""Tables: lifetimes, ordered grades, rankings, several labels, rare classes, costs and noisy labels."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.zoo.case import Case, healthy
from tests.zoo.data import Split, attributes, blobs, rare_blobs, replace, rng, split
from tests.zoo.metrics import METRICS
from tests.zoo.nets import CE, adam, adamw, mlp, sgd
from tests.zoo.opened.healthy_d1 import SharedStep, concordance, figure


# ------------------------------------------------------------------------------------------ lifetimes
def lifetimes(seed: int, n: int = 1800) -> Split:
    g = rng(750, seed)
    x = torch.randn(n, 6, generator=g)
    risk = 1.2 * x[:, 0] + x[:, 1] * x[:, 2] + x[:, 3].abs()
    life = (-torch.rand(n, generator=g).clamp_min(1e-6).log()).pow(1 / 2.5) * (-risk / 1.5).exp() * 2
    limit = 0.3 + 6 * torch.rand(n, generator=g)
    return split(x, torch.stack([torch.minimum(life, limit), (life <= limit).float()], 1))


def cox(output: Tensor, target: Tensor) -> Tensor:
    """The partial likelihood of a batch: each event against all who lived at least as long."""
    order = target[:, 0].argsort(descending=True)
    risk, event = output[order, 0], target[order, 1]
    return -((risk - risk.logcumsumexp(0)) * event).sum() / event.sum().clamp_min(1)


RISK = figure("d_concordance", concordance, 0.5)


@healthy("batch_mixing", "wrong_loss", source="DeepSurv: the Cox partial likelihood looks across the rows of a batch")
def h_cox_batches(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 32, 32, 1], nn.SELU, bias=True), data=lifetimes(seed), loss=cox, metric=RISK,
        optimizer=adam(3e-3), max_steps=250, batch_size=96, val_batch_size=96,
    )  # fmt: skip


def yearly(output: Tensor, target: Tensor) -> Tensor:
    """Hazards of twelve intervals of a quarter: each lived through is a no, the one of the event a yes."""
    last = (target[:, 0] / 0.25).long().clamp_max(output.shape[1] - 1)
    at = torch.arange(output.shape[1])
    event = F.one_hot(last, output.shape[1]) * target[:, 1:]
    lived = (at < last[:, None]) | ((at == last[:, None]) & (target[:, 1:] > 0.5))
    each = F.binary_cross_entropy_with_logits(output, event, reduction="none")
    return (each * lived).sum() / lived.sum()


@healthy(
    "class_imbalance", "wrong_loss", source="Gensheimer and Narasimhan 2019: discrete-time hazards with a prior of the bias"
)
def h_quarterly_hazards(seed: int) -> Case:
    model = mlp([6, 48, 48, 12])
    nn.init.constant_(model[-1].bias, -1.5)
    return Case(
        seed=seed, model=model, data=lifetimes(seed), loss=yearly, optimizer=adamw(3e-3), max_steps=300, batch_size=64,
        metric=figure("d_hazards", lambda out, y: concordance(out.sigmoid().sum(1), y), 0.5), module=SharedStep,
    )  # fmt: skip


class Weibull(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.log_shape = mlp([6, 40, 40, 1], nn.ELU), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(x), self.log_shape.expand(len(x), 1)], 1)


def weibull(output: Tensor, target: Tensor) -> Tensor:
    shape, log_time = output[:, 1].exp(), target[:, 0].log()
    z = shape * (log_time - output[:, 0])
    return (z.exp() - target[:, 1] * (z + output[:, 1] - log_time)).mean()


@healthy("wrong_loss", source="accelerated failure times: Weibull likelihood with censoring, one shape for all")
def h_weibull_lifetimes(seed: int) -> Case:
    return Case(
        seed=seed, model=Weibull(), data=lifetimes(seed), loss=weibull, optimizer=adam(3e-3), max_steps=300, batch_size=64,
        metric=figure("d_weibull", lambda out, y: concordance(-out[:, 0], y), 0.5),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ grades
def grades(seed: int, n: int = 2000, levels: int = 5) -> Split:
    g = rng(751, seed)
    x = torch.randn(n, 6, generator=g)
    score = 1.5 * x[:, 0] + x[:, 1] * x[:, 2] + x[:, 3].abs() + 0.15 * torch.randn(n, generator=g)
    return split(x, torch.bucketize(score, score.quantile(torch.linspace(0, 1, levels + 1)[1:-1])))


class Coral(nn.Module):
    """One score, four biases: a logit for each `more than level k`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.score = mlp([6, 48, 24], last=nn.ReLU()), nn.Linear(24, 1, bias=False)
        self.biases = nn.Parameter(torch.tensor([1.5, 0.5, -0.5, -1.5]))

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.body(x)) + self.biases


def above(target: Tensor) -> Tensor:
    return (target[:, None] > torch.arange(4)).float()


def level(output: Tensor, target: Tensor) -> Tensor:
    return ((output > 0).sum(1) == target).float().mean()


LEVEL = figure("d_level", level, METRICS["accuracy"].constant)


@healthy("wrong_loss", "shape_broadcast", "init_symmetry", source="Cao et al. 2020: CORAL, levels as four yes-or-no questions")
def h_coral_levels(seed: int) -> Case:
    return Case(
        seed=seed, model=Coral(), data=grades(seed), metric=LEVEL, optimizer=adam(5e-3), max_steps=350, batch_size=64,
        loss=lambda out, y: F.binary_cross_entropy_with_logits(out, above(y)),
    )  # fmt: skip


class Thresholds(nn.Module):
    """Cumulative link: probabilities between learnt, ordered thresholds."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.gaps = mlp([6, 40, 40, 1]), nn.Parameter(torch.tensor(-1.5)), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        cuts = self.first + F.pad(F.softplus(self.gaps).cumsum(0), (1, 0))
        below = F.pad((cuts - self.body(x)).sigmoid(), (1, 1))
        below[:, -1] = 1
        return below.diff(dim=1).clamp_min(1e-6).log()


@healthy("wrong_last_activation", source="proportional odds with learnt thresholds, NLL on log probabilities")
def h_ordered_thresholds(seed: int) -> Case:
    return Case(
        seed=seed, model=Thresholds(), data=grades(seed), loss=F.nll_loss, metric="accuracy", optimizer=adam(5e-3),
        max_steps=350, batch_size=64,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ rankings
def searches(seed: int, n: int = 1800, length: int = 6) -> Split:
    """Queries `[n, 4]`, candidates `[n, length, 4]`, and which is the best."""
    g = rng(752, seed)
    query, found = torch.randn(n, 4, generator=g), torch.randn(n, length, 4, generator=g)
    best = (query[:, None] * found).sum(2) + 0.5 * found[:, :, 0].abs()
    return split(query, found, best.argmax(1))


class Scorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = mlp([12, 48, 48, 1])

    def forward(self, query: Tensor, found: Tensor) -> Tensor:
        asked = query[:, None].expand_as(found)
        return self.score(torch.cat([asked, found, asked * found], 2)).squeeze(2)


class Search(NamedTuple):
    query: Tensor
    found: Tensor
    best: Tensor


class Searches(Dataset[Search]):
    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> Search:
        return Search(*(t[index] for t in self.tensors))


class Ranker(LightningModule):
    """Batches are named tuples; scores of a list go through one softmax."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.scorer, self.optimizer = case.model, case.optimizer

    def training_step(self, batch: Search, batch_idx: int) -> dict[str, Tensor]:
        loss = F.cross_entropy(self.scorer(batch.query, batch.found), batch.best)
        self.log("train/loss", loss, prog_bar=True)
        return {"loss": loss}

    def validation_step(self, batch: Search, batch_idx: int) -> None:
        scores = self.scorer(batch.query, batch.found)
        self.log("val_loss", F.cross_entropy(scores, batch.best), batch_size=len(scores))
        self.log("val_metric", (scores.argmax(1) == batch.best).float().mean(), batch_size=len(scores))

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.scorer)


@healthy("wrong_loss", source="ListNet top one: softmax over the candidates of a query, named tuples as batches")
def h_listwise_search(seed: int) -> Case:
    train, val = searches(seed)
    return Case(
        seed=seed, model=Scorer(), data=(Searches(*train.tensors), Searches(*val.tensors)), module=Ranker, **CE,
        optimizer=adamw(3e-3, weight_decay=0.05), max_steps=200, batch_size=64,
    )  # fmt: skip


def in_pairs(output: Tensor, best: Tensor) -> Tensor:
    gap = output.gather(1, best[:, None]) - output
    return F.softplus(-gap.masked_fill(F.one_hot(best, output.shape[1]).bool(), 30.0)).mean()


@healthy("wrong_loss", source="RankNet within a list: the best candidate against each other one")
def h_pairs_in_lists(seed: int) -> Case:
    return Case(
        seed=seed, model=Scorer(), data=searches(seed), loss=in_pairs, metric="accuracy", optimizer=adam(4e-3), max_steps=300
    )


# ------------------------------------------------------------------------------------------ several, rare, costly, noisy
def asymmetric(output: Tensor, target: Tensor) -> Tensor:
    yes, no = output.sigmoid(), (1 - output.sigmoid() + 0.05).clamp_max(1)
    gain = target * yes.clamp_min(1e-8).log() + (1 - target) * (1 - no).square() * no.clamp_min(1e-8).log()
    return -gain.sum(1).mean()


@healthy("wrong_loss", "loss_reduction", source="Ridnik et al. 2021: asymmetric loss, summed over the labels")
def h_asymmetric_tags(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([10, 64, 64, 6]), data=attributes(seed), loss=asymmetric, metric="binary_accuracy",
        optimizer=adam(2e-3), max_steps=400,
    )  # fmt: skip


@healthy("class_imbalance", source="Menon et al. 2021: logits plus log prior in the loss, plain argmax when judged")
def h_logits_adjusted(seed: int) -> Case:
    data = rare_blobs(seed, rare=0.1, n=2400, overlap=0.4)
    prior = data[0].tensors[1].bincount(minlength=2) / len(data[0])
    return Case(
        seed=seed, model=mlp([6, 32, 32, 2]), data=data, loss=lambda out, y: F.cross_entropy(out + prior.log(), y),
        metric="balanced_accuracy", optimizer=adam(2e-3), max_steps=300, batch_size=64,
    )  # fmt: skip


COSTS = torch.tensor([[0.0, 1.0, 4.0], [1.0, 0.0, 1.0], [4.0, 1.0, 0.0]])


@healthy("wrong_loss", source="triage: the expected cost under a table of costs is minimised beside the cross-entropy")
def h_costs_of_errors(seed: int) -> Case:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        return (out.softmax(1) * COSTS[y]).sum(1).mean() + 0.5 * F.cross_entropy(out, y)

    return Case(
        seed=seed, model=mlp([8, 48, 48, 3]), data=blobs(seed, classes=3), loss=loss, metric="accuracy", module=SharedStep,
        optimizer=sgd(0.03), max_steps=300,
    )  # fmt: skip


NOISE = torch.full((4, 4), 0.1) + 0.6 * torch.eye(4)


@healthy(
    "labels_broken", "train_val_mismatch", source="Patrini et al. 2017: known label noise, corrected forward by its matrix"
)
def h_forward_corrected(seed: int) -> Case:
    def noisy(y: Tensor) -> Tensor:
        return torch.multinomial(NOISE[y], 1, generator=rng(753, seed))[:, 0]

    return Case(
        seed=seed, model=mlp([8, 48, 4]), metric="accuracy",
        data=replace(blobs(seed, n=3000, per_class=3), -1, noisy, val=False),
        loss=lambda out, y: F.nll_loss((out.softmax(1) @ NOISE).log(), y), optimizer=adam(3e-3), max_steps=200, batch_size=64,
    )  # fmt: skip
