"""The rule about weights that are drawn too large: activations or gradients blow up on their way."""

import math
from collections.abc import Iterator
from dataclasses import replace

from lit_training.diagnosis.evidence import GROWN, Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.freshness import can_tell
from lit_training.diagnosis.reading import gathering_head, logits_of
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import hidden, is_drawn, is_normalised, overshoots, times_guessing
from lit_training.diagnosis.rules.layer_gains import (
    REINITIALISE,
    excess_gain,
    gain_in_words,
    measured_gain,
    needed_gain,
)
from lit_training.gains import RECTIFIERS
from lit_training.tracing.graph import NORMALISATIONS, Graph
from lit_training.tracing.probe import Layer

__all__ = ["init_exploding"]

STEEP = 10.0
STEEP_RECTIFIED = 6.5
WRONG = 6.0
SUMS = frozenset(["sum", "index_add", "scatter_add"])
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
    first layer's output; the head: a cross-entropy above 6 times that of guessing, with logits whose std over samples is above
    3, or that are sums over neighbours in a graph (an adjacency matrix times them, or what edges add up); or a regression's loss
    above 30 times that of the targets' mean, with outputs whose std is above 3 times the largest target.

    Threshold: an excess of 10, of 6.5 in front of a rectifier (what tanh and sigmoid take, saturation judges). With weights
    drawn at random it scatters by less than a factor of 2 over a width of 16, and trained nets stay below 4; squeeze layers
    drawn for their fan-out, as torchvision's EfficientNet has them, reach 5.5; blocks before ReLU scaled by 10 have 7.3 and
    more. A growth of 10: healthy set-ups stay below 2.4. torchvision's
    MNASNet, whose head is drawn for its fan-out, begins at 5.2 times guessing.

    Not an alarm: growth that later layers take back, as Kraehenbuehl's initialisation has it; scores of attention (saturation);
    layers in front of a normalisation, which takes any scale (one that is 10 times too large hardly learns, at no cost; all of
    them cost a small ResNet 7 to 50 points in 120 updates, unseen); layers that read integers (embeddings); heads that were
    trained on other labels; frequencies of Fourier features; sums over a set; growth of a residual stream that a normalisation
    takes back, or by a factor that no layer has (a scale for logits); growth along trained weights; frozen layers that are
    trained, or declared; large outputs of a regression.

    What to do: initialise the layer for the fan it has (`kaiming_normal_`, `xavier_normal_`), normalise, scale the branches, or
    divide sums over neighbours by the degrees.
    """
    layers = [(layer, excess) for layer in hidden(evidence) if (excess := excess_gain(layer)) is not None]
    layers = [(layer, excess) for layer, excess in layers if not _is_kept(evidence, layer)]
    steep = [(layer, excess) for layer, excess in layers if excess > _steep(layer) and not _may_be_steep(evidence, layer)]
    if steep:
        layer, excess = steep[0]
        more = f" ({len(steep)} layers like this)" if len(steep) > 1 else ""
        message = f"The gain is {excess:.1f} times what keeps the scale: {gain_in_words(layer)}{more}."
        yield _finding(evidence, "init_exploding", layer, message, {"excess": excess, "layers": len(steep)})
        return
    grown = _growth(evidence)
    culprits = [layer for layer, excess in layers if excess > 4 / 3]
    if grown is not None and culprits and not any(_is_trained(evidence, layer) for layer in culprits):
        culprit = culprits[0]
        end, growth = grown
        way = f"from the first layer's output to the input of {end.name}"
        message = f"Values grow {growth:.3g} times {way}: {gain_in_words(culprit)}."
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


def _finding(evidence: Evidence, rule_id: str, layer: Layer, message: str, numbers: dict[str, float]) -> Finding:
    numbers = numbers | {"gain": measured_gain(layer) or 0.0, "needed": needed_gain(layer)}
    return Finding(rule_id, "error", layer.name, evidence.step, message, REINITIALISE, numbers)


def _may_be_steep(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether something takes a layer's scale back, or takes it for a frequency, as Fourier features of the input do."""
    frequencies = layer.nonlinearity in ("sin", "cos") and _reads_input(evidence, layer)
    return frequencies or layer.nonlinearity == "softmax" or is_normalised(evidence, layer)


def _reads_input(evidence: Evidence, layer: Layer) -> bool:
    graph = evidence.graph
    return layer.node is not None and graph.made_by_layers().isdisjoint(graph.nodes[layer.node].parents)


def _growth(evidence: Evidence) -> tuple[Layer, float] | None:
    """Return the head at which values have grown most beyond the first layer's output, without normalisation before it.

    Where they overflow on the way, as half precision does at 65504, any layer before counts.
    """
    graph = evidence.graph
    first = next((layer for layer in evidence.layers if layer.op != "embedding" and layer.output.rms > 0), None)
    if first is None or first.node is None:
        return None
    grown, overflows = [], not all(layer.output.finite for layer in evidence.layers)
    for layer in evidence.layers:
        growth = 0.0 if layer.source is None else layer.source.rms / first.output.rms
        growth /= _summed(graph, layer.node) if growth > GROWN and layer.node is not None else 1.0
        ends = layer.node is not None and (overflows or not graph.reaches_layer(layer.node))
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


def _steep(layer: Layer) -> float:
    return STEEP_RECTIFIED if layer.nonlinearity in RECTIFIERS else STEEP
