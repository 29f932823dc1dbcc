"""The rule about activations that choke the signal or the gradient between layers."""

from collections.abc import Iterator, Sequence

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import flat_behind, hidden
from lit_training.diagnosis.updates import ways
from lit_training.tracing.graph import LINEAR, Graph
from lit_training.tracing.probe import Layer

__all__ = ["wrong_hidden_activation"]

STEPS = frozenset(["sign", "sgn", "heaviside"])
SIGMOID_GAIN = 4.0
CHOKED, OWN_SIZE, SEVERAL = 0.1, 1.0, 4
RESHAPING = frozenset("view _unsafe_view _reshape_alias transpose permute t clone squeeze unsqueeze select".split())


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

    Threshold: for sigmoids a product below 0.1; over two layers or more under plain gradient descent, if the planned updates, all
    like the first, would not take each of them as far as its own size (the furthest fault gets to .4 of it; Nielsen's two layers
    of 30 at a rate of .3, which learn, to 40 times it); over four or more under optimisers that divide the size of gradients out:
    Glorot and Bengio (section 3.1) see four leave their plateau late, and five never. One layer of sigmoids trains (LeCun et al.
    1998).

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
    found = flat_behind(evidence, STEPS, hidden(evidence))
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
    way = ways(evidence)
    stays = not plain or any(way.get(layer.weight, 0.0) < OWN_SIZE for layer, _ in choked)
    if len(choked) >= (2 if plain else SEVERAL) and product < CHOKED and stays:
        where = choked[0][0].name
        message = f"{len(choked)} layers of sigmoids in a row pass {product:.1g} of the gradient (slope 1/4 or less at each)."
        return where, message, "Use nn.ReLU() or nn.Tanh() between layers; sigmoid only at the end."
    return None


def _ungated(graph: Graph, layer: Layer) -> bool:
    """Tell whether the sigmoid behind a layer goes on to a layer, and not into a product with data."""
    sigmoid = next((n for n in graph.nodes if n.op == "sigmoid" and layer.node in graph.ancestors(n.index)), None)
    return sigmoid is not None and "product" not in graph.follows(sigmoid.index)
