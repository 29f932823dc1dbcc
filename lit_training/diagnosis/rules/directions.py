"""Which way parts of a loss go that are compared or written out by hand: differences, similarities, divergences."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.reading import producer, summands, terms
from lit_training.tracing.graph import LOSSES, Graph, Node
from lit_training.tracing.loss_calls import RESHAPED, from_loader

__all__ = [
    "away_from_choices",
    "away_from_partners",
    "away_from_targets",
    "concave_divergence",
    "heavy_divergence",
    "is_even",
    "is_open",
    "is_turned",
    "lowers_errors",
]

_COMPARING, _SORTING = frozenset("lt gt le ge".split()), frozenset("argsort sort sign".split())
_PROBABILITIES = frozenset("softmax log_softmax logsumexp exp".split())
_SUMS, _PRODUCTS = frozenset("add sub".split()), frozenset("mul div mm bmm dot".split())
_ODD, _EVEN = RESHAPED | frozenset("sum mean neg".split()), frozenset("square abs linalg_vector_norm".split())


def lowers_errors(evidence: Evidence) -> bool:
    """Tell whether all that the loss adds up are errors that are compared with targets, none of them subtracted.

    Whatever the outputs mean then (a rate, a disparity, a score of the other class), they go where the errors fall.
    """
    calls = {call.node for call in evidence.losses}
    parts = [part for loss in evidence.differentiated for part in summands(evidence.graph, loss)]
    parts = [(node, factor) for node, factor in parts if node.origin == "data"]
    return bool(parts) and all(node.index in calls and factor > 0 for node, factor in parts)


def is_open(evidence: Evidence, output: int) -> bool:
    """Tell whether outputs may rightly fall as targets rise: as a rate of what is waited for, or a score of a place in an order.

    The loss then multiplies the targets by `exp` or a softplus of the outputs, or reads their order only.
    """
    graph = evidence.graph
    read = graph.ancestors(output)
    given = [node.index for node in graph.nodes if node.name == "batch" and node.index not in read]
    return any(_is_rate(graph, output, target) or _is_order(graph, target) for target in given)


def is_even(evidence: Evidence, output: int) -> bool:
    """Tell whether the loss is the same for outputs of the other sign, which may then go either way: a scale-invariant error."""
    graph = evidence.graph
    parities = {output: -1}
    for node in graph.nodes[output + 1 :]:
        of = [parities[p] for p in node.parents if p in parities]
        if of:
            parities[node.index] = _parity(node, of)
    return bool(evidence.differentiated) and all(parities.get(loss) == 1 for loss in evidence.differentiated)


def _parity(node: Node, of: Sequence[int]) -> int:
    """Return 1 for what stays the same when some operands change their sign or none does, -1 for what changes it too, else 0."""
    if all(parity == 1 for parity in of):
        return 1
    if 0 in of:
        return 0
    if node.op in _EVEN or (node.op == "pow" and node.scalars[:1] and node.scalars[0] % 2 == 0):
        return 1
    if node.op in _SUMS:
        return -1 if len(node.parents) > 1 and len(of) == len(node.parents) and 1 not in of else 0
    return math.prod(of) if node.op in _PRODUCTS else -1 if node.op in _ODD else 0


def _is_rate(graph: Graph, output: int, target: int) -> bool:
    for node in graph.nodes:
        if node.op != "mul" or len(node.parents) != 2:
            continue
        operands = [_before_a_constant(graph, producer(graph, graph.nodes[p])) for p in node.parents]
        rates = [p for p in operands if p.op in ("exp", "softplus") and _made_of(graph, p.index) == output]
        if rates and target in (p.index for p in operands):
            return True
    return False


def _before_a_constant(graph: Graph, node: Node) -> Node:
    """Return what a constant was added to, or what was kept away from zero."""
    while node.op in ("add", "clamp", "clamp_min") and len(node.parents) == 1:
        node = producer(graph, graph.nodes[node.parents[0]])
    return node


def is_turned(evidence: Evidence, output: int) -> bool:
    """Tell whether outputs are turned round on every way to the targets, or before probabilities are made of them.

    Then they may rightly fall as targets rise: `margin - distance`, `1 / depth`, `log_softmax(-energy)`.
    """
    graph = evidence.graph
    batch = {node.index for node in graph.nodes if node.name == "batch"}
    given = batch - graph.ancestors(output) or batch
    readers, seen, stack = graph.consumers(), {output}, [output]
    meets = False
    while stack:
        for reader in (graph.nodes[r] for r in readers[stack.pop()] if r not in seen):
            others = [p for p in reader.parents if output not in graph.ancestors(p)]
            if any(not given.isdisjoint(graph.ancestors(p)) for p in others):
                meets = True
                continue
            turns = _turns(graph, reader, seen)
            seen.add(reader.index)
            if not turns:
                stack.append(reader.index)
            elif any(graph.nodes[r].op in _PROBABILITIES for r in readers[reader.index]):
                return True
    return not meets


def _turns(graph: Graph, node: Node, rising: set[int]) -> bool:
    """Tell whether an operation gives the less, the more it gets."""
    second = len(node.parents) == 2 and node.parents[1] in rising and node.parents[0] not in rising
    return (
        (second and node.op in ("div", "sub"))
        or node.op in ("neg", "rsub", "reciprocal")
        or (node.op == "mul" and node.scalars[:1] < (0.0,))
    )


def _made_of(graph: Graph, index: int) -> int:
    """Return what an activation was applied to, looking through reshaping."""
    return producer(graph, graph.nodes[graph.nodes[index].parents[0]]).index


def _is_order(graph: Graph, target: int) -> bool:
    """Tell whether targets are only ever compared with each other."""
    readers, ends, stack = graph.consumers(), [], [target]
    while stack:
        for reader in (graph.nodes[r] for r in readers[stack.pop()]):
            own = all(from_loader(graph, graph.nodes[p]) for p in reader.parents)
            if reader.op in RESHAPED or (reader.op == "sub" and own and len(reader.parents) == 2):
                stack.append(reader.index)
            else:
                ends.append(reader.op in _SORTING or (reader.op in _COMPARING and own and len(reader.parents) == 2))
    return bool(ends) and all(ends)


def away_from_targets(evidence: Evidence, climbs: bool) -> bool:
    """Tell whether each step makes the differences from the targets larger, and nothing else in the loss draws to targets."""
    towards = {-d.towards if climbs else d.towards for d in evidence.directions if d.kind == "difference"}
    others = [call for call in evidence.losses if evidence.graph.nodes[call.node].op == call.op]
    return towards == {-1} and not others


def away_from_choices(evidence: Evidence, climbs: bool) -> bool:
    """Tell whether each step lowers the scores, probabilities or similarities that targets pick, and raises none of them."""
    graph, readers = evidence.graph, evidence.graph.consumers()
    towards = set()
    for found in evidence.directions:
        if found.kind == "choice":
            turned = [r for r in readers[graph.nodes[found.node].parents[0]] if graph.nodes[r].op == "neg"]
            energy = any(graph.nodes[r].op in _PROBABILITIES for neg in turned for r in readers[neg])
            towards.add(0 if energy else -found.towards if climbs else found.towards)
    return towards - {0} == {-1}


def away_from_partners(evidence: Evidence, climbs: bool) -> bool:
    """Tell whether a contrastive loss parts partners, and all that the network makes goes into its similarities."""
    graph = evidence.graph
    wrong = [d.node for d in evidence.directions if d.kind == "similarity" and d.towards == (1 if climbs else -1)]
    ends = {layer.node for layer in evidence.layers if layer.node is not None and not graph.reaches_layer(layer.node)}
    return any(ends <= graph.ancestors(node) for node in wrong)


def concave_divergence(evidence: Evidence) -> str | None:
    """Return in words the part of a loss that falls without bound: `u - exp(u)`, or `log(v) - v`, of what layers made.

    A Gaussian's divergence from the standard normal holds `exp(u) - u` of its log variance u, a Poisson likelihood of its log rate.
    """
    for loss in evidence.differentiated:
        found = _divergences(evidence, loss)
        falling = [op for op, factor, _ in found if factor < 0]
        if falling and len(falling) == len(found):
            return "u - exp(u)" if falling[0] == "exp" else "log(v) - v"
    return None


def heavy_divergence(evidence: Evidence) -> tuple[float, bool] | None:
    """Return by how much a Gaussian's divergence outweighs an averaged error beside it, and whether it is summed over samples.

    A code of k numbers that holds anything costs about k times the divergence's weight; what it can gain is the variance of a
    sample's targets, times the weight of a squared error. Above 1 a code that holds nothing is the cheapest.
    """
    for loss in evidence.differentiated:
        gains = list(_gains(evidence, loss))
        costs = [
            (2 * factor * math.prod(evidence.graph.nodes[node].shape) / evidence.batch_size, _summed(evidence, loss, node))
            for _, factor, node in _divergences(evidence, loss)
            if factor > 0
        ]
        if costs and gains:
            cost, summed = max(costs)
            return cost / max(gains), summed
    return None


def _divergences(evidence: Evidence, loss: int) -> list[tuple[str, float, int]]:
    """Return each `exp(u) - u` or `v - log(v)` of what layers made that a loss adds up: which, its factor, where."""
    graph = evidence.graph
    straight: dict[int, float] = defaultdict(float)
    bent: dict[tuple[str, int], tuple[float, int]] = {}
    for node, factor in summands(graph, loss):
        if node.op in ("exp", "log") and node.parents:
            inner = producer(graph, graph.nodes[node.parents[0]]).index
            bent[node.op, inner] = factor + bent.get((node.op, inner), (0.0, 0))[0], node.index
        straight[node.index] += factor
    found = []
    for (op, inner), (factor, node_index) in bent.items():
        opposed = factor * straight[inner] < 0
        if opposed and any(graph.nodes[i].weight for i in graph.ancestors(inner)):
            found.append((op, factor if op == "exp" else -factor, node_index))
    return found


def _gains(evidence: Evidence, loss: int) -> Iterator[float]:
    """Yield what it would gain a loss to meet every target, instead of their mean, for each error that it averages over samples."""
    calls = {call.node: call for call in evidence.losses}
    for node, factor in summands(evidence.graph, loss):
        call = calls.get(node.index)
        if call is None or factor <= 0 or call.spread is None or call.spread[0] == 0:
            continue
        elements = math.prod(evidence.graph.nodes[call.prediction].shape)
        averaged = node.op in LOSSES and not node.shape and not call.summed
        each = factor / elements if averaged else factor
        if each * evidence.batch_size <= 1:
            yield each * call.spread[0] * elements / evidence.batch_size


def _summed(evidence: Evidence, loss: int, index: int) -> bool:
    """Tell whether a loss adds up over the samples what a node holds, and divides it by no multiple of their number."""
    graph, rows = evidence.graph, evidence.batch_size
    for term in terms(graph, loss):
        over = graph.nodes[term.node.parents[0]].shape
        if term.node.op == "sum" and over[:1] == (rows,) and not term.node.shape and index in graph.ancestors(term.node.index):
            return rows > 1 and term.divisor % rows != 0
    return False
