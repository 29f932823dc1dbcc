"""What likelihoods expect of the network's last operation, those too that a step writes out by hand."""

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.reading import producer, summands
from lit_training.tracing.graph import Graph, Node
from lit_training.tracing.loss_calls import from_loader

__all__ = ["raw_probability", "rectified_log_rate", "softmax_of_several", "sunk_likelihood", "widened_errors"]

TINY = 1e-2
OUTSIDE = 0.05
OFF = 0.2
_POSITIVE = frozenset("relu relu6 softplus exp sigmoid hardsigmoid softmax square abs".split())
_SIZES = frozenset("pow square abs linalg_vector_norm norm".split())
_CHOOSING = frozenset("gather index index_select diagonal masked_select".split())
_SAVING = frozenset("clamp clamp_min clamp_max maximum minimum nan_to_num".split())


def rectified_log_rate(evidence: Evidence) -> Node | None:
    """Return what keeps the log rate of a Poisson likelihood, `exp(u) - target * u`, above zero, though counts of 0 are seen."""
    graph = evidence.graph
    for node in graph.nodes:
        parents = [graph.nodes[p] for p in node.parents]
        if node.op != "sub" or {p.op for p in parents} != {"exp", "mul"}:
            continue
        rate, weighted = sorted(parents, key=lambda p: p.op)
        operands = [graph.nodes[p] for p in weighted.parents]
        counts = [p for p in operands if from_loader(graph, p)]
        maker = producer(graph, graph.nodes[rate.parents[0]])
        same = any(producer(graph, p) is maker for p in operands if p not in counts)
        if same and counts and maker.op in _POSITIVE and _smallest(evidence, producer(graph, counts[0])) < 1:
            return maker
    return None


def raw_probability(evidence: Evidence) -> Node | None:
    """Return the layer whose outputs a binary cross-entropy takes for probabilities, though they leave 0...1."""
    graph = evidence.graph
    for call in evidence.losses:
        if call.op == "binary_cross_entropy" and _leaves_unit(evidence, made := _saved(graph, graph.nodes[call.prediction])):
            return made
    logs = [graph.nodes[node.parents[0]] for node in graph.nodes if node.op in ("log", "log2") and node.parents]
    for_yes = {_saved(graph, operand).index for operand in logs}
    for operand in logs:
        against = _saved(graph, operand)
        if against.op != "rsub" or against.scalars[:1] != (1.0,):
            continue
        made = _saved(graph, graph.nodes[against.parents[0]])
        if made.index in for_yes and _leaves_unit(evidence, made):
            return made
    return None


def softmax_of_several(evidence: Evidence) -> Node | None:
    """Return a softmax over the columns of a loss that compares it column by column with rows that do not sum to 1."""
    graph = evidence.graph
    for call in evidence.losses:
        maker = _saved(graph, graph.nodes[call.prediction])
        alike = len(maker.shape) == 2 and maker.scalars[:1] in ((1.0,), (-1.0,))
        if maker.op == "softmax" and alike and "nll" not in call.op and (call.off_simplex or 0.0) > OFF:
            return maker
    return None


def sunk_likelihood(evidence: Evidence) -> str | None:
    """Return the logarithm of probabilities that all of the loss is made of and that the optimiser lowers, without a bound.

    Beside it there may be the size of what a layer gives, which is a penalty. What the probabilities come from is trained itself:
    a generator that lowers log(1 - D) has another's discriminator behind it.
    """
    graph, found = evidence.graph, ""
    learning = [f for f in evidence.parameters.values() if f.gradient is not None]
    if not learning or not all(f.stepping and f.requires_grad for f in learning if f.optimized is not False):
        return None
    for loss in evidence.differentiated:
        parts = [(node, -factor if evidence.maximizes else factor) for node, factor in summands(graph, loss)]
        parts = [(node, factor) for node, factor in parts if node.origin == "data" and not _is_size(graph, node)]
        if not parts or not all(factor > 0 and _is_log_probability(graph, node) for node, factor in parts):
            return None
        if not all(_is_trained(evidence, node) for node, _ in parts):
            return None
        found = _chosen_from(graph, parts[0][0]).op
    return found or None


