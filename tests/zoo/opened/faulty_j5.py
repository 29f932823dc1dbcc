"""Held-out faults of trained bodies: transfer, thawing, low-rank adapters."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, faulty, healthy
from tests.zoo.data import Split, digits, rng, split, standardise
from tests.zoo.nets import CE, MSE, mlp, trainable


def trained(model: nn.Module, x: Tensor, y: Tensor, loss: Any, steps: int, lr: float = 5e-3) -> nn.Module:
    """The model after some steps of Adam on another task."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        rows = torch.arange(64 * step, 64 * (step + 1)) % len(y)
        optimizer.zero_grad()
        loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


# ------------------------------------------------------------------------------------------ digits after digits
class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def halves(seed: int) -> tuple[Split, Split]:
    """The digits up to 4, and those from 5 on."""
    x, y = (torch.cat([part.tensors[i] for part in digits(seed, flat=False)]) for i in range(2))
    small = y < 5
    return split(x[small], y[small]), split(x[~small][:600], y[~small][:600] - 5, val=0.6)


def transfer(seed: int, **settings: Any) -> Case:
    first, second = halves(seed)
    model: Any = trained(Net(), *first[0].tensors, F.cross_entropy, 100)
    model.head = nn.Linear(96, 5)
    return Case(seed=seed, model=model, data=second, **CE | settings)


@healthy("frozen_by_accident", source="digits up to 4 teach a body; a new head learns the others on the frozen body")
def h_j_transfer(seed: int) -> Case:
    case = transfer(seed, optimizer=trainable(torch.optim.Adam, lr=5e-3), max_steps=120)
    case.model.body.requires_grad_(False)  # type: ignore[union-attr]
    case.frozen = [f"model.body.{name}" for name, _ in case.model.body.named_parameters()]  # type: ignore[union-attr]
    return case


@faulty("init_vanishing", "frozen_by_accident", twin="h_j_transfer", source="model.apply(init) after the weights were loaded")
def f_j_transfer_applied(case: Case) -> None:
    for layer in case.model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.005)


@healthy("lr_too_low", source="all of a trained body fine-tuned at a tenth of the rate of the head")
def h_j_thawed(seed: int) -> Case:
    def optimizer(model: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            [{"params": model.body.parameters(), "lr": 5e-4}, {"params": model.head.parameters(), "lr": 5e-3}]
        )

    return transfer(seed, optimizer=optimizer, max_steps=120)


@faulty("not_in_optimizer", twin="h_j_thawed", source="head replaced after the optimiser was built")
def f_j_thawed_stale_head(case: Case) -> None:
    plain = case.optimizer

    def optimizer(model: Any) -> torch.optim.Optimizer:
        built = plain(model)
        model.head = nn.Linear(96, 5)
        nn.init.normal_(model.head.weight, std=0.01)
        return built

    case.optimizer = optimizer


# ------------------------------------------------------------------------------------------ adapters
class Adapted(nn.Module):
    """A frozen linear layer and a product of two thin matrices, the second of which starts at zero."""

    def __init__(self, base: nn.Linear, rank: int = 4, scale: float = 1.0) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), scale
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def change(self) -> Tensor:
        return self.scale * self.lora_b @ self.lora_a

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.change().T


def related(seed: int, n: int = 1500) -> tuple[Split, Split]:
    """A smooth function, and the same with two pairs of its inputs exchanged."""
    g = rng(921, seed)
    x, inner, outer = torch.randn(n, 8, generator=g), torch.randn(8, 16, generator=g), torch.randn(16, 1, generator=g)
    first, second = (standardise((z @ inner / 8**0.5).tanh() @ outer) for z in (x, x[:, [1, 0, 3, 2, 4, 5, 6, 7]]))
    return split(x, first), split(x, second)


def adapters(model: nn.Module) -> list[Adapted]:
    return [m for m in model.modules() if isinstance(m, Adapted)]


@healthy("frozen_by_accident", "init_symmetry", source="LoRA on all layers of a trained MLP, its task slightly changed")
def h_j_adapters(seed: int) -> Case:
    first, second = related(seed)
    body = trained(mlp([8, 48, 48, 1], nn.Tanh), *first[0].tensors, F.mse_loss, 250)
    layers = [Adapted(layer) if isinstance(layer, nn.Linear) else layer for layer in body.children()]
    model = nn.Sequential(*layers)
    frozen = [f"model.{name}" for name, p in model.named_parameters() if not p.requires_grad]
    make = trainable(torch.optim.Adam, lr=1e-2)
    return Case(seed=seed, model=model, data=second, optimizer=make, frozen=frozen, max_steps=200, **MSE)


@faulty("init_symmetry", "init_vanishing", "no_update", twin="h_j_adapters", source="both thin matrices start at zero")
def f_j_adapters_both_zero(case: Case) -> None:
    for layer in adapters(case.model):
        nn.init.zeros_(layer.lora_a)


@faulty("frozen_by_accident", twin="h_j_adapters", source="all but names that end in lora_a frozen, with lora_b at zero")
def f_j_adapters_one_frozen(case: Case) -> None:
    for layer in adapters(case.model):
        layer.lora_b.requires_grad_(False)


@faulty("bad_gain", "lr_too_high", "init_exploding", twin="h_j_adapters", source="alpha of 64 not divided by the rank")
def f_j_adapters_alpha(case: Case) -> None:
    for layer in adapters(case.model):
        layer.scale = 64.0
