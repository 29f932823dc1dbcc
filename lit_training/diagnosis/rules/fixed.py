"""Random weights that stay as they were drawn with good reason: what is lost by them the layers that learn can make up for."""

import math

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.parameters import ParameterFacts
from lit_training.tracing.graph import NORMALISATIONS, Graph, Node

__all__ = ["is_corrected", "is_fixed_classifier", "is_fixed_factor", "loses_nothing"]


def loses_nothing(evidence: Evidence, frozen: ParameterFacts) -> bool:
    """Tell whether a frozen layer in front is as wide as what it reads, and layers read it with nothing nonlinear in between.

    Such a projection only turns its input, and what follows learns as well from that: MoCo v3 keeps the one of its patches.
    """
    graph, made = evidence.graph, evidence.graph.made_by_layers()
    calls = [node for node in graph.layers() if node.weight == frozen.name]
    wide = frozen.kind == "weight" and frozen.shape[0] >= math.prod(frozen.shape[1:])
    in_front = wide and all(made.isdisjoint(node.parents) for node in calls)
    return in_front and bool(calls) and all(_keeps_places(graph, node, frozen) for node in calls)


def _keeps_places(graph: Graph, node: Node, frozen: ParameterFacts) -> bool:
    """Tell whether a layer reads each number of its input once, as patches do, and goes on linearly."""
    given = next((graph.nodes[p] for p in node.parents if graph.nodes[p].origin == "data"), None)
    kernel = frozen.shape[2:]
    places = zip(node.shape[2:], given.shape[2:], kernel, strict=False) if given is not None and kernel else ()
    return (
        given is not None and all(own * size == read for own, read, size in places) and graph.follows(node.index) == ("linear",)
    )


def is_fixed_factor(evidence: Evidence, frozen: ParameterFacts) -> bool:
    """Tell whether a frozen layer is one factor of a correction whose other one learns, and starts at zero, as in LoRA-FA.

    The product is added to what something else makes: with it alone, a network would have random features only.
    """
    calls = [node for node in evidence.graph.layers() if node.weight == frozen.name]
    others = [other for node in calls for other in _next_layers(evidence.graph, node.index)]
    facts = [evidence.parameters.get(other.weight) for other in others]
    zero = all(f is not None and f.requires_grad and f.optimized is not False and f.norm == 0 for f in facts)
    return bool(others) and zero and all(_is_added(evidence.graph, other.index) for other in others)


def is_corrected(evidence: Evidence, frozen: ParameterFacts) -> bool:
    """Tell whether a frozen layer gets a correction that starts at zero, and most layers that do look trained."""
    facts, graph = evidence.parameters, evidence.graph
    corrected = set()
    for node in graph.nodes:
        summed = [facts.get(layer) for p in node.parents if node.op == "add" and (layer := _layer_behind(graph, p))]
        if any(f is not None and f.requires_grad and f.norm == 0 for f in summed):
            corrected |= {f.name for f in summed if f is not None and not f.requires_grad}
    return frozen.name in corrected and 2 * sum(facts[name].fresh for name in corrected) <= len(corrected)


def is_fixed_classifier(evidence: Evidence, frozen: ParameterFacts) -> bool:
    """Tell whether a frozen layer is the last one, orthogonal, and all other weights learn: fixed directions for the classes.

    Hoffer et al. (2018) and Yang et al. (2022) keep such a classifier; what a filter of names catches is drawn by default.
    """
    graph = evidence.graph
    calls = [node for node in graph.layers() if node.weight == frozen.name]
    others = [f for f in evidence.parameters.values() if f.kind == "weight" and f.name != frozen.name]
    last = bool(calls) and not any(graph.reaches_layer(node.index) for node in calls)
    return last and frozen.orthogonal and bool(others) and all(f.requires_grad for f in others)


def _next_layers(graph: Graph, index: int) -> list[Node]:
    """Return the layers that read what a node made, none if anything but reshaping and dropout lies in between."""
    readers, stack, layers = graph.consumers(), [index], []
    while stack:
        for reader in (graph.nodes[r] for r in readers[stack.pop()]):
            if reader.weight:
                layers.append(reader)
            elif reader.op == "add" or reader.op in NORMALISATIONS or graph.acts(reader) is not None:
                return []
            else:
                stack.append(reader.index)
    return layers


def _layer_behind(graph: Graph, index: int) -> str:
    """Return the weight of the layer that made a node, at most reshaped or scaled since, an empty string where there is none."""
    node, made = graph.nodes[index], graph.made_by_layers()
    while not node.weight:
        data = [p for p in node.parents if p in made]
        if len(data) != 1 or graph.acts(node) is not None:
            return ""
        node = graph.nodes[data[0]]
    return node.weight


def _is_added(graph: Graph, index: int) -> bool:
    """Tell whether what a layer made is added to what does not come from it, at most reshaped or scaled before."""
    readers, made = graph.consumers(), graph.made_by_layers()
    while len(readers[index]) == 1:
        node = graph.nodes[readers[index][0]]
        if node.op == "add" and any(p in made and index not in graph.ancestors(p) for p in node.parents):
            return True
        if node.weight or graph.acts(node) is not None:
            return False
        index = node.index
    return False
