"""Rules about nonlinearities between layers: missing ones, and those that choke the signal or the gradient."""

from collections.abc import Iterator, Sequence

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import flat_behind, hidden
from lit_training.tracing.graph import LINEAR, Graph, Node
from lit_training.tracing.probe import Layer

__all__ = ["missing_activation", "wrong_hidden_activation"]

STEPS = frozenset(["sign", "sgn", "heaviside"])
SIGMOID_GAIN = 4.0
CHOKED = 0.1
RECTIFIERS = frozenset("relu relu6 leaky_relu elu selu celu gelu silu mish hardswish prelu".split())
BOUNDED = frozenset(["tanh", "sigmoid", "softmax"])
RESHAPING = frozenset("view _unsafe_view _reshape_alias transpose permute t clone squeeze unsqueeze select".split())
DENSE = frozenset(["addmm", "mm", "linear"])
IN_A_ROW = 3
PASSING = RESHAPING | frozenset(["native_dropout", "_fused_dropout"])
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

    Three dense layers or more in a row, of which nothing else reads the inner ones, are told whatever else the network holds.

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
    dense = {layer.node: layer for layer in layers if layer.node is not None and layer.op in DENSE and layer.calls == 1}
    longest: list[Layer] = []
    for layer in dense.values():
        row, after = [layer], _reader(graph, layer.node or 0, readers)
        while after in dense:
            row.append(dense[after])
            after = _reader(graph, after, readers)
        longest = max(longest, row, key=len)
    return longest


def _reader(graph: Graph, index: int, readers: Sequence[Sequence[int]]) -> int | None:
    """Return the only layer that reads what a node made, if nothing but reshaping, dropout and biases lies in between."""
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


@rule(
    explains=[
        "init_vanishing",
        "vanishing_gradient",
        "saturation",
        "bad_gain",
        "slow_convergence",
        "lr_too_low",
        "detached_subgraph",
        "dead_relu",
    ]
)
def wrong_hidden_activation(evidence: Evidence) -> Iterator[Finding]:
    """A hidden layer has an activation that passes no gradient, or hardly any.

    What it means: a softmax between layers makes all units share a sum of 1, so that each of n carries a signal of about 1/n. A
    sigmoid's slope is 1/4 at most, so that each layer divides the gradient by 4 or more unless its weights are drawn for it
    (Glorot and Bengio 2010). A sign or rounding has slope 0.

    How it is measured, on the traced operations:
    softmax: what it makes of a layer goes into another layer with a bias, unmixed with other data, and its signal is below a
    tenth of what arrived;
    sigmoid: the product over the hidden layers in front of sigmoids of their gain over 4, the inverse of the slope at 0;
    steps: the layer in front gets a gradient of exactly zero.

    Threshold: for sigmoids a product below 0.1, over two layers or more under plain gradient descent, over three or more under
    optimisers that divide the size of gradients out. One layer of sigmoids trains (LeCun et al. 1998).

    Not an alarm: gates (sigmoid times data), attention and mixtures (softmax times data, also behind a layer that mixes heads),
    sigmoids scaled for depth, steps with a straight-through gradient, embeddings of probabilities; predictions that are fed back,
    whose logits the loss also sees (Nozaki and Komatsu 2021).

    What to do: ReLU, GELU or tanh between layers; softmax and sigmoid only at the end.
    """
    layers = hidden(evidence)
    verdict = _softmax_inside(evidence, layers) or _step_inside(evidence) or _sigmoids(evidence, layers)
    if verdict:
        where, message, advice = verdict
        yield Finding("wrong_hidden_activation", "error", where, evidence.step, message, advice)


def _softmax_inside(evidence: Evidence, layers: list[Layer]) -> tuple[str, str, str] | None:
    for layer in layers:
        softmax = layer.nonlinearity == "softmax" and layer.activation is not None
        if (
            softmax
            and layer.activation is not None
            and _feeds_layer(evidence.graph, layer)
            and not _goes_around(evidence, layer)
        ):
            share = layer.activation.signal / layer.output.signal if layer.output.signal > 0 else 1.0
            if share < CHOKED:
                message = f"Softmax between layers leaves {share:.1%} of the signal behind {layer.name}; ReLU leaves half."
                return layer.name, message, "Use nn.ReLU() between layers; softmax belongs to the loss."
    return None


