"""Rules about how the weights were drawn: does the signal reach every layer at a scale it can learn from?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lit_training.diagnosis.evidence import GROWN, Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.freshness import can_tell
from lit_training.diagnosis.parameters import ParameterFacts
from lit_training.diagnosis.reading import gathering_head, logits_of
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import hidden, is_drawn, is_normalised, overshoots, times_guessing
from lit_training.diagnosis.rules.units import LEAST_UNITS
from lit_training.gains import RECTIFIERS, gain
from lit_training.tracing.graph import NORMALISATIONS, Graph
from lit_training.tracing.probe import Layer

__all__ = ["init_exploding", "init_vanishing"]

VANISHED = 1e-3
VANISHED_ADAPTIVE = 1e-5
STEEP = 10.0
STEEP_RECTIFIED = 6.5
WRONG = 5.0
SIGMOID = 4.0
SUMS = frozenset(["sum", "index_add", "scatter_add"])
REINITIALISE = "Initialise with kaiming_normal_ (ReLU family) or xavier_normal_ (tanh, linear), or normalise between layers."

TIED = "Draw the table that is both embedding and head with a std of 0.02, or of 1 / sqrt(width)."


@rule(
    explains=[
        "lr_too_high",
        "exploding_gradient",
        "loss_diverging",
        "nan_loss",
        "oscillating_loss",
        "bad_initial_loss",
        "saturation",
        "bad_gain",
        "loss_reduction",
    ]
)
def init_exploding(evidence: Evidence) -> Iterator[Finding]:
    """A layer multiplies the signal far more than its nonlinearity takes away, so activations or gradients blow up.

    What it means: outputs of thousands at the first step, a loss far above guessing, and gradients that throw the weights away.
    Typical causes: weights of unit variance, uniform in 0...1, or scaled for the wrong fan; a table of unit variance, as
    `nn.Embedding` draws it, that is tied to the head (Press and Wolf 2017; GPT-2 draws it with .02); residual branches that add up
    without normalisation or scaling (Zhang, Dauphin and Ma 2019); graph convolutions that sum over neighbours without dividing
    by their number (Kipf and Welling 2017).

    How it is measured, in three ways:
    one layer: its gain is the signal of its output over the signal that arrives (as root mean squares over units, since variances
    add up and most units of sparse inputs have none); the gain that keeps the scale is
    1/sqrt(E[f(z)^2]) for the rectifier f that follows (He et al. 2015), 4 for a sigmoid, else 1. Its excess is the one over
    the other; together: the root mean square that arrives at a last layer, without normalisation on the way, over that of the
    first layer's output; the head: a cross-entropy above 5 times that of guessing, with logits whose std over samples is above
    3, or that are sums over neighbours in a graph (an adjacency matrix times them, or what edges add up); or a regression's loss
    above 30 times that of the targets' mean, with outputs whose std is above 3 times the largest target.

    Threshold: an excess of 10, of 6.5 in front of a rectifier (what tanh and sigmoid take, saturation judges). With weights
    drawn at random it scatters by less than a factor of 2 over a width of 16, and trained nets stay below 4; squeeze layers
    drawn for their fan-out, as torchvision's EfficientNet has them, reach 5.5; blocks before ReLU scaled by 10 have 7.3 and
    more. A growth of 10: healthy set-ups stay below 2.4.

    Not an alarm: growth that later layers take back, as Kraehenbuehl's initialisation has it; layers in front of a
    normalisation, which takes any scale (one that is 10 times too large hardly learns, at no cost; all of them cost a small
    ResNet 7 to 50 points in 120 updates, unseen); layers that read integers (embeddings); heads that were trained on other
    labels; frequencies of Fourier features; sums over a set; growth of a residual stream that a normalisation takes back, or by
    a factor that no layer has (a scale for logits); growth along trained weights; frozen layers that are trained, or declared;
    large outputs of a regression.

    What to do: initialise the layer for the fan it has (`kaiming_normal_`, `xavier_normal_`), normalise, scale the branches, or
    divide sums over neighbours by the degrees.
    """
    layers = [(layer, excess) for layer in hidden(evidence) if (excess := _excess(layer)) is not None]
    layers = [(layer, excess) for layer, excess in layers if not _is_kept(evidence, layer)]
    steep = [(layer, excess) for layer, excess in layers if excess > _steep(layer) and not _may_be_steep(evidence, layer)]
    if steep:
        layer, excess = steep[0]
        more = f" ({len(steep)} layers like this)" if len(steep) > 1 else ""
        message = f"The gain is {excess:.1f} times what keeps the scale: {_gain_text(layer)}{more}."
        yield _finding(evidence, "init_exploding", layer, message, {"excess": excess, "layers": len(steep)})
        return
    grown = _growth(evidence)
    culprits = [layer for layer, excess in layers if excess > 4 / 3]
    if grown is not None and culprits and not any(_is_trained(evidence, layer) for layer in culprits):
        culprit = culprits[0]
        end, growth = grown
        message = (
            f"Values grow {growth:.3g} times from the first layer's output to the input of {end.name}: {_gain_text(culprit)}."
        )
        yield _finding(evidence, "init_exploding", culprit, message, {"growth": growth})
        return
    ratio, head = times_guessing(evidence)
    if ratio > WRONG and head is not None and head.output.signal > 3 and is_drawn(evidence, head):
        message = (
            f"Logits have std {head.output.signal:.3g} over samples, so the first loss is {ratio:.1f} times that of guessing."
        )
        finding = _finding(evidence, "init_exploding", head, message, {"times_guessing": ratio})
        yield replace(finding, advice=TIED) if head in evidence.readouts else finding
        return
    gathers = _gathering(evidence) if ratio > WRONG else ""
    if gathers:
        message = f"Sums over neighbours grow from layer to layer: the first loss is {ratio:.2g} times that of guessing."
        advice = "Divide them by the numbers of neighbours: D^-1/2 A D^-1/2, or a mean."
        where = gathers.removesuffix(".weight")
        yield Finding("init_exploding", "error", where, evidence.step, message, advice, {"times_guessing": ratio})
        return
    found = overshoots(evidence)
    if found is not None:
        ratio, call, head = found
        reach = max(map(abs, call.target_range))
        spread = f"Outputs have std {head.output.signal:.3g} over samples, targets stay within {reach:.3g}"
        message = f"{spread}: the first loss is {ratio:.2g} times that of their mean."
        yield _finding(evidence, "init_exploding", head, message, {"times_constant": ratio})


@rule(
    explains=["vanishing_gradient", "constant_output", "slow_convergence", "lr_too_low", "dead_relu", "bad_gain", "no_update"]
)
def init_vanishing(evidence: Evidence) -> Iterator[Finding]:
    """The signal dies on its way through the layers, so that the last layers see the same input whatever the sample.

    What it means: no gradient of use comes back either, and the network outputs one and the same. Typical causes: weights of a
    small constant std, default initialisation in a deep plain net, Glorot's scheme in front of ReLU.

    How it is measured: the signal (the std over the batch of each unit, averaged over units) that arrives at each layer, over
    the one that arrived at the first, or over 1 if that was larger, as pixels are before they are normalised. The first layer
    on the way whose gain is below 3/4 of what its nonlinearity needs is named. The overall std does not tell: biases keep it
    at 10^-1.2 in a 30-layer ReLU net with torch's default initialisation, while the signal is 10^-8.6.

    Threshold: 1e-3 under plain gradient descent, 1e-5 under optimisers that divide the size of gradients out. Measured on nets
    of 4 to 16 layers of 64 ReLU, GELU, SiLU units with default initialisation, 250 steps: SGD reaches 92 % and more down to a
    signal of 1.6e-3 and stays at guessing from 5e-4 on; Adam loses nothing down to 4e-5 and 5 to 70 points below 1e-5.
    He-initialised ReLU nets of 30 layers keep 0.2 (correlations between samples grow with depth), tanh nets with Glorot's 0.1.

    Not an alarm: inputs that are the same in all samples, as the grid that an operator network is asked on, or the first step of
    a decoder and of spiking units; branches of tiny weights that Adam's first step overwrites, added to others; gates whose
    few units all happen to be silent, if what they weigh goes on; zero-initialised heads and branches next to a
    skip connection (the signal that arrives is what counts), nets with normalisation between the layers; growth that is taken back,
    as Kraehenbuehl's equal gradient rates bring it (at 40 layers of 64 by a factor of 1000: they train as well as with He). Small
    weights in front of normalisation are silent though a narrow transformer learns late with them: a std of .02 is customary, and
    at width 32 it is hardly better than .01.

    What to do: initialise for the nonlinearity (`kaiming_normal_` for ReLU), normalise, or add skip connections.
    """
    threshold = VANISHED if any(f.descent is not None for f in evidence.parameters.values()) else VANISHED_ADAPTIVE
    first = 0.0
    passed: list[Layer] = []
    for layer in evidence.layers:
        arriving = layer.source.signal if layer.source is not None else math.nan
        if math.isnan(arriving) or (arriving == 0 and layer.calls > 1):  # the first of several steps may see a start token
            passed.append(layer)
            continue
        way = _way_to(evidence, layer, passed) if arriving < threshold * first else None
        beside = way is not None and (
            _is_small_branch(evidence, layer, way) or _is_silent_gate(evidence, layer, way[-1], threshold * first)
        )
        if way is not None and not beside:
            culprit = next((p for p in way if _weak(p)), way[0])
            ratio = arriving / first
            yield Finding(
                "init_vanishing",
                "error",
                culprit.name,
                evidence.step,
                f"By {layer.name}, what tells samples apart has faded to {_power(ratio)} of its strength: {_gain_text(culprit)}.",
                REINITIALISE,
                {"signal_ratio": ratio, "gain": _gain(culprit) or 0.0, "needed": _needed(culprit)},
            )
            return
        first = first or min(arriving, 1.0)
        passed.append(layer)


def _way_to(evidence: Evidence, layer: Layer, passed: Sequence[Layer]) -> list[Layer] | None:
    """Return the layers on the way to one, `None` if what arrives at it did not come from any signal that layers could lose."""
    if layer.node is None:
        return list(passed)
    before = evidence.graph.ancestors(layer.node)
    way = [p for p in passed if p.node is None or p.node in before]
    return way if any(p.source is not None and p.source.signal > 0 for p in way) else None


def _is_silent_gate(evidence: Evidence, layer: Layer, before: Layer, least: float) -> bool:
    """Tell whether a layer reads a few rectified units that all happen to be silent, and layers behind it get some signal."""
    units = before.activation
    if units is None or len(units.low) >= LEAST_UNITS or units.silent_units < 1:
        return False
    with_signal = (x.node for x in evidence.layers if x.node is not None and x.source is not None and x.source.signal >= least)
    return any(layer.node in evidence.graph.ancestors(node) for node in with_signal)


def _is_small_branch(evidence: Evidence, layer: Layer, way: Sequence[Layer]) -> bool:
    """Tell whether the first step overwrites the weak weights on the way, and others are added to what the way leads to."""
    weak = [evidence.parameters.get(p.weight) for p in way if _weak(p)]
    if layer.node is None or not weak or not all(f is not None and _is_overwritten(f) for f in weak):
        return False
    made, behind = evidence.graph.made_by_layers(), {layer.node}
    for node in evidence.graph.nodes[layer.node + 1 :]:
        others = set(node.parents) - behind
        if len(others) < len(set(node.parents)):
            if node.op == "add" and not made.isdisjoint(others):
                return True
            behind.add(node.index)
    return False


def _is_overwritten(facts: ParameterFacts) -> bool:
    """Tell whether the first step of Adam or its like is larger than a weight."""
    return (facts.fixed_step or 0.0) * math.sqrt(math.prod(facts.shape)) > facts.norm


def _finding(evidence: Evidence, rule_id: str, layer: Layer, message: str, numbers: dict[str, float]) -> Finding:
    numbers = numbers | {"gain": _gain(layer) or 0.0, "needed": _needed(layer)}
    return Finding(rule_id, "error", layer.name, evidence.step, message, REINITIALISE, numbers)


def _may_be_steep(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether something takes a layer's scale back, or takes it for a frequency, as Fourier features of the input do."""
    frequencies = layer.nonlinearity in ("sin", "cos") and _reads_input(evidence, layer)
    return frequencies or is_normalised(evidence, layer)


