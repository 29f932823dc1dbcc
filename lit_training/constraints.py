r"""Max norm: each unit's incoming weights stay inside a ball.

Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014, section 5.1. The bound is on the
norm, $\lVert w \rVert_2 \le c$; where the lecture bounds the square, $\lVert w \rVert_2^2 \le c$, give $\sqrt{c}$.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import threshold

__all__ = ["MaxNormProjection", "check_max_norm", "max_norm_"]

_LARGE = 2**17  # elements: above it reading them again from memory costs more than one comparison each
_SMALL = 2**14  # elements: below it the calls cost more than copying several weights together
_ROW = 1024  # above it a float32 norm is summed in two levels: one long sum would be off by more than 1e-6


@torch.no_grad()
def max_norm_(weight: Tensor, max_norm: float, dim: int | Sequence[int] = 0) -> Tensor:
    r"""Project, in place, each unit's weights onto the ball of radius `max_norm`.

    $w \leftarrow w \cdot \min(1, c / \lVert w \rVert_2)$. Units inside the ball stay bit-identical (Keras' `MaxNorm` changes
    every weight by its epsilon), zeros stay zero, and a unit with a NaN becomes NaN altogether. Norms are computed in float32
    or wider; afterwards they are at most `max_norm` times $1 + 10^{-6}$, and times $1 + \epsilon / 2$ in half precision
    ($\epsilon$ = `torch.finfo(dtype).eps`), where weights are rounded after scaling. Units within rounding of the ball count as
    inside, so that projecting twice is projecting once.

    Args:
        weight: `[..., units, ...]`, changed in place; also a DTensor, of which all ranks must call.
        max_norm: radius of the ball, in the weights' units.
        dim: the dimension (or dimensions) of `weight` that counts units: the *kept* one, as in `torch.renorm`, not the summed
            one that Keras calls `axis`. 0 for `Linear`, `Conv`, recurrent layers and embeddings, 1 for transposed convolutions,
            `()` for one norm of the whole tensor.

    Returns:
        A scalar: how many units were projected.

    Raises:
        ValueError: for a bound that is not a positive number, or a dimension that `weight` has not.

    >>> w = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    >>> max_norm_(w, 1.0)
    tensor(1)
    >>> w
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """
    check_max_norm(max_norm)
    kept = (dim,) if isinstance(dim, int) else tuple(dim)
    if any(not -weight.ndim <= d < weight.ndim for d in kept):
        raise ValueError(f"dim={dim} is not a dimension of a weight of shape {list(weight.shape)}")
    projection = MaxNormProjection([(weight, kept)], max_norm)
    projection()
    return projection.count()


def check_max_norm(max_norm: float) -> None:
    """Raise ValueError unless the bound is a positive number.

    >>> check_max_norm(3.0)
    """
    if not (max_norm > 0 and math.isfinite(max_norm)):
        raise ValueError(f"max_norm must be a positive finite number, got {max_norm!r}")


class MaxNormProjection:
    """Project many weights at once; made once, called after every step.

    All norms of a batch of weights land in one buffer. On the CPU one comparison decides whether the batch needs work at
    all; on other devices nothing is read back. After a call `largest()`, `count()` and `units` tell what it met.

    Args:
        weights: pairs of a tensor and its kept dimensions, as `max_norm_` takes them. The tensors' storage must stay in place.
        max_norm: radius of the ball.

    >>> w = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    >>> project = MaxNormProjection([(w, (0,))], max_norm=1.0)
    >>> project()
    >>> project.largest(), project.count(), project.units
    (tensor(5.), tensor(1), 2)
    """

    def __init__(self, weights: Sequence[tuple[Tensor, tuple[int, ...]]], max_norm: float) -> None:
        local = [(w.detach(), kept) for w, kept in weights if not _is_dtensor(w)]
        sharded = [(w.detach(), kept) for w, kept in weights if _is_dtensor(w)]
        self._parts: list[_Batch | _Sharded] = [_Batch(batch, max_norm) for batch in _batches(local)]
        self._parts += [_Sharded(w, kept, max_norm) for w, kept in sharded]
        self.units = sum(math.prod(w.shape[d] for d in kept) for w, kept in weights)

    @torch.no_grad()
    def __call__(self) -> None:
        """Project all weights in place."""
        for part in self._parts:
            part.project()

    def largest(self) -> Tensor:
        """Return the largest norm before the latest projection; a scalar, NaN if any norm was."""
        return _gather([part.norms().amax() for part in self._parts]).amax()

    def count(self) -> Tensor:
        """Return how many units the latest projection moved; a scalar."""
        return _gather([(part.norms() > part.bound).sum() for part in self._parts]).sum()


class _Batch:
    """Weights on one device, of one dtype, with the norms of all their units in one buffer."""

    def __init__(self, weights: Sequence[tuple[Tensor, tuple[int, ...]]], max_norm: float) -> None:
        views = sorted((_unit_view(w, kept) for w, kept in weights), key=_run_key)
        first = views[0][0]
        self._sizes = [math.prod(w.shape[d] for d in range(w.ndim) if d not in summed) for w, summed in views]
        self._buffer = torch.zeros(sum(self._sizes), dtype=_norm_dtype(first), device=first.device)
        self._owner = torch.arange(len(views)).repeat_interleave(torch.tensor(self._sizes))
        self._max_norm = max_norm
        self._weights = [w for w, _ in views]
        self._scale_shapes = [[1 if d in summed else size for d, size in enumerate(w.shape)] for w, summed in views]
        self._norms = list(self._norm_calls(views))
        self.bound = max_norm * (1 + _tolerance(first.dtype))

    def norms(self) -> Tensor:
        return self._buffer

    def project(self) -> None:
        for write_norms in self._norms:
            write_norms()
        chosen: Sequence[int] = range(len(self._weights))
        if self._buffer.device.type == "cpu":
            if self._buffer.max().item() <= self.bound:
                return
            chosen = self._above()
        scales = torch.split(_scale(self._buffer, self.bound, self._max_norm), self._sizes)
        torch._foreach_mul_([self._weights[i] for i in chosen], [scales[i].view(self._scale_shapes[i]) for i in chosen])

    def _norm_calls(self, views: Sequence[tuple[Tensor, tuple[int, ...]]]) -> Iterator[Callable[[], None]]:
        """Yield what writes the norms: small weights with rows of one length are copied together, and take one call."""
        start = 0
        for key, run in groupby(views, key=_run_key):
            weights = list(run)
            shapes = [[size for d, size in enumerate(w.shape) if d not in summed] for w, summed in weights]
            units = [math.prod(shape) for shape in shapes]
            if key and len(weights) > 1:
                rows = torch.empty(sum(units), key, dtype=weights[0][0].dtype, device=self._buffer.device)
                out = self._buffer[start : start + sum(units)]
                yield partial(_norm_together, [w for w, _ in weights], rows, out)
            else:
                for (w, summed), shape, out in zip(
                    weights, shapes, self._buffer[start : start + sum(units)].split(units), strict=True
                ):
                    yield partial(_norm, w, summed, out.view(shape))
            start += sum(units)

    def _above(self) -> list[int]:
        """Return which weights have a unit outside, or a NaN."""
        if len(self._sizes) == 1:
            return [0]
        largest = torch.zeros(len(self._sizes), dtype=self._buffer.dtype).scatter_reduce_(0, self._owner, self._buffer, "amax")
        return [i for i, norm in enumerate(largest.tolist()) if not norm <= self.bound]


class _Sharded:
    """One DTensor: the norm of a unit split across ranks is that of the whole unit."""

    def __init__(self, weight: Tensor, kept: tuple[int, ...], max_norm: float) -> None:
        self._weight = weight
        self._summed = _summed(weight, kept)
        self._max_norm = max_norm
        self._norms = weight
        self.bound = max_norm * (1 + _tolerance(weight.dtype))

    def norms(self) -> Tensor:
        full: Tensor = self._norms.full_tensor()  # type: ignore[attr-defined]
        return full

    def project(self) -> None:
        w = self._weight
        self._norms = torch.linalg.vector_norm(w, 2, self._summed, keepdim=True, dtype=_norm_dtype(w))
        w.mul_(_scale(self._norms, self.bound, self._max_norm))


def _batches(weights: Sequence[tuple[Tensor, tuple[int, ...]]]) -> Iterator[list[tuple[Tensor, tuple[int, ...]]]]:
    """Yield weights by device and dtype; on the CPU large ones alone, to be scaled while they are in the cache."""
    kinds: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, tuple[int, ...]]]] = {}
    for weight, kept in weights:
        if weight.device.type == "cpu" and weight.numel() >= _LARGE:
            yield [(weight, kept)]
        elif weight.numel():
            kinds.setdefault((weight.device, weight.dtype), []).append((weight, kept))
    yield from kinds.values()


def _run_key(view: tuple[Tensor, tuple[int, ...]]) -> int:
    """Return the row length of a small weight, `[units, elements]`; 0 for what is not worth copying."""
    weight, summed = view
    rows = weight.ndim == 2 and summed == (1,) and weight.device.type == "cpu"
    return weight.shape[1] if rows and weight.numel() <= _SMALL else 0


def _norm_together(weights: list[Tensor], rows: Tensor, out: Tensor) -> None:
    torch.cat(weights, out=rows)
    _norm(rows, (1,), out)


def _unit_view(weight: Tensor, kept: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """Return a view and its summed dimensions, `[units, elements]` where memory allows: the fastest to sum."""
    if weight.is_contiguous() and not kept:
        return weight.view(1, -1), (1,)
    if len(kept) == weight.ndim:
        return weight.unsqueeze(-1), (weight.ndim,)
    if [d % weight.ndim for d in kept] == [0]:
        for order in (weight, weight.movedim(1, -1)):  # the second is contiguous if the weight is channels_last
            if order.is_contiguous():
                return order.view(order.shape[0], -1), (1,)
    return weight, _summed(weight, kept)


def _norm(weight: Tensor, summed: tuple[int, ...], out: Tensor) -> None:
    """Write the norms of the units into `out`, each to within 5e-7."""
    elements = math.prod(weight.shape[d] for d in summed)
    rows = weight.ndim == 2 and summed == (1,)
    if weight.device.type != "cpu" or (elements <= _ROW and rows):
        torch.linalg.vector_norm(weight, 2, summed, dtype=out.dtype, out=out)
        return
    chunk = math.gcd(elements, _ROW)
    if rows and chunk >= 64:
        partial = torch.linalg.vector_norm(weight.view(weight.shape[0], -1, chunk), 2, 2, dtype=out.dtype)
        torch.sum(partial.square_(), 1, out=out)
    else:
        torch.sum(weight.to(out.dtype).square(), summed, out=out)
    out.sqrt_()


def _scale(norms: Tensor, bound: float, max_norm: float) -> Tensor:
    """Return the factor that takes each norm to `max_norm`: exactly 1 up to `bound`, NaN for NaN."""
    return max_norm / threshold(norms, bound, max_norm)


def _summed(weight: Tensor, kept: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(d for d in range(weight.ndim) if d not in kept and d - weight.ndim not in kept)


def _norm_dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def _tolerance(dtype: torch.dtype) -> float:
    eps = torch.finfo(dtype).eps
    return eps / 2 if dtype.itemsize < 4 else 4 * eps


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def _gather(scalars: Sequence[Tensor]) -> Tensor:
    return torch.stack([scalar.to(scalars[0].device) for scalar in scalars]) if scalars else torch.zeros(1)