def _feeds_layer(graph: Graph, layer: Layer) -> bool:
    """Tell whether the softmax behind a layer goes into layers with a bias only, and not into a product with data, then or next."""
    readers = graph.consumers()
    softmax = next((n for n in graph.nodes if n.op == "softmax" and layer.node in graph.ancestors(n.index)), None)
    if softmax is None or graph.follows(softmax.index) != ("linear",):
        return False
    seen, stack = {softmax.index}, [softmax.index]
    products: list[int] = []
    while stack:
        for reader in (graph.nodes[r] for r in readers[stack.pop()] if r not in seen):
            seen.add(reader.index)
            if reader.op in ("mul", "div") and len(reader.parents) > 1 and not graph.drops(reader):
                return False  # an expectation: softmax over places, times their coordinates
            (products if reader.op in LINEAR else stack).append(reader.index)
    biased = all(graph.nodes[i].weight and graph.nodes[i].op in ("addmm", "convolution") for i in products)
    return biased and not any(_weighs(graph, i, readers) for i in products)


def _weighs(graph: Graph, index: int, readers: Sequence[Sequence[int]]) -> bool:
    """Tell whether a node's values are multiplied by other data next, as weights of attention are."""
    stack, seen = [index], {index}
    while stack:
        for reader in (graph.nodes[r] for r in readers[stack.pop()] if r not in seen):
            seen.add(reader.index)
            acts = graph.acts(reader)
            if acts == "product" or (acts == "linear" and not reader.weight):
                return True
            stack += [reader.index] if acts is None else []
    return False


def _goes_around(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether the loss also sees a layer's logits, or what other layers made of its input, without the softmax behind it."""
    graph = evidence.graph
    readers, made = graph.consumers(), graph.made_by_layers()
    own = layer.node or 0
    sources = [_before_reshaping(graph, p) for p in graph.nodes[own].parents if p in made]
    kept = {node.index for node in graph.nodes if node.op == "softmax" and own in graph.ancestors(node.index)}
    seen, stack = {own, *sources}, [own, *sources]
    while stack:
        new = [r for r in readers[stack.pop()] if r not in seen and r not in kept]
        seen.update(new)
        stack.extend(new)
    return not seen.isdisjoint(evidence.differentiated)


def _before_reshaping(graph: Graph, index: int) -> int:
    while graph.nodes[index].op in RESHAPING:
        index = graph.nodes[index].parents[0]
    return index


def _step_inside(evidence: Evidence) -> tuple[str, str, str] | None:
    found = flat_behind(evidence, STEPS)
    if found is None:
        return None
    message = f"The slope of {found[1]} is zero everywhere: {found[0]} gets a gradient of exactly 0."
    return found[0], message, "Use tanh or ReLU, or pass the gradient straight through: x + (x.sign() - x).detach()."


def _sigmoids(evidence: Evidence, layers: list[Layer]) -> tuple[str, str, str] | None:
    graph = evidence.graph
    plain = any(facts.descent is not None for facts in evidence.parameters.values())
    choked = []
    for layer in layers:
        alone = layer.node is not None and graph.follows(layer.node, through_normalisation=False) == ("sigmoid",)
        if alone and layer.source is not None and layer.source.signal > 0 and _ungated(graph, layer):
            choked.append((layer, layer.output.signal / layer.source.signal / SIGMOID_GAIN))
    product = 1.0
    for _, share in choked:
        product *= share
    if len(choked) >= (2 if plain else 3) and product < CHOKED:
        where = choked[0][0].name
        message = f"{len(choked)} layers of sigmoids in a row pass {product:.1g} of the gradient (slope 1/4 or less at each)."
        return where, message, "Use nn.ReLU() or nn.Tanh() between layers; sigmoid only at the end."
    return None


def _ungated(graph: Graph, layer: Layer) -> bool:
    """Tell whether the sigmoid behind a layer goes on to a layer, and not into a product with data."""
    sigmoid = next((n for n in graph.nodes if n.op == "sigmoid" and layer.node in graph.ancestors(n.index)), None)
    return sigmoid is not None and "product" not in graph.follows(sigmoid.index)
