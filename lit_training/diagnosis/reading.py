"""Reading a traced loss: what made its operands, and how it was reduced to one number."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lit_training.tracing.graph import LINEAR, LOSSES, Graph, Node
from lit_training.tracing.loss_calls import LossCall

__all__ = ["Term", "gathering_head", "is_masked", "logits_of", "producer", "smoothing", "summands", "terms"]

_SHAPING = frozenset(
    "view _unsafe_view reshape alias squeeze unsqueeze transpose permute t select slice _to_copy clone detach "
    "split split_with_sizes unsafe_split unbind".split()
)
_MOST_SUMMANDS = 500
_PRODUCTS = frozenset("mm bmm _sparse_mm _sparse_addmm addmm".split())
_GATHERS = frozenset("index_add scatter_add".split())
_PICKS = frozenset("mul where masked_fill index masked_select index_put _index_put_impl".split())
_SCALAR = frozenset("div mul neg add sub _to_copy clone alias squeeze view".split())


@dataclass(frozen=True)
class Term:
    """One summand of a loss: the operation that reduced it to a number, and what that was divided by afterwards."""

    node: Node
    divisor: float

    def summed(self, graph: Graph, rows: int) -> bool:
        """Tell whether the values of `rows` samples were added up, and not divided by their number."""
        averaged = self.divisor >= rows / 2
        if self.node.op in LOSSES:
            return self.node.scalars[:1] == (2.0,) and not averaged
        over = graph.nodes[self.node.parents[0]].shape if self.node.parents else ()
        return self.node.op == "sum" and bool(over) and over[0] % max(rows, 1) == 0 and not averaged


def producer(graph: Graph, node: Node) -> Node:
    """Walk back through reshaping, and a bias that is added by hand, to the operation that made the values."""
    while node.parents:
        biased = _biased(graph, node)
        if biased is None and node.op not in _SHAPING:
            break
        node = biased or graph.nodes[node.parents[0]]
    return node


def logits_of(graph: Graph, call: LossCall) -> Node | None:
    """Return the scores that a cross-entropy of torch's makes probabilities of; `None` where a loss takes something else."""
    scores = graph.nodes[call.prediction]
    if "nll" in call.op:
        maker = producer(graph, scores)
        return graph.nodes[maker.parents[0]] if maker.op == "log_softmax" and maker.parents else None
    return scores if call.op == "binary_cross_entropy_with_logits" else None


def gathering_head(graph: Graph, node: Node) -> str:
    """Return the weight that made scores which are then summed over neighbours, `""` where they are not.

    Sums over neighbours are what a square matrix that is not learnt makes of its right side, or what edges add up.

    >>> from lit_training.tracing.trace import trace
    >>> import torch
    >>> class Neighbours(torch.nn.Linear):
    ...     def forward(self, x): return torch.ones(8, 8) @ super().forward(x)
    >>> graph, _ = trace(Neighbours(3, 2), torch.zeros(8, 3))
    >>> gathering_head(graph, graph.nodes[-1])
    'weight'
    """
    made, gathered = graph.made_by_layers(), False
    while node.parents and not node.weight:
        parents = [graph.nodes[p] for p in node.parents]
        learnt = [p for p in parents if p.index in made or (p.origin == "parameter" and len(p.shape) > 1)]
        gathers = node.op in _GATHERS or (node.op in _PRODUCTS and _is_square(parents[-2]))
        passes = node.op in _SHAPING or node.op in ("add", "index", "index_select") or (gathered and node.op == "mul")
        if len(learnt) != 1 or not (gathers or passes):
            break
        gathered, node = gathered or gathers, learnt[0]
    return _weight_of(graph, node) if gathered else ""


def _is_square(node: Node) -> bool:
    return len(node.shape) > 1 and node.shape[-1] == node.shape[-2]


def _weight_of(graph: Graph, node: Node) -> str:
    """Return the parameter that a node is or that it multiplies, also one that multiplies what is the same for every batch."""
    while not node.weight and node.op != "parameter" and node.parents:
        node = graph.nodes[node.parents[-1]] if node.op in LINEAR else graph.nodes[node.parents[0]]
    return node.weight or node.name


def _biased(graph: Graph, node: Node) -> Node | None:
    """Return the product of data and weights that an addition adds a parameter to."""
    parents = [graph.nodes[p] for p in node.parents]
    if node.op != "add" or len(parents) != 2 or {p.origin for p in parents} != {"data", "parameter"}:
        return None
    return next((p for p in parents if p.weight), None)


