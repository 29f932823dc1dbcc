"""Count, mean and variance in one pass over data that comes in parts: stable, mergeable, reduced across ranks at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Moments", "all_reduce", "merge", "moments"]


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of some values, in float64; `merge` joins those of two parts of the data.

    Args:
        count: `[]`, how many values each entry of `mean` summarises.
        mean: `[...]`, in the values' units.
        deviations: `[...]`, the sum of `(value - mean)**2`, in squared units. Kept instead of the variance because it adds up.
    """

    count: Tensor
    mean: Tensor
    deviations: Tensor

    @property
    def variance(self) -> Tensor:
        """Population variance (divided by the count, as batch norm does), `[...]`, in squared units; NaN without values."""
        return self.deviations / self.count

    @property
    def std(self) -> Tensor:
        """Population standard deviation, `[...]`, in the values' units; NaN without values."""
        return self.variance.sqrt()


@torch.no_grad()
def moments(values: Tensor, dim: int | Sequence[int] | None = None) -> Moments:
    r"""Summarise a tensor over some of its dimensions.

    The values are centred on their mean as floating point gives it, $c$, and with $d_i = x_i - c$ the mean is
    $c + \sum d_i / n$ and the squared deviations $\sum d_i^2 - (\sum d_i)^2 / n$: the corrected two-pass algorithm (Chan, Golub
    and LeVeque, "Algorithms for Computing the Sample Variance", The American Statistician 37, 1983, equation 1.7). The
    correction makes values right whose mean is a million times their std. Only vectorised reductions are used (`torch.var_mean`
    takes several times as long on a CPU), and nothing waits for the device.

    Args:
        values: any real tensor. Half precision is accumulated in float32, integers wider than 16 bits in float64.
        dim: what to reduce; `None` reduces everything. `(0, 2, 3)` gives the statistics of each channel of `[N, C, H, W]`.

    Returns:
        Moments of the shape that is left, on the device of `values` (on the CPU for MPS, which has no float64). Float32 input
        resolves standard deviations from 1e-19 to 1e19; beyond that they come out as 0 or infinity.

    Raises:
        TypeError: for complex values.

    >>> m = moments(torch.tensor([[1.0, 10.0], [3.0, 10.0]]), dim=0)
    >>> m.mean.tolist(), m.std.tolist()
    ([2.0, 10.0], [1.0, 0.0])
    """
    if values.is_complex():
        raise TypeError(f"moments of complex values are not defined; pass values.abs() or values.real (got {values.dtype})")
    dims = _dims(dim, values.ndim)
    kept = [size for i, size in enumerate(values.shape) if i not in dims]
    n = 1
    for i in dims:
        n *= values.shape[i]
    device = torch.device("cpu") if values.device.type == "mps" else values.device
    count = torch.full((), float(n), dtype=torch.float64, device=device)
    if n == 0:
        return Moments(count, *torch.zeros(2, *kept, dtype=torch.float64, device=device))
    values = values.to(_accumulation_dtype(values.dtype))
    if not dims:  # an empty `dim` means everything to torch
        return Moments(count, values.to(device, torch.float64), torch.zeros(kept, dtype=torch.float64, device=device))
    centre = values.mean(dims, keepdim=True)
    offset = values - centre
    first = offset.sum(dims).to(device, torch.float64)
    second = offset.square_().sum(dims).to(device, torch.float64)
    mean = centre.view(kept).to(device, torch.float64) + first / n
    return Moments(count, mean, (second - first.square() / n).clamp(min=0))


def merge(a: Moments, b: Moments) -> Moments:
    r"""Return the moments of the union of two parts of the data.

    With $\delta = m_b - m_a$: $m = m_a + \delta n_b / n$ and $M = M_a + M_b + \delta^2 n_a n_b / n$. Chan, Golub and LeVeque
    (as in `moments`), equation 2.1. A part without values changes nothing.

    >>> merged = merge(moments(torch.tensor([1.0, 2.0])), moments(torch.tensor([6.0])))
    >>> merged.count.item(), merged.mean.item(), round(merged.variance.item(), 4)
    (3.0, 3.0, 4.6667)
    """
    count = a.count + b.count
    share = b.count / count.clamp(min=1)
    delta = b.mean - a.mean
    return Moments(count, a.mean + delta * share, a.deviations + b.deviations + delta.square() * a.count * share)


def all_reduce(parts: Sequence[Moments], group: dist.ProcessGroup | None = None) -> list[Moments]:
    """Merge each of `parts` with its namesakes on the other ranks, all of them in one collective.

    The packed moments are gathered and merged in rank order, as `torch.nn.SyncBatchNorm` does: sums of squares, which could be
    added on the way, lose the variance of values far from zero. All ranks get the same bits.

    Args:
        parts: moments of the same shapes, in the same order, on every rank. Their counts may differ and may be 0.
        group: the process group, `None` for the default one. Without an initialised group the parts come back as they are.

    >>> all_reduce([moments(torch.tensor([1.0, 3.0]))])[0].mean.item()
    2.0
    """
    parts = list(parts)
    if not parts or not dist.is_available() or not dist.is_initialized() or dist.get_world_size(group) == 1:
        return parts
    packed = torch.cat([torch.cat([part.count.view(1), part.mean.flatten(), part.deviations.flatten()]) for part in parts])
    ranks = [torch.empty_like(packed) for _ in range(dist.get_world_size(group))]
    dist.all_gather(ranks, packed, group=group)
    unpacked = [_unpack(row, parts) for row in ranks]
    return [reduce(merge, of_all_ranks) for of_all_ranks in zip(*unpacked, strict=True)]


def _unpack(packed: Tensor, like: Iterable[Moments]) -> list[Moments]:
    parts, start = [], 0
    for part in like:
        size = part.mean.numel()
        mean, deviations = packed[start + 1 : start + 1 + 2 * size].view(2, *part.mean.shape)
        parts.append(Moments(packed[start], mean, deviations))
        start += 1 + 2 * size
    return parts


def _dims(dim: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Return the dimensions to reduce, counted from the front."""
    if dim is None:
        return tuple(range(ndim))
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    for d in dims:
        if not -ndim <= d < ndim:
            raise IndexError(f"dim {d} is out of range for a tensor of {ndim} dimensions")
    return tuple(sorted({d % ndim for d in dims}))


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype in (torch.int32, torch.int64):
        return torch.float64
    return torch.promote_types(dtype, torch.float32)