def _reads_input(evidence: Evidence, layer: Layer) -> bool:
    graph = evidence.graph
    return layer.node is not None and graph.made_by_layers().isdisjoint(graph.nodes[layer.node].parents)


def _growth(evidence: Evidence) -> tuple[Layer, float] | None:
    """Return the head at which values have grown most beyond the first layer's output, without normalisation before it."""
    graph = evidence.graph
    first = next((layer for layer in evidence.layers if layer.op != "embedding" and layer.output.rms > 0), None)
    if first is None or first.node is None:
        return None
    grown = []
    for layer in evidence.layers:
        growth = 0.0 if layer.source is None else layer.source.rms / first.output.rms
        growth /= _summed(graph, layer.node) if growth > GROWN and layer.node is not None else 1.0
        ends = layer.node is not None and not graph.reaches_layer(layer.node)
        if layer.node is None or layer is first or not ends or not GROWN < growth < math.inf:
            continue
        before = graph.ancestors(layer.node)
        if first.node in before and not any(graph.nodes[i].op in NORMALISATIONS for i in before):
            grown.append((layer, growth))
    return max(grown, key=lambda pair: pair[1], default=None)


def _gathering(evidence: Evidence) -> str:
    """Return the weight, if it is as it was drawn, that made a cross-entropy's logits, which were then summed over neighbours."""
    scores = (logits_of(evidence.graph, call) for call in evidence.losses)
    weights = (gathering_head(evidence.graph, logits) for logits in scores if logits is not None)
    return next((name for name in weights if (f := evidence.parameters.get(name)) is not None and f.fresh), "")


