"""Faulty starts: weights, gains, symmetry, biases, dead and saturated units."""

import copy
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import data, more_data
from tests.zoo.case import Case, faulty, healthy
from tests.zoo.nets import BCE, CE, MSE, adam, he, init_weights, mlp, sgd, weighted


# ------------------------------------------------------------------------------------------ a deep plain stack
@healthy("init_vanishing", "bad_gain", "bias_before_bn", source="plain deep ReLU stack made trainable by He initialisation")
def h_tall_digit_stack(seed: int) -> Case:
    model = init_weights(mlp([64, *[48] * 11, 10]), he)
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=sgd(0.02), max_steps=300, **CE)


@faulty("init_vanishing", "bad_gain", twin="h_tall_digit_stack", source="old tutorial: every weight uniform in +-0.05")
def f_tall_stack_tutorial_uniform(case: Case) -> None:
    init_weights(case.model, lambda weight: nn.init.uniform_(weight, -0.05, 0.05))


@faulty(
    "bad_gain",
    "init_vanishing",
    twin="h_tall_digit_stack",
    source="a=sqrt(5) copied from the source of nn.Linear into a deep net",
)
def f_tall_stack_copied_slope(case: Case) -> None:
    init_weights(case.model, lambda weight: nn.init.kaiming_uniform_(weight, a=math.sqrt(5)))


@faulty(
    "wrong_hidden_activation",
    "init_vanishing",
    twin="h_tall_digit_stack",
    source="textbook sigmoids in a net of a dozen layers",
)
def f_tall_stack_of_sigmoids(case: Case) -> None:
    for i, layer in enumerate(case.model):
        if isinstance(layer, nn.ReLU):
            case.model[i] = nn.Sigmoid()


