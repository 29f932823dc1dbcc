"""Held-out faults of deep stacks, orders of rows, rare classes, likelihoods, small samples."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, faulty, healthy
from tests.zoo.data import Split, counts, rare_blobs, reorder, replace, rng, split, standardise, surface
from tests.zoo.more_data import arcs
from tests.zoo.nets import CE, MSE, adam, init_weights, mlp, sgd


# ------------------------------------------------------------------------------------------ a deep stack
def xavier(weight: Tensor, gain: float = 5 / 3) -> Tensor:
    return nn.init.xavier_normal_(weight, gain)


@healthy("init_exploding", "lr_too_high", source="eight tanh layers, Xavier with the gain of tanh, SGD with momentum")
def h_j_stack(seed: int) -> Case:
    model = init_weights(mlp([5, *[32] * 8, 3], nn.Tanh), xavier)
    return Case(seed=seed, model=model, data=arcs(seed), optimizer=sgd(0.02), max_steps=300, **CE)


@faulty("init_vanishing", "bad_gain", twin="h_j_stack", source="deviation of 0.02 of large language models in a narrow stack")
def f_j_stack_two_percent(case: Case) -> None:
    init_weights(case.model, lambda weight: nn.init.normal_(weight, std=0.02))


@faulty("bad_gain", "init_vanishing", twin="h_j_stack", source="uniform in 1/fan instead of 1/sqrt(fan)")
def f_j_stack_fan_without_root(case: Case) -> None:
    init_weights(case.model, lambda weight: nn.init.uniform_(weight, -3 / weight.shape[1], 3 / weight.shape[1]))


@faulty("saturation", "init_exploding", twin="h_j_stack", source="torch.rand for weights: all positive, all saturated")
def f_j_stack_rand(case: Case) -> None:
    init_weights(case.model, nn.init.uniform_)


# ------------------------------------------------------------------------------------------ order of the rows
@healthy(source="a smooth function, small MLP, Adam")
def h_j_slopes(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 1]), data=surface(seed), optimizer=adam(5e-3), max_steps=250, **MSE)


@faulty("data_not_shuffled", twin="h_j_slopes", source="table sorted by the target for a plot, then trained on in that order")
def f_j_slopes_sorted(case: Case) -> None:
    case.data, case.shuffle = reorder(case.data, lambda y: y), False  # type: ignore[arg-type]


@faulty("loss_sign", twin="h_j_slopes", source="penalty on the weights by hand, subtracted")
def f_j_slopes_reward(case: Case) -> None:
    model = case.model
    case.loss = lambda output, y: F.mse_loss(output, y) - 1e-2 * sum(p.square().sum() for p in model.parameters())


@faulty("bad_data", twin="h_j_slopes", source="feature saved as uint8: negative values wrap around")
def f_j_slopes_uint8(case: Case) -> None:
    case.data = replace(case.data, 0, lambda x: (64 * x).to(torch.int64).remainder(256).float() / 64)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ rare classes
def weighted_entropy(weight: float) -> Any:
    return lambda output, target: F.cross_entropy(output, target, torch.tensor([1.0, weight]))


@healthy("class_imbalance", source="one row in twelve is of the second class, which weighs twelve times as much")
def h_j_rare(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 32, 2]), data=rare_blobs(seed, 0.08, 2400), loss=weighted_entropy(12.0),
        metric="balanced_accuracy", optimizer=adam(3e-3), batch_size=64, max_steps=250,
    )  # fmt: skip


@faulty("class_imbalance", twin="h_j_rare", margin=0.05, source="no weights, and accuracy looked fine")
def f_j_rare_unweighted(case: Case) -> None:
    case.loss = F.cross_entropy


@faulty("bad_bias_init", twin="h_j_rare", source="bias of the prior from a count that was off: logits start at -+25")
def f_j_rare_prior(case: Case) -> None:
    case.model[-1].bias.data = torch.tensor([-25.0, 25.0])  # type: ignore[index, union-attr]


# ------------------------------------------------------------------------------------------ likelihoods
def hetero(seed: int, n: int = 1500) -> Split:
    """A smooth target whose noise grows with one input."""
    g = rng(931, seed)
    x = torch.randn(n, 5, generator=g)
    y = (1.5 * x[:, 0]).sin() + x[:, 1] * x[:, 2] + 0.3 * (0.5 * x[:, 3]).exp() * torch.randn(n, generator=g)
    return split(x, standardise(y)[:, None])


class Gaussian(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.log_var = mlp([5, 48, 48], last=nn.ReLU()), nn.Linear(48, 1), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.mean(h), self.log_var(h).clamp(-6, 6)


def gaussian(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    mean, log_var = output
    return 0.5 * (log_var + (target - mean).square() * (-log_var).exp()).mean()


@healthy("wrong_loss", source="Gaussian likelihood with a learnt variance")
def h_j_gaussian(seed: int) -> Case:
    return Case(
        seed=seed, model=Gaussian(), data=hetero(seed), loss=gaussian, metric="mean_r2", optimizer=adam(3e-3), max_steps=300
    )


@faulty("wrong_loss", "loss_sign", twin="h_j_gaussian", source="log variance not negated: the error times the variance")
def f_j_gaussian_times_variance(case: Case) -> None:
    case.loss = lambda output, y: 0.5 * (output[1] + (y - output[0]).square() * output[1].exp()).mean()


@faulty("nan_loss", twin="h_j_gaussian", source="logarithm of a variance that is not kept positive")
def f_j_gaussian_log(case: Case) -> None:
    case.loss = lambda output, y: (output[1].log() + (y - output[0]).square() / output[1]).mean()


@healthy("wrong_loss", "unnormalised_target", source="counts, log rate, Poisson likelihood")
def h_j_visits(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 48, 48, 1]), data=counts(seed), loss=F.poisson_nll_loss, metric="log_r2",
        optimizer=adam(3e-3), batch_size=64, max_steps=250,
    )  # fmt: skip


@faulty("wrong_loss", twin="h_j_visits", source="log_input=False with outputs that are log rates, made positive by abs")
def f_j_visits_not_log(case: Case) -> None:
    case.loss = lambda output, y: F.poisson_nll_loss(output.abs(), y, log_input=False)


# ------------------------------------------------------------------------------------------ small samples
def scarce(seed: int, n: int = 480, dim: int = 60) -> Split:
    """Few rows of many columns; a noisy linear target."""
    g = rng(932, seed)
    x = torch.randn(n, dim, generator=g)
    y = x[:, :6].sum(1) / math.sqrt(6) + 0.4 * torch.randn(n, generator=g)
    return split(x, standardise(y)[:, None], val=0.85)


@healthy("missing_activation", "wrong_loss", source="linear model of few rows and many columns, L1 penalty by hand")
def h_j_scarce(seed: int) -> Case:
    model = nn.Linear(60, 1)

    def lasso(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target) + 0.15 * model.weight.abs().sum()

    make = adam(1e-2)
    return Case(
        seed=seed, model=model, data=scarce(seed), loss=lasso, metric="r2", optimizer=make, batch_size=24, max_steps=400
    )


@faulty(
    "overfit_no_regularisation", twin="h_j_scarce", source="penalty lost when the loss was refactored; as many columns as rows"
)
def f_j_scarce_free(case: Case) -> None:
    case.loss = F.mse_loss
