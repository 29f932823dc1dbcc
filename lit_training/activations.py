"""Statistics of activations that are cheap enough to take while training: packed on the device, unpacked on the host."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_training.columns import as_columns

__all__ = ["FOLLOWED", "ActivationStats", "pack", "pack_all", "unpack"]

_RECTIFIERS = frozenset({"relu", "relu6", "threshold"})
_SATURATES_AT = {"tanh": math.atanh(0.98), "sigmoid": 2 * math.atanh(0.98), "hardtanh": 0.98, "hardsigmoid": 2.94}
FOLLOWED = (*sorted(_RECTIFIERS), *sorted(_SATURATES_AT))


@dataclass(frozen=True)
class ActivationStats:
    """One layer's output over a batch, before the nonlinearity.

    `signal` is the std over the batch of each unit, averaged over units; `dead` the fraction of columns that the rectifier behind
    it lets nowhere through, `saturated` the fraction of values within 1 % of the bounds of the tanh or sigmoid behind it. Both are
    `None` where no such nonlinearity follows.
    """

    mean: float
    variance: float
    signal: float
    dead: float | None = None
    saturated: float | None = None

    @property
    def finite(self) -> bool:
        """Whether the layer gave neither NaN nor infinity."""
        return math.isfinite(self.mean) and math.isfinite(self.variance)


@torch.no_grad()
def pack(output: Tensor, batch_size: int, follows: str = "") -> Tensor:
    """Reduce a layer's output to its column statistics, without waiting for the device.

    Args:
        output: `[batch, ...]`.
        batch_size: number of samples.
        follows: the nonlinearity that acts on the output next.

    Returns:
        `[3, columns]`, float32: the mean and the summed squared deviations of each column over the batch; and, where a rectifier
        follows, its largest value, where a bounded nonlinearity follows, its saturated fraction, else zeros.
    """
    columns = as_columns(output, batch_size)
    return torch.stack([*_moments(columns), _third(columns, follows)]).float()


@torch.no_grad()
def pack_all(output: Tensor, batch_size: int) -> dict[str, Tensor]:
    """Return what `pack` gives for each nonlinearity that may follow, `""` for none; what they share is computed once."""
    columns = as_columns(output, batch_size)
    shared = _moments(columns)
    alike = {follows: "relu" if follows in _RECTIFIERS else follows for follows in ("", *FOLLOWED)}
    packed = {follows: torch.stack([*shared, _third(columns, follows)]).float() for follows in set(alike.values())}
    return {follows: packed[kind] for follows, kind in alike.items()}


def _moments(columns: Tensor) -> tuple[Tensor, Tensor]:
    mean = columns.mean(0)
    return mean, (columns - mean).square_().sum(0)


def _third(columns: Tensor, follows: str) -> Tensor:
    """Return what matters to the nonlinearity that follows, of each column."""
    if follows in _RECTIFIERS:
        return columns.amax(0)
    if follows in _SATURATES_AT:
        return (columns.abs() > _SATURATES_AT[follows]).to(columns.dtype).mean(0)
    return columns.new_zeros(columns.shape[1])


def unpack(
    packed: Sequence[Tensor], rows: Sequence[int], sizes: Sequence[int], follows: Sequence[str]
) -> list[ActivationStats]:
    """Turn what `pack` made of several layers, for each process, into the statistics of the joint batch, all layers at once.

    On the host NumPy computes, whose calls take a fraction of torch's time on a few thousand numbers.

    Args:
        packed: for each process `[3, columns]` of all layers side by side, on the host.
        rows: number of samples of each process.
        sizes: columns of each layer.
        follows: of each layer, as in `pack`.

    >>> x = torch.tensor([[1.0, -1.0], [3.0, -1.0]])
    >>> unpack([pack(x, 2, "relu")], [2], [2], ["relu"])
    [ActivationStats(mean=0.5, variance=2.75, signal=0.7071..., dead=0.5, saturated=None)]
    """
    means, deviations, thirds = np.stack([process.numpy() for process in packed], 1).astype(np.float64)
    weights = np.array([[max(size, 1)] for size in rows], dtype=np.float64)
    count = weights.sum()
    starts = np.cumsum([0, *sizes[:-1]])
    with np.errstate(all="ignore"):
        mean = (means * weights).sum(0) / count
        within = deviations.sum(0) + (weights * (means - mean) ** 2).sum(0)
        signal = np.sqrt(within / (count - 1)) if count > 1 else np.full_like(mean, math.nan)
        dead, saturated = thirds.max(0) <= 0, (thirds * weights).sum(0) / count
        between = (mean - np.repeat(np.add.reduceat(mean, starts) / sizes, sizes)) ** 2
        columns = np.stack([mean, within / count + between, signal, dead, saturated])
        averages = np.add.reduceat(columns, starts, axis=1) / sizes
    return [
        ActivationStats(
            mean=row[0],
            variance=row[1],
            signal=row[2],
            dead=row[3] if kind in _RECTIFIERS else None,
            saturated=row[4] if kind in _SATURATES_AT else None,
        )
        for row, kind in zip(averages.T.tolist(), follows, strict=True)
    ]
