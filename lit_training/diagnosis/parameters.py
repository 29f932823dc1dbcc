"""What is known of every parameter once a backward pass has run."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lit_training.diagnosis.figures import ROUNDING, figures
from lit_training.diagnosis.freshness import is_orthogonal, looks_fresh
from lit_training.selection import Kind, classify, match, names_of
from lit_training.tracing.trace import Tracer

__all__ = ["BEHIND", "LooseTensor", "ParameterFacts", "loose_tensors", "parameter_facts"]

_CLIPPED = 0.999  # what is left of a gradient that was clipped, at most
_PLAIN = (torch.optim.SGD,)
_FIXED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.Adamax, torch.optim.RMSprop)
_ADADELTA_STEP = 0.03  # of its rate: a tenth of that at the first step, growing slowly (Zeiler 2012)

BEHIND = 100.0
"""How many times below the highest of its optimiser a rate is that may have been made for a trained weight."""


@dataclass(frozen=True)
class ParameterFacts:
    """One parameter after a backward pass: `gradient` is its gradient's norm, `None` where there is no gradient.

    `requires_grad` is as it was before the step, so that what a manual loop toggles does not count; `fresh` tells whether a
    weight that is frozen, in no optimiser, without gradient, at a far lower rate than others, or in doubt looks as it was drawn
    (`freshness.looks_fresh`), `orthogonal` whether it is frozen and `freshness.is_orthogonal`,
    `expected_frozen` whether the user declared it frozen, `optimized` whether an optimiser holds it (`None` where no optimiser
    is known), `stepping` whether the optimiser that is about to step does; `equal_units` whether all its units (slices along the
    first dimension, of an embedding columns) have the same weights, `equal_gradients` whether they have the same gradients, too;
    `low` and `high` are its extremes; `descent` is the learning rate if plain gradient descent (`SGD`) moves it, whose steps grow
    with the loss, else `None`; `fixed_step` the learning rate if Adam or its like does, whose first step moves each element by it
    (about, for RMSprop and Adadelta); `shrinks` whether later ones get smaller with the root of their number (Adagrad);
    `made_with` the rate before a schedule changed it, `step_at_one` what `fixed_step` would be at a rate of 1. `gradient_sum`
    is, where `fixed_step` is known, the sum of its gradient's sizes, `along` the product of gradient and weight; `decay` the
    optimiser's `weight_decay`, `decoupled` whether that acts on the weight and not through the gradient; `kept` the part of the
    gradient that the user's own code left of it between the backward pass and the step, which `gradient` and what is made of it are
    without.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    requires_grad: bool
    optimized: bool | None
    norm: float
    gradient: float | None
    fresh: bool
    expected_frozen: bool
    equal_units: bool
    equal_gradients: bool
    stepping: bool = True
    low: float = 0.0
    high: float = 0.0
    descent: float | None = None
    fixed_step: float | None = None
    made_with: float = 0.0
    step_at_one: float = 1.0
    shrinks: bool = False
    gradient_sum: float = 0.0
    along: float = 0.0
    decay: float = 0.0
    decoupled: bool = False
    kept: float = 1.0
    orthogonal: bool = False

    @property
    def first_change(self) -> float | None:
        """Length of the first update over that of the parameter, `None` where that is not known."""
        if self.descent is None or self.gradient is None or self.norm == 0:
            return None
        return self.descent * self.gradient / self.norm


@dataclass(frozen=True)
class LooseTensor:
    """A tensor that the forward read, that got a gradient, and that no module owns and no optimiser holds."""

    shape: tuple[int, ...]
    scope: str
    is_parameter: bool
    first_reader: int


