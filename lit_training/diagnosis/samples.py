"""What the loaders hand out: the targets of the first batches in order, and the first validation batch beside the training's."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lit_training.columns import leaves_of
from lit_training.diagnosis.parts import BEYOND, Fed, Part, marks, summary
from lit_training.diagnosis.states import own_states
from lit_training.tracing.probe import Probe

__all__ = ["Columns", "FirstBatches", "Samples", "in_order", "of_one_batch", "target_place"]

BATCHES = 4
MOST_ROWS, WIDEST = 2**15, 64


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
        states: those whose empty or coded samples have targets of their own.
        fed_train: of the first call of a network in the first training step, its name and its arguments likewise.
        fed_val: of the first one in validation; nothing where it is called there several times as often, as a sampler does.
        told_val: of what the first validation batch's tensors met there.
        section: whether the targets of the first validation batch are of few kinds, as in a folder of one class.
        broken: which of the first batches, counted from 0, hold NaN or infinite values.
        numbers: of each of the first batches the targets, where they are up to 64 numbers a sample.
        wild: of them those that hold a number far beyond any that the very first one holds at that place: which, the largest size
            in it, and in the first.
        different: of the first batches, how many samples there are, and how many of them differ in some tensor of
            several numbers a sample, the target aside; zeros where samples hold something else.
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
    states: frozenset[int] = frozenset()
    fed_train: Fed = ("", ())
    fed_val: Fed = ("", ())
    told_val: tuple[Part | None, ...] = ()
    section: bool = False
    broken: tuple[int, ...] = ()
    numbers: tuple[Tensor, ...] = ()
    wild: tuple[tuple[int, float, float], ...] = ()
    different: tuple[int, int] = (0, 0)

    @cached_property
    def counts(self) -> tuple[Tensor, Tensor]:
        """The different targets in ascending order, and how often each of them came; nothing where they are not known."""
        targets = torch.empty(0) if self.targets is None else self.targets
        values, counts = torch.unique(targets, return_counts=True)
        return values, counts

    def with_targets(self, batches: "FirstBatches") -> "Samples":
        """Add the targets of the first batches, as many as were seen, and which of them are broken or wild."""
        targets = batches.targets(self.target)
        labels = targets is not None and not targets.is_floating_point()
        sizes = batches.sizes(self.target)
        return replace(
            self, targets=targets, labels=labels, sizes=sizes, broken=batches.broken(),
            numbers=batches.numbers(self.target), wild=batches.wild(), different=batches.different(self.target),
        )  # fmt: skip


@dataclass
class FirstBatches:
    """Keep of the first batches what has one value a sample, or a few numbers; nothing waits for the device.

    >>> first = FirstBatches()
    >>> first.note((torch.randn(3, 5), torch.tensor([0, 1, 2])))
    >>> first.targets(1)
    tensor([0, 1, 2])
    """

    columns: list[dict[int, Tensor]] = field(default_factory=list)
    few: list[dict[int, Tensor]] = field(default_factory=list)
    extremes: list[list[Tensor]] = field(default_factory=list)
    marks: list[dict[int, Tensor | None]] = field(default_factory=list)

    def note(self, batch: Any) -> None:
        """Take the next batch, unless enough were seen."""
        if len(self.columns) < BATCHES:
            tensors = _dense(batch)
            self.columns.append(_one_a_sample(tensors))
            self.few.append(_some_a_sample(tensors))
            numbers = [x for x in tensors.values() if x.is_floating_point() and x.numel()]
            self.extremes.append([extreme for x in numbers for extreme in torch.aminmax(x)])
            self.marks.append(_marks(batch))

    def targets(self, place: int | None) -> Tensor | None:
        """Return the values at a place of all batches, in order, on the host."""
        found = [column[place].cpu() for column in self.columns if place is not None and place in column]
        return torch.cat(found) if found and len(found) == len(self.columns) else None

    def numbers(self, place: int | None) -> tuple[Tensor, ...]:
        """Return the numbers at a place of each batch, on the host."""
        return tuple(few[place].cpu() for few in self.few if place is not None and place in few)

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

    def different(self, target: int | None) -> tuple[int, int]:
        """Return how many samples there are, and how many differ at the place, other than the target's, where most do."""
        places = {place for each in self.marks for place in each if place != target}
        kept = [[each.get(place) for each in self.marks] for place in places]
        if target is None or any(mark is None for marks in kept for mark in marks):
            return 0, 0
        pooled = [torch.cat(marks).cpu() for marks in kept]  # type: ignore[arg-type]
        return max(map(len, pooled), default=0), max((len(marks.unique()) for marks in pooled), default=0)


