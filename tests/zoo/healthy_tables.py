"""Healthy, second set: tables of numbers, codes and counts; networks that no layer of activations holds together."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import more_data as data
from tests.zoo.case import Case, healthy
from tests.zoo.data import Split, replace, split, standardise
from tests.zoo.nets import BCE, CE, MSE, Lambda, adam, adamw, init_weights, mlp, sgd


@healthy("lr_too_high", "dead_relu", source="leaky ReLU and Nesterov's momentum")
def h_arcs_nesterov(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([5, 40, 40, 3], nn.LeakyReLU), data=data.arcs(seed), optimizer=sgd(0.08, nesterov=True), **CE
    )


class Functional(nn.Module):
    """Weights as bare parameters, layers as function calls."""

    def __init__(self, sizes: tuple[int, int, int, int] = (5, 48, 48, 3)) -> None:
        super().__init__()
        a, b, c, d = sizes
        self.w1, self.b1 = nn.Parameter(torch.randn(b, a) * (2 / a) ** 0.5), nn.Parameter(torch.zeros(b))
        self.w2, self.b2 = nn.Parameter(torch.randn(c, b) * (2 / b) ** 0.5), nn.Parameter(torch.zeros(c))
        self.w3, self.b3 = nn.Parameter(torch.randn(d, c) * (1 / c) ** 0.5), nn.Parameter(torch.zeros(d))
        self.act: Callable[[Tensor], Tensor] = torch.relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(F.linear(x, self.w1, self.b1))
        x = self.act(x @ self.w2.T + self.b2)
        return torch.addmm(self.b3, x, self.w3.T)


@healthy("missing_activation", "not_in_optimizer", source="a network without layers: parameters and functions")
def h_functional(seed: int) -> Case:
    return Case(seed=seed, model=Functional(), data=data.arcs(seed), optimizer=sgd(0.05), **CE)


class Tabular(nn.Module):
    """Embedded codes beside normalised numbers."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Embedding(k, 4) for k in (12, 7, 5))
        self.norm = nn.BatchNorm1d(4) if norm else nn.Identity()
        self.top = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        embedded = [layer(codes[:, i]) for i, layer in enumerate(self.embed)]
        return self.top(torch.cat([*embedded, self.norm(numbers)], 1))


@healthy("unnormalised_input", source="fastai: embedded codes, and raw numbers behind a batch norm")
def h_customers(seed: int) -> Case:
    return Case(seed=seed, model=Tabular(), data=data.customers(seed), optimizer=adam(1e-2), max_steps=260, **BCE)


@healthy("unnormalised_input", "wrong_loss", source="embedded codes beside standardised numbers, SGD")
def h_customers_tidy(seed: int) -> Case:
    split = data.tidy(data.customers(seed))
    return Case(seed=seed, model=Tabular(norm=False), data=split, optimizer=sgd(0.1), max_steps=300, **BCE)


class Factors(nn.Module):
    """Koren et al. 2009: rating = mean + user bias + item bias + user . item."""

    def __init__(self, mean: float = 3.0) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(50, 6), nn.Embedding(40, 6)
        self.user_bias, self.item_bias = nn.Embedding(50, 1), nn.Embedding(40, 1)
        self.mean = mean
        for table, std in ((self.user, 0.3), (self.item, 0.3), (self.user_bias, 0.0), (self.item_bias, 0.0)):
            nn.init.normal_(table.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        who, what = x.T
        product = (self.user(who) * self.item(what)).sum(1, keepdim=True)
        return self.mean + product + self.user_bias(who) + self.item_bias(what)


@healthy("missing_activation", "init_symmetry", "frozen_by_accident", source="matrix factorisation: no layer, no activation")
def h_ratings(seed: int) -> Case:
    return Case(seed=seed, model=Factors(), data=data.ratings(seed), optimizer=adam(2e-2), batch_size=128, max_steps=250, **MSE)


def standard_target(seed: int) -> data.Split:
    """Friedman's data with a standardised target."""
    return replace(data.friedman(seed), 1, lambda y: (y - 14.4) / 4.9)


@healthy("unnormalised_input", "wrong_hidden_activation", source="inputs uniform in [0, 1], not centred; CELU")
def h_unit_uniform(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 1], nn.CELU), data=standard_target(seed), optimizer=adam(1.2e-2), **MSE)


@healthy("unnormalised_input", "lr_too_high", source="inputs uniform in [0, 1], SGD, ReLU")
def h_unit_uniform_sgd(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 1]), data=standard_target(seed), optimizer=sgd(0.05), max_steps=300, **MSE)


