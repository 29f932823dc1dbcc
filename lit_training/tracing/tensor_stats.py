"""Statistics of one tensor over its batch, mergeable across processes and calls."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lit_training.columns import as_columns, real
from lit_training.moments import Moments, merge

__all__ = ["TensorStats", "measure", "read_together"]

_ORDERED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_BOUNDED = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0), "hardtanh": (-1.0, 1.0), "hardsigmoid": (0.0, 1.0)}


@dataclass(frozen=True)
class TensorStats:
    """Statistics of one tensor over the batch, mergeable across processes and calls.

    `columns` are the moments of each position of a sample over the batch, `[columns]`; `low` and `high` the extremes of each
    unit, `[units]`; `saturated` the fraction of elements near the bound of an activation, `[]`. What is derived from them is kept.
    """

    columns: Moments
    low: Tensor
    high: Tensor
    saturated: Tensor

    @property
    def rows(self) -> int:
        """Number of samples."""
        return int(self._figures.rows)

    @property
    def mean(self) -> float:
        """Mean over all elements."""
        return self._figures.mean

    @property
    def std(self) -> float:
        """Standard deviation over all elements."""
        return math.sqrt(self._figures.deviation / self._figures.rows + self._figures.between)

    @property
    def rms(self) -> float:
        """Root mean square over all elements."""
        return math.hypot(self.std, self.mean)

    @property
    def signal(self) -> float:
        """Standard deviation over the batch of each unit, averaged over units; NaN for a single row."""
        return self._figures.root / math.sqrt(self.rows - 1) if self.rows > 1 else math.nan

    @property
    def energy(self) -> float:
        """Standard deviation over the batch of each position, as a root mean square: what a layer adds up; NaN for a single row."""
        return math.sqrt(self._figures.deviation / (self.rows - 1)) if self.rows > 1 else math.nan

    @property
    def largest(self) -> float:
        """Largest absolute value."""
        low, high = self._extremes
        return max(-low, high)

    @property
    def finite(self) -> bool:
        """Whether no element is NaN or infinite."""
        return all(map(math.isfinite, self._extremes))

    @cached_property
    def constant_units(self) -> float:
        """Fraction of units that have one and the same value everywhere."""
        return float((self.low == self.high).double().mean())

    @cached_property
    def silent_units(self) -> float:
        """Fraction of units that are nowhere above zero: dead, after a rectifier."""
        return float((self.high <= 0).double().mean())

    @cached_property
    def _figures(self) -> "_Figures":
        return _read([self])[0]

    @cached_property
    def _extremes(self) -> tuple[float, float]:
        return float(self.low.min()), float(self.high.max())

    def merge(self, other: "TensorStats") -> "TensorStats":
        """Return the statistics of both tensors' rows together."""
        share = other.columns.count / (self.columns.count + other.columns.count)
        return TensorStats(
            merge(self.columns, other.columns),
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            self.saturated * (1 - share) + other.saturated * share,
        )

    def scaled(self, factor: float) -> "TensorStats":
        """Return the statistics of the tensor times a positive factor."""
        if factor == 1:
            return self
        count, mean, deviations = self.columns.count, self.columns.mean, self.columns.deviations
        columns = Moments(count, mean * factor, deviations * factor**2)
        return TensorStats(columns, self.low * factor, self.high * factor, self.saturated)


class _Figures(NamedTuple):
    """What is derived of one tensor's columns: their rows, the mean and variance of their means, the mean deviations and roots."""

    rows: float
    mean: float
    between: float
    deviation: float
    root: float


def read_together(parts: Iterable[TensorStats]) -> None:
    """Bring what is derived of many tensors to the host, in one transfer of those with equally many columns.

    Otherwise each does so for itself when it is asked.
    """
    alike: dict[tuple[torch.device, int], list[TensorStats]] = {}
    for part in parts:
        alike.setdefault((part.low.device, part.columns.mean.numel()), []).append(part)
    for some in alike.values():
        for part, figures in zip(some, _read(some), strict=True):
            vars(part)["_figures"] = figures


def _read(parts: Sequence[TensorStats]) -> list[_Figures]:
    counts, means, deviations = (
        torch.stack([getattr(part.columns, name) for part in parts]) for name in ("count", "mean", "deviations")
    )
    figures = [counts, means.mean(1), means.var(1, correction=0), deviations.mean(1), deviations.sqrt().mean(1)]
    return [_Figures(*row) for row in torch.stack(figures, 1).tolist()]


@torch.no_grad()
def measure(
    tensor: Tensor, batch_size: int, unit_dim: int = -1, bounded_by: str = "", scalars: Sequence[float] = ()
) -> TensorStats:
    """Measure one tensor over its batch, on its device.

    The extremes are those of all elements. The rest is taken of about a thousand columns, in float64, so that the squares of a
    vanished signal do not underflow.

    Args:
        tensor: `[batch, ...]`, or `[batch * positions, ...]` as a linear layer flattens sequences; of complex numbers both parts.
        batch_size: number of samples; where it does not divide the tensor, its first dimension counts as the batch.
        unit_dim: dimension of the units (channels).
        bounded_by: activation whose bounds count as saturation; of a rectifier that is cut off (ReLU6) only the upper one does.
        scalars: of that activation, which are the bounds of a hard tanh.

    >>> measure(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), batch_size=2).signal
    0.707...
    """
    x = real(tensor)
    x = x if x.dtype in _ORDERED else x.float()
    others = [dim for dim in range(x.ndim) if dim != unit_dim % x.ndim]
    low, high = (x.amin(others), x.amax(others)) if others else (x, x)
    columns = as_columns(x, batch_size).to(torch.float64, copy=True)
    saturated = _saturated(columns, bounded_by, scalars)
    mean = columns.mean(0)
    count = _number(columns.shape[0], columns.device)
    deviations = columns.sub_(mean).square_().sum(0)  # float64 needs no correction for the centre's rounding
    return TensorStats(Moments(count, mean, deviations), low.double(), high.double(), saturated)


@lru_cache(maxsize=64)
def _number(value: int, device: torch.device) -> Tensor:
    """Return a number as a scalar that is shared: nobody may write to it."""
    return torch.full((), float(value), dtype=torch.float64, device=device)


def _saturated(x: Tensor, activation: str, scalars: Sequence[float]) -> Tensor:
    if activation not in _BOUNDED:
        return _number(0, x.device)
    clipped = activation == "hardtanh" and len(scalars) > 1
    low, high = scalars[:2] if clipped else _BOUNDED[activation]
    margin = 0.01 * (high - low)
    if clipped and low == 0:
        return (x > high - margin).to(x.dtype).mean()
    return ((x < low + margin) | (x > high - margin)).to(x.dtype).mean()
