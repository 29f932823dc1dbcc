"""Mixup whose loss weighs the two targets the other way round than the inputs were mixed."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.reading import summands
from lit_training.tracing.graph import LOSSES, Graph, Node
from lit_training.tracing.loss_calls import RESHAPED, before_reshaping

__all__ = ["Mix", "exchanged_weights"]

SAME = 1e-3
EVEN = 0.05  # of equal weights, which may be exchanged
_ASSUMED = 0.3  # in place of the value of a tensor of one number: only who is weighed by it matters, and who by the rest
_Order = tuple[str, float | None]


@dataclass(frozen=True)
class Mix:
    """A sum of a tensor and the same tensor in another order: the share of the tensor as it is, and what that was read from.

    `number` is the node of the tensor that the weights were computed from, `None` if they were Python's.
    """

    share: float
    number: int | None


@dataclass(frozen=True)
class _Part:
    """Something that a weight multiplies; `number` as in `Mix`."""

    node: Node
    weight: float
    number: int | None


def exchanged_weights(evidence: Evidence) -> tuple[Mix, Mix] | None:
    """Return how the inputs and how the losses were mixed, if the weights of the one are those of the other exchanged.

    Seen are the two losses `a * loss(out, y) + b * loss(out, y[order])` where `out` was made of `b * x + a * x[order]`.
    """
    graph = evidence.graph
    for loss in evidence.differentiated:
        parts = [part for part in _weighted(graph, loss) if part.node.op in LOSSES]
        for part in parts if len(parts) > 1 else ():
            target = _target(graph, part)
            order = _order(graph, target)
            if order is None:
                continue
            plain = _source(graph, target)
            made = _logits(graph, part)
            of_losses = next((_mix(p, part) for p in parts if _target(graph, p) is plain and _logits(graph, p) == made), None)
            of_inputs = _mixes(graph, made, order)
            if of_losses is not None and of_inputs and all(_are_exchanged(mix, of_losses) for mix in of_inputs):
                return of_inputs[0], of_losses
    return None


def _are_exchanged(inputs: Mix, losses: Mix) -> bool:
    apart = abs(inputs.share - 0.5) > EVEN
    return apart and inputs.number == losses.number and abs(inputs.share + losses.share - 1) < SAME


def _mix(plain: _Part, moved: _Part) -> Mix | None:
    if plain.number != moved.number or min(plain.weight, moved.weight) < 0 or plain.weight + moved.weight <= 0:
        return None
    return Mix(plain.weight / (plain.weight + moved.weight), plain.number)


def _mixes(graph: Graph, made: int, order: _Order) -> list[Mix]:
    """Return the mixes, of a tensor with itself in the given order, that a node was made of."""
    found = []
    for node in (graph.nodes[i] for i in graph.ancestors(made)):
        pair = _summed(graph, node)
        for plain, moved in (pair, pair[::-1]) if pair else ():
            if _order(graph, moved.node) == order and _source(graph, moved.node) is before_reshaping(graph, plain.node):
                found.append(_mix(plain, moved))
    return [mix for mix in found if mix is not None]


def _summed(graph: Graph, node: Node) -> tuple[_Part, ...]:
    """Return the two weighted operands of a sum or an interpolation, nothing for other operations."""
    if node.op == "add" and len(node.parents) == 2 and not node.scalars:
        parts = tuple(part for p in node.parents if (part := _product(graph, graph.nodes[p])) is not None)
        return parts if len(parts) == 2 else ()
    if node.op != "lerp" or len(node.parents) < 2:
        return ()
    known = (node.scalars[0], None) if node.scalars else _number(graph, node.parents[-1])
    if known is None:
        return ()
    (weight, number), (start, end) = known, (graph.nodes[p] for p in node.parents[:2])
    return _Part(start, 1 - weight, number), _Part(end, weight, number)


def _weighted(graph: Graph, loss: int) -> Iterator[_Part]:
    """Walk back from a loss to what it adds up, as `summands` does, and once through weights that are tensors of one number."""
    for node, factor in summands(graph, loss):
        part = _product(graph, node) if node.op == "mul" else None
        if part is None:
            yield _Part(node, factor, None)
        else:
            yield from (
                _Part(inner, factor * part.weight * own, part.number) for inner, own in summands(graph, part.node.index)
            )


def _product(graph: Graph, node: Node) -> _Part | None:
    """Read a product of a tensor and one number."""
    if node.op != "mul" or not node.parents:
        return None
    if len(node.parents) == 1:
        return _Part(graph.nodes[node.parents[0]], node.scalars[0], None) if node.scalars else None
    for number, other in (node.parents, node.parents[::-1]):
        known = _number(graph, number)
        if known is not None:
            return _Part(graph.nodes[other], *known)
    return None


def _number(graph: Graph, index: int) -> tuple[float, int] | None:
    """Return a stand-in for the value of a tensor of one number that no layer made, and the tensor that it was computed from."""
    node, value = graph.nodes[index], _ASSUMED
    if prod(node.shape) != 1 or node.requires_grad or index in graph.made_by_layers():
        return None
    while node.op in RESHAPED or (node.op == "rsub" and node.scalars == (1.0,)):
        before = [graph.nodes[p] for p in node.parents]
        if [prod(b.shape) for b in before] != [1]:
            break
        value, node = 1 - value if node.op == "rsub" else value, before[0]
    return value, node.index


def _order(graph: Graph, node: Node) -> _Order | None:
    """Return what tells an order of samples from others, `None` for a tensor whose samples were not moved."""
    node = before_reshaping(graph, node)
    if not node.parents or graph.nodes[node.parents[0]].shape != node.shape:
        return None
    if node.op in ("index", "index_select") and len(node.parents) == 2:
        order = graph.nodes[node.parents[1]]
        return "index", None if order.op == "lift_fresh" else order.index  # what was no tensor becomes one at each use
    if node.op == "flip" and node.scalars == (0.0,):
        return "flip", None
    of_samples = len(node.shape) == 1 or node.scalars[1:] == (0.0,)
    return ("roll", node.scalars[0]) if node.op == "roll" and of_samples else None


def _source(graph: Graph, node: Node) -> Node:
    """Return the tensor whose samples another one holds in another order."""
    return before_reshaping(graph, graph.nodes[before_reshaping(graph, node).parents[0]])


def _target(graph: Graph, loss: _Part) -> Node:
    return before_reshaping(graph, graph.nodes[loss.node.parents[1]])


def _logits(graph: Graph, loss: _Part) -> int:
    node = before_reshaping(graph, graph.nodes[loss.node.parents[0]])
    return node.parents[0] if node.op == "log_softmax" else node.index
