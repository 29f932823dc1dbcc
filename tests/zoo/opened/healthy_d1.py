"""Tables: mixed columns, gaps, skewed amounts, counts, quantiles and lifetimes."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.zoo.case import Case, healthy
from tests.zoo.data import Split, binary, rng, split, standardise, surface
from tests.zoo.metrics import METRICS, Metric, r2
from tests.zoo.nets import BCE, CE, MSE, adam, adamw, mlp, sgd


def figure(name: str, score: Callable[[Any, Tensor], Tensor], constant: Callable[[Tensor], float] | float = 0.0) -> str:
    """Make a metric known under `name`."""
    METRICS[name] = Metric(score, constant if callable(constant) else lambda target: constant)
    return name


def concordance(risk: Tensor, target: Tensor) -> Tensor:
    """Share of comparable pairs whose earlier event has the higher risk; targets are (time, event)."""
    time, event, risk = target[:, 0], target[:, 1] > 0.5, risk.reshape(-1)
    known = event[:, None] & (time[:, None] < time[None])
    return (risk[:, None] > risk[None])[known].float().mean()


class SharedStep(LightningModule):
    """Both stages go through one `shared_step`."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net, self.criterion, self.figure = case.model, case.loss, METRICS[case.metric].score
        self.make_optimizer, self.make_scheduler = case.optimizer, case.scheduler

    def forward(self, *inputs: Tensor) -> Any:
        return self.net(*inputs)

    def shared_step(self, batch: Any, stage: str) -> Tensor:
        *inputs, target = batch.values() if isinstance(batch, dict) else batch
        output = self(*inputs)
        loss = self.criterion(output, target)
        self.log(f"{stage}_loss", loss, batch_size=len(target))
        self.log(f"{stage}_metric", self.figure(output, target), batch_size=len(target))
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.shared_step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.shared_step(batch, "val")

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.net)
        return optimizer if self.make_scheduler is None else ([optimizer], [self.make_scheduler(optimizer)])


class Rows(Dataset[dict[str, Tensor]]):
    """Named columns; each item is a dictionary."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def rows(data: Split, *names: str) -> tuple[Rows, Rows]:
    return Rows(**dict(zip(names, data[0].tensors, strict=True))), Rows(**dict(zip(names, data[1].tensors, strict=True)))


# ------------------------------------------------------------------------------------------ mixed columns
def loans(seed: int, n: int = 2400) -> Split:
    g = rng(740, seed)
    codes = torch.stack([torch.randint(k, (n,), generator=g) for k in (9, 4, 2)], 1)
    numbers = torch.randn(n, 5, generator=g)
    effects = [torch.randn(k, generator=g) for k in (9, 4, 2)]
    score = sum(e[c] for e, c in zip(effects, codes.T, strict=True)) + 1.5 * numbers[:, 0] - numbers[:, 1].square() + 1
    score = score + numbers[:, 2] * (2.0 * codes[:, 2] - 1)
    return split(codes, numbers, (score + 0.3 * torch.randn(n, generator=g) > score.median()).float()[:, None])


class MixedTable(nn.Module):
    def __init__(self, cards: tuple[int, ...] = (9, 4, 2), numbers: int = 5) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(k, min(8, (k + 1) // 2 + 1)) for k in cards)
        self.norm = nn.BatchNorm1d(numbers)
        self.body = mlp([sum(t.embedding_dim for t in self.tables) + numbers, 48, 24, 1], dropout=0.1)

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        parts = [table(column) for table, column in zip(self.tables, codes.T, strict=True)]
        return self.body(torch.cat([*parts, self.norm(numbers)], 1))


@healthy("bad_data", source="fastai tabular learner: category embeddings and batch-normalised numbers, batches as dictionaries")
def h_loan_desk(seed: int) -> Case:
    return Case(
        seed=seed, model=MixedTable(), data=rows(loans(seed), "codes", "numbers", "default"), module=SharedStep, **BCE,
        optimizer=adamw(5e-3, weight_decay=0.01), max_steps=300, batch_size=64,
    )  # fmt: skip


class Imputed(nn.Module):
    """Gaps are coded -999; they become the training mean and a flag, and all is standardised inside."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        seen = x.masked_fill(x == -999, float("nan"))
        mean = seen.nanmean(0)
        self.register_buffer("mean", mean)
        self.register_buffer("std", (seen - mean).square().nanmean(0).sqrt())
        self.body = mlp([2 * x.shape[1], 40, 40, 1])

    def forward(self, x: Tensor) -> Tensor:
        gap = x == -999
        return self.body(torch.cat([torch.where(gap, 0.0, (x - self.mean) / self.std), gap.float()], 1))


