"""Recurrences that a forward writes out: one weight called step after step, on the state of the step before and on new data."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lit_training.diagnosis.flow import cut_after
from lit_training.tracing.graph import Graph

__all__ = ["Recurrence", "forgotten", "recurrence"]

FEWEST = 4
_LEAVES = frozenset("parameter unregistered buffer input".split())
_CUTS = frozenset(["detach", "alias"])


@dataclass(frozen=True)
class Recurrence:
    """Calls of one weight that are steps over a sequence.

    `primed` tells that the first step reads a tensor of the batch that steps behind the second do not: a state to start from.
    """

    weight: str
    steps: int
    primed: bool


def recurrence(graph: Graph, calls: Sequence[int]) -> Recurrence | None:
    """Return the calls of a weight, by their nodes, as a recurrence; `None` where they are none.

    Each call takes what came of the one before, and something of the batch that no earlier one has taken. So layers that share a
    weight, fixed-point iterations, unrolled optimisers, recycling and rollouts on their own output are none.

    >>> import torch
    >>> from lit_training.tracing.trace import Tracer
    >>> cell, x, h = torch.nn.RNNCell(3, 4), torch.zeros(2, 5, 3), None
    >>> with Tracer(cell, batch=x) as tracer:
    ...     for t in range(5):
    ...         h = cell(x[:, t], h)
    >>> calls = [node.index for node in tracer.graph.layers() if node.weight == "weight_hh"]
    >>> recurrence(tracer.graph, calls).steps  # the first one has no state yet
    4
    """
    inside, values, sources = _descendants(graph, calls[0]), _values(graph), _batch_sources(graph)
    known: set[int] = set()
    later: set[int] = set()
    for before, call in pairwise(calls):
        met, arriving = _step(graph, call, before, inside)
        new = {values[i] for i in arriving if sources[i]} - known
        if before not in met or not new:
            return None
        later = later.union(*(sources[i] for i in arriving)) if known else later
        known |= new
    return Recurrence(graph.nodes[calls[0]].weight, len(calls), primed=not sources[calls[0]] <= later)


def forgotten(graph: Graph, used: set[int], reached: set[int]) -> Recurrence | None:
    """Return a recurrence of which the last call alone learns, because its state is cut off at every step; `None` without one.

    Args:
        graph: of one step.
        used: nodes that its losses were computed from.
        reached: nodes that their gradients arrive at.
    """
    for *lost, last in _calls(graph, used).values():
        if len(lost) + 1 < FEWEST or last not in reached or not reached.isdisjoint(lost):
            continue
        trained = all(graph.nodes[i].requires_grad for i in lost)
        cuts = [cut_after(graph, i, used) for i in lost if trained]
        if trained and all(cut is not None and cut[0].op in _CUTS and cut[0].grad_mode for cut in cuts):
            found = recurrence(graph, [*lost, last])
            if found is not None and not found.primed:
                return found
    return None


def _calls(graph: Graph, used: set[int]) -> dict[str, list[int]]:
    """Return the calls of each weight among some nodes."""
    calls: dict[str, list[int]] = {}
    for node in graph.layers():
        if node.index in used:
            calls.setdefault(node.weight, []).append(node.index)
    return calls


def _descendants(graph: Graph, index: int) -> set[int]:
    inside = {index}
    for node in graph.nodes[index + 1 :]:
        if not inside.isdisjoint(node.parents):
            inside.add(node.index)
    return inside


def _step(graph: Graph, call: int, before: int, inside: set[int]) -> tuple[set[int], set[int]]:
    """Return the nodes of the recurrence that a call was made from since the call before, and what reached them from outside."""
    met, arriving, stack = {call}, set(), [call]
    while stack:
        for parent in graph.nodes[stack.pop()].parents:
            if parent not in inside:
                arriving.add(parent)
            elif parent >= before and parent not in met:
                met.add(parent)
                stack += [parent] if parent > before else []
    return met, arriving


def _values(graph: Graph) -> list[int]:
    """Return a number for each node that is the same for nodes that are computed alike from the same leaves."""
    numbers: dict[object, int] = {}
    found: list[int] = []
    place = 0
    for before, node in zip([None, *graph.nodes], graph.nodes, strict=False):
        again = before is not None and (before.op, before.parents, before.scalars) == (node.op, node.parents, node.scalars)
        place = place + 1 if again else 0  # of several outputs
        alike = node.op, tuple(found[p] for p in node.parents), node.scalars, place
        found.append(numbers.setdefault(node.index if node.op in _LEAVES else alike, len(numbers)))
    return found


def _batch_sources(graph: Graph) -> list[frozenset[int]]:
    """Return for each node the tensors of the batch that it was computed from."""
    found: list[frozenset[int]] = []
    for node in graph.nodes:
        own = frozenset([node.index] if node.name == "batch" else [])
        found.append(own.union(*(found[p] for p in node.parents)))
    return found
