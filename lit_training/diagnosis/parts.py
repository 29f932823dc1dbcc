"""One tensor of a batch in numbers: how many samples, how they scatter, which are alike, blank or coded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from lit_training.columns import leaves_of, some_elements

__all__ = ["BEYOND", "Fed", "Part", "marks", "summary"]

ORDERED, SIGNIFICANT = 0.5, 4.0
FEW = 0.2
BEYOND = 30.0
WIDE, REPEATED = 10.0, 3
APART, LEAST_ROWS, MOST_COLUMNS, BYTE = 10.0, 16, 256, 255


@dataclass(frozen=True)
class Part:
    """One tensor of a batch: its size without the batch dimension, samples and how many differ, mean and std of all elements.

    `core` is half the width of the middle 68 % of the elements, which is the std but for outliers; `blank` the share of samples
    that are one and the same number everywhere, `busy` the share of other elements in the rest. `drift` is the correlation of a sum
    over each sample with that over the next one, which is far from 0 where samples come in an order. `combinations` tells how many
    samples could differ, given how many values each column takes: its logarithm, infinity unless few samples differ. `between` is
    the std over samples of their means, `uneven` that of their mean squared deviations over the mean of those: the elements of a
    sample have much in common, so that a batch tells its mean and std as well as so many samples can. `code` is the number that
    stands where something is missing, 0 if there is none: it comes three times or more, in columns that otherwise vary, and
    everything else is 30 times as small. `gap` is the same where a table was standardised with it: how far from the rest of its
    column the smallest or largest number is, over what the rest spans, if that is ten times as much or more, and the number comes
    three times or more, and less often than the rest; 0 for more columns than a table has.
    """

    shape: tuple[int, ...]
    samples: int
    distinct: int
    mean: float
    std: float
    core: float = 0.0
    blank: float = 0.0
    busy: float = 0.0
    drift: float = 0.0
    combinations: float = math.inf
    between: float = 0.0
    uneven: float = 0.0
    code: float = 0.0
    gap: float = 0.0

    @property
    def ordered(self) -> bool:
        """Whether neighbours are alike, more than chance has it: a part of the data rather than a sample of them."""
        r = min(self.drift, 0.999999)
        return r > ORDERED and self.samples > 3 and math.atanh(r) * math.sqrt(self.samples - 3) > SIGNIFICANT


Fed = tuple[str, tuple[Part | None, ...]]


@torch.no_grad()
def summary(batch: Any, known: Sequence[tuple[Any, Part | None]] = ()) -> tuple[Part | None, ...]:
    """Return mean and spread of each floating-point tensor of a batch; of those that equal a known one, what is known."""
    return tuple(next((part for x, part in known if _equal(x, leaf)), None) or _part(leaf) for leaf in leaves_of(batch))


def _equal(a: Any, b: Any) -> bool:
    if not _is_plain(a) or not _is_plain(b):
        return False
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def _is_plain(leaf: Any) -> TypeGuard[Tensor]:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided


def _part(leaf: Any) -> Part | None:
    if not _is_plain(leaf) or not leaf.is_floating_point() or leaf.ndim == 0 or leaf.numel() < 2:
        return None
    values = leaf.detach().float()
    rows = values.flatten(1) if values.ndim > 1 else values[:, None]
    each = marks(values)
    distinct = len(torch.unique(each))
    mean, std, core, blank, busy, drift, between, uneven = _on_host(
        [values.mean(), values.std(), _core(values), *_blank(rows), _drift(each), *_apart(rows)]
    )
    combinations = _combinations(rows) if distinct < FEW * len(leaf) else math.inf
    code = _code(rows) if std > WIDE * core else 0.0
    gap = _gap(rows) if values.ndim == 2 and len(rows) >= LEAST_ROWS and rows.shape[1] <= MOST_COLUMNS else 0.0
    shape = tuple(leaf.shape[1:])
    return Part(shape, len(leaf), distinct, mean, std, core, blank, busy, drift, combinations, between, uneven, code, gap)


def marks(values: Tensor) -> Tensor:
    """Return a number for each sample that tells those apart that differ.

    >>> marks(torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])).unique().shape
    torch.Size([2])
    """
    rows = values.float().reshape(len(values), -1)
    return rows @ torch.linspace(0.5, 1.5, rows.shape[1], device=values.device)


def _apart(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far samples lie apart in their means, and in their squared deviations; zeros for a single one."""
    if len(rows) == 1:
        return rows.new_zeros(()), rows.new_zeros(())
    squares = (rows - rows.mean()).square().mean(1)
    return rows.mean(1).std(), squares.std() / squares.mean().clamp(min=1e-30)


def _drift(marks: Tensor) -> Tensor:
    centred = marks - marks.mean()
    return (centred[1:] * centred[:-1]).sum() / centred.square().sum().clamp(min=1e-30)


def _combinations(rows: Tensor) -> float:
    """Return the logarithm of the product of how many values each column takes."""
    values = rows.sort(0).values
    return float((1 + (values[1:] != values[:-1]).sum(0)).double().log().sum())


def _code(rows: Tensor) -> float:
    """Return the largest number if it stands in columns of other, far smaller ones, 0 if not."""
    largest = rows.flatten()[rows.abs().argmax()]
    same = rows == largest
    others = rows.masked_fill(same, 0)
    vary = (rows.masked_fill(same, math.inf).amin(0) < rows.masked_fill(same, -math.inf).amax(0)) & same.any(0)
    is_code = same.sum() >= REPEATED and vary.any() and others.abs().max() * BEYOND < largest.abs()
    return float(largest) if is_code else 0.0


def _gap(rows: Tensor) -> float:
    """Return how far the most outlying of repeated smallest or largest numbers is from its column's rest, over what that spans."""
    low, high = rows.aminmax(dim=0)
    return max(_gap_below(rows, low, high), _gap_below(-rows, -high, -low))


def _gap_below(rows: Tensor, low: Tensor, high: Tensor) -> float:
    same = rows == low
    if int(same.sum()) < rows.shape[1] + REPEATED - 1:
        return 0.0
    times = same.sum(0)
    repeated = (times >= REPEATED) & (2 * times < len(rows))
    second = rows.masked_fill(same, math.inf).amin(0)
    gaps = (second - low) / (high - second)
    apart = repeated & (second < high) & (gaps > APART)
    steps = [len(column.unique()) - 2 for column in rows[:, apart].T]
    told = [gap for gap, n in zip(gaps[apart].tolist(), steps, strict=True) if gap * n > BYTE]  # a byte has no room for both
    return max(told, default=0.0)


def _core(values: Tensor) -> Tensor:
    some = some_elements(values).sort().values
    return (some[int(0.84 * (len(some) - 1))] - some[int(0.16 * (len(some) - 1))]) / 2


def _blank(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of rows that are one number everywhere, and the share of elements that differ from it in the others."""
    blank = rows.amax(1) == rows.amin(1)
    if rows.shape[1] == 1 or not blank.any():
        return rows.new_zeros(()), rows.new_zeros(())
    number = rows[blank.long().argmax(), 0]
    differs = (rows != number).float().mean(1)
    return blank.float().mean(), (differs * ~blank).sum() / (~blank).sum().clamp(min=1)


def _on_host(values: Sequence[Tensor]) -> list[float]:
    return [float(value) for value in torch.stack(list(values)).cpu()]
