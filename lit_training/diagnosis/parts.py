"""One tensor of a batch in numbers: how many samples, how they scatter, which are alike, blank or coded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from lit_training.columns import leaves_of, some_elements

__all__ = ["BEYOND", "Fed", "Part", "marks", "singled_out", "summary"]

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
    samples could differ, given how many values each column takes, neighbouring columns that exclude each other (one-hot) together:
    its logarithm, infinity unless few samples differ. `between` is
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
    low: float = -math.inf
    high: float = math.inf

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
    mean, std, core, blank, busy, drift, between, uneven, low, high = _on_host(
        [values.mean(), values.std(), _core(values), *_blank(rows), _drift(each), *_apart(rows), *values.aminmax()]
    )
    combinations = _combinations(rows) if distinct < FEW * len(leaf) else math.inf
    code = _code(rows) if std > WIDE * core else 0.0
    gap = _gap(rows) if values.ndim == 2 and len(rows) >= LEAST_ROWS and rows.shape[1] <= MOST_COLUMNS else 0.0
    shape = tuple(leaf.shape[1:])
    scatter = (mean, std, core, blank, busy, drift, combinations, between, uneven)
    return Part(shape, len(leaf), distinct, *scatter, code, gap, low, high)


def marks(values: Tensor) -> Tensor:
    """Return a number for each sample that tells those apart that differ: columns count differently, and not in even steps.

    >>> marks(torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])).unique().shape
    torch.Size([2])
    >>> marks(torch.eye(6)[torch.combinations(torch.arange(6))].sum(1)).unique().shape
    torch.Size([15])
    """
    rows = values.float().reshape(len(values), -1)
    return rows @ torch.linspace(0.25, 2.25, rows.shape[1], device=values.device).sqrt()


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
    """Return the logarithm of the product of how many values each column takes, or each run of columns that exclude each other."""
    values = rows.sort(0).values
    taken = 1 + (values[1:] != values[:-1]).sum(0)
    yes_or_no = (taken == 2) & (values[0] == 0)
    if not yes_or_no.any() or rows.shape[1] > MOST_COLUMNS:
        return float(taken.double().log().sum())
    others = float(taken[~yes_or_no].double().log().sum())
    return others + sum(math.log(len(run) + bool((run.sum(0) == 0).any())) for run in _excluding((rows[:, yes_or_no] != 0).T))


def _excluding(columns: Tensor) -> list[Tensor]:
    """Split columns of yes and no, `[columns, rows]`, into runs of which no row has two.

    >>> [run.tolist() for run in _excluding(torch.tensor([[True, False], [False, True], [True, True]]))]
    [[[True, False], [False, True]], [[True, True]]]
    """
    runs: list[list[Tensor]] = []
    held = torch.zeros(0, dtype=torch.bool)
    for column in columns.cpu():
        if not runs or bool((held & column).any()):
            runs, held = [*runs, []], torch.zeros_like(column)
        runs[-1].append(column)
        held = held | column
    return [torch.stack(run) for run in runs]


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
    return _coded_rows(rows)[0]


def _coded_rows(rows: Tensor) -> tuple[float, Tensor]:
    """Return the widest gap, and which rows lie beyond it."""
    low, high = rows.aminmax(dim=0)
    return max(_gap_below(rows, low, high), _gap_below(-rows, -high, -low), key=lambda found: found[0])


def _gap_below(rows: Tensor, low: Tensor, high: Tensor) -> tuple[float, Tensor]:
    same = rows == low
    if int(same.sum()) < rows.shape[1] + REPEATED - 1:
        return 0.0, same[:, 0]
    times = same.sum(0)
    repeated = (times >= REPEATED) & (2 * times < len(rows))
    second = rows.masked_fill(same, math.inf).amin(0)
    gaps = (second - low) / (high - second)
    apart = repeated & (second < high) & (gaps > APART)
    steps = [len(column.unique()) - 2 for column in rows[:, apart].T]
    there = zip(gaps[apart].tolist(), steps, same[:, apart].T, strict=True)
    told = [(gap, rows_there) for gap, n, rows_there in there if gap * n > BYTE]  # a byte has no room for both
    return max(told, key=lambda found: found[0], default=(0.0, same[:, 0]))


def singled_out(leaf: Tensor, part: Part) -> Tensor:
    """Return which samples are one number everywhere, or hold the number that is far from the rest of its column."""
    rows = leaf.detach().float().reshape(len(leaf), -1)
    return rows.amax(1) == rows.amin(1) if part.blank else _coded_rows(rows)[1]


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
