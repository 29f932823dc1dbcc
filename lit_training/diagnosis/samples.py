"""What the loaders hand out: the targets of the first batches in order, and the first validation batch beside the training's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lit_training.columns import leaves_of, some_elements
from lit_training.tracing.probe import Probe

__all__ = ["Columns", "FirstBatches", "Part", "Samples", "in_order", "summary", "target_place"]

BATCHES = 4
MOST_ROWS = 2**15
ORDERED, SIGNIFICANT = 0.5, 4.0
FEW = 0.2
BEYOND = 30.0


@dataclass(frozen=True)
class Part:
    """One tensor of a batch: its size without the batch dimension, samples and how many differ, mean and std of all elements.

    `core` is half the width of the middle 68 % of the elements, which is the std but for outliers; `blank` the share of samples
    that are one and the same number everywhere, `busy` the share of other elements in the rest. `drift` is the correlation of a
    sum over each sample with that over the next one, which is far from 0 where samples come in an order. `combinations` tells how
    many samples could differ, given how many values each column takes: its logarithm, infinity unless few samples differ.
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

    @property
    def ordered(self) -> bool:
        """Whether neighbours are alike, more than chance has it: a part of the data rather than a sample of them."""
        r = min(self.drift, 0.999999)
        return r > ORDERED and self.samples > 3 and math.atanh(r) * math.sqrt(self.samples - 3) > SIGNIFICANT


Fed = tuple[str, tuple[Part | None, ...]]


@dataclass(frozen=True)
class Samples:
    """What the first batches hold.

    Args:
        targets: one number or label of each sample, in the order in which they came, `None` where the loss takes something else.
        labels: whether they are integers.
        sizes: how many of them each batch held.
        in_order: whether the loader reads its data set from first to last; `None` if that is not known.
        streamed: whether it hands out samples as they come (`IterableDataset`), so that the first ones are the beginning.
        per_batch: how many samples the loader puts into a batch, `None` if that is not known.
        train: of the first training batch, each floating-point tensor; `None` in place of other things.
        val: of the first validation batch, likewise; empty if there was none before training.
        val_modes: dropout and batch-norm layers that were in train mode after it.
        target: which of them the loss takes as its target.
        fed_train: of the first call of a network in the first training step, its name and its arguments likewise.
        fed_val: of the first one in validation.
        broken: which of the first batches, counted from 0, hold NaN or infinite values.
        wild: of them those that hold a number far beyond any that the very first one holds at that place: which, the largest size
            in it, and in the first.
    """

    targets: Tensor | None = None
    labels: bool = False
    sizes: tuple[int, ...] = ()
    in_order: bool | None = None
    streamed: bool = False
    per_batch: int | None = None
    train: tuple[Part | None, ...] = ()
    val: tuple[Part | None, ...] = ()
    val_modes: tuple[str, ...] = ()
    target: int | None = None
    fed_train: Fed = ("", ())
    fed_val: Fed = ("", ())
    broken: tuple[int, ...] = ()
    wild: tuple[tuple[int, float, float], ...] = ()

    @cached_property
    def counts(self) -> tuple[Tensor, Tensor]:
        """The different targets in ascending order, and how often each of them came; nothing where they are not known."""
        targets = torch.empty(0) if self.targets is None else self.targets
        values, counts = torch.unique(targets, return_counts=True)
        return values, counts


@dataclass
class FirstBatches:
    """Keep of the first batches what has one value a sample; nothing waits for the device.

    >>> first = FirstBatches()
    >>> first.note((torch.randn(3, 5), torch.tensor([0, 1, 2])))
    >>> first.targets(1)
    tensor([0, 1, 2])
    """

    columns: list[dict[int, Tensor]] = field(default_factory=list)
    extremes: list[list[Tensor]] = field(default_factory=list)

    def note(self, batch: Any) -> None:
        """Take the next batch, unless enough were seen."""
        if len(self.columns) < BATCHES:
            tensors = _dense(batch)
            self.columns.append(_one_a_sample(tensors))
            numbers = [x for x in tensors.values() if x.is_floating_point() and x.numel()]
            self.extremes.append([extreme for x in numbers for extreme in torch.aminmax(x)])

    def targets(self, place: int | None) -> Tensor | None:
        """Return the values at a place of all batches, in order, on the host."""
        found = [column[place].cpu() for column in self.columns if place is not None and place in column]
        return torch.cat(found) if found and len(found) == len(self.columns) else None

    def sizes(self, place: int | None) -> tuple[int, ...]:
        """Return how many values there are at a place in each batch."""
        return tuple(len(column[place]) for column in self.columns if place is not None and place in column)

    def broken(self) -> tuple[int, ...]:
        """Return which batches hold NaN or infinite values."""
        return tuple(i for i, extremes in enumerate(self.extremes) if not all(map(math.isfinite, map(float, extremes))))

    def wild(self) -> tuple[tuple[int, float, float], ...]:
        """Return which batches hold numbers more than 30 times as large as the first has at that place, theirs and the first's."""
        sizes = [[abs(float(extreme)) for extreme in extremes] for extremes in self.extremes]
        reach = [[max(pair) for pair in zip(each[::2], each[1::2], strict=True)] for each in sizes]
        found = []
        for i, each in enumerate(reach[1:], 1):
            alike = zip(each, reach[0], strict=True) if len(each) == len(reach[0]) else ()
            far = [(size, first) for size, first in alike if math.inf > size > BEYOND * first > 0]
            found += [(i, *max(far))] if far else []
        return tuple(found)