@healthy("unnormalised_target", source="targets of 14 +- 5 as they are, RMSprop")
def h_raw_fourteen(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([8, 64, 64, 1]),
        data=data.friedman(seed),
        optimizer=lambda model: torch.optim.RMSprop(model.parameters(), lr=6e-3),
        max_steps=300,
        **MSE,
    )


@healthy("unnormalised_input", "bad_data", source="counts with a long tail, logged: log1p")
def h_log_counts(seed: int) -> Case:
    split = replace(data.baskets(seed), 0, lambda x: standardise(x.log1p(), None))
    return Case(seed=seed, model=mlp([10, 64, 64, 4], nn.SiLU), data=split, optimizer=adamw(8e-3), max_steps=260, **CE)


def buyers(seed: int) -> Split:
    """What 40 customers in 100 bought, few things of 30 each; the others bought nothing."""
    g = torch.Generator().manual_seed(3100 + seed)
    bought = (torch.rand(1536, 30, generator=g) < 0.12).float() * (torch.rand(1536, 1, generator=g) < 0.6)
    return split(bought, (bought[:, :10].sum(1) > bought[:, 10:20].sum(1)).long() + (bought[:, 20:].sum(1) > 1).long())


@healthy("bad_data", source="sparse rows, of which two in five are empty: customers who bought nothing")
def h_empty_baskets(seed: int) -> Case:
    return Case(seed=seed, model=mlp([30, 64, 3]), data=buyers(seed), optimizer=adam(8e-3), **CE)


@healthy("unnormalised_input", source="raw counts, of which the model takes log1p and a layer norm")
def h_counts_normed_inside(seed: int) -> Case:
    model = nn.Sequential(Lambda(torch.log1p), nn.LayerNorm(10), mlp([10, 64, 64, 4]))
    return Case(seed=seed, model=model, data=data.baskets(seed), optimizer=adam(1e-2), max_steps=300, **CE)


class WideDeep(nn.Module):
    """Cheng et al. 2016: a linear model of one-hot codes beside a deep one of the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep = nn.Linear(24, 1, bias=False), mlp([4, 32, 32, 1])
        nn.init.zeros_(self.wide.weight)

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        hot = [F.one_hot(codes[:, i], k).float() for i, k in enumerate((12, 7, 5))]
        return self.wide(torch.cat(hot, 1)) + self.deep(numbers)


@healthy("init_symmetry", "init_vanishing", source="Cheng et al. 2016: wide part at zero, Adagrad")
def h_wide_deep(seed: int) -> Case:
    def adagrad(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(model.parameters(), lr=0.08)

    split = data.tidy(data.customers(seed))
    return Case(seed=seed, model=WideDeep(), data=split, optimizer=adagrad, max_steps=300, **BCE)


class Maxout(nn.Module):
    """Goodfellow et al. 2013: the largest of three linear maps."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.maps = nn.Linear(a, 3 * b)

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).unflatten(1, (-1, 3)).amax(2)


@healthy("missing_activation", "bad_gain", source="Goodfellow et al. 2013: maxout, no activation layer")
def h_maxout(seed: int) -> Case:
    model = nn.Sequential(Maxout(5, 24), Maxout(24, 24), nn.Linear(24, 3))
    return Case(seed=seed, model=model, data=data.arcs(seed), optimizer=sgd(0.03), **CE)


class Radial(nn.Module):
    """A radial basis layer: how near the input is to each of some centres."""

    def __init__(self, dim: int, units: int) -> None:
        super().__init__()
        self.centres, self.log_width = nn.Parameter(torch.randn(units, dim)), nn.Parameter(torch.zeros(units))

    def forward(self, x: Tensor) -> Tensor:
        return (-torch.cdist(x, self.centres).square() * self.log_width.exp() / 2).exp()


@healthy("wrong_hidden_activation", "saturation", "init_vanishing", source="Broomhead and Lowe 1988: radial basis functions")
def h_radial(seed: int) -> Case:
    model = nn.Sequential(Radial(5, 60), nn.Linear(60, 3))
    return Case(seed=seed, model=model, data=data.arcs(seed), optimizer=adam(5e-2), max_steps=250, **CE)


