"""How far weights have moved from where they were."""

import math
from statistics import median

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from lit_training.columns import some_elements
from lit_training.selection import classify

__all__ = ["Lasting", "Movement", "Rewinds"]

SMALL = 0.5
FIRST_UPDATES = 8
BETTER = 0.99


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
        moved = [(_sample(weight), start, weight) for weight, start in zip(self._weights, self._start, strict=True)]
        changes = [
            float((end - start).norm()) / _size(start, math.sqrt(start.numel() / (3 * math.prod(weight.shape[1:]))))
            for end, start, weight in moved
            if end.shape == start.shape and bool(start.any())
        ]
        return median(changes) if changes else None

    @torch.no_grad()
    def moved(self) -> dict[nn.Parameter, bool]:
        """Tell of each weight whether any of what is remembered of it is another number now."""
        pairs = zip(self._weights, self._start, strict=True)
        return {weight: not torch.equal(_sample(weight), start) for weight, start in pairs}

    @torch.no_grad()
    def now(self) -> list[Tensor]:
        """Return a copy of the remembered elements as they are."""
        return [_sample(weight).clone() for weight in self._weights]

    @torch.no_grad()
    def kept(self) -> float | None:
        """Return the largest part of its norm at the start that a weight of several columns has, `None` where there is none.

        One that started at zero and is no longer there makes it infinite.
        """
        pairs = zip(self._weights, self._start, strict=True)
        wide = [(_sample(w), start) for w, start in pairs if math.prod(w.shape[1:]) > 1]
        norms = [(float(end.norm()), float(start.norm())) for end, start in wide if end.shape == start.shape]
        return max((end / start if start else math.inf for end, start in norms if end or start), default=None)


class Rewinds:
    """Count the epochs that begin, to the bit, where the one before began, although it had moved and lowered the validation loss.

    `level` is the validation loss of the weights that the last epoch began with, `None` if it is not known.

    >>> rewinds, start = Rewinds(), torch.ones(3)
    >>> for loss in (1.0, 0.5, 0.4):
    ...     rewinds.begin([start], loss)
    ...     rewinds.end([start + 1])
    >>> rewinds.count, rewinds.level
    (2, 1.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self.level: float | None = None
        self._start: list[Tensor] = []
        self._moved = False

    def begin(self, weights: list[Tensor], loss: float | None) -> None:
        """Take the weights at the start of an epoch, and the validation loss of those at the end of the one before."""
        if not _same(weights, self._start):
            self._start, self.level = weights, loss
        elif self._moved and loss is not None and self.level is not None and loss < BETTER * self.level:
            self.count += 1

    def end(self, weights: list[Tensor]) -> None:
        """Take the weights after the last update of an epoch."""
        self._moved = not _same(weights, self._start)


class Lasting:
    """Tell how much of what the first few updates changed is still there when the next step begins.

    Only code beside the optimiser can undo it: an average that is copied into the weights, weights that are loaded again.

    >>> lasting, weights = Lasting(), torch.ones(3)
    >>> for update in range(9):
    ...     lasting.begin([weights + update / 10])
    ...     lasting.end([weights + update / 10 + 1])
    >>> round(lasting.share(), 3)
    0.1
    """

    def __init__(self) -> None:
        self._before: list[Tensor] = []
        self._after: list[Tensor] = []
        self._shares: list[float] = []

    @property
    def enough(self) -> bool:
        """Whether enough updates were seen, so that nothing more has to be told."""
        return len(self._shares) >= FIRST_UPDATES

    def begin(self, weights: list[Tensor]) -> None:
        """Take the weights at the start of a step."""
        if self._after and len(self._before) == len(weights):
            made = _length(self._after, self._before)
            self._shares += [_length(weights, self._before) / made] if made > 0 else []
        self._before, self._after = weights, []

    def end(self, weights: list[Tensor]) -> None:
        """Take the weights after the optimiser may have stepped."""
        self._after = weights

    def share(self) -> float | None:
        """Return the median share, `None` before enough updates."""
        return median(self._shares) if self.enough else None


def _length(weights: list[Tensor], others: list[Tensor]) -> float:
    return math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(weights, others, strict=True) if a.shape == b.shape))


def _same(weights: list[Tensor], others: list[Tensor]) -> bool:
    return len(weights) == len(others) and all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


def _size(start: Tensor, drawn: float) -> float:
    norm = float(start.norm())
    return norm if norm > SMALL * drawn else drawn


def _sample(weight: Tensor) -> Tensor:
    local = weight.to_local() if isinstance(weight, DTensor) else weight
    return some_elements(local.detach()).float()
