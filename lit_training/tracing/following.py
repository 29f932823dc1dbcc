"""What follows each layer, where residual branches end and which layer is the last, read off a graph of the forward.

The graph is `lit_training.tracing.trace`'s, of a real forward, or `symbolic_graph`'s, which needs no data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lit_training.gains import gain
from lit_training.tracing.graph import NORMALISATIONS, Graph, Node

__all__ = ["Following", "following", "last_layers", "residual_branch_ends"]

# What a network writes out by hand, as the set of what acts on the layer's output.
_COMPOSED = {
    frozenset({"sigmoid", "product"}): "silu",
    frozenset({"softplus", "product"}): "mish",
    frozenset({"erf", "product"}): "gelu",
    frozenset({"pow", "tanh", "product"}): "gelu",
}
_LINEAR = frozenset(
    "linear product loss softmax log_softmax scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_fused_attention_overrideable logsumexp argmax topk sort linalg_vector_norm norm".split()
)
_PLAIN = frozenset(
    "relu relu6 gelu silu mish sigmoid tanh selu hardswish hardsigmoid log_sigmoid celu glu elu leaky_relu softplus".split()
)
_WITH_SCALARS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "leaky_relu": lambda s: gain("leaky_relu", s[0]),
    "elu": lambda s: gain("elu", s[0]),
    "celu": lambda s: gain(nn.CELU(s[0])),
    "softplus": lambda s: gain(nn.Softplus(*s[:2])),
    "hardtanh": lambda s: gain(nn.Hardtanh(s[0], s[1])),
    "threshold": lambda s: gain(nn.Threshold(s[0], s[1])),
    "softshrink": lambda s: gain(nn.Softshrink(s[0])),
    "hardshrink": lambda s: gain(nn.Hardshrink(s[0])),
    "rrelu": lambda s: gain(nn.RReLU(s[0], s[1])),
    "sin": lambda s: gain(torch.sin),
    "cos": lambda s: gain(torch.cos),
    "abs": lambda s: gain(torch.abs),
    "square": lambda s: gain(torch.square),
}


@dataclass(frozen=True)
class Following:
    """What acts on a layer's output: its name (several are joined by `+`), its gain, and whether that gain is known."""

    name: str
    gain: float
    known: bool = True


def following(graph: Graph, parameters: Mapping[str, nn.Parameter]) -> dict[str, Following]:
    """Return for each weight that multiplied data what acts on the result, and its gain.

    Where several things do, as when an output is used with and without an activation, the smallest gain counts: no path then
    grows with depth. What nothing acts on, or another layer, a product or a loss, has gain 1.

    Args:
        graph: of one forward.
        parameters: by name, for the slopes of PReLU.

    >>> from lit_training.tracing.trace import trace
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(1.0), nn.Linear(4, 1))
    >>> graph, _ = trace(net, torch.randn(2, 3))
    >>> [(name, found.name, round(found.gain, 2)) for name, found in following(graph, dict(net.named_parameters())).items()]
    [('0.weight', 'leaky_relu', 1.0), ('2.weight', 'linear', 1.0)]
    """
    readers = graph.consumers()
    found: dict[str, dict[str, Following]] = {}
    for layer in graph.layers():
        acts = graph.follows(layer.index)
        composed = _COMPOSED.get(frozenset(acts))
        for act in [composed] if composed else acts or ("linear",):
            found.setdefault(layer.weight, {})[act] = _gain_of(act, layer, graph, readers, parameters)
    return {weight: _smallest(list(acts.values())) for weight, acts in found.items()}


def residual_branch_ends(graph: Graph) -> list[str]:
    """Return the parameter that ends each residual branch: the last norm's scale, or the last layer's weight.

    A residual branch is what an addition adds to a value that it was itself computed from, or to a projection of one by a
    single layer.

    >>> from lit_training.tracing.trace import trace
    >>> layer = nn.TransformerEncoderLayer(4, 1, 8, norm_first=True)
    >>> graph, _ = trace(layer, torch.randn(3, 2, 4))
    >>> residual_branch_ends(graph)
    ['self_attn.out_proj.weight', 'linear2.weight']
    """
    ends: dict[str, None] = {}
    for node in graph.nodes:
        data = [p for p in node.parents if graph.nodes[p].origin == "data"]
        if node.op == "add" and len(data) == 2 and data[0] != data[1]:
            branch = _branch(graph, data[0], data[1])
            end = "" if branch is None else _end_of(graph, branch)
            if end:
                ends[end] = None
    return list(ends)


def last_layers(graph: Graph) -> list[str]:
    """Return the weights whose results reach no other weight: the heads.

    >>> from lit_training.tracing.trace import trace
    >>> last_layers(trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), torch.randn(2, 3))[0])
    ['2.weight']
    """
    layers = graph.layers()
    inner = {layer.weight for layer in layers if graph.reaches_layer(layer.index)}
    return list(dict.fromkeys(layer.weight for layer in layers if layer.weight not in inner))


def _gain_of(
    act: str, layer: Node, graph: Graph, readers: Sequence[Sequence[int]], parameters: Mapping[str, nn.Parameter]
) -> Following:
    if act in _LINEAR:
        return Following("linear", 1.0)
    node = _first(act, layer.index, graph, readers) if act == "prelu" or act in _WITH_SCALARS else None
    if act == "prelu" and node is not None:
        slopes = [parameters[i.name] for i in (graph.nodes[a] for a in graph.ancestors(node.index)) if i.name in parameters]
        slope = min(slopes, key=lambda p: p.numel()) if slopes else None
        if slope is not None:
            value = float(slope.detach().float().square().mean().sqrt())
            return Following("prelu", gain("prelu", value))
    if node is not None and node.scalars and act in _WITH_SCALARS:
        return Following(act, _WITH_SCALARS[act](node.scalars))
    if act in _PLAIN:
        return Following(act, gain(act))
    return Following(act, 1.0, known=False)


def _first(op: str, index: int, graph: Graph, readers: Sequence[Sequence[int]]) -> Node | None:
    """Return the first operation of a kind that a node's values reach."""
    seen, stack = {index}, [index]
    while stack:
        new = [reader for reader in readers[stack.pop()] if reader not in seen]
        seen.update(new)
        stack.extend(new)
    return next((graph.nodes[i] for i in sorted(seen) if i != index and graph.nodes[i].op == op), None)


def _smallest(acts: Sequence[Following]) -> Following:
    names = dict.fromkeys(act.name for act in acts)
    return Following("+".join(names), min(act.gain for act in acts), all(act.known for act in acts))


def _branch(graph: Graph, a: int, b: int) -> int | None:
    """Return which of two summands is a residual branch of the other, if one is."""
    above_a, above_b = graph.ancestors(a), graph.ancestors(b)
    common = [graph.nodes[i] for i in above_a & above_b]
    if not any(node.origin == "data" for node in common):
        return None
    own_a, own_b = (sum(bool(graph.nodes[i].weight) for i in own) for own in (above_a - above_b, above_b - above_a))
    if own_a == own_b or min(own_a, own_b) > 1:
        return None
    return a if own_a > own_b else b


def _end_of(graph: Graph, index: int) -> str:
    """Walk back from the end of a branch to the first norm with a scale, or layer."""
    node = graph.nodes[index]
    while True:
        if node.weight:
            return node.weight
        scales = [graph.nodes[p].name for p in node.parents if graph.nodes[p].op == "parameter"]
        if node.op in NORMALISATIONS and scales:
            return scales[0]
        data = [graph.nodes[p] for p in node.parents if graph.nodes[p].origin == "data"]
        if len(data) != 1:
            return ""
        node = data[0]
