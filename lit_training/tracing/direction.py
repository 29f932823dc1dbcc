"""Does a step against the gradient bring outputs towards their targets, away from them, or leave some of them unheard?"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["agreement", "only_at_label", "silent_label", "unheard_outputs"]

_LEAST = 4
_ENOUGH = 8


@torch.no_grad()
def agreement(gradient: Tensor, target: Tensor) -> float | None:
    r"""Return the cosine between the way down a loss and the way to the target, about 1 for losses that are to be minimised.

    For class numbers the way to the target is its one-hot vector, for numbers the target itself; both sides are centred over the
    batch, so that an offset does not count. At the start of a training every usual loss has a clearly positive cosine: cross-
    entropy's gradient is $p - y$, that of squared errors $\hat y - y$, with predictions that do not yet vary with $y$. What climbs
    has a clearly negative one.

    Args:
        gradient: of the loss with respect to an output: `[rows, classes]`, `[batch, classes, ...]`, or shaped as the target.
        target: class numbers (negative ones are ignored), or numbers in the shape of the gradient up to dimensions of size 1; maps
            of either that are a whole number of times as high and wide are averaged, since an output may be enlarged first.

    Returns:
        The cosine, `None` where the two do not fit together, for less than 4 rows, and where one of them does not vary or is not
        finite.

    >>> y = torch.tensor([0, 1, 2, 1, 0])
    >>> round(agreement(torch.full((5, 3), 1 / 3) - F.one_hot(y), y), 3)
    1.0
    """
    if target.is_floating_point():
        target = _at_resolution(target, gradient)
        fits = gradient.numel() == target.numel() and gradient.squeeze().shape == target.squeeze().shape
        rows = (gradient.reshape(len(gradient), -1), target.reshape(len(gradient), -1)) if fits and gradient.ndim else None
    else:
        rows = _one_hot(gradient, target) or _shares(gradient, target)
    if rows is None or len(rows[0]) < _LEAST:
        return None
    up, way = (r - r.mean(0) for r in map(Tensor.double, rows))
    lengths = float(up.norm() * way.norm())
    return -float((up * way).sum()) / lengths if 0 < lengths < math.inf else None


@torch.no_grad()
def only_at_label(gradient: Tensor, target: Tensor) -> bool:
    """Tell whether of three or more logits only that of the right class gets a gradient, in each of eight or more rows.

    Args: as for `agreement`.

    >>> y = torch.arange(9) % 3
    >>> only_at_label(-F.one_hot(y).float(), y), only_at_label(1 / 3 - F.one_hot(y), y)
    (True, False)
    """
    rows = None if target.is_floating_point() else _one_hot(gradient, target)
    if rows is None or len(rows[0]) < _ENOUGH or rows[0].shape[1] < 3:
        return False
    return bool(((rows[0] != 0) == (rows[1] != 0)).all())


@torch.no_grad()
def silent_label(gradient: Tensor, target: Tensor) -> float | None:
    """Return which of two targets, one a sample, has a gradient of exactly zero at all of its samples, and the other at none.

    Args:
        gradient: of the loss with respect to an output, `[batch, 1]` or `[batch]`.
        target: numbers or labels of two kinds, four or more of each; otherwise nothing is said.

    >>> y = torch.tensor([0.0, 1.0] * 4)
    >>> silent_label(-y[:, None], y), silent_label(0.5 - y[:, None], y)
    (0.0, None)
    """
    if target.numel() != len(gradient) or gradient.numel() != len(gradient) or len(gradient) < _ENOUGH:
        return None
    values, kinds = target.flatten(), torch.unique(target)
    heard = gradient.flatten() != 0
    if len(kinds) == 2 and min(int((values == kind).sum()) for kind in kinds) >= _LEAST:
        for silent, other in (kinds, kinds.flip(0)):
            if not heard[values == silent].any() and heard[values == other].all():
                return float(silent)
    return None


@torch.no_grad()
def unheard_outputs(gradient: Tensor, target: Tensor) -> int:
    """Return how many of several outputs get a gradient of exactly zero at all samples, though their targets vary and others do.

    Args: gradient and target of one shape, `[batch, outputs]`, and of four samples or more; otherwise nothing is said.

    >>> y = torch.randn(8, 3)
    >>> unheard_outputs(-y, y), unheard_outputs(-y * torch.tensor([0.0, 0.0, 1.0]), y)
    (0, 2)
    """
    if gradient.ndim != 2 or gradient.shape != target.shape or len(gradient) < _LEAST or gradient.shape[1] < 2:
        return 0
    heard, varies = (gradient != 0).any(0), (target != target[:1]).any(0)
    return int((~heard & varies).sum()) if heard.any() else 0


def _at_resolution(target: Tensor, gradient: Tensor) -> Tensor:
    """Return maps averaged to the height and width of others, where those are a whole number of times smaller; else as they are."""
    maps = target[:, None] if target.ndim == 3 else target
    if gradient.ndim != 4 or maps.ndim != 4:
        return target
    (height, width), (low, narrow) = maps.shape[-2:], gradient.shape[-2:]
    smaller = (low, narrow) != (height, width) and height % low == 0 and width % narrow == 0
    return F.avg_pool2d(maps, (height // low, width // narrow)) if smaller else target


def _shares(gradient: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the share of each class in each cell of logits that are smaller than the map of class numbers."""
    if gradient.ndim != 4 or target.ndim != 3 or len(target) != len(gradient) or target.is_complex():
        return None
    classes = gradient.shape[1]
    if classes < 2:
        return None
    known = (target >= 0) & (target < classes)
    each = F.one_hot(torch.where(known, target, 0).long(), classes) * known[..., None]
    shares = _at_resolution(each.movedim(-1, 1).to(gradient.dtype), gradient)
    if shares.shape != gradient.shape:
        return None
    up, way = (maps.movedim(1, -1).reshape(-1, classes) for maps in (gradient, shares))
    return up, way


def _one_hot(gradient: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    if gradient.ndim < 2 or not target.numel() or target.is_complex() or target.dtype == torch.bool:
        return None
    if gradient.shape[1] < 2:
        return None
    flat = gradient if gradient.ndim == 2 else gradient.movedim(1, -1).reshape(-1, gradient.shape[1])
    known = target.flatten() >= 0
    if len(flat) != target.numel() or not bool(known.any()) or int(target.max()) >= flat.shape[1]:
        return None
    return flat[known], F.one_hot(target.flatten()[known].long(), flat.shape[1]).to(flat.dtype)
