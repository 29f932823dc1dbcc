"""Healthy, second set: weights that are frozen, pruned, shared by several layers or stacked into one product."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.zoo import more_data as data
from tests.zoo.case import Case, healthy
from tests.zoo.healthy_routes import arcs
from tests.zoo.healthy_shapes import strided
from tests.zoo.healthy_signals import pulse_net
from tests.zoo.nets import CE, MSE, adam, mlp, sgd, trainable


# ------------------------------------------------------------------------------------------ frozen, pruned, shared
def taught(model: nn.Module, train: torch.utils.data.TensorDataset, steps: int = 60, lr: float = 6e-3) -> nn.Module:
    """The model after some steps of Adam on other data."""
    optimizer, (x, y) = torch.optim.Adam(model.parameters(), lr=lr), train.tensors
    for i in range(steps):
        piece = slice(i * 32 % 448, i * 32 % 448 + 32)
        optimizer.zero_grad()
        F.cross_entropy(model(x[piece]), y[piece]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


class Probe(nn.Module):
    """Features of a trained net, taken in evaluation mode and without graph, and a new head."""

    def __init__(self, trained: nn.Sequential, width: int, classes: int) -> None:
        super().__init__()
        self.features, self.head = trained[:-1].requires_grad_(False), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.features.eval()(x)
        return self.head(features)


@healthy(
    "detached_subgraph",
    "frozen_by_accident",
    "bn_eval_in_train",
    source="linear probe of a trained net under no_grad, not declared",
)
def h_linear_probe(seed: int) -> Case:
    trained = taught(strided(nn.BatchNorm2d), data.centred(data.shapes(seed + 50))[0], 120)
    model = Probe(trained, 24, 4)
    optimizer = trainable(torch.optim.Adam, lr=3e-2)
    return Case(seed=seed, model=model, data=data.centred(data.shapes(seed)), optimizer=optimizer, max_steps=200, **CE)


class Adapted(nn.Module):
    """Houlsby et al. 2019: a frozen convolution, and beside it a narrow path whose last layer starts at zero."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.conv, self.down = conv.requires_grad_(False), nn.Conv1d(conv.out_channels, 4, 1)
        self.up = nn.Conv1d(4, conv.out_channels, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.up(F.gelu(self.down(x)))


@healthy(
    "frozen_by_accident", "init_symmetry", "init_vanishing", source="Houlsby et al. 2019: adapters in a frozen net, declared"
)
def h_adapters(seed: int) -> Case:
    trained = taught(pulse_net(nn.ReLU, None), data.pulses(seed + 50)[0], 100)
    for i, layer in enumerate(trained):
        if isinstance(layer, nn.Conv1d):
            trained[i] = Adapted(layer)
    trained[-1] = nn.Linear(120, 3)
    frozen = [f"model.{name}" for name, p in trained.named_parameters() if not p.requires_grad]
    return Case(
        seed=seed, model=trained, data=data.pulses(seed), optimizer=trainable(torch.optim.Adam, lr=1e-2), max_steps=150,
        frozen=frozen, **CE,
    )  # fmt: skip


@healthy("lr_too_low", "wrong_loss", "no_update", source="all of a trained 1-D net fine-tuned at a tenth of its rate")
def h_fine_tuned_pulses(seed: int) -> Case:
    model = taught(pulse_net(), data.pulses(seed)[0], 200)
    return Case(seed=seed, model=model, data=data.pulses(seed), optimizer=adam(5e-4), max_steps=120, **CE)


@healthy(
    "frozen_by_accident", "init_vanishing", "dead_relu", source="Frankle and Carbin 2019: most weights pruned before training"
)
def h_pruned_at_init(seed: int) -> Case:
    model = mlp([5, 128, 128, 3])
    prune.random_unstructured(model[2], "weight", amount=0.8)
    nn.init.zeros_(model[2].bias)
    return arcs(seed, model)


class Reservoir(nn.Module):
    """Jaeger 2001: a random recurrent net that never learns (buffers); a linear read-out does."""

    def __init__(self, units: int = 120) -> None:
        super().__init__()
        turn = torch.linalg.qr(torch.randn(units, units))[0]
        self.register_buffer("turn", 0.95 * turn)
        self.register_buffer("into", 0.5 * torch.randn(units))
        self.head = nn.Linear(units, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), len(self.into))
        for t in range(x.shape[1]):
            state = (state @ self.turn + x[:, t, None] * self.into).tanh()
        return self.head(state)


@healthy("frozen_by_accident", "missing_activation", source="Jaeger 2001: an echo state network, its reservoir in buffers")
def h_reservoir(seed: int) -> Case:
    return Case(seed=seed, model=Reservoir(), data=data.swings(seed), optimizer=adam(1e-2), max_steps=200, **MSE)


class Recycled(nn.Module):
    """One layer applied six times with a skip: weights shared over depth."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.again, self.head = nn.Linear(5, 32), nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for _ in range(6):
            x = x + 0.4 * F.softplus(self.again(x)) - 0.2
        return self.head(x)


@healthy("gradients_not_zeroed", "init_exploding", source="one layer used six times in a step")
def h_recycled_layer(seed: int) -> Case:
    return Case(seed=seed, model=Recycled(), data=data.arcs(seed), optimizer=sgd(0.02), max_steps=250, **CE)


class Exits(nn.Module):
    """Teerapittayanon et al. 2016: a head after each layer, all of them returned in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 40), nn.Linear(40, 40), nn.Linear(40, 40)])
        self.heads = nn.ModuleList(nn.Linear(40, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        outputs = []
        for layer, head in zip(self.layers, self.heads, strict=True):
            x = F.elu(layer(x))
            outputs.append(head(x))
        return outputs if self.training else outputs[-1]


def all_exits(output: Any, target: Tensor) -> Tensor:
    if isinstance(output, Tensor):
        return F.cross_entropy(output, target)
    return sum(w * F.cross_entropy(o, target) for w, o in zip((0.2, 0.3, 0.5), output, strict=True))


@healthy(
    "wrong_loss", "frozen_by_accident", source="Teerapittayanon et al. 2016: early exits, a list of outputs in training only"
)
def h_early_exits(seed: int) -> Case:
    return arcs(seed, Exits(), loss=all_exits)


class Ensemble(nn.Module):
    """Lakshminarayanan et al. 2017: five nets in one product, their probabilities averaged, as log."""

    def __init__(self, members: int = 5, width: int = 24) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(members, 5, width) * (2 / 5) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(members, 1, width))
        self.second = nn.Parameter(torch.randn(members, width, 3) * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("nd,mdw->mnw", x, self.first).add(self.bias).relu()
        return torch.bmm(hidden, self.second).log_softmax(2).logsumexp(0) - math.log(5)


@healthy(
    "missing_activation", "wrong_last_activation", source="five nets in one batched product; log-probabilities to cross-entropy"
)
def h_batched_ensemble(seed: int) -> Case:
    return arcs(seed, Ensemble(), lr=1.5e-2)