@dataclass
class Columns:
    """Keep what has one value a sample of the first 32 thousand samples; nothing waits for the device.

    >>> columns = Columns()
    >>> columns.note((torch.randn(3, 5), torch.tensor([0, 1, 2])))
    >>> columns.at(1)
    tensor([0, 1, 2])
    """

    rows: int = 0
    _kept: dict[int, list[Tensor]] = field(default_factory=dict)

    def note(self, batch: Any) -> None:
        """Take the next batch, unless enough were seen."""
        if self.rows >= MOST_ROWS:
            return
        columns = _one_a_sample(_dense(batch))
        for i, column in columns.items():
            self._kept.setdefault(i, []).append(column)
        self.rows += max(map(len, columns.values()), default=MOST_ROWS)

    def at(self, place: int | None) -> Tensor | None:
        """Return the values at a place of all batches, on the host."""
        return torch.cat(self._kept[place]).cpu() if place is not None and place in self._kept else None


def target_place(probe: Probe) -> int | None:
    """Return which leaf of the batch is the target, `None` if none or several.

    It is what torch's losses took as such, or where there are none, what was read, but by no layer of the network.
    """
    tracer, nodes = probe.tracer, probe.graph.nodes
    read = {node.index: tensor for tensor in tracer.batch if (node := tracer.node(tensor)) is not None}
    found: set[int] = set()
    if not probe.losses:
        found = set(read) - {i for layer in probe.layers.values() if layer.node for i in probe.graph.ancestors(layer.node)}
    for call in probe.losses:
        index = call.target
        while index not in read and len(nodes[index].parents) == 1:
            index = nodes[index].parents[0]
        if index in read:
            found.add(index)
    if len(found) != 1:
        return None
    target = read[found.pop()]
    return next((i for i, leaf in enumerate(leaves_of(probe.batch)) if leaf is target), None)


@torch.no_grad()
def summary(batch: Any, known: Sequence[tuple[Any, Part | None]] = ()) -> tuple[Part | None, ...]:
    """Return mean and spread of each floating-point tensor of a batch; of those that equal a known one, what is known."""
    return tuple(next((part for x, part in known if _equal(x, leaf)), None) or _part(leaf) for leaf in leaves_of(batch))


def in_order(loader: Any) -> bool | None:
    """Tell whether a loader reads its data set from first to last, `None` if that cannot be told, as where batches are drawn."""
    if type(getattr(loader, "batch_sampler", None)) not in (torch.utils.data.BatchSampler, type(None)):
        return None
    sampler = getattr(loader, "sampler", None)
    sequential = isinstance(sampler, torch.utils.data.SequentialSampler)
    known = isinstance(sampler, (torch.utils.data.SequentialSampler, torch.utils.data.RandomSampler))
    return sequential if known else None


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def _dense(batch: Any) -> dict[int, Tensor]:
    """Return the tensors of a batch that are not sparse, by their place among its leaves."""
    return {i: x.detach() for i, x in enumerate(leaves_of(batch)) if isinstance(x, Tensor) and not x.is_sparse}


def _one_a_sample(tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return copies of those that have one value a sample, `[samples]`."""
    return {i: x.flatten().clone() for i, x in tensors.items() if x.ndim == 1 or (x.ndim == 2 and x.shape[1] == 1)}


def _part(leaf: Any) -> Part | None:
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.ndim == 0 or leaf.numel() < 2 or leaf.is_sparse:
        return None
    values = leaf.detach().float()
    rows = values.flatten(1) if values.ndim > 1 else values[:, None]
    weights = torch.linspace(0.5, 1.5, rows.shape[1], device=values.device)  # a sum that tells samples apart
    marks = rows @ weights
    distinct = len(torch.unique(marks))
    mean, std, core, blank, busy, drift = _on_host([values.mean(), values.std(), _core(values), *_blank(rows), _drift(marks)])
    combinations = _combinations(rows) if distinct < FEW * len(leaf) else math.inf
    return Part(tuple(leaf.shape[1:]), len(leaf), distinct, mean, std, core, blank, busy, drift, combinations)


def _drift(marks: Tensor) -> Tensor:
    centred = marks - marks.mean()
    return (centred[1:] * centred[:-1]).sum() / centred.square().sum().clamp(min=1e-30)


def _combinations(rows: Tensor) -> float:
    """Return the logarithm of the product of how many values each column takes."""
    values = rows.sort(0).values
    return float((1 + (values[1:] != values[:-1]).sum(0)).double().log().sum())


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