@healthy(
    "bad_data", "unnormalised_input", source="gaps coded as -999, replaced by the mean with a missing flag inside the model"
)
def h_gaps_by_flag(seed: int) -> Case:
    g = rng(741, seed)
    train, val = surface(seed, n=2000, dim=6)
    x, y = torch.cat([train.tensors[0], val.tensors[0]]), torch.cat([train.tensors[1], val.tensors[1]])
    x = (50 + 10 * x).masked_fill(torch.rand(x.shape, generator=g) < 0.06, -999.0)
    data = split(x, y)
    return Case(
        seed=seed, model=Imputed(data[0].tensors[0]), data=data, optimizer=adamw(3e-3), max_steps=400, batch_size=64, **MSE
    )


def spending(seed: int, n: int = 1800) -> Split:
    g = rng(742, seed)
    x = torch.randn(n, 6, generator=g)
    return split(x, (6 + 1.2 * x[:, 0] + x[:, 1].tanh() * x[:, 2] + 0.3 * torch.randn(n, generator=g)).exp()[:, None])


class LogSpending(SharedStep):
    """The loss is taken of standardised logarithms; the figure too."""

    centre, scale = 6.0, 1.5

    def shared_step(self, batch: Any, stage: str) -> Tensor:
        x, amount = batch
        target = (amount.log1p() - self.centre) / self.scale
        output = self(x)
        loss = F.smooth_l1_loss(output, target)
        self.log_dict({f"{stage}_loss": loss, f"{stage}_metric": r2(output, target)}, batch_size=len(x))
        return loss


LOG_OF_AMOUNT = figure("d_log_amount", lambda output, target: r2(output, (target.log1p() - 6.0) / 1.5))


@healthy("unnormalised_target", source="customer value over four orders of magnitude, learnt as standardised log1p in the step")
def h_log_of_spending(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 48, 48, 1], nn.SiLU), data=spending(seed), loss=F.smooth_l1_loss, metric=LOG_OF_AMOUNT,
        module=LogSpending, optimizer=adam(3e-3), max_steps=300, batch_size=64,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ counts
def visits(seed: int, n: int = 2400, zeros: bool = True) -> Split:
    g = rng(743, seed)
    x = torch.randn(n, 5, generator=g)
    rate = (1.8 + 0.8 * x[:, 0] + 0.4 * x[:, 1] * x[:, 2]).clamp_max(3.6).exp()
    if not zeros:
        rate = rate * torch.poisson(torch.full((n,), 9.0), generator=g) / 9  # more spread than Poisson
        return split(x, torch.poisson(rate, generator=g)[:, None])
    never = torch.rand(n, generator=g) < (6 * x[:, 3] - 6).sigmoid()
    return split(x, torch.poisson(rate, generator=g).masked_fill(never, 0.0)[:, None])


def zero_inflated(output: Tensor, target: Tensor) -> Tensor:
    gate, log_rate = output[:, :1], output[:, 1:]
    poisson = target * log_rate - log_rate.exp() - torch.lgamma(target + 1)
    zero = torch.logaddexp(F.logsigmoid(gate), F.logsigmoid(-gate) + poisson)
    return -torch.where(target == 0, zero, F.logsigmoid(-gate) + poisson).mean()


def root_fit(mean: Tensor, target: Tensor) -> Tensor:
    return r2((mean + 0.375).sqrt(), (target + 0.375).sqrt())


ZERO_INFLATED = figure("d_zip", lambda out, y: r2((-out[:, :1]).sigmoid() * out[:, 1:].exp(), y))


@healthy("wrong_loss", "wrong_last_activation", source="Lambert 1992: zero-inflated Poisson regression with two outputs")
def h_zero_inflated_visits(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([5, 40, 40, 2], nn.Tanh), data=visits(seed), loss=zero_inflated, metric=ZERO_INFLATED,
        optimizer=adam(5e-3), max_steps=350, batch_size=64, trainer={"gradient_clip_val": 5.0},
    )  # fmt: skip


