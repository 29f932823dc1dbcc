"""Held-out: tables, rare events, times to events, ordered classes and quantiles, with their healthy twins."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import Split, reorder, replace, rng, split, standardise
from tests.zoo.metrics import r2
from tests.zoo.nets import MSE, adam, adamw, mlp, sgd


# ------------------------------------------------------------------------------------------ rents
def rents(seed: int, n: int = 1800) -> Split:
    """District, then area, year, distance to the centre and floor in their units; the standardised rent."""
    g = rng(721, seed)
    district, z = torch.randint(9, (n,), generator=g), torch.randn(n, 4, generator=g)
    effect = torch.randn(9, generator=g)
    y = z[:, 0] + 0.7 * z[:, 1].square() - 0.8 * z[:, 2] * (z[:, 0] > 0) + 0.3 * z[:, 3] + 0.6 * effect[district]
    units = torch.stack([72 + 24 * z[:, 0], 1968 + 27 * z[:, 1], 5_200 + 1_900 * z[:, 2], 3 + 1.5 * z[:, 3]], 1)
    return split(district, units, standardise(y + 0.15 * torch.randn(n, generator=g))[:, None])


def scaled(data: Split) -> Split:
    """Numbers standardised with what the training part knows."""
    mean, std = data[0].tensors[1].mean(0), data[0].tensors[1].std(0)
    return replace(data, 1, lambda x: (x - mean) / std)


class Rents(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.district, self.top = nn.Embedding(9, 4), mlp([8, 48, 48, 1], nn.SiLU)

    def forward(self, district: Tensor, numbers: Tensor) -> Tensor:
        return self.top(torch.cat([self.district(district), numbers], 1))


@healthy("wrong_loss", source="everyday table: entity embeddings beside standardised columns, Huber loss")
def h_flat_rents(seed: int) -> Case:
    case = Case(seed=seed, model=Rents(), data=scaled(rents(seed)), optimizer=adam(3e-3), **MSE)
    case.loss, case.max_steps = F.smooth_l1_loss, 300
    return case


@faulty("unnormalised_input", twin="h_flat_rents", source="columns of the table fed in as they are")
def f_rents_square_metres_and_years(case: Case) -> None:
    case.data = rents(case.seed)


@faulty("bad_data", "unnormalised_input", twin="h_flat_rents", source="missing values coded as -9999 in a third of the rows")
def f_rents_missing_as_code(case: Case) -> None:
    def code(x: Tensor) -> Tensor:
        holes = torch.rand(x.shape, generator=rng(722, case.seed)) < 0.1
        return x.masked_fill(holes, -9_999.0)

    case.data = replace(case.data, 1, code)


@faulty("unnormalised_target", twin="h_flat_rents", source="rents in cents with a loss whose slope is at most one")
def f_rents_in_cents(case: Case) -> None:
    case.data = replace(case.data, -1, lambda y: 94_000 + 27_000 * y)


@faulty("train_val_mismatch", twin="h_flat_rents", source="the scaler is applied to the training table alone")
def f_rents_scaler_for_training_only(case: Case) -> None:
    case.data = case.data[0], rents(case.seed)[1]


# ------------------------------------------------------------------------------------------ claims
def claims(seed: int, n: int = 2100, dim: int = 6) -> Split:
    """Two in three policies claim nothing; the others what a smooth function says, times a noise."""
    g = rng(723, seed)
    x = torch.randn(n, dim, generator=g)
    risk = x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * x[:, 3].abs()
    amount = (risk - risk.quantile(0.65)).clamp_min(0) * (0.15 * torch.randn(n, generator=g)).exp()
    return split(x, (amount / amount.std())[:, None])


@healthy("class_imbalance", "wrong_last_activation", "dead_relu", source="insurance claims: mostly zeros, softplus output")
def h_claims_mostly_none(seed: int) -> Case:
    case = Case(seed=seed, model=mlp([6, 48, 48, 1], last=nn.Softplus()), data=claims(seed), optimizer=adamw(5e-3), **MSE)
    case.max_steps, case.batch_size = 300, 64
    return case


@faulty("weight_decay_too_strong", twin="h_claims_mostly_none", source="Adam's L2 term mistaken for AdamW's decay")
def f_claims_adam_with_decay_of_adamw(case: Case) -> None:
    case.optimizer = adam(5e-3, weight_decay=0.3)


# ------------------------------------------------------------------------------------------ frauds
def frauds(seed: int, n: int = 3000, dim: int = 8) -> Split:
    """One payment in 25 is a fraud, in a region that overlaps with the honest ones; targets `[n, 1]`."""
    g = rng(724, seed)
    x = torch.randn(n, dim, generator=g)
    score = x[:, 0] * x[:, 1] + x[:, 2] + 0.5 * x[:, 3] + 0.7 * torch.randn(n, generator=g)
    return split(x, (score > score.quantile(0.96)).float()[:, None])


def weighted_bce(weight: float) -> nn.Module:
    return nn.BCEWithLogitsLoss(pos_weight=torch.tensor([weight]))


@healthy("class_imbalance", source="fraud detection: BCE with pos_weight = negatives / positives")
def h_fraud_weighted(seed: int) -> Case:
    case = Case(seed=seed, model=mlp([8, 32, 32, 1]), data=frauds(seed), loss=weighted_bce(24.0), metric="balanced_binary",
                optimizer=adamw(2e-3, weight_decay=0.05))  # fmt: skip
    case.max_steps, case.batch_size, case.val_batch_size = 250, 128, 1000
    return case


@faulty("class_imbalance", twin="h_fraud_weighted", source="no weights, no resampling: all payments pass")
def f_fraud_unweighted(case: Case) -> None:
    case.loss = nn.BCEWithLogitsLoss()


@faulty(
    "class_imbalance",
    "wrong_loss",
    twin="h_fraud_weighted",
    source="pos_weight = positives / negatives, the fraction upside down",
)
def f_fraud_weight_upside_down(case: Case) -> None:
    case.loss = weighted_bce(1 / 24)


# ------------------------------------------------------------------------------------------ genes
def genes(seed: int, n: int = 330, dim: int = 120) -> Split:
    """Few patients, many genes, of which four matter."""
    g = rng(725, seed)
    x = torch.randn(n, dim, generator=g)
    y = x[:, 0] - x[:, 1] + (x[:, 2] + x[:, 3]).relu() + 0.3 * torch.randn(n, generator=g)
    return split(x, standardise(y)[:, None])


class Sparse(Supervised):
    """Adds the sum of the absolute input weights to the loss."""

    strength = 3e-3

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + self.strength * self.model[0].weight.abs().sum()


class TooSparse(Sparse):
    strength = 5.0


@healthy(
    "overfit_no_regularisation", "weight_decay_too_strong", source="lasso on the first layer: more genes than patients allow"
)
def h_gene_lasso(seed: int) -> Case:
    case = Case(seed=seed, model=mlp([120, 48, 1]), data=genes(seed), optimizer=adam(3e-3), module=Sparse, **MSE)
    case.max_steps = 500
    return case


@faulty("overfit_no_regularisation", twin="h_gene_lasso", source="a network on 220 patients and 120 genes, no penalty at all")
def f_gene_no_penalty(case: Case) -> None:
    case.module = Supervised


@faulty("weight_decay_too_strong", twin="h_gene_lasso", source="penalty summed over weights, its strength taken for a mean")
def f_gene_penalty_of_a_sum(case: Case) -> None:
    case.module = TooSparse


# ------------------------------------------------------------------------------------------ patients
def patients(seed: int, n: int = 1800, dim: int = 6) -> Split:
    """Times to an event, a third of them censored: `[time, event, log hazard]`."""
    g = rng(726, seed)
    x = torch.randn(n, dim, generator=g)
    hazard = standardise(x[:, 0] + x[:, 1].abs() + 0.7 * x[:, 2] * x[:, 3]) * 1.2
    time = -torch.rand(n, generator=g).clamp_min(1e-6).log() / hazard.exp()
    limit = -torch.rand(n, generator=g).clamp_min(1e-6).log() / 0.4
    return split(x, torch.stack([torch.minimum(time, limit), (time <= limit).float(), hazard], 1))


def cox(output: Tensor, target: Tensor) -> Tensor:
    """Negative partial likelihood over the risk sets within the batch."""
    order = target[:, 0].argsort(descending=True)
    risk, event = output[order, 0], target[order, 1]
    return -((risk - risk.logcumsumexp(0)) * event).sum() / event.sum().clamp_min(1)


class Hazards(Supervised):
    """A Cox model knows no offset: the metric takes it out."""

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        risk = self(x)[:, 0]
        self.log("val_loss", self.loss_fn(risk[:, None], y))
        self.log("val_metric", r2(risk - risk.mean(), y[:, 2] - y[:, 2].mean()))


@healthy("batch_mixing", "wrong_loss", source="DeepSurv: Cox partial likelihood with the batch as the risk set")
def h_patients_cox(seed: int) -> Case:
    case = Case(seed=seed, model=mlp([6, 32, 32, 1], nn.Tanh), data=patients(seed), loss=cox, metric="hazard_r2",
                optimizer=adam(3e-3), module=Hazards)  # fmt: skip
    case.max_steps, case.batch_size, case.val_batch_size = 300, 128, 600
    return case


# ------------------------------------------------------------------------------------------ grades
def grades(seed: int, n: int = 1500, dim: int = 5) -> Split:
    """Five ordered grades as four 'better than' levels `[n, 4]`."""
    g = rng(727, seed)
    x = torch.randn(n, dim, generator=g)
    score = x[:, 0] + (2 * x[:, 1]).sin() + 0.5 * x[:, 2] * x[:, 3] + 0.1 * torch.randn(n, generator=g)
    cuts = score.quantile(torch.tensor([0.2, 0.4, 0.6, 0.8]))
    return split(x, (score[:, None] > cuts).float())


class Coral(nn.Module):
    """One score, four ordered cuts."""

    def __init__(self, dim: int = 5) -> None:
        super().__init__()
        self.score, self.cuts = mlp([dim, 32, 32, 1]), nn.Parameter(torch.tensor([1.0, 0.3, -0.3, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x) + self.cuts


@healthy("shape_broadcast", "lr_too_high", source="CORAL, rank-consistent ordinal regression; SGD with momentum")
def h_grades_coral(seed: int) -> Case:
    case = Case(seed=seed, model=Coral(), data=grades(seed), loss=F.binary_cross_entropy_with_logits, metric="binary_accuracy",
                optimizer=sgd(0.1))  # fmt: skip
    case.max_steps = 300
    return case


@faulty("data_not_shuffled", twin="h_grades_coral", source="table sorted by grade, loader without shuffle")
def f_grades_in_order(case: Case) -> None:
    case.data, case.shuffle = reorder(case.data, lambda y: y.sum(1)), False


@faulty("lr_too_low", twin="h_grades_coral", source="a rate for fine-tuning on a network from scratch")
def f_grades_creep(case: Case) -> None:
    case.optimizer = sgd(1e-4)


@faulty("clip_too_small", twin="h_grades_coral", source="gradients clipped to a norm of 1e-3 'for stability'")
def f_grades_clipped_to_a_crawl(case: Case) -> None:
    case.trainer["gradient_clip_val"] = 1e-3


# ------------------------------------------------------------------------------------------ quantiles
def loads(seed: int, n: int = 1800) -> Split:
    """Electric load by hour, day and temperature, with a noise that grows with the load."""
    g = rng(728, seed)
    hour, warm = 24 * torch.rand(n, generator=g), torch.randn(n, generator=g)
    clock = torch.stack([(hour * 0.2618).sin(), (hour * 0.2618).cos()], 1)
    load = clock[:, 0] + 0.5 * (2 * hour * 0.2618).cos() + 0.6 * warm.square()
    y = load + 0.2 * (1 + load.abs()) * torch.randn(n, generator=g)
    return split(torch.cat([1.4 * clock, warm[:, None]], 1), standardise(y)[:, None])


class Pinball(nn.Module):
    def __init__(self, *shares: float) -> None:
        super().__init__()
        self.register_buffer("shares", torch.tensor(shares))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        error = target - output
        return torch.maximum(self.shares * error, (self.shares - 1) * error).mean()


class Median(Supervised):
    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        output = self(x)
        self.log("val_loss", self.loss_fn(output, y))
        self.log("val_metric", r2(output[:, 1], y))


@healthy("wrong_loss", "shape_broadcast", source="probabilistic load forecasting: pinball loss of three quantiles")
def h_load_quantiles(seed: int) -> Case:
    case = Case(seed=seed, model=mlp([3, 48, 48, 3], nn.GELU), data=loads(seed), loss=Pinball(0.1, 0.5, 0.9), metric="r2",
                optimizer=adam(3e-3), module=Median)  # fmt: skip
    case.max_steps, case.val_batch_size = 300, 600
    return case


@faulty("bad_data", "labels_broken", twin="h_load_quantiles", source="two in three meters stuck: they repeat one reading")
def f_load_stuck_meters(case: Case) -> None:
    train, val = case.data
    stuck = torch.rand(len(train), generator=rng(729, case.seed)) < 0.65
    x, y = (t.clone() for t in train.tensors)
    y[stuck] = y[0]
    case.data = TensorDataset(x, y), val
