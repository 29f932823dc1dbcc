r"""Max norm: each unit's incoming weights stay inside a ball.

Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014, section 5.1. The bound is on the
norm, $\lVert w \rVert_2 \le c$; where the lecture bounds the square, $\lVert w \rVert_2^2 \le c$, give $\sqrt{c}$.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

__all__ = ["MaxNormProjection", "check_max_norm", "max_norm_"]

_CACHED = 2**20  # elements that are still in the cache when all their norms are known and they are scaled
_SMALL = 2**14  # elements: weights up to here take less time to copy together than to be summed one by one
_ROW = 576  # elements: longer rows are summed in levels, since one float32 sum of more equal numbers is off by over 6.5e-7

_Weight = tuple[Tensor, tuple[int, ...]]  # and its kept dimensions
_View = tuple[Tensor, tuple[int, ...]]  # and its summed dimensions


def max_norm_(weight: Tensor, max_norm: float, dim: int | Sequence[int] = 0) -> Tensor:
    r"""Project, in place, each unit's weights onto the ball of radius `max_norm`.

    $w \leftarrow w \cdot \min(1, c / \lVert w \rVert_2)$. Units inside the ball stay bit-identical (Keras' `MaxNorm` changes
    every weight by its epsilon), zeros stay zero, and a unit with a NaN becomes NaN altogether. Norms are computed in float32
    or wider; afterwards they are at most `max_norm` times $1 + 10^{-6}$, and times $1 + \epsilon / 2$ in half precision
    ($\epsilon$ = `torch.finfo(dtype).eps`), where weights are rounded after scaling. Units within rounding of the ball count as
    inside, and projected ones land two roundings below it, so that projecting twice is projecting once.

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

    All norms of a batch of weights land in one buffer. On the CPU one comparison decides whether the batch is scaled at all; on
    other devices nothing is read back. After a call `largest()`, `count()` and `units` tell what it met.

    Args:
        weights: pairs of a tensor and its kept dimensions, as `max_norm_` takes them. The tensors' storage must stay in place.
        max_norm: radius of the ball.

    >>> w = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    >>> project = MaxNormProjection([(w, (0,))], max_norm=1.0)
    >>> project()
    >>> project.largest(), project.count(), project.units
    (tensor(5.), tensor(1), 2)
    """

    def __init__(self, weights: Sequence[_Weight], max_norm: float) -> None:
        local = [(w.detach(), kept) for w, kept in weights if not _is_dtensor(w)]
        sharded = [(w.detach(), kept) for w, kept in weights if _is_dtensor(w)]
        self._parts: list[_Batch | _Sharded] = [_Batch(batch, max_norm) for batch in _batches(local)]
        self._parts += [_Sharded(w, kept, max_norm) for w, kept in sharded]
        self.units = sum(math.prod(w.shape[d] for d in kept) for w, kept in weights)

    def __call__(self) -> None:
        """Project all weights in place."""
        for part in self._parts:
            part.project()

    def largest(self) -> Tensor:
        """Return the largest norm before the latest projection; a scalar, NaN if any norm was."""
        return _gather([part.largest() for part in self._parts]).amax()

    def count(self) -> Tensor:
        """Return how many units the latest projection moved; a scalar."""
        return _gather([part.count() for part in self._parts]).sum()


class _Batch:
    """Weights on one device, of one dtype; one buffer holds the norms of all their units, and then what they are scaled by."""

    def __init__(self, weights: Sequence[_Weight], max_norm: float) -> None:
        views = sorted((_unit_view(w, kept) for w, kept in weights), key=_copied_length)
        runs = [list(run) for _, run in groupby(views, key=lambda view: _copied_length(view) or id(view))]
        shapes = [_norm_shape(*view) for view in views]
        first = views[0][0]
        self._ball = _Ball(first, max_norm)
        self._weights = [w for w, _ in views]
        self._buffer = torch.ones(sum(map(math.prod, shapes)), dtype=_norm_dtype(first), device=first.device)
        parts = self._buffer.split([math.prod(shape) for shape in shapes])
        self._factors = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        parts = self._buffer.split([sum(math.prod(_norm_shape(*view)) for view in run) for run in runs])
        self._norm_calls = [call for run, part in zip(runs, parts, strict=True) for call in _calls(run, part)]
        self._largest = self._buffer.new_zeros(())

    def largest(self) -> Tensor:
        return self._largest

    def count(self) -> Tensor:
        return (self._buffer < 1).sum()

    def project(self) -> None:
        for call in self._norm_calls:
            call()
        self._largest = self._buffer.max()
        if self._buffer.is_cpu and self._largest.item() <= self._ball.bound:
            self._buffer.fill_(1.0)
        else:
            self._ball.factors_(self._buffer)
            torch._foreach_mul_(self._weights, self._factors)


class _Sharded:
    """One DTensor: the norm of a unit split across ranks is that of the whole unit."""

    def __init__(self, weight: Tensor, kept: tuple[int, ...], max_norm: float) -> None:
        self._ball = _Ball(weight, max_norm)
        self._weight = weight
        self._summed = _summed(weight, kept)
        self._norms = weight

    def largest(self) -> Tensor:
        return _full(self._norms).amax()

    def count(self) -> Tensor:
        return (_full(self._norms) > self._ball.bound).sum()

    def project(self) -> None:
        w = self._weight
        self._norms = torch.linalg.vector_norm(w, 2, self._summed, keepdim=True, dtype=_norm_dtype(w))
        w.mul_(self._ball.factors_(self._norms.clone()))


class _Ball:
    """From which norm on a unit is scaled, and to which: so far apart that rounding takes no scaled unit outside again."""

    def __init__(self, weight: Tensor, max_norm: float) -> None:
        dtype = _norm_dtype(weight)
        eps = torch.finfo(dtype).eps
        self.bound = max_norm * (1 + (2.5 * eps if weight.dtype == dtype else torch.finfo(weight.dtype).eps / 2))
        self._target = max_norm * (1 - 2 * eps)
        self._numerator = torch.tensor(self._target, dtype=dtype, device=weight.device)

    def factors_(self, norms: Tensor) -> Tensor:
        """Put in place of each norm what takes it to the target: up to the bound exactly 1, as a number over a tensor is not."""
        return torch.div(self._numerator, torch.threshold_(norms, self.bound, self._target), out=norms)


def _batches(weights: Sequence[_Weight]) -> list[list[_Weight]]:
    """Group weights by device and dtype, on the CPU also into what the cache holds."""
    batches: dict[tuple[torch.device, torch.dtype, int], list[_Weight]] = {}
    seen: Counter[tuple[torch.device, torch.dtype]] = Counter()
    for weight, kept in weights:
        kind = weight.device, weight.dtype
        if weight.numel():
            batches.setdefault((*kind, seen[kind] // _CACHED if weight.is_cpu else 0), []).append((weight, kept))
        seen[kind] += weight.numel()
    return list(batches.values())


def _unit_view(weight: Tensor, kept: tuple[int, ...]) -> _View:
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


def _copied_length(view: _View) -> int:
    """Return the row length of a small weight, `[units, elements]`; 0 for what is not worth copying."""
    weight, summed = view
    rows = weight.ndim == 2 and summed == (1,) and weight.is_cpu
    return weight.shape[1] if rows and weight.numel() <= _SMALL else 0


def _calls(run: Sequence[_View], norms: Tensor) -> Iterator[Callable[[], object]]:
    """Yield what writes the norms of one weight, or of several small ones that are copied together first."""
    weight, summed = run[0]
    if len(run) > 1:
        weights = [w for w, _ in run]
        weight = torch.cat(weights)
        yield partial(torch.cat, weights, out=weight)
    yield from _norm_calls(weight, summed, norms.view(_norm_shape(weight, summed)))


def _norm_calls(weight: Tensor, summed: tuple[int, ...], out: Tensor) -> Iterator[Callable[[], object]]:
    """Yield what writes the units' norms, off by less than 2e-7, and than 7e-7 if all weights of a unit are alike.

    Nothing is allocated in a call: after an optimiser step that takes longer than the sums of a small weight.
    """
    elements = math.prod(weight.shape[d] for d in summed)
    rows = weight.ndim == 2 and summed == (1,) and weight.is_contiguous()
    if not weight.is_cpu or (rows and elements <= _ROW):
        yield partial(torch.linalg.vector_norm, weight, 2, summed, keepdim=True, dtype=out.dtype, out=out)
    elif rows and (chunk := _chunk(elements)):
        parts = out.new_empty(len(weight), elements // chunk)
        yield from _norm_calls(weight.view(-1, chunk), (1,), parts.view(-1, 1))
        yield from _norm_calls(parts, (1,), out)
    else:
        yield partial(_root_of_squares, weight, summed, out)


def _root_of_squares(weight: Tensor, summed: tuple[int, ...], out: Tensor) -> None:
    torch.sum(weight.to(out.dtype).square(), summed, keepdim=True, out=out).sqrt_()


def _chunk(elements: int) -> int:
    """Return the largest divisor that is worth a level, 0 if there is none."""
    return next((size for size in range(_ROW, 63, -1) if elements % size == 0), 0)


def _summed(weight: Tensor, kept: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(d for d in range(weight.ndim) if d not in kept and d - weight.ndim not in kept)


def _norm_shape(weight: Tensor, summed: tuple[int, ...]) -> list[int]:
    return [1 if d in summed else size for d, size in enumerate(weight.shape)]


def _norm_dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def _full(tensor: Tensor) -> Tensor:
    whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return whole


def _gather(scalars: Sequence[Tensor]) -> Tensor:
    return torch.stack([scalar.to(scalars[0].device) for scalar in scalars]) if scalars else torch.zeros(1)