def _is_kept(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether a layer is frozen as it was trained, or declared to be."""
    facts = evidence.parameters.get(layer.weight)
    return facts is not None and not facts.requires_grad and (facts.expected_frozen or not facts.fresh)


def _is_trained(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether the weight of a layer is large enough to be judged, and not as it was drawn."""
    facts = evidence.parameters.get(layer.weight)
    return facts is not None and can_tell(facts.shape) and not facts.fresh


def _summed(graph: Graph, index: int) -> float:
    """Return how many values sums over a set, its members or neighbours, put together on the way to a node."""
    made, factor = graph.made_by_layers(), 1.0
    for node in (graph.nodes[i] for i in graph.ancestors(index)):
        if node.op in SUMS and node.shape and not made.isdisjoint(node.parents):
            largest = max(math.prod(graph.nodes[p].shape) for p in node.parents)
            factor *= max(1.0, largest / math.prod(node.shape))
    return factor


def _gain(layer: Layer) -> float | None:
    if layer.source is None or not layer.source.signal > 0:
        return None
    return layer.output.energy / layer.source.energy


def _needed(layer: Layer) -> float:
    """Return the gain that keeps the scale: that of the nonlinearity for rectifiers, 1 for what is linear around zero."""
    if layer.nonlinearity == "sigmoid":
        return SIGMOID
    return gain(layer.nonlinearity) if layer.nonlinearity in RECTIFIERS else 1.0


def _steep(layer: Layer) -> float:
    return STEEP_RECTIFIED if layer.nonlinearity in RECTIFIERS else STEEP


def _excess(layer: Layer) -> float | None:
    g = _gain(layer)
    return None if g is None else g / _needed(layer)


def _weak(layer: Layer) -> bool:
    excess = _excess(layer)
    return excess is not None and excess < 0.75


def _gain_text(layer: Layer) -> str:
    follows = f" before {layer.nonlinearity}" if layer.nonlinearity else ""
    g = _gain(layer)
    figure = "an unknown gain" if g is None else f"gain {g:.2g}"
    return f"{layer.name} has {figure} where {_needed(layer):.2g} keeps the scale{follows}"


def _power(value: float) -> str:
    return f"10^{math.log10(value):.1f}" if value > 0 else "0"