@dataclass
class Columns:
    """Keep of the first 32 thousand samples what has one value each, and 32 thousand of numbers that come 64 at most a sample.

    Nothing waits for the device.

    >>> columns = Columns()
    >>> columns.note((torch.randn(3, 5), torch.tensor([0, 1, 2])))
    >>> columns.at(1), columns.at(0).shape
    (tensor([0, 1, 2]), torch.Size([3, 5]))
    """

    rows: int = 0
    _kept: dict[int, list[Tensor]] = field(default_factory=dict)
    _numbers: Counter[int] = field(default_factory=Counter)

    def note(self, batch: Any) -> None:
        """Take the next batch, unless enough were seen."""
        if self.rows >= MOST_ROWS:
            return
        tensors = _dense(batch)
        columns = _some_a_sample(tensors) | _one_a_sample(tensors)
        for i, column in columns.items():
            if self._numbers[i] < MOST_ROWS:
                self._kept.setdefault(i, []).append(column)
                self._numbers[i] += column.numel()
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
        found = {index for index in read if not probe.graph.reaches_layer(index)}
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


def of_one_batch(probe: Probe) -> Samples:
    """Return what one batch alone tells."""
    batches, place = FirstBatches(), target_place(probe)
    batches.note(probe.batch)
    train = summary(probe.batch)
    return Samples(train=train, target=place, states=own_states(probe.batch, train, place)).with_targets(batches)


def in_order(loader: Any) -> bool | None:
    """Tell whether a loader reads its data set from first to last, `None` if that cannot be told, as where batches are drawn."""
    if type(getattr(loader, "batch_sampler", None)) not in (torch.utils.data.BatchSampler, type(None)):
        return None
    sampler = getattr(loader, "sampler", None)
    sequential = isinstance(sampler, torch.utils.data.SequentialSampler)
    known = isinstance(sampler, (torch.utils.data.SequentialSampler, torch.utils.data.RandomSampler))
    return sequential if known else None


def _dense(batch: Any) -> dict[int, Tensor]:
    """Return the tensors of a batch that are not sparse, by their place among its leaves."""
    return {i: x.detach() for i, x in enumerate(leaves_of(batch)) if isinstance(x, Tensor) and x.layout == torch.strided}


def _one_a_sample(tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return copies of those that have one value a sample, `[samples]`."""
    return {i: x.flatten().clone() for i, x in tensors.items() if x.ndim == 1 or (x.ndim == 2 and x.shape[1] == 1)}


def _marks(batch: Any) -> dict[int, Tensor | None]:
    """Return of each leaf of a batch what tells its samples apart, `None` of those that are not several numbers a sample."""
    dense = _dense(batch)
    fit = {i: x for i, x in dense.items() if x.is_floating_point() and x.ndim > 1 and x[:1].numel() > 1}
    return {i: marks(fit[i]) if i in fit else None for i, _ in enumerate(leaves_of(batch))}


def _some_a_sample(tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return copies of those that have a few numbers a sample, `[samples, numbers]`."""
    numbers = {i: x for i, x in tensors.items() if x.is_floating_point() and x.ndim > 0 and x.numel()}
    return {i: x.reshape(len(x), -1).clone() for i, x in numbers.items() if x[0].numel() <= WIDEST}