@torch.no_grad()
def parameter_facts(
    module: nn.Module,
    optimizers: Sequence[Optimizer] | None,
    expect_frozen: Sequence[str] = (),
    *,
    trainable: Collection[int] = (),
    stepping: Optimizer | None = None,
    judged: Collection[str] = (),
    arrived: Mapping[int, float] | None = None,
    gradient_scale: float = 1.0,
    rounding: float = ROUNDING,
) -> dict[str, ParameterFacts]:
    """Return the facts of every parameter, in the order of registration.

    Args:
        module: whose parameters.
        optimizers: all of the training's, `None` if there is none to ask.
        expect_frozen: patterns of parameters that are meant to be frozen.
        trainable: ids of parameters that required a gradient before the step.
        stepping: the optimiser that is about to step; `None` for all.
        judged: names of weights of which to tell, too, whether they are fresh.
        arrived: norms of the gradients as the last backward pass left them, by the parameters' ids.
        gradient_scale: what mixed precision has not yet divided the parameters' gradients by.
        rounding: up to which gradients are equal.
    """
    registered = classify(module)
    infos = [info for info in registered if not nn.parameter.is_lazy(info.parameter)]
    held = None if optimizers is None else _held(optimizers)
    moving = None if stepping is None else _held([stepping])
    descents = _rates(optimizers or (), _PLAIN)
    fixed = _rates(optimizers or (), (*_FIXED, torch.optim.Adagrad, torch.optim.Adadelta))
    groups = {id(p): (o, group) for o in optimizers or () for group in o.param_groups for p in group["params"]}
    expected = match(expect_frozen, names_of(registered), "expect_frozen")
    measured = figures(infos, summed=fixed, scale=gradient_scale, rounding=rounding)
    norms_now = {
        id(info.parameter): seen.gradient for info, seen in zip(infos, measured, strict=True) if seen.gradient is not None
    }
    left = _left(arrived or {}, norms_now)
    facts = {}
    for info, seen in zip(infos, measured, strict=True):
        p = info.parameter
        requires_grad = p.requires_grad or id(p) in trainable
        forgotten = held is not None and id(p) not in held
        optimizer, group = groups.get(id(p), (None, {}))
        kept = left.get(id(p), 1.0)
        behind = optimizer is not None and BEHIND * _made_with(group) <= max(map(_made_with, optimizer.param_groups))
        doubtful = not requires_grad or p.grad is None or forgotten or behind or info.name in judged or "weight_hh" in info.name
        step_at_one = _ADADELTA_STEP if isinstance(optimizer, torch.optim.Adadelta) else 1.0
        facts[info.name] = ParameterFacts(
            name=info.name,
            kind=info.kind,
            shape=tuple(p.shape),
            requires_grad=requires_grad,
            optimized=None if held is None else id(p) in held,
            norm=seen.norm,
            gradient=None if seen.gradient is None else seen.gradient / kept,
            fresh=doubtful and info.kind in ("weight", "embedding") and looks_fresh(p),
            expected_frozen=info.name in expected,
            equal_units=seen.equal_units,
            equal_gradients=seen.equal_gradients,
            stepping=moving is None or id(p) in moving,
            low=seen.low,
            high=seen.high,
            descent=descents.get(id(p)),
            fixed_step=fixed[id(p)] * step_at_one if id(p) in fixed else None,
            made_with=_made_with(group),
            step_at_one=step_at_one,
            shrinks=isinstance(optimizer, torch.optim.Adagrad),
            gradient_sum=seen.gradient_sum / kept,
            along=seen.along / kept,
            decay=float(group.get("weight_decay", 0.0)),
            decoupled=isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay")),
            kept=kept,
            orthogonal=not requires_grad and info.kind == "weight" and is_orthogonal(p),
        )
    return facts


def loose_tensors(tracer: Tracer, optimizers: Sequence[Optimizer] | None) -> tuple[LooseTensor, ...]:
    """Return the leaves of the forward that learn nothing because nobody owns them."""
    held = _held(optimizers or ())
    readers = tracer.graph.consumers()
    loose = []
    for node, tensor in tracer.unregistered():
        if id(tensor) not in held and tensor.grad is not None and readers[node.index]:
            first = readers[node.index][0]
            is_parameter = isinstance(tensor, nn.Parameter)
            loose.append(LooseTensor(node.shape, tracer.graph.nodes[first].scope, is_parameter, first))
    return tuple(loose)


def _held(optimizers: Iterable[Optimizer]) -> set[int]:
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


def _rates(optimizers: Iterable[Optimizer], kinds: tuple[type[Optimizer], ...]) -> dict[int, float]:
    """Return the learning rates of the parameters that optimisers of these kinds move."""
    groups = [group for o in optimizers if isinstance(o, kinds) for group in o.param_groups]
    return {id(p): float(group["lr"]) for group in groups for p in group["params"]}


def _left(arrived: Mapping[int, float], now: Mapping[int, float]) -> dict[int, float]:
    """Return which part of each gradient is left, where it is less than all, but something.

    Gradients that all shrank by the same power of two were scaled for mixed precision, and not clipped.
    """
    shares = {i: now[i] / norm for i, norm in arrived.items() if math.isfinite(norm) and 0 < now.get(i, 0.0) < _CLIPPED * norm}
    powers = [math.log2(share) for share in shares.values()]
    scaled = all(abs(power - round(powers[0])) < ROUNDING for power in powers)
    return {} if scaled else shares


def _made_with(group: dict[str, Any]) -> float:
    """Return the learning rate of a group of parameters before a schedule changed it."""
    return float(group.get("initial_lr", group.get("lr", 0.0)))
