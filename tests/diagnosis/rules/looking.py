"""Train a few steps by hand, and return what the rules say."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_training.diagnosis.evidence import collect
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.later import FirstSteps
from lit_training.diagnosis.rule import Diagnosis
from lit_training.diagnosis.rules import RULES
from lit_training.diagnosis.samples import of_one_batch
from lit_training.tracing.probe import Probe

Loss = Callable[[Tensor, Tensor], Tensor]


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)


def adam(model: nn.Module) -> Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def vectors(rows: int = 32, features: int = 16, classes: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.randn(rows, features, generator=g), torch.randint(0, classes, (rows,), generator=g)


def numbers(rows: int = 32, features: int = 16) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(6)
    return torch.randn(rows, features, generator=g), torch.randn(rows, 1, generator=g)


def mlp(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(a, b), *([act()] if i < len(sizes) - 2 else [])]
    return nn.Sequential(*layers)


def fill(model: nn.Module, draw: Callable[[Tensor], object]) -> nn.Module:
    """Draw the weights of linear and convolution layers, with biases of zero."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            draw(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def findings(
    model: nn.Module,
    batch: tuple[Tensor, Tensor] | None = None,
    loss: Loss = F.cross_entropy,
    *,
    optimizer: Callable[[nn.Module], Optimizer] = sgd,
    steps: int = 4,
    zero_grad: bool = True,
    expect_frozen: tuple[str, ...] = (),
) -> list[Finding]:
    """Audit the first step of a plain loop, follow the next ones, and judge again with what they showed."""
    x, y = vectors() if batch is None else batch
    held = optimizer(model)
    with Probe(model, len(x), (x, y)) as probe:
        value = loss(model(x), y)
        probe.differentiate(value)
        value.backward()
    samples = of_one_batch(probe)
    evidence = collect(probe, optimizers=[held], loss=value, stepping=held, expect_frozen=expect_frozen, samples=samples)
    diagnosis = Diagnosis(RULES)
    diagnosis(evidence)
    first = FirstSteps(model, [held])
    first.before_step(held)
    held.step()
    for _ in range(steps - 1):
        value = loss(model(x), y)
        if zero_grad:
            held.zero_grad()
        first.before_backward(value)
        value.backward()
        first.before_step(held)
        held.step()
    return diagnosis(replace(evidence, later=first.conclude(steps)))


def alarms(*args: object, **settings: object) -> list[str]:
    """Return the rules of errors and warnings, the root cause first."""
    return [f.rule for f in findings(*args, **settings) if f.severity != "note"]  # type: ignore[arg-type]


def notes(*args: object, **settings: object) -> list[str]:
    return [f.rule for f in findings(*args, **settings) if f.severity == "note"]  # type: ignore[arg-type]