# ------------------------------------------------------------------------------------------ matrices by hand
class HandMatrices(nn.Module):
    """Layers as bare matrices, as in a course that begins without `nn.Linear`."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        shapes = list(pairwise(sizes))
        self.weights = nn.ParameterList(torch.randn(a, b) * math.sqrt(2 / a) for a, b in shapes)
        self.biases = nn.ParameterList(torch.zeros(b) for _, b in shapes)

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = (x @ weight + bias).clamp_min(0)
        return x @ self.weights[-1] + self.biases[-1]


@healthy(source="network of bare parameter matrices, scaled by fan-in")
def h_matrices_by_hand(seed: int) -> Case:
    model = HandMatrices((8, 64, 64, 64, 1))
    return Case(seed=seed, model=model, data=data.surface(seed), optimizer=adam(3e-3), max_steps=300, **MSE)


@faulty(
    "init_exploding",
    "bad_gain",
    twin="h_matrices_by_hand",
    source="nn.Parameter(torch.randn(a, b)) without dividing by sqrt(a)",
)
def f_matrices_bare_randn(case: Case) -> None:
    with torch.no_grad():
        for weight in case.model.weights:
            weight.normal_()


# ------------------------------------------------------------------------------------------ a recurrent net by hand
class RectifiedRecurrence(nn.Module):
    """IRNN of Le et al. 2015: ReLU, recurrent matrix near the identity."""

    def __init__(self, features: int = 3, hidden: int = 32, outputs: int = 4) -> None:
        super().__init__()
        self.inside, self.across = nn.Linear(features, hidden), nn.Linear(hidden, hidden, bias=False)
        self.head = nn.Linear(hidden, outputs)
        nn.init.eye_(self.across.weight)

    def carry(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.across.in_features)
        for t in range(x.shape[1]):
            h = F.relu(self.inside(x[:, t]) + self.across(self.carry(h)))
        return self.head(h)


@healthy("init_exploding", source="Le et al. 2015: identity-initialised ReLU recurrence")
def h_identity_recurrence(seed: int) -> Case:
    model = RectifiedRecurrence()
    return Case(seed=seed, model=model, data=data.walks(seed), optimizer=adam(2e-3), max_steps=250, **CE)


@faulty("init_exploding", "bad_gain", twin="h_identity_recurrence", source="recurrent matrix drawn from randn, unscaled")
def f_recurrence_drawn_wild(case: Case) -> None:
    nn.init.normal_(case.model.across.weight)


# ------------------------------------------------------------------------------------------ experts
class Experts(nn.Module):
    """A softly gated mixture of narrow experts."""

    def __init__(self, dim: int, outputs: int, experts: int = 8, width: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, experts)
        self.experts = nn.ModuleList(mlp([dim, width, outputs], nn.Tanh) for _ in range(experts))
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x).softmax(1)
        return (gates[:, None] * torch.stack([expert(x) for expert in self.experts], 2)).sum(2)


@healthy("init_symmetry", "wrong_hidden_activation", source="mixture of experts whose gate starts indifferent")
def h_indifferent_gate(seed: int) -> Case:
    return Case(seed=seed, model=Experts(8, 1), data=data.surface(seed), optimizer=adam(1e-2), max_steps=400, **MSE)


@faulty("init_symmetry", twin="h_indifferent_gate", source="experts made by deepcopy of one, never drawn anew")
def f_experts_all_copies(case: Case) -> None:
    first = case.model.experts[0]
    case.model.experts = nn.ModuleList(copy.deepcopy(first) for _ in range(8))


# ------------------------------------------------------------------------------------------ factors
class Factors(nn.Module):
    """Matrix factorisation with biases; the mean rating is known."""

    def __init__(self, users: int = 50, items: int = 40, width: int = 6) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, width), nn.Embedding(items, width)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.3)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.weight)

    def forward(self, x: Tensor) -> Tensor:
        who, what = x.T
        return 3 + (self.user(who) * self.item(what)).sum(1, keepdim=True) + self.user_bias(who) + self.item_bias(what)


class FlatFactors(Factors):
    def forward(self, x: Tensor) -> Tensor:
        who, what = x.T
        return 3 + (self.user(who) * self.item(what)).sum(1) + self.user_bias(who) + self.item_bias(what)


@healthy("unnormalised_target", source="recommender by matrix factorisation")
def h_taste_factors(seed: int) -> Case:
    return Case(
        seed=seed, model=Factors(), data=more_data.ratings(seed), optimizer=adam(1e-2), batch_size=64, max_steps=400, **MSE
    )


@faulty("init_symmetry", twin="h_taste_factors", source="embeddings of a recommender filled with one constant")
def f_taste_all_the_same(case: Case) -> None:
    nn.init.constant_(case.model.user.weight, 0.3)
    nn.init.constant_(case.model.item.weight, 0.3)


@faulty("shape_broadcast", twin="h_taste_factors", source="dot product [N] plus bias table [N, 1]: forgotten keepdim")
def f_taste_grid_of_ratings(case: Case) -> None:
    case.model = FlatFactors()


# ------------------------------------------------------------------------------------------ highways
class Highway(nn.Module):
    """Srivastava et al. 2015: gated layers that start by carrying."""

    def __init__(self, dim: int, width: int, outputs: int, depth: int, bias: float = -1.0) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(dim, width), nn.Linear(width, outputs)
        self.plain = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for gate in self.gates:
            nn.init.constant_(gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for plain, gate in zip(self.plain, self.gates, strict=True):
            t = gate(x).sigmoid()
            x = t * F.relu(plain(x)) + (1 - t) * x
        return self.head(x)


@healthy("bad_bias_init", "saturation", source="highway network, transform gates biased to -1")
def h_carrying_highway(seed: int) -> Case:
    model = Highway(2, 24, 3, 4)
    return Case(seed=seed, model=model, data=data.rings(seed), optimizer=sgd(0.1), max_steps=300, **CE)


@faulty("bad_bias_init", "saturation", twin="h_carrying_highway", source="transform gates biased so low that they never open")
def f_highway_gates_shut(case: Case) -> None:
    for gate in case.model.gates:
        nn.init.constant_(gate.bias, -14.0)


# ------------------------------------------------------------------------------------------ memory
class LastOfLSTM(nn.Module):
    """The last state of an LSTM and a head."""

    def __init__(self, features: int = 2, hidden: int = 16, outputs: int = 2, batch_first: bool = True) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(features, hidden, batch_first=batch_first), nn.Linear(hidden, outputs)
        for name, p in self.lstm.named_parameters():
            if "bias" in name:
                nn.init.zeros_(p)
        with torch.no_grad():
            self.lstm.bias_ih_l0[hidden : 2 * hidden] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


@healthy("bad_bias_init", source="Jozefowicz et al. 2015: forget gates open at the start")
def h_open_forget_gates(seed: int) -> Case:
    model = LastOfLSTM()
    return Case(seed=seed, model=model, data=more_data.openings(seed), optimizer=adam(5e-3), max_steps=200, **CE)


@faulty(
    "bad_bias_init", "saturation", "init_vanishing", twin="h_open_forget_gates", source="forget-gate bias with the wrong sign"
)
def f_forget_gates_shut(case: Case) -> None:
    with torch.no_grad():
        case.model.lstm.bias_ih_l0[16:32] = -8.0


@faulty("batch_mixing", twin="h_open_forget_gates", source="nn.LSTM without batch_first fed [N, T, C]")
def f_lstm_reads_across_rows(case: Case) -> None:
    case.model = LastOfLSTM(batch_first=False)


# ------------------------------------------------------------------------------------------ dead and saturated units
def badge_net() -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in ((3, 10), (10, 20)):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(320, 32), nn.ReLU(), nn.Linear(32, 4))


@healthy(source="everyday small convnet with batch norm on colour pictures")
def h_badge_net(seed: int) -> Case:
    shapes = more_data.centred(more_data.shapes(seed))
    return Case(seed=seed, model=badge_net(), data=shapes, optimizer=adam(3e-3), max_steps=150, **CE)


@faulty("dead_relu", "bad_bias_init", twin="h_badge_net", source="shift of batch norm set far below zero 'for sparse codes'")
def f_badge_shifted_under_water(case: Case) -> None:
    for layer in case.model:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.constant_(layer.bias, -6.0)


@healthy("unnormalised_input", source="ReLU regressor of non-negative spectra")
def h_peaks_of_spectra(seed: int) -> Case:
    model = init_weights(mlp([48, 40, 40, 2]), he)
    return Case(seed=seed, model=model, data=more_data.spectra(seed), optimizer=adam(3e-3), max_steps=300, **MSE)


@faulty(
    "dead_relu",
    twin="h_peaks_of_spectra",
    source="uniform_(-b, 0) for uniform_(-b, b): negative weights on non-negative inputs",
)
def f_peaks_seen_negative(case: Case) -> None:
    nn.init.uniform_(weighted(case.model)[0].weight, -0.35, 0.0)


class SoftTrees(nn.Module):
    """A forest of soft oblivious trees (Popov et al. 2019, simplified): products of sigmoid splits weigh the leaves."""

    def __init__(self, dim: int, trees: int = 12, depth: int = 3, temperature: float = 0.5) -> None:
        super().__init__()
        self.splits = nn.Linear(dim, trees * depth)
        self.leaves = nn.Parameter(0.1 * torch.randn(trees, 2**depth))
        self.shape, self.temperature = (trees, depth), temperature

    def forward(self, x: Tensor) -> Tensor:
        right = (self.splits(x).view(-1, *self.shape) / self.temperature).sigmoid()
        weight = x.new_ones(len(x), self.shape[0], 1)
        for level in right.unbind(2):
            weight = torch.cat([weight * level[..., None], weight * (1 - level[..., None])], 2)
        return (weight * self.leaves).sum((1, 2))[:, None]


@healthy("saturation", source="soft decision trees of a moderate temperature")
def h_soft_forest(seed: int) -> Case:
    return Case(seed=seed, model=SoftTrees(6), data=data.binary(seed), optimizer=adam(1e-2), max_steps=400, **BCE)


@faulty("saturation", twin="h_soft_forest", source="temperature of soft splits so low that no gradient passes", margin=0.08)
def f_forest_frozen_cold(case: Case) -> None:
    case.model.temperature = 0.0005
