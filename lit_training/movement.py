"""How far weights have moved from where they were."""

import math
from statistics import median

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from lit_training.columns import some_elements
from lit_training.selection import classify

__all__ = ["Movement"]

SMALL = 0.5


class Movement:
    """Remember about a thousand elements of each trained weight matrix and embedding, to tell later how far they have moved.

    >>> layer = nn.Linear(2, 2)
    >>> movement = Movement(layer)
    >>> with torch.no_grad():
    ...     _ = layer.weight.mul_(3)
    >>> round(movement.median(), 4)
    2.0
    """

    def __init__(self, module: nn.Module) -> None:
        infos = [i for i in classify(module) if i.kind in ("weight", "embedding") and not is_lazy(i.parameter)]
        self._weights = [info.parameter for info in infos if info.parameter.requires_grad and info.parameter.ndim > 1]
        self._start = [_sample(weight).clone() for weight in self._weights]

    @torch.no_grad()
    def median(self) -> float | None:
        """Return the median over the weights of their change relative to their norm at the start, `None` where there is none.

        Weights that started at less than half the size that torch draws, 1 / sqrt(3 fan_in), count as if they had had that: they
        are small on purpose, and meant to grow.
        """
        pairs = [(_sample(now), start, now) for now, start in zip(self._weights, self._start, strict=True) if bool(start.any())]
        changes = [
            float((now - start).norm()) / _size(start, math.sqrt(start.numel() / (3 * math.prod(weight.shape[1:]))))
            for now, start, weight in pairs
            if now.shape == start.shape
        ]
        return median(changes) if changes else None

    @torch.no_grad()
    def kept(self) -> float | None:
        """Return the largest part of its norm at the start that a weight of several columns has, `None` where there is none.

        One that started at zero and is no longer there makes it infinite.
        """
        pairs = zip(self._weights, self._start, strict=True)
        wide = [(_sample(w), start) for w, start in pairs if math.prod(w.shape[1:]) > 1]
        norms = [(float(now.norm()), float(start.norm())) for now, start in wide if now.shape == start.shape]
        return max((now / start if start else math.inf for now, start in norms if now or start), default=None)


def _size(start: Tensor, drawn: float) -> float:
    norm = float(start.norm())
    return norm if norm > SMALL * drawn else drawn


def _sample(weight: Tensor) -> Tensor:
    local = weight.to_local() if isinstance(weight, DTensor) else weight
    return some_elements(local.detach()).float()