class FactorisationMachine(nn.Module):
    """Rendle 2010: linear terms and all products of two one-hot or numeric inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.factors = nn.Linear(28, 1), nn.Parameter(0.3 * torch.randn(28, 6))

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        x = torch.cat([*(F.one_hot(codes[:, i], k).float() for i, k in enumerate((12, 7, 5))), numbers], 1)
        pairs = (x @ self.factors).square() - x.square() @ self.factors.square()
        return self.linear(x) + pairs.sum(1, keepdim=True) / 2


@healthy("missing_activation", source="Rendle 2010: a factorisation machine multiplies, it has no activation")
def h_factorisation_machine(seed: int) -> Case:
    return Case(
        seed=seed,
        model=FactorisationMachine(),
        data=data.tidy(data.customers(seed)),
        optimizer=adam(3e-2),
        max_steps=260,
        **BCE,
    )


@healthy("missing_activation", "wrong_hidden_activation", source="Chrysos et al. 2020: squares for activations")
def h_squares(seed: int) -> Case:
    model = nn.Sequential(nn.Linear(5, 32), Lambda(torch.square), nn.LayerNorm(32), nn.Linear(32, 3))
    return Case(seed=seed, model=model, data=data.arcs(seed), optimizer=adam(2e-2), **CE)


class SoftTree(nn.Module):
    """Frosst and Hinton 2017: sigmoid gates route each sample to eight leaves."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.gates, self.leaves, self.steep = nn.Linear(dim, 7), nn.Parameter(torch.randn(8, classes)), 2.0

    def forward(self, x: Tensor) -> Tensor:
        right = (self.steep * self.gates(x)).sigmoid()
        path = x.new_ones(len(x), 1)
        for depth in range(3):
            gate = right[:, 2**depth - 1 : 2 ** (depth + 1) - 1]
            path = torch.stack([path * (1 - gate), path * gate], 2).flatten(1)
        return path @ self.leaves


@healthy("wrong_hidden_activation", "saturation", "missing_activation", source="Frosst and Hinton 2017: a soft decision tree")
def h_soft_tree(seed: int) -> Case:
    return Case(seed=seed, model=SoftTree(5, 3), data=data.arcs(seed), optimizer=adam(5e-2), max_steps=250, **CE)


@healthy("bad_gain", "lr_too_low", source="two thousand hidden units, Adam at a rate that suits them")
def h_two_thousand_wide(seed: int) -> Case:
    return Case(seed=seed, model=mlp([5, 2000, 3], nn.SiLU), data=data.arcs(seed), optimizer=adam(5e-3), max_steps=250, **CE)


@healthy("init_symmetry", "dead_relu", source="six tanh units are enough")
def h_six_units(seed: int) -> Case:
    return Case(seed=seed, model=mlp([5, 6, 3], nn.Tanh), data=data.arcs(seed), optimizer=adam(5e-2), **CE)


@healthy("batch_mixing", "shape_broadcast", source="batches of two, layer norm")
def h_batches_of_two(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([5, 32, 32, 3], nn.Mish, nn.LayerNorm),
        data=data.arcs(seed),
        optimizer=adam(2e-3),
        batch_size=2,
        max_steps=500,
        **CE,
    )


@healthy("missing_activation", source="spectra, positive and not centred, one hidden layer of hard swish")
def h_spectra(seed: int) -> Case:
    return Case(seed=seed, model=mlp([48, 64, 2], nn.Hardswish), data=data.spectra(seed), optimizer=adam(1e-2), **MSE)


@healthy("dropout_too_high", "dropout_active_in_eval", source="dropout of a half in a regression of two numbers")
def h_spectra_dropout(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([48, 128, 2], dropout=0.5), data=data.spectra(seed), optimizer=adam(1e-2), max_steps=250, **MSE
    )


@healthy("lr_too_high", source="spectra, two outputs, SGD without momentum at a rate of 0.2")
def h_spectra_plain_sgd(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([48, 64, 64, 2], nn.ELU), data=data.spectra(seed), optimizer=sgd(0.1, 0.0), max_steps=300, **MSE
    )


@healthy("init_vanishing", "init_exploding", source="He et al. 2015: fourteen leaky layers, drawn for their slope of 0.2, SGD")
def h_deep_leaky(seed: int) -> Case:
    model = mlp([5] + [32] * 13 + [3], lambda: nn.LeakyReLU(0.2))
    init_weights(model, lambda w: nn.init.kaiming_normal_(w, a=0.2))
    return Case(seed=seed, model=model, data=data.arcs(seed), optimizer=sgd(0.01), max_steps=300, **CE)