def terms(graph: Graph, loss: int) -> Iterator[Term]:
    """Walk back from a loss through arithmetic of single numbers to the operations that reduced a batch to them.

    A quotient of two such numbers is a term itself: a masked mean, an overlap.

    >>> from lit_training.tracing.trace import trace
    >>> import torch
    >>> class Mean(torch.nn.Linear):
    ...     def forward(self, x): return super().forward(x).sum() / 8
    >>> graph, _ = trace(Mean(3, 1), torch.zeros(8, 3))
    >>> [(term.node.op, term.divisor) for term in terms(graph, graph.nodes[-1].index)]
    [('sum', 8.0)]
    """
    stack = [(loss, 1.0)]
    seen = set()
    while stack:
        index, divisor = stack.pop()
        node = graph.nodes[index]
        if index in seen:
            continue
        seen.add(index)
        relative = node.op == "div" and len(node.parents) == 2 and graph.nodes[node.parents[1]].origin == "data"
        if node.op in _SCALAR and not node.shape and node.op not in LOSSES and not relative:
            stack.extend((parent, divisor * _divisor(node)) for parent in node.parents if not graph.nodes[parent].shape)
            if any(graph.nodes[parent].shape for parent in node.parents):
                yield Term(node, divisor)
        elif node.parents:
            yield Term(node, divisor)


def summands(graph: Graph, loss: int) -> Iterator[tuple[Node, float]]:
    """Walk back from a loss through sums, means and factors that are known to what it adds up, each with its factor per element.

    >>> from lit_training.tracing.trace import trace
    >>> import torch
    >>> class Mean(torch.nn.Linear):
    ...     def forward(self, x): return (1 - super().forward(x).exp()).mean()
    >>> graph, _ = trace(Mean(3, 1), torch.zeros(8, 3))
    >>> [(node.op, factor) for node, factor in summands(graph, graph.nodes[-1].index)]
    [('exp', -0.125)]
    """
    stack = [(loss, 1.0)]
    for _ in range(_MOST_SUMMANDS):
        if not stack:
            return
        index, factor = stack.pop()
        node = graph.nodes[index]
        factors = _factors(graph, node)
        if factors is None:
            yield node, factor
        else:
            stack.extend((parent, factor * own) for parent, own in zip(node.parents, factors, strict=True))


def smoothing(graph: Graph, call: LossCall, loss: int) -> float:
    """Return the label smoothing of a cross-entropy that is all of a loss, 0 if there is none.

    >>> import torch
    >>> from lit_training.tracing.probe import Probe
    >>> net, y = torch.nn.Linear(3, 4), torch.tensor([0, 1, 2, 3, 0])
    >>> with Probe(net, batch_size=5) as probe:
    ...     loss = torch.nn.functional.cross_entropy(net(torch.randn(5, 3)), y, label_smoothing=0.1)
    >>> round(smoothing(probe.graph, probe.losses[0], probe.tracer.read(loss).index), 6)
    0.1
    """
    total = producer(graph, graph.nodes[loss])
    parts = [graph.nodes[p] for p in total.parents] if total.op == "add" else []
    if len(parts) != 2 or any(part.op != "mul" or len(part.scalars) != 1 for part in parts) or "nll" not in call.op:
        return 0.0
    labels = [part for part in parts if part.parents == (call.node,)]
    others = [part for part in parts if part not in labels and call.prediction in graph.ancestors(part.index)]
    if not labels or not others:
        return 0.0
    share, each = 1 - labels[0].scalars[0], others[0].scalars[0]
    return share if math.isclose(each * graph.nodes[call.prediction].shape[1], share, rel_tol=1e-6) else 0.0


def is_masked(graph: Graph, call: LossCall) -> bool:
    """Tell whether some elements of a loss may not count, so that a target that is not known may hold any number.

    It got weights, or is multiplied by or picked from with something, element by element, that was made of the batch, and not by
    layers, as a precision is.
    """
    made = graph.made_by_layers()

    def given(index: int) -> bool:
        return index not in made and any(graph.nodes[i].name == "batch" for i in graph.ancestors(index))

    if call.node < 0:
        return False
    loss = graph.nodes[call.node]
    if loss.op in LOSSES and (any(given(p) for p in loss.parents[2:]) or not loss.shape):
        return any(given(p) for p in loss.parents[2:])
    return any(
        graph.nodes[reader].op in _PICKS and any(given(p) for p in graph.nodes[reader].parents if p != call.node)
        for reader in graph.consumers()[call.node]
    )


def _factors(graph: Graph, node: Node) -> tuple[float, ...] | None:
    """Return what a linear operation multiplies each operand by, `None` for other operations."""
    scale = node.scalars[0] if node.scalars else 1.0
    if node.op in ("add", "sub", "rsub") and len(node.parents) == 2:
        signs = {"add": (1.0, scale), "sub": (1.0, -scale), "rsub": (-scale, 1.0)}
        return signs[node.op]
    if len(node.parents) != 1:
        return None
    if node.op in ("add", "sub", "sum", *_SHAPING):
        return (1.0,)
    if node.op in ("neg", "rsub"):
        return (-1.0,)
    if node.op == "mean":
        return (math.prod(node.shape) / max(math.prod(graph.nodes[node.parents[0]].shape), 1),)
    if node.op == "mul" and node.scalars:
        return (scale,)
    return (1 / scale,) if node.op == "div" and node.scalars and scale != 0 else None


def _divisor(node: Node) -> float:
    if node.op == "div" and len(node.parents) == 1 and node.scalars and node.scalars[0] > 0:
        return node.scalars[0]
    if node.op == "mul" and len(node.parents) == 1 and node.scalars and node.scalars[0] > 0:
        return 1 / node.scalars[0]
    return 1.0
