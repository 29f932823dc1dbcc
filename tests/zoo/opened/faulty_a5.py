"""Maps, deep stacks and detectors: gains, missing activations, shapes of maps, means over nothing, gates."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, faulty, healthy
from tests.zoo.data import Split, blobs, digits, rng, several, split, standardise
from tests.zoo.metrics import METRICS, Metric, binary_accuracy, binary_majority
from tests.zoo.nets import CE, MSE, ResidualMLP, adam, he, init_weights, mlp, sgd


# ------------------------------------------------------------------------------------------ maps
def relief(seed: int, n: int = 600, size: int = 12) -> Split:
    """Noise pictures `[n, 1, size, size]` and a standardised map `[n, size, size]` of how rough they are locally."""
    x = torch.randn(n, 1, size, size, generator=rng(931, seed))
    rough = (x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)).abs()
    return split(x, standardise(F.avg_pool2d(rough, 3, 1, 1, count_include_pad=False), None)[:, 0])


def absolute(output: Tensor, target: Tensor) -> Tensor:
    return (output.squeeze(1) - target).abs().mean()


def mapper(width: int = 16) -> nn.Sequential:
    layers = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))


@healthy("shape_broadcast", "wrong_loss", source="dense regression: maps without a channel axis, mean absolute error")
def h_relief_maps(seed: int) -> Case:
    return Case(
        seed=seed, model=mapper(), data=relief(seed), loss=absolute, metric="r2", optimizer=adam(5e-3), max_steps=220,
        batch_size=16, val_batch_size=50,
    )  # fmt: skip


@faulty(
    "shape_broadcast", twin="h_relief_maps", source="maps [N, 1, H, W] less maps [N, H, W]: every picture against every other"
)
def f_relief_against_all(case: Case) -> None:
    case.loss = lambda o, y: (o - y).abs().mean()


@faulty("missing_activation", twin="h_relief_maps", source="convolutions in a row without anything between", margin=0.3)
def f_relief_linear(case: Case) -> None:
    case.model = nn.Sequential(*(layer for layer in case.model if isinstance(layer, nn.Conv2d)))


# ------------------------------------------------------------------------------------------ deep stacks
@healthy("init_exploding", "bad_gain", source="fourteen ReLU layers without norm, He start, SGD")
def h_fourteen_layers(seed: int) -> Case:
    model = init_weights(mlp([64, *[64] * 13, 10]), he)
    return Case(seed=seed, model=model, data=digits(seed), optimizer=sgd(0.01), max_steps=300, **CE)


@faulty("bad_gain", "init_vanishing", twin="h_fourteen_layers", source="kaiming_uniform_(a=sqrt(5)) as in nn.Linear")
def f_fourteen_root_five(case: Case) -> None:
    init_weights(case.model, lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)))


@healthy("init_symmetry", "init_vanishing", source="Fixup: the last layer of each residual branch starts at zero, no norm")
def h_fixup_stack(seed: int) -> Case:
    model = init_weights(ResidualMLP(8, 32, 3, depth=10), he)
    for branch in model.branches:
        nn.init.zeros_(branch[-1].weight)
    return Case(seed=seed, model=model, data=several(seed), optimizer=sgd(0.003), max_steps=300, batch_size=64, **MSE)


@faulty("bad_gain", "init_exploding", twin="h_fixup_stack", source="without Fixup: each branch doubles", margin=0.3)
def f_fixup_undone(case: Case) -> None:
    for branch in case.model.branches:
        he(branch[-1].weight)


@faulty("wrong_hidden_activation", twin="h_fourteen_layers", source="log_softmax after each hidden layer")
def f_fourteen_log_softmax(case: Case) -> None:
    for i, layer in enumerate(case.model):
        if isinstance(layer, nn.ReLU):
            case.model[i] = nn.LogSoftmax(dim=1)


# ------------------------------------------------------------------------------------------ detection
def sightings(seed: int, n: int = 1536, dim: int = 8) -> Split:
    """Whether there is something, and where, as `[n, 2]`; where there is nothing, the place is 0."""
    g = rng(932, seed)
    x = torch.randn(n, dim, generator=g)
    there = ((x[:, 0] * x[:, 1] + x[:, 2]) > 0.7).float()
    place = (x[:, 3] + 0.5 * x[:, 4].sin()) * there
    return split(x, torch.stack([there, place], 1))


def seen(output: Tensor, target: Tensor) -> Tensor:
    """Mean of the share of right decisions and of the explained share of the places."""
    there = target[:, 0] > 0.5
    error = (output[there, 1] - target[there, 1]).square().sum() / target[there, 1].square().sum().clamp_min(1e-6)
    return 0.5 * binary_accuracy(output[:, 0], target[:, 0]) + 0.5 * (1 - error).clamp_min(-1)


METRICS["seen_and_placed"] = Metric(seen, lambda target: 0.5 * binary_majority(target[:, 0]))


def detection(output: Tensor, target: Tensor) -> Tensor:
    """Presence for all, place for what is there."""
    there = target[:, 0]
    off = F.smooth_l1_loss(output[:, 1], target[:, 1], reduction="none")
    return F.binary_cross_entropy_with_logits(output[:, 0], there) + (off * there).sum() / there.sum().clamp_min(1)


def detection_per_found(output: Tensor, target: Tensor) -> Tensor:
    there = target[:, 0]
    off = F.smooth_l1_loss(output[:, 1], target[:, 1], reduction="none")
    return F.binary_cross_entropy_with_logits(output[:, 0], there) + (off * there).sum() / there.sum()


@healthy(
    "nan_loss", "loss_reduction", source="presence and place at once: places are averaged over what is there, at least one"
)
def h_sightings(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 48, 48, 2]), data=sightings(seed), loss=detection, metric="seen_and_placed",
        optimizer=adam(3e-3), batch_size=8, val_batch_size=512, max_steps=400,
    )  # fmt: skip


@faulty("nan_loss", twin="h_sightings", source="detection trackers: the mean over the positives of a batch that has none")
def f_sightings_mean_of_none(case: Case) -> None:
    case.loss = detection_per_found


# ------------------------------------------------------------------------------------------ gates
class Highway(nn.Module):
    """Highway layers (Srivastava 2015) whose gates start nearly shut."""

    def __init__(self, dim: int = 8, width: int = 32, depth: int = 12, gate: float = -2.0) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(dim, width), nn.Linear(width, 4)
        self.change = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.bias(gate)

    def bias(self, gate: float) -> None:
        for layer in self.gates:
            nn.init.constant_(layer.bias, gate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).tanh()
        for change, gate in zip(self.change, self.gates, strict=True):
            share = gate(x).sigmoid()
            x = share * change(x).tanh() + (1 - share) * x
        return self.head(x)


@healthy("bad_bias_init", "saturation", source="a highway network, gates shut by their bias at the start")
def h_highway_blobs(seed: int) -> Case:
    return Case(seed=seed, model=Highway(), data=blobs(seed), optimizer=sgd(0.1), max_steps=350, **CE)


@faulty("bad_bias_init", "init_vanishing", twin="h_highway_blobs", source="sign of the carry bias mistaken")
def f_highway_gates_open(case: Case) -> None:
    case.model.bias(4.0)


# ------------------------------------------------------------------------------------------ a plain net
@healthy("init_exploding", source="seven ReLU layers on digits, He start, SGD")
def h_digits_seven(seed: int) -> Case:
    model = init_weights(mlp([64, 48, 48, 48, 48, 48, 48, 10]), he)
    return Case(seed=seed, model=model, data=digits(seed), optimizer=sgd(0.03), max_steps=250, **CE)


@faulty(
    "wrong_hidden_activation", "init_vanishing", "saturation", twin="h_digits_seven", source="DeepFD: sigmoid in a deep net"
)
def f_digits_all_sigmoid(case: Case) -> None:
    for i, layer in enumerate(case.model):
        if isinstance(layer, nn.ReLU):
            case.model[i] = nn.Sigmoid()
