"""Logits that are cosines times a number: so bounded that a cross-entropy can hardly be lower than a guess."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.reading import producer, summands
from lit_training.tracing.graph import LINEAR, Graph, Node

__all__ = ["Bounded", "bounded_cosines", "similarity_alone"]

LEFT = 0.9  # of what guessing costs
_PASSING = frozenset("alias clone detach _to_copy".split())
_ALIGNED = _PASSING | frozenset("expand slice split".split())
_RESHAPING = frozenset("view _unsafe_view reshape unsqueeze squeeze".split())
_PICKING = (
    _ALIGNED | _RESHAPING | frozenset("t transpose permute select unbind index index_select masked_select gather".split())
)
_NO_SMALLER = _PASSING | _RESHAPING | {"clamp_min"}
_TINY = 1e-3
_FAR_BELOW = -1e3


@dataclass(frozen=True)
class Bounded:
    """A cross-entropy of `classes` whose logits, made by `maker`, stay within `bound` of 0."""

    maker: Node
    bound: float
    classes: int

    @property
    def least(self) -> float:
        """What it costs to be right with the largest cosine, where all others are the smallest."""
        return math.log1p((self.classes - 1) * math.exp(-2 * self.bound))

    @property
    def guess(self) -> float:
        """What it costs to find all classes equally likely."""
        return math.log(self.classes)


def bounded_cosines(evidence: Evidence) -> Bounded | None:
    """Return the first cross-entropy of cosines that are scaled so that it cannot fall below .9 of what guessing costs."""
    graph = evidence.graph
    for scores, cost in _log_probabilities(evidence):
        logits = graph.nodes[scores.parents[0]]
        classes = scores.shape[int(scores.scalars[0])] if scores.shape else 1
        bound = _bound(graph, logits) if classes > 1 else None
        if bound is not None and _is_masked(graph, logits):
            classes = 1 if cost is None else min(classes, round(math.exp(min(cost, math.log(classes)))))
        if bound is not None:
            found = Bounded(logits, bound, classes)
            if found.least > LEFT * found.guess:
                return found
    return None


def similarity_alone(evidence: Evidence) -> float:
    """Return the factor of a cosine to vectors that no layer made, if it is all that a loss adds up; 0 if it is not.

    >>> from lit_training.tracing.graph import Graph
    >>> similarity_alone(Evidence(Graph(), ()))
    0.0
    """
    graph, made = evidence.graph, evidence.graph.made_by_layers()
    parts = [part for loss in evidence.differentiated for part in summands(graph, loss) if part[0].origin == "data"]
    for node, _ in parts:
        halves = [graph.nodes[p] for p in node.parents]
        units = [any(_is_unit(graph, half, axis) for axis in range(-len(half.shape), 0)) for half in halves]
        if node.op != "mul" or units != [True, True] or sum(half.index in made for half in halves) != 1:
            return 0.0
    return parts[0][1] if len(parts) == 1 else 0.0


def _log_probabilities(evidence: Evidence) -> Iterator[tuple[Node, float | None]]:
    """Walk through the log-softmaxes that a cross-entropy took, of labels or of probabilities that no network made.

    With each comes its mean cost, which for logits near 0 is the logarithm of the number of classes; `None` if not known.
    """
    graph = evidence.graph
    for call in evidence.losses:
        maker = producer(graph, graph.nodes[call.prediction]) if "nll" in call.op else None
        if maker is not None and maker.op == "log_softmax":
            yield maker, None if call.summed else call.value
    for loss in evidence.differentiated:
        for node, _ in summands(graph, loss):
            parents = [graph.nodes[p] for p in node.parents] if node.op == "mul" else []
            for scores, target in zip(parents, reversed(parents), strict=True):
                if scores.op == "log_softmax" and not _is_answered(graph, target):
                    yield scores, None


def _is_answered(graph: Graph, target: Node) -> bool:
    """Tell whether targets are what some network says, such as a teacher, which may well be no better than a guess."""
    return any(graph.nodes[i].op in LINEAR for i in graph.ancestors(target.index))


def _bound(graph: Graph, node: Node) -> float | None:
    """Return how far from 0 values can be that are cosines times known numbers, `None` for others."""
    factor = 1.0
    while True:
        own = _factor(node)
        if own is None and node.op not in _PICKING and not _masks(node):
            break
        factor *= own or 1.0
        node = graph.nodes[node.parents[0]]
    if node.op == "cat":
        return _largest([_bound(graph, graph.nodes[p]) for p in node.parents], factor)
    lengths = _lengths(graph, node)
    return None if lengths is None else factor * lengths


def _masks(node: Node) -> bool:
    """Tell whether an operation takes classes out by logits far below all others, as of a sample and itself."""
    return node.op in ("masked_fill", "fill_diagonal") and bool(node.scalars) and node.scalars[0] < _FAR_BELOW


def _is_masked(graph: Graph, node: Node) -> bool:
    while node.parents and not _masks(node) and node.op not in ("mm", "bmm", "sum", "cat"):
        node = graph.nodes[node.parents[0]]
    return _masks(node)


def _factor(node: Node) -> float | None:
    """Return the size of the known number that an operation multiplies by."""
    if len(node.parents) != 1:
        return None
    if node.op == "neg":
        return 1.0
    known = bool(node.scalars) and node.scalars[0] != 0
    if node.op == "mul" and known:
        return abs(node.scalars[0])
    return 1 / abs(node.scalars[0]) if node.op == "div" and known and len(node.scalars) == 1 else None


def _lengths(graph: Graph, node: Node) -> float | None:
    """Return the product of the lengths of the vectors whose inner products a node holds, `None` if one is not known."""
    if node.op in ("mm", "bmm"):
        axes = (-1, -2)
    elif node.op == "sum" and node.scalars and graph.nodes[node.parents[0]].op == "mul":
        whole, axis = graph.nodes[node.parents[0]].shape, int(node.scalars[0])
        axis -= len(whole) if axis >= 0 else 0
        if prod(node.shape) * whole[axis] != prod(whole):
            return None
        node, axes = graph.nodes[node.parents[0]], (axis, axis)
    else:
        return None
    if len(node.parents) != 2:
        return None
    lengths = [_length(graph, graph.nodes[p], axis) for p, axis in zip(node.parents, axes, strict=True)]
    return None if lengths[0] is None or lengths[1] is None else lengths[0] * lengths[1]


def _length(graph: Graph, node: Node, axis: int) -> float | None:
    """Return the largest length that vectors along an axis, counted from the last, can have, `None` if it is not known."""
    factor = 1.0
    while not _is_unit(graph, node, axis):
        if node.op == "cat":
            parts = [graph.nodes[p] for p in node.parents]
            known = [_length(graph, part, axis) for part in parts if part.shape[axis] == node.shape[axis]]
            return _largest(known, factor) if len(known) == len(parts) else None
        own = _factor(node)
        before = _axis_before(graph, node, axis) if own is None else axis
        if before is None:
            return None
        factor, node, axis = factor * (own or 1.0), graph.nodes[node.parents[0]], before
    return factor


def _largest(bounds: Sequence[float | None], factor: float) -> float | None:
    known = [bound for bound in bounds if bound is not None]
    return factor * max(known) if known and len(known) == len(bounds) else None


def _axis_before(graph: Graph, node: Node, axis: int) -> int | None:
    """Return which axis of an operation's operand becomes the given one of its result as it is, `None` if none does."""
    if not node.parents:
        return None
    dims, shape, before = len(node.shape), node.shape, graph.nodes[node.parents[0]].shape
    found = None
    if node.op == "t" and dims == 2:
        found = -3 - axis
    elif node.op == "transpose":
        pair = [int(d) % dims - dims for d in node.scalars[:2]]
        found = pair[1 - pair.index(axis)] if axis in pair else axis
    elif node.op == "permute":
        found = int(node.scalars[axis]) % dims - dims
    elif node.op in _RESHAPING:
        behind = prod(shape[axis:])
        found = next((a for a in range(-len(before), 0) if prod(before[a:]) == behind and before[a] == shape[axis]), None)
    elif node.op in _ALIGNED and axis >= -len(before):
        found = axis
    return found if found is not None and before[found] == shape[axis] else None


def _is_unit(graph: Graph, node: Node, axis: int) -> bool:
    """Tell whether an operation divides vectors along an axis by their Euclidean norms, or by more."""
    if node.op != "div" or len(node.parents) != 2:
        return False
    vectors, norm = (graph.nodes[p] for p in node.parents)
    norm = graph.nodes[norm.parents[0]] if norm.op == "expand" else norm
    kept = norm.shape
    while norm.parents and _is_no_smaller(norm):
        norm = graph.nodes[norm.parents[0]]
    if norm.op != "linalg_vector_norm" or norm.parents != (vectors.index,) or norm.scalars[:1] != (2.0,):
        return False
    dims = len(vectors.shape)
    along = len(norm.scalars) > 1 and int(norm.scalars[1]) % dims - dims == axis
    one = prod(norm.shape) * vectors.shape[axis] == prod(vectors.shape)
    return along and one and len(kept) == dims and kept[axis] == 1


def _is_no_smaller(norm: Node) -> bool:
    """Tell whether an operation leaves norms as they are, or only makes them larger, so that none is 0."""
    if norm.op in ("clamp", "add"):
        return len(norm.parents) == len(norm.scalars) == 1 and 0 < norm.scalars[0] < _TINY
    return norm.op in _NO_SMALLER
