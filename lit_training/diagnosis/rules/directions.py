"""Which way parts of a loss go that are compared or written out by hand: differences, similarities, divergences."""

from collections import defaultdict

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.reading import producer, summands

__all__ = ["away_from_partners", "away_from_targets", "concave_divergence"]


def away_from_targets(evidence: Evidence, climbs: bool) -> bool:
    """Tell whether each step makes the differences from the targets larger, and nothing else in the loss draws to targets."""
    towards = {-d.towards if climbs else d.towards for d in evidence.directions if d.kind == "difference"}
    others = [call for call in evidence.losses if evidence.graph.nodes[call.node].op == call.op]
    return towards == {-1} and not others


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
    graph = evidence.graph
    for loss in evidence.differentiated:
        straight: dict[int, float] = defaultdict(float)
        bent: dict[tuple[str, int], float] = defaultdict(float)
        for node, factor in summands(graph, loss):
            if node.op in ("exp", "log") and node.parents:
                bent[node.op, producer(graph, graph.nodes[node.parents[0]]).index] += factor
            straight[node.index] += factor
        signs = {factor > 0 for (op, _), factor in bent.items() if op == "exp"}
        for (op, inner), factor in bent.items():
            falls = factor < 0 < straight[inner] if op == "exp" else factor > 0 > straight[inner]
            made = any(graph.nodes[i].weight for i in graph.ancestors(inner))
            if made and falls and signs <= {False}:
                return "u - exp(u)" if op == "exp" else "log(v) - v"
    return None
