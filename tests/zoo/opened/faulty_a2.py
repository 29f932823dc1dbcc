"""Numbers: counts, ratings, experts, bands, labels, and the losses and shapes that do not suit them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, faulty, healthy
from tests.zoo.data import Split, attributes, binary, counts, replace, rng, split, standardise, surface
from tests.zoo.metrics import METRICS, Metric
from tests.zoo.more_data import ratings
from tests.zoo.nets import BCE, MSE, Lambda, adam, mlp, sgd


# ------------------------------------------------------------------------------------------ counts
def poisson(output: Tensor, target: Tensor) -> Tensor:
    return F.poisson_nll_loss(output, target)


@healthy("bad_bias_init", "wrong_last_activation", source="Poisson regression with a log link, last bias at log of the mean")
def h_counts_log_link(seed: int) -> Case:
    data = counts(seed)
    model = mlp([6, 32, 32, 1])
    nn.init.constant_(model[-1].bias, data[0].tensors[1].mean().log().item())
    return Case(
        seed=seed, model=model, data=data, loss=poisson, metric="log_r2", optimizer=adam(3e-3), batch_size=64, max_steps=300
    )  # fmt: skip


@faulty("shape_broadcast", twin="h_counts_log_link", source="forum: targets [N] against rates [N, 1]")
def f_counts_flat_targets(case: Case) -> None:
    case.loss = lambda o, y: F.poisson_nll_loss(o, y.view(-1))


# ------------------------------------------------------------------------------------------ ratings
class Factors(nn.Module):
    """Biased matrix factorisation (Koren 2009)."""

    def __init__(self, users: int = 50, items: int = 40, rank: int = 8) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, rank), nn.Embedding(items, rank)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.3)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.weight)
        self.mean = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        who, what = x.unbind(1)
        taste = (self.user(who) * self.item(what)).sum(1, keepdim=True)
        return self.mean + self.user_bias(who) + self.item_bias(what) + taste


@healthy("init_symmetry", "unnormalised_target", source="matrix factorisation of ratings; bias tables start at zero")
def h_ratings_factors(seed: int) -> Case:
    return Case(
        seed=seed, model=Factors(), data=ratings(seed), optimizer=adam(1e-2), batch_size=64, max_steps=300, **MSE
    )  # fmt: skip


@faulty("init_symmetry", twin="h_ratings_factors", source="embeddings filled with one constant: all factors stay one factor")
def f_factors_all_alike(case: Case) -> None:
    for table in (case.model.user, case.model.item):
        nn.init.constant_(table.weight, 0.1)


# ------------------------------------------------------------------------------------------ experts
def quadrants(seed: int, n: int = 2400, dim: int = 6) -> Split:
    """A linear function, another in each quadrant of the first two inputs, standardised, `[n, 1]`."""
    g = rng(911, seed)
    x = torch.randn(n, dim, generator=g)
    weight = torch.randn(4, dim, generator=g)
    weight = weight - weight.mean(0)
    which = 2 * (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return split(x, standardise((x * weight[which]).sum(1, keepdim=True) + 0.05 * torch.randn(n, 1, generator=g)))


class Experts(nn.Module):
    """Linear experts, mixed by a small gate."""

    def __init__(self, dim: int = 6, experts: int = 6) -> None:
        super().__init__()
        self.gate = mlp([dim, 24, experts], act=nn.Tanh)
        self.weight, self.bias = nn.Parameter(torch.randn(experts, dim) / dim**0.5), nn.Parameter(torch.zeros(experts))

    def share(self, x: Tensor) -> Tensor:
        return self.gate(x).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.share(x) * (x @ self.weight.T + self.bias)).sum(1, keepdim=True)


class HardExperts(Experts):
    def share(self, x: Tensor) -> Tensor:
        return F.one_hot(self.gate(x).argmax(1), len(self.weight)).float()


@healthy("missing_activation", "init_symmetry", source="mixture of linear experts (Jacobs 1991), an even gate at the start")
def h_linear_experts(seed: int) -> Case:
    model = Experts()
    nn.init.zeros_(model.gate[-1].weight)
    nn.init.zeros_(model.gate[-1].bias)
    return Case(
        seed=seed, model=model, data=quadrants(seed), optimizer=sgd(0.1), batch_size=64, max_steps=400, **MSE
    )  # fmt: skip


@faulty("detached_subgraph", twin="h_linear_experts", source="routing by argmax: the gate gets no gradient (sparse MoE issues)")
def f_experts_by_argmax(case: Case) -> None:
    model = HardExperts()
    model.load_state_dict(case.model.state_dict())
    torch.nn.init.normal_(model.gate[-1].weight, std=0.5)
    case.model = model


# ------------------------------------------------------------------------------------------ bands
TAUS = torch.tensor([0.1, 0.5, 0.9])


def pinball(output: Tensor, target: Tensor) -> Tensor:
    error = target - output
    return torch.maximum(TAUS * error, (TAUS - 1) * error).mean()


def skill(output: Tensor, target: Tensor) -> Tensor:
    """One less the pinball loss, in units of that of the best constants, clipped from below at -1."""
    return (1 - pinball(output, target) / pinball(target.quantile(TAUS, 0).T, target)).clamp_min(-1)


METRICS["pinball_skill"] = Metric(skill, lambda target: 0.0)


def slopes(seed: int) -> Split:
    return surface(seed, noise=0.25)


@healthy("wrong_loss", source="three quantiles at once by the pinball loss")
def h_low_mid_high_bands(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 48, 48, 3]), data=slopes(seed), loss=pinball, metric="pinball_skill", optimizer=adam(4e-3),
        batch_size=64, max_steps=350,
    )  # fmt: skip


@faulty("wrong_loss", "loss_sign", twin="h_low_mid_high_bands", source="(1 - tau) for (tau - 1) in the pinball loss")
def f_pinball_without_floor(case: Case) -> None:
    case.loss = lambda o, y: torch.maximum(TAUS * (y - o), (1 - TAUS) * (y - o)).mean()


@faulty(
    "wrong_last_activation", twin="h_low_mid_high_bands", source="ReLU after the last layer for prices, which are standardised"
)
def f_quantiles_rectified(case: Case) -> None:
    case.model.append(nn.ReLU())


# ------------------------------------------------------------------------------------------ means and variances
class MeanAndSpread(nn.Module):
    """A body with a head for the mean and one for the log variance."""

    def __init__(self, dim: int = 8, width: int = 48) -> None:
        super().__init__()
        self.body = mlp([dim, width, width], last=nn.SiLU())
        self.mean, self.spread = nn.Linear(width, 1), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x)
        return self.mean(hidden), self.spread(hidden)


def gaussian(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    mean, log_var = output
    return 0.5 * (log_var + (target - mean).square() * (-log_var).exp()).mean()


@healthy("loss_sign", source="Gaussian negative log likelihood with a head for the log variance: the loss becomes negative")
def h_mean_and_spread(seed: int) -> Case:
    return Case(
        seed=seed, model=MeanAndSpread(), data=surface(seed), loss=gaussian, metric="mean_r2", optimizer=adam(3e-3),
        batch_size=64, max_steps=350,
    )  # fmt: skip


def gaussian_wrong(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    mean, log_var = output
    return 0.5 * (-log_var + (target - mean).square() * (-log_var).exp()).mean()


def gaussian_rectified(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    mean, std = output[0], output[1].relu()
    return (std.log() + 0.5 * ((target - mean) / std).square()).mean()


@faulty(
    "loss_sign", "wrong_loss", twin="h_mean_and_spread", source="code review: log variance with the wrong sign in a likelihood"
)
def f_spread_rewarded(case: Case) -> None:
    case.loss = gaussian_wrong


@faulty("nan_loss", twin="h_mean_and_spread", source="a standard deviation by ReLU: zero, then log and division")
def f_spread_by_relu(case: Case) -> None:
    case.loss = gaussian_rectified


# ------------------------------------------------------------------------------------------ labels
@healthy("wrong_loss", source="six labels at once, one logit each")
def h_six_labels(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([10, 64, 64, 6]), data=attributes(seed), optimizer=adam(3e-3), max_steps=250, **BCE
    )  # fmt: skip


@faulty("wrong_loss", twin="h_six_labels", source="forum: cross entropy takes multi-hot rows for soft labels", margin=0.07)
def f_labels_as_shares(case: Case) -> None:
    case.loss = F.cross_entropy


@faulty("wrong_last_activation", twin="h_six_labels", source="sigmoid in forward, and again in the loss")
def f_labels_squashed_twice(case: Case) -> None:
    case.model.append(Lambda(torch.sigmoid))


def hinge(output: Tensor, target: Tensor) -> Tensor:
    return (1 - (2 * target - 1) * output.squeeze(1)).clamp_min(0).mean()


@healthy("wrong_loss", "shape_broadcast", source="a neural network with the hinge loss of support vector machines, targets [N]")
def h_margin_two(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 32, 32, 1]), data=replace(binary(seed), 1, lambda y: y[:, 0]), loss=hinge,
        metric="binary_accuracy", optimizer=sgd(0.03, weight_decay=1e-4), max_steps=300,
    )  # fmt: skip


@faulty("shape_broadcast", twin="h_margin_two", source="hinge loss of scores [N, 1] with targets [N]: all pairs")
def f_margin_of_all_pairs(case: Case) -> None:
    case.loss = lambda o, y: (1 - (2 * y - 1) * o).clamp_min(0).mean()
