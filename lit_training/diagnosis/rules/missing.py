"""The rule about layers that nothing nonlinear stands between."""

from collections.abc import Iterator, Sequence

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.tracing.graph import LINEAR, Graph, Node
from lit_training.tracing.probe import Layer

__all__ = ["missing_activation"]

RECTIFIERS = frozenset("relu relu6 leaky_relu elu selu celu gelu silu mish hardswish prelu".split())
BOUNDED = frozenset(["tanh", "sigmoid", "softmax"])
DENSE = frozenset(["addmm", "mm", "linear"])
IN_A_ROW = 3
PASSING = frozenset(
    "view _unsafe_view _reshape_alias transpose permute t clone squeeze unsqueeze select native_dropout _fused_dropout "
    "mean sum".split()
)
MAXIMA = frozenset(["max", "amax", "maximum", "topk", "sort", "median"])


@rule(explains=["slow_convergence", "lr_too_low"])
def missing_activation(evidence: Evidence) -> Iterator[Finding]:
    """No nonlinearity stands between any two layers, so the whole stack can only do what one linear layer can.

    What it means: products of matrices are a matrix; the extra layers make training harder and the model no richer. Typical
    causes: `nn.Linear` or `nn.Conv2d` in a row as in frameworks whose layers take an `activation=`; batch norm taken for a
    nonlinearity.

    How it is measured: on the traced operations: at least two linear layers or convolutions lie one behind the other on the
    way to the loss, and no activation, gate, maximum or product of data lies between the first and the last of them. A
    rectifier or its like whose result nothing reads, as that of `F.relu(x)` without `x =` in front, is none; behind a layer that
    then goes on linearly to the next one it is told even if there are others.

    Three dense layers or more in a row, of which nothing else reads the inner ones, are told whatever else the network holds; the
    output projection of attention is none of them.

    Threshold: none.

    Not an alarm: single missing activations next to others (linear bottlenecks, low-rank factors, attention projections); one
    layer, also behind an embedding; layers that are narrower than the outputs together, as in a linear autoencoder or a subspace
    that many heads share; linear systems, whose transition is called again and again; maxout by pooling.

    What to do: put an activation, `nn.ReLU()`, between the layers.
    """
    graph, unread = evidence.graph, _unread(evidence)
    readers = [[reader for reader in found if reader not in unread] for found in graph.consumers()]
    layers = [layer for layer in evidence.layers if layer.node is not None and "embedding" not in layer.op]
    if any(_computes_weight(graph, layer) for layer in layers):
        return  # as a neural accumulator, tanh(w) * sigmoid(m), whose layers are linear on purpose
    for layer, act in ((layer, act) for act in unread for layer in layers if layer.node == _layer_before(graph, act)):
        if _goes_on_linearly(graph, layer.node or 0, readers):
            message = (
                f"Nothing reads what {graph.nodes[act].op} makes of {layer.name}; the next layer gets its output without it."
            )
            yield Finding(
                "missing_activation", "error", layer.name, evidence.step, message, "Write x = F.relu(x), not F.relu(x)."
            )
            return
    row = _dense_row(graph, layers, readers)
    if len(row) >= IN_A_ROW and min(map(_width, row[:-1])) >= _width(row[-1]):
        message = (
            f"{row[0].name} to {row[-1].name} are {len(row)} linear layers with nothing in between: one would do the same."
        )
        yield Finding("missing_activation", "error", row[0].name, evidence.step, message, "Put nn.ReLU() between the layers.")
        return
    if any(layer.op == "recurrent" for layer in evidence.layers) or len(layers) < 2:
        return
    inner = [layer for layer in layers if layer.node is not None and graph.reaches_layer(layer.node)]
    if not inner or not all(_goes_on_linearly(graph, layer.node or 0, readers) for layer in inner):
        return
    widest = min(_width(layer) for layer in inner)
    last = [layer for layer in layers if layer not in inner] or layers[-1:]
    if widest < sum(_width(layer) for layer in last) or _feeds_itself(graph):
        return  # a bottleneck on purpose, as in a linear autoencoder, or a linear system
    message = f"{len(layers)} layers have 0 nonlinearities between them, not 1 or more: together they are one linear layer."
    yield Finding("missing_activation", "error", inner[0].name, evidence.step, message, "Put nn.ReLU() between the layers.")


