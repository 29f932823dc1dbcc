"""Does a weight look as it was drawn, or has it been trained?"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["can_tell", "fills_its_bounds", "is_orthogonal", "looks_fresh"]

_MOST = 256
_ENDS = 10  # entries' distance in which the outermost one lies, all but once in exp(10) times
_ENTRIES = 48
_EQUAL = 1.001


def can_tell(shape: Sequence[int]) -> bool:
    """Tell whether a weight of this shape is large enough to be told a trained one from a drawn one.

    >>> can_tell((64, 64)), can_tell((64, 1)), can_tell((64,))
    (True, False, False)
    """
    return len(shape) > 1 and math.prod(shape) >= _ENTRIES and min(shape[0], math.prod(shape[1:])) > 1


def fills_its_bounds(shape: Sequence[int], low: float, high: float) -> bool:
    """Tell whether a weight ends where torch draws one of its shape: by default, in a recurrent layer, or by He or Glorot, uniform.

    A step that moves every entry takes some beyond. What was drawn otherwise does not end there but by chance.

    >>> weight = torch.nn.Linear(64, 64).weight.detach()
    >>> fills_its_bounds((64, 64), float(weight.min()), float(weight.max()))
    True
    >>> fills_its_bounds((64, 64), float(weight.min()), 1.01 * float(weight.max()))
    False
    """
    fan_in, fan_out = math.prod(shape[1:]), shape[0] * math.prod(shape[2:])
    squares = [1 / fan_in, 6 / fan_in, 6 / (fan_in + fan_out), *(gates / shape[0] for gates in (1, 3, 4))]
    end, inside = max(abs(low), abs(high)), 1 - _ENDS / math.prod(shape)
    return any(inside < end / math.sqrt(square) < 1 + 1e-6 for square in squares)


@torch.no_grad()
def is_orthogonal(weight: Tensor) -> bool:
    """Tell whether all singular values of a weight are equal; not told of large ones, as by `looks_fresh`.

    >>> is_orthogonal(torch.linalg.qr(torch.randn(32, 10))[0]), is_orthogonal(torch.randn(32, 10))
    (True, False)
    """
    if not looks_fresh(weight) or max(weight.flatten(1).shape) > _MOST:
        return False
    smallest, largest = _extreme_singular_values(weight.detach().flatten(1).double().cpu())
    return largest < _EQUAL * smallest


@torch.no_grad()
def looks_fresh(weight: Tensor) -> bool:
    """Tell whether a weight is random and nothing else: independent entries of one distribution, or an orthogonal matrix.

    Training leaves directions in a weight that randomness does not have. So a weight is called fresh if it passes all of:
    entries that are uniform (kurtosis 1.8, none beyond the bound) or normal (kurtosis 3; 2.37 if truncated at 2 standard
    deviations), within three to four standard errors; a largest singular value no further than 5 % beyond the edge of the
    Marchenko-Pastur law (1967), sqrt(rows) + sqrt(columns) times the entries' root mean square (Martin and Mahoney 2021 measure
    that trained layers leave it); and unit norms as equal as those of independent entries. Orthogonal matrices have equal singular
    values instead. Of large weights a block of 256 x 256 is tested.

    Args:
        weight: two or more dimensions; others, small ones (below 48 entries), complex and sharded ones count as not fresh.

    >>> looks_fresh(torch.nn.Linear(64, 64).weight), looks_fresh(torch.ones(64, 64))
    (True, False)
    """
    if not can_tell(weight.shape) or weight.is_sparse or weight.is_complex() or hasattr(weight, "full_tensor"):
        return False
    matrix = weight.detach().flatten(1)[:_MOST, :_MOST].double().cpu()
    squares = matrix.square()
    scale = float(squares.mean().sqrt())
    if not 0 < scale < math.inf:
        return False
    smallest, largest = _extreme_singular_values(matrix / scale)
    whole = matrix.numel() == weight.numel()
    if whole and largest < _EQUAL * smallest:
        return True
    return _independent(squares / scale**2, largest)


def _extreme_singular_values(matrix: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest, which are roots of eigenvalues: that takes half of the time of a decomposition."""
    rows, columns = matrix.shape
    squares = torch.linalg.eigvalsh(matrix @ matrix.T if rows < columns else matrix.T @ matrix).clamp(min=0)
    return math.sqrt(squares[0]), math.sqrt(squares[-1])


def _independent(squares: Tensor, largest: float) -> bool:
    """Judge a matrix of root mean square 1 by the squares of its entries and its largest singular value."""
    n = squares.numel()
    kurtosis = float(squares.square().mean())
    edge = sum(math.sqrt(size) for size in squares.shape)
    slack = 0.05 * edge + 2 * edge ** (-1 / 3)  # fluctuations of the edge (Tracy and Widom 1994) are of the second order
    uniform = abs(kurtosis - 1.8) < 4 * 2.4 / math.sqrt(n) and float(squares.max()) < 1.05**2 * 3
    normal = 2.37 - 3 * math.sqrt(10 / n) < kurtosis < 3 + 4 * math.sqrt(24 / n)
    if not (uniform or normal) or largest > edge + slack:
        return False
    for dim, size in enumerate(squares.shape):
        mean_squares = squares.mean(dim)
        expected = (kurtosis - 1) / size
        if float(mean_squares.var()) > expected * (1 + 5 * math.sqrt(2 / len(mean_squares))):
            return False
    return True