def widened_errors(evidence: Evidence) -> Node | None:
    """Return the `exp(u)` by which squared errors are multiplied beside `+ u`, so that both fall with u, however large they are.

    A Gaussian's likelihood holds `u + error * exp(-u)` of its log variance u, or `error * exp(u) - u` of its log precision.
    """
    graph = evidence.graph
    for loss in evidence.differentiated:
        found = list(summands(graph, loss))
        straight = {node.index: factor for node, factor in found}
        for node, factor in found:
            if node.op not in ("mul", "div") or len(node.parents) != 2:
                continue
            a, b = (producer(graph, graph.nodes[p]) for p in node.parents)
            bent, errors = (a, b) if a.op == "exp" and node.op == "mul" else (b, a)
            if bent.op != "exp" or errors.op not in _SIZES or not any(from_loader(graph, p) for p in _compared(graph, errors)):
                continue
            inner, sign = producer(graph, graph.nodes[bent.parents[0]]), -1.0 if node.op == "div" else 1.0
            while inner.op == "neg" or (inner.op in ("mul", "div") and inner.scalars):
                flips = inner.op == "neg" or inner.scalars[0] < 0
                inner, sign = producer(graph, graph.nodes[inner.parents[0]]), -sign if flips else sign
            if factor > 0 and straight.get(inner.index, 0.0) * sign > 0:
                return bent
    return None


def _compared(graph: Graph, errors: Node) -> list[Node]:
    """Return what a square or size is the difference of."""
    difference = producer(graph, graph.nodes[errors.parents[0]])
    return [graph.nodes[p] for p in difference.parents] if difference.op in ("sub", "rsub") else []


def _is_log_probability(graph: Graph, node: Node) -> bool:
    node = _chosen_from(graph, node)
    if node.op == "sub" and len(node.parents) == 2:
        logits, total = (producer(graph, graph.nodes[p]) for p in node.parents)
        return total.op == "logsumexp" and producer(graph, graph.nodes[total.parents[0]]) is logits
    if node.op not in ("log", "log2"):
        return node.op in ("log_sigmoid", "log_softmax")
    inner = _saved(graph, graph.nodes[node.parents[0]])
    if inner.op == "rsub" and inner.scalars[:1] == (1.0,):
        inner = _saved(graph, graph.nodes[inner.parents[0]])
    return _chosen_from(graph, inner).op in ("sigmoid", "softmax")


def _chosen_from(graph: Graph, node: Node) -> Node:
    """Walk back through reshaping and the choice of some elements to what all of them were."""
    node = producer(graph, node)
    while node.op in _CHOOSING and node.parents:
        node = producer(graph, graph.nodes[node.parents[0]])
    return node


def _is_size(graph: Graph, node: Node) -> bool:
    """Tell whether a node is the size of what a layer gives, compared with nothing."""
    squares = node.op in _SIZES or (node.op == "mul" and len({*node.parents}) == 1)
    return squares and bool(node.parents) and bool(producer(graph, graph.nodes[node.parents[0]]).weight)


def _is_trained(evidence: Evidence, node: Node) -> bool:
    """Tell whether all last layers behind a node learn in this very step."""
    graph = evidence.graph
    ends = [layer for i in graph.ancestors(node.index) if (layer := graph.nodes[i]).weight and not graph.reaches_layer(i)]
    facts = [evidence.parameters.get(layer.weight) for layer in ends]
    return bool(facts) and all(f is not None and f.requires_grad and f.stepping and f.optimized is not False for f in facts)


def _saved(graph: Graph, node: Node) -> Node:
    """Walk back through what keeps a logarithm finite, clamps and small additions, to what was made."""
    node = producer(graph, node)
    while node.parents and (node.op in _SAVING or (node.op == "add" and node.scalars and abs(node.scalars[0]) < TINY)):
        node = producer(graph, graph.nodes[node.parents[0]])
    return node


def _leaves_unit(evidence: Evidence, made: Node) -> bool:
    """Tell whether a node is the output of a layer, none of an activation, and some values are no probabilities."""
    layer = next((layer for layer in evidence.layers if layer.node == made.index), None)
    return layer is not None and bool(layer.output.low.min() < -OUTSIDE or layer.output.high.max() > 1 + OUTSIDE)


def _smallest(evidence: Evidence, target: Node) -> float:
    """Return the smallest of a batch's targets, infinity where that is not known."""
    if target.index in evidence.inputs:
        return float(evidence.inputs[target.index].low.min())
    seen = evidence.samples.targets
    return float(seen.min()) if seen is not None else float("inf")