def _dense_row(graph: Graph, layers: Sequence[Layer], readers: Sequence[Sequence[int]]) -> list[Layer]:
    """Return the longest row of dense layers, each called once, of which nothing else reads the inner ones."""
    once = (layer for layer in layers if layer.node is not None and layer.op in DENSE and layer.calls == 1)
    dense = {layer.node or 0: layer for layer in once if not _projects_attention(graph, layer.node or 0)}
    longest: list[Layer] = []
    for layer in dense.values():
        row, after = [layer], _reader(graph, layer.node or 0, readers)
        while after in dense:
            row.append(dense[after])
            after = _reader(graph, after, readers)
        longest = max(longest, row, key=len)
    return longest


def _projects_attention(graph: Graph, index: int) -> bool:
    """Tell whether a layer reads what attention made, which is a product of data, so that it belongs to that block."""
    made, node = graph.made_by_layers(), graph.nodes[index]
    while True:
        data = [graph.nodes[p] for p in node.parents if p in made]
        node = data[0] if len(data) == 1 else node
        if len(data) != 1 or node.weight or node.op not in PASSING:
            return not node.weight and (node.op in ("bmm", "baddbmm") or "attention" in node.op)


def _reader(graph: Graph, index: int, readers: Sequence[Sequence[int]]) -> int | None:
    """Return the only layer that reads what a node made, if nothing but reshaping, pooling, dropout and biases lies in between."""
    while len(readers[index]) == 1:
        node = graph.nodes[readers[index][0]]
        if node.weight:
            return node.index
        biased = node.op == "add" and any(graph.nodes[p].origin == "parameter" for p in node.parents)
        if not (node.op in PASSING or biased or graph.drops(node)):
            return None
        index = node.index
    return None


def _width(layer: Layer) -> int:
    return layer.shape[1] if len(layer.shape) > 1 else 1


def _feeds_itself(graph: Graph) -> bool:
    """Tell whether some layer is called on what it has made itself, as the transition of a linear system is."""
    calls: dict[str, list[int]] = {}
    for node in graph.layers():
        calls.setdefault(node.weight, []).append(node.index)
    return any(again[0] in graph.ancestors(again[-1]) for again in calls.values() if len(again) > 1)


def _pools_units(graph: Graph, node: Node) -> bool:
    """Tell whether a pooling takes the largest of several units, laid out as the positions of one channel (maxout)."""
    return node.op.startswith("max_pool") and graph.nodes[node.parents[0]].shape[-3:-1] in ((1, 1), (1,))


def _unread(evidence: Evidence) -> list[int]:
    """Return the rectifiers and their like whose result nothing reads but their own backward pass, which keeps a `detach` of it."""
    nodes, readers = evidence.graph.nodes, evidence.graph.consumers()
    acts = (node.index for node in nodes if node.op in RECTIFIERS and node.grad_mode)
    kept = [i for i in acts if all(nodes[r].op == "detach" and not readers[r] for r in readers[i])]
    return [i for i in kept if i not in evidence.differentiated]


def _layer_before(graph: Graph, index: int) -> int | None:
    """Return the layer whose values arrive at a node through nothing that acts on them."""
    node = graph.nodes[index]
    while True:
        data = [graph.nodes[parent] for parent in node.parents if graph.nodes[parent].origin == "data"]
        if len(data) != 1:
            return None
        node = data[0]
        if node.weight:
            return node.index
        if graph.acts(node) is not None:
            return None


def _computes_weight(graph: Graph, layer: Layer) -> bool:
    """Tell whether a layer's weight is a nonlinear function of its parameters."""
    operands = [graph.nodes[p] for p in graph.nodes[layer.node or 0].parents if graph.nodes[p].origin == "parameter"]
    return any(graph.nodes[i].op in BOUNDED for operand in operands for i in graph.ancestors(operand.index))


def _goes_on_linearly(graph: Graph, index: int, readers: Sequence[Sequence[int]]) -> bool:
    """Tell whether nothing but linear operations lies between a layer and the layers that read it."""
    made, seen, stack, arrived = graph.made_by_layers(), {index}, [index], False
    while stack:
        for reader in (graph.nodes[r] for r in readers[stack.pop()] if r not in seen):
            seen.add(reader.index)
            given = reader.op in LINEAR and sum(i in made for i in reader.parents) == 1  # a graph's adjacency, say
            if reader.weight:
                arrived = True
            elif reader.op not in MAXIMA and not _pools_units(graph, reader) and (given or graph.acts(reader) is None):
                stack.append(reader.index)
            else:
                return False
    return arrived
