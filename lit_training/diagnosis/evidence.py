"""What the rules see: everything that one step of training showed, gathered once and shared by all of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_training.probe import Layer, LossCall, Probe, TensorStats
from lit_training.selection import Kind, classify, clean_names, match
from lit_training.trace import Graph

__all__ = ["Evidence", "ParameterFacts", "collect"]


@dataclass(frozen=True)
class ParameterFacts:
    """One parameter after a backward pass: `gradient` is its gradient's norm, `None` where there is no gradient.

    `fresh` tells whether the weight looks like torch's own initialisation of a linear or convolutional layer (uniform up to
    1/sqrt(fan_in)), `expected_frozen` whether the user declared it frozen, `optimized` whether an optimiser holds it (`None` where
    no optimiser is known); `equal_units` and `equal_gradients` whether all its units (slices along the first dimension) have the
    same weights, and the same gradients.
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


@dataclass(frozen=True)
class Evidence:
    """One step of training as the rules see it.

    Args:
        graph: what the forward did.
        layers: every layer in forward order, with its statistics over the joint batch of all processes.
        inputs: statistics of the floating-point tensors that entered the forward.
        parameters: every parameter by name.
        losses: torch's losses that the forward called, in order.
        idle_norms: batch-norm layers that normalise with statistics which were never updated.
        loss: the loss that was differentiated, averaged over processes; `None` if unknown.
        batch_size: number of samples in the joint batch.
        step: optimiser steps done before.
    """

    graph: Graph
    layers: tuple[Layer, ...]
    inputs: tuple[TensorStats, ...] = ()
    parameters: Mapping[str, ParameterFacts] = field(default_factory=dict)
    losses: tuple[LossCall, ...] = ()
    idle_norms: tuple[str, ...] = ()
    loss: float | None = None
    batch_size: int = 0
    step: int = 0

    def layer(self, name: str) -> Layer | None:
        """Return a layer by its name."""
        return next((layer for layer in self.layers if layer.name == name), None)


def collect(
    probe: Probe,
    *,
    optimizers: Sequence[Optimizer] | None = None,
    loss: Tensor | float | None = None,
    gradient_factor: float = 1.0,
    step: int = 0,
    expect_frozen: Sequence[str] = (),
) -> Evidence:
    """Turn what a probe saw, and the parameters as the backward pass left them, into evidence.

    Args:
        probe: after its forward and backward.
        optimizers: all of the training's, `None` if there is none to ask.
        loss: the loss that was differentiated.
        gradient_factor: what the gradients at the layers have to be multiplied by to be those of the mean loss (the inverse of
            AMP's loss scale and of the number of processes).
        step: optimiser steps done before.
        expect_frozen: patterns of parameters that are meant to be frozen.
    """
    layers = tuple(
        replace(layer, gradient=layer.gradient.scaled(gradient_factor)) if layer.gradient is not None else layer
        for layer in probe.layers.values()
    )
    return Evidence(
        graph=probe.graph,
        layers=layers,
        inputs=tuple(probe.inputs.values()),
        parameters=_parameter_facts(probe.module, optimizers, expect_frozen),
        losses=tuple(probe.losses),
        idle_norms=_idle_norms(probe.module),
        loss=None if loss is None else float(loss),
        batch_size=probe.batch_size,
        step=step,
    )


@torch.no_grad()
def _parameter_facts(
    module: nn.Module, optimizers: Sequence[Optimizer] | None, expect_frozen: Sequence[str]
) -> dict[str, ParameterFacts]:
    infos = [info for info in classify(module) if not nn.parameter.is_lazy(info.parameter)]
    held = None if optimizers is None else {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    expected = match(expect_frozen, [info.name for info in infos], "expect_frozen") if expect_frozen else {}
    norms = _to_host([_norm(info.parameter) for info in infos])
    gradients = _to_host([_norm(g) for info in infos if (g := info.parameter.grad) is not None])
    equal = _to_host([_equal_units(info.parameter) for info in infos])
    equal_gradients = _to_host([_equal_units(g) for info in infos if (g := info.parameter.grad) is not None])
    gradient, gradient_equal = iter(gradients), iter(equal_gradients)
    facts = {}
    for info, norm, units in zip(infos, norms, equal, strict=True):
        p, has_gradient = info.parameter, info.parameter.grad is not None
        facts[info.name] = ParameterFacts(
            name=info.name,
            kind=info.kind,
            shape=tuple(p.shape),
            requires_grad=p.requires_grad,
            optimized=None if held is None else id(p) in held,
            norm=norm,
            gradient=next(gradient) if has_gradient else None,
            fresh=info.kind == "weight" and _looks_fresh(p),
            expected_frozen=info.name in expected,
            equal_units=bool(units),
            equal_gradients=bool(next(gradient_equal)) if has_gradient else False,
        )
    return facts


def _looks_fresh(weight: Tensor) -> bool:
    """Tell whether a weight is uniform up to 1/sqrt(fan_in), as torch draws those of linear and convolutional layers."""
    if weight.ndim < 2 or weight.numel() < 16 or hasattr(weight, "full_tensor"):
        return False
    bound = weight[0].numel() ** -0.5
    largest, std = float(weight.abs().max()), float(weight.std())
    uniform = abs(std * 3**0.5 / bound - 1) < 3 / float(weight.numel()) ** 0.5
    return bool(largest <= bound * 1.0001 and uniform)


def _idle_norms(module: nn.Module) -> tuple[str, ...]:
    """Return batch-norm layers in eval mode whose running statistics are still those they were born with."""
    return tuple(
        name
        for name, part in clean_names(module)
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        and not part.training
        and part.num_batches_tracked is not None
        and int(part.num_batches_tracked) == 0
        and part.running_mean is not None
        and not part.running_mean.any()
    )


def _norm(tensor: Tensor) -> Tensor:
    values = tensor.coalesce().values() if tensor.is_sparse else tensor.detach()
    return _whole(values.float().norm())


def _equal_units(tensor: Tensor) -> Tensor:
    """Return whether all slices along the first dimension are equal up to rounding."""
    if tensor.is_sparse or tensor.ndim < 2 or tensor.shape[0] < 2:
        return torch.zeros((), device=tensor.device)
    first = tensor[:1]
    tolerance = 1e-5 * _whole(first.abs().amax())
    return (_whole((tensor - first).abs().amax()) <= tolerance).float()


def _whole(value: Tensor) -> Tensor:
    """Return the full value of a reduced DTensor, whose `item()` would silently be the local part."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _to_host(values: Iterable[Tensor]) -> list[Any]:
    """Move many scalars in one transfer."""
    values = [value.detach().float() for value in values]
    return torch.stack(values).tolist() if values else []
