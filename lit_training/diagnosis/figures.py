"""Measuring parameters and their gradients: many in one go, and in one transfer from the device."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lit_training.columns import real
from lit_training.selection import ParameterInfo

__all__ = ["ROUNDING", "Figures", "equal_units", "figures", "norms", "to_host", "whole"]

ROUNDING = 1e-5


@dataclass(frozen=True)
class Figures:
    """What is measured of a parameter and its gradient, as `ParameterFacts` has it."""

    norm: float
    low: float
    high: float
    equal_units: bool
    gradient: float | None = None
    equal_gradients: bool = False
    along: float = 0.0
    gradient_sum: float = 0.0


def figures(
    infos: Sequence[ParameterInfo], summed: Collection[int], *, scale: float = 1.0, rounding: float = ROUNDING
) -> list[Figures]:
    """Measure parameters in one transfer; `gradient_sum` of those whose ids are in `summed`.

    Gradients count as they are without the `scale` that mixed precision has left in them, and are equal up to `rounding`.
    """
    weights = [real(info.parameter) for info in infos]
    gradients = {i: real(info.parameter.grad) for i, info in enumerate(infos) if info.parameter.grad is not None}
    by_sign = [i for i in gradients if id(infos[i].parameter) in summed]
    measured = iter(
        to_host(
            [
                *norms(weights),
                *(_extreme(p, "amin") for p in weights),
                *(_extreme(p, "amax") for p in weights),
                *norms(list(gradients.values())),
                *(_along(weights[i], gradient) for i, gradient in gradients.items()),
                *norms([gradients[i] for i in by_sign], order=1),
            ]
        )
    )
    size, low, high = ([next(measured) for _ in weights] for _ in range(3))
    length, along, total = ({i: next(measured) / scale for i in indices} for indices in (gradients, gradients, by_sign))
    equal = equal_units([_by_unit(info, p) for info, p in zip(infos, weights, strict=True)])
    suspects = [i for i in gradients if equal[i]]
    same = dict(zip(suspects, equal_units([_by_unit(infos[i], gradients[i]) for i in suspects], rounding), strict=True))
    return [
        Figures(size[i], low[i], high[i], equal[i], length.get(i), same.get(i, False), along.get(i, 0.0), total.get(i, 0.0))
        for i in range(len(weights))
    ]


def _along(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return the product of a parameter with its gradient."""
    if gradient.is_sparse:
        return torch.zeros((), device=parameter.device)
    return whole((parameter * gradient).float().sum())


@torch.no_grad()
def norms(tensors: Sequence[Tensor], order: float = 2) -> list[Tensor]:
    """Return the norm of each tensor, dense, sparse or sharded, accumulated in float32 or wider.

    >>> [float(norm) for norm in norms([torch.tensor([3.0, 4.0]), torch.ones(4, dtype=torch.float16)])]
    [5.0, 2.0]
    """
    values = [t.coalesce().values() if t.is_sparse else real(t.detach()) for t in tensors]
    wide = [v if v.dtype in (torch.float32, torch.float64) else v.float() for v in values]
    return [whole(norm) for norm in torch._foreach_norm(wide, order)] if wide else []


@torch.no_grad()
def equal_units(tensors: Sequence[Tensor], rounding: float = ROUNDING) -> list[bool]:
    """Tell of each tensor whether all slices along the first dimension are equal up to rounding.

    Two slices are compared first, and only where those are equal, all.

    >>> equal_units([torch.ones(3, 2), torch.eye(3), torch.ones(3)])
    [True, False, False]
    """
    suspects = [i for i, t in enumerate(tensors) if not t.is_sparse and t.ndim > 1 and len(t) > 1 and t.numel()]
    for most in (2, None):
        away = norms([tensors[i][1:most] - tensors[i][:1] for i in suspects], order=math.inf)
        largest = norms([tensors[i][:1] for i in suspects], order=math.inf)
        known = to_host([*away, *largest])
        pairs = zip(suspects, known[: len(suspects)], known[len(suspects) :], strict=True)
        suspects = [i for i, difference, size in pairs if difference <= rounding * size < math.inf]
    equal = set(suspects)
    return [i in equal for i in range(len(tensors))]


def _by_unit(info: ParameterInfo, weight: Tensor) -> Tensor:
    """Return a weight with what has to differ first: the columns of an embedding, the units of a recurrent weight's gates."""
    if info.kind == "embedding" and weight.ndim == 2:
        rows = weight.coalesce().values() if weight.is_sparse else weight
        return rows.t()
    leaf, square = info.name.rpartition(".")[2], weight.ndim == 2 and weight.shape[1] > 0
    if not leaf.startswith("weight_hh") or weight.is_sparse or not square or weight.shape[0] % weight.shape[1]:
        return weight
    by_unit: Tensor = weight.unflatten(0, (-1, weight.shape[1])).transpose(0, 1)
    return by_unit


def _extreme(tensor: Tensor, which: Literal["amin", "amax"]) -> Tensor:
    return whole(getattr(tensor, which)()) if tensor.numel() else torch.zeros(())


def whole(value: Tensor) -> Tensor:
    """Return the full value of a reduced DTensor, whose `item()` would silently be the local part."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def to_host(values: Iterable[Tensor]) -> list[Any]:
    """Move many scalars in one transfer."""
    values = list(values)
    return torch.stack([value.to(values[0].device, torch.float32) for value in values]).tolist() if values else []
