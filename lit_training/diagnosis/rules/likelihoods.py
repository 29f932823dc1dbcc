"""What likelihoods expect of the network's last operation, those too that a step writes out by hand."""

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.reading import producer
from lit_training.tracing.graph import Graph, Node
from lit_training.tracing.loss_calls import from_loader

__all__ = ["raw_probability", "rectified_log_rate", "softmax_of_several"]

TINY = 1e-2
OUTSIDE = 0.05
OFF = 0.2
_POSITIVE = frozenset("relu relu6 softplus exp sigmoid hardsigmoid softmax square abs".split())
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