class NegativeBinomial(nn.Module):
    """The mean by softplus, one learnt dispersion for all."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.log_dispersion = mlp([5, 40, 40, 1], nn.ELU), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.softplus(self.body(x)) + 1e-4, self.log_dispersion.exp()


def negative_binomial(output: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    mean, r = output
    choose = torch.lgamma(y + r) - torch.lgamma(r) - torch.lgamma(y + 1)
    return -(choose + r * (r / (r + mean)).log() + y * (mean / (r + mean)).log()).mean()


@healthy("wrong_loss", source="DeepAR: negative binomial likelihood with a learnt dispersion")
def h_overdispersed_visits(seed: int) -> Case:
    metric = figure("d_root_mean", lambda out, y: root_fit(out[0], y))
    return Case(
        seed=seed, model=NegativeBinomial(), data=visits(seed, zeros=False), loss=negative_binomial, metric=metric,
        optimizer=adam(5e-3), max_steps=350, batch_size=64,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ quantiles, shares
LEVELS = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])


class StackedQuantiles(nn.Module):
    """A lowest quantile and positive steps up from it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = mlp([dim, 48, 48, len(LEVELS)], nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        first, steps = self.body(x).split([1, len(LEVELS) - 1], 1)
        return torch.cat([first, first + F.softplus(steps).cumsum(1)], 1)


def pinball(output: Tensor, target: Tensor) -> Tensor:
    error = target - output
    return torch.maximum(LEVELS * error, (LEVELS - 1) * error).mean()


@healthy("wrong_loss", "shape_broadcast", source="non-crossing quantile regression: one target column against five outputs")
def h_stacked_quantiles(seed: int) -> Case:
    return Case(
        seed=seed, model=StackedQuantiles(6), data=surface(seed, n=2000, dim=6, noise=0.3), loss=pinball,
        metric=figure("d_median", lambda out, y: r2(out[:, 2:3], y)), optimizer=adamw(4e-3), max_steps=400, batch_size=64,
    )  # fmt: skip


def beta_likelihood(output: Tensor, share: Tensor) -> Tensor:
    mean, precision = output[:, :1].sigmoid(), F.softplus(output[:, 1:]) + 0.1
    return -torch.distributions.Beta(mean * precision, (1 - mean) * precision).log_prob(share).mean()


@healthy(
    "loss_sign",
    "wrong_loss",
    source="Ferrari and Cribari-Neto 2004: beta regression of shares; the loss is a density's, below 0",
)
def h_beta_share(seed: int) -> Case:
    g = rng(744, seed)
    x = torch.randn(1800, 5, generator=g)
    score = 1.2 * x[:, 0] + (2 * x[:, 1]).sin() + 0.5 * x[:, 2] * x[:, 3] + 0.3 * torch.randn(1800, generator=g)
    return Case(
        seed=seed, model=mlp([5, 40, 40, 2], nn.GELU), data=split(x, score.sigmoid().clamp(0.005, 0.995)[:, None]),
        loss=beta_likelihood, metric=figure("d_share", lambda out, y: r2(out[:, :1].sigmoid(), y)),
        optimizer=adam(4e-3), max_steps=300, batch_size=64,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ everyday
@healthy(source="everyday: a two-layer perceptron for a yes-or-no question, AdamW, cosine schedule per step")
def h_everyday_table(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 64, 32, 1], norm=nn.BatchNorm1d, dropout=0.1), data=binary(seed, n=2000), **BCE,
        optimizer=adamw(3e-3), max_steps=300, batch_size=64, module=SharedStep,
        scheduler=lambda o: {"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(o, 300), "interval": "step"},
    )  # fmt: skip


@healthy(source="everyday: logistic regression by SGD with a little L2")
def h_everyday_logit(seed: int) -> Case:
    g = rng(745, seed)
    x = torch.randn(1500, 8, generator=g)
    w = torch.randn(8, generator=g)
    y = torch.rand(1500, generator=g) < (4 * (x @ w) / w.norm() + 0.5).sigmoid()
    return Case(
        seed=seed, model=nn.Linear(8, 2), data=split(standardise(x), y.long()), **CE,
        optimizer=sgd(0.1, weight_decay=1e-4), max_steps=200,
    )  # fmt: skip


@healthy("unnormalised_input", source="hour and weekday as sines and cosines beside standardised weather")
def h_bicycle_hours(seed: int) -> Case:
    g = rng(746, seed)
    hour, day = 24 * torch.rand(1800, generator=g), torch.randint(7, (1800,), generator=g)
    weather, noise = torch.randn(1800, 2, generator=g), 0.1 * torch.randn(1800, generator=g)
    angle = torch.stack([2 * math.pi * hour / 24, 4 * math.pi * hour / 24, 2 * math.pi * day / 7], 1)
    peak = (-(hour - 8).square() / 6).exp() + (-(hour - 17.5).square() / 8).exp()
    y = torch.where(day < 5, 2 * peak, (-(hour - 14).square() / 20).exp()) + 0.4 * weather[:, 0] + noise
    data = split(torch.cat([angle.sin(), angle.cos(), weather], 1), standardise(y)[:, None])
    return Case(seed=seed, model=mlp([8, 48, 48, 1]), data=data, optimizer=adam(3e-3), max_steps=400, batch_size=64, **MSE)
