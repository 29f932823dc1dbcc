"""Rules about units that cannot answer: rectifiers that never fire, saturated activations."""

import math
from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.freshness import can_tell
from lit_training.diagnosis.parameters import ParameterFacts
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import hidden, is_drawn
from lit_training.tracing.graph import NORMALISATIONS, Graph
from lit_training.tracing.probe import Layer

__all__ = ["ALONE", "LEAST_UNITS", "culprit", "dead_relu", "is_dead", "is_saturated", "makes_gates", "one_sided", "saturation"]

DEAD = 0.9
SATURATED = 0.5
STUCK = 0.2
LEAST_UNITS = 8
LEAST_ROWS = 4
ALONE, SHUT = 3.0, 8.0


@rule(
    explains=[
        "init_vanishing",
        "vanishing_gradient",
        "slow_convergence",
        "lr_too_low",
        "constant_output",
        "bad_gain",
        "no_update",
    ]
)
def dead_relu(evidence: Evidence) -> Iterator[Finding]:
    """Nearly all units behind a rectifier are silent on the whole batch, so no gradient passes.

    What it means: a unit that is nowhere above zero outputs 0 and gets gradient 0, and nothing can bring it back as long as its
    inputs stay as they are. Typical causes: negative weights on positive inputs, shifted biases, a rectifier behind a negative
    activation, a learning rate that threw the units over.

    How it is measured: the share of units (channels) of a ReLU's or ReLU6's output that are zero at every sample and position
    of the first batch; whether every bias of the layer, or of the batch norm behind it, lies below zero, further than 3 times the
    std that its samples give it (2 times for batch norm), which is then the cause.

    Threshold: 90 % of at least 8 units, over 4 samples or more. Over healthy set-ups the share stays below 40 %, in squeeze
    layers of a few units 75 %; by chance a unit is silent on n samples with probability 2^-n.

    Not an alarm: single dead units, small layers, batches of one, layers that only zeros arrive at; the first of several steps,
    if the later ones get a gradient.

    What to do: He initialisation with zero biases, standardised inputs; a leaky ReLU, or batch norm in front.
    """
    for layer in hidden(evidence):
        if is_dead(evidence, layer) and layer.activation is not None:
            share = layer.activation.silent_units
            units = len(layer.activation.low)
            message = (
                f"{share:.0%} of the {units} units behind {layer.name} are zero for every sample; healthy nets stay below 40%."
            )
            advice = "Draw the weights with kaiming_normal_ and zero biases; check the sign and scale of what arrives."
            bias = culprit(evidence, layer)
            if bias is not None:
                message = f"{message} All biases of {bias.name} lie below {bias.high:.3g}."
                advice = "Start biases at zero: torch.nn.init.zeros_(layer.bias)."
            yield Finding("dead_relu", "error", layer.name, evidence.step, message, advice, {"silent": share})
            return


@rule(
    explains=[
        "lr_too_high",
        "vanishing_gradient",
        "slow_convergence",
        "lr_too_low",
        "init_vanishing",
        "bad_gain",
        "constant_output",
    ]
)
def saturation(evidence: Evidence) -> Iterator[Finding]:
    """Most values of a bounded activation, or many of a recurrent layer's gates, lie at their bounds, where the slope is zero.

    What it means: sigmoid or tanh units that are all the way up or down pass no gradient (Glorot and Bengio 2010, figure 2).
    Typical causes: weights or inputs that are too large.

    How it is measured: the share of values of a hidden sigmoid, tanh, hardsigmoid or hardtanh within 1 % of the range from its
    bounds; of recurrent layers that look as drawn, the share of gates that are there, with their bias and without it, over the
    first 16 steps of 8 samples; of attention whose queries and keys come straight from layers that look as drawn, the share of
    rows of its softmax that put more than .99 on one place although they may look at several.

    Threshold: half. Tanh nets scaled right have under 5 %: unit inputs exceed the 2 % slope at |z| > 2.3 in 2 % of the cases;
    a gain of 2 brings a quarter. For gates a fifth: LSTM, GRU and RNN layers of 64 units that read digits row by row have less
    than 1 % under torch's or Glorot's initialisation, lose nothing at 10 % and 3 to 15 points of 92 % at 17 to 32 % (weights 5
    to 10 times too large); embeddings of width 512 in front of 32 units have 12 %.

    Attention is at half with scores of a std of 10 (over 8 places) to 20 (over 256); torch's layers give scores of about .3 on
    normalised inputs, and of about 3 where the division by sqrt(d) was forgotten at d = 64.

    Not an alarm: output layers; units of trained layers, which have decided; sharp attention on normalised queries and keys, a
    temperature on purpose; gates that a bias opens or closes; trained recurrent layers, which decide (a trained character model
    has 37 % of its gates at their bounds).

    What to do: `xavier_normal_` with the activation's gain, standardised inputs.
    """
    for layer in hidden(evidence):
        stuck = _stuck(evidence, layer)
        if stuck > STUCK:
            message = (
                f"{stuck:.0%} of the gates of {layer.name} are at their bounds from the start: its weights, or what arrives (std"
                f" {layer.source.std if layer.source else math.nan:.3g}), are too large."
            )
            advice = "Draw its weights with xavier_uniform_ or as torch does; standardise what arrives."
            yield Finding("saturation", "error", layer.name, evidence.step, message, advice, {"saturated": stuck})
            return
        if is_saturated(layer) and layer.activation is not None and not _may_be_saturated(evidence, layer):
            share = float(layer.activation.saturated)
            message = (
                f"{share:.0%} of the {layer.nonlinearity} values behind {layer.name} are at their bounds: what goes in has std"
                f" {layer.output.std:.3g}."
            )
            advice = (
                f"Draw its weights with xavier_normal_(gain=calculate_gain({layer.nonlinearity!r})); standardise what arrives."
            )
            yield Finding("saturation", "error", layer.name, evidence.step, message, advice, {"saturated": share})
            return
    yield from _decided(evidence)


def _decided(evidence: Evidence) -> Iterator[Finding]:
    """Yield the first attention that picks one place from the start."""
    for weights, share in evidence.one_hot:
        facts = [evidence.parameters.get(weight) for weight in weights]
        if share > SATURATED and all(f is not None and f.fresh for f in facts):
            where = weights[0].removesuffix(".weight")
            message = (
                f"{share:.0%} of the rows of attention behind {where} are one-hot from the start: its scores are too large."
            )
            advice = "Divide the scores by sqrt(d) and draw the projections with xavier_uniform_ or as torch does."
            yield Finding("saturation", "error", where, evidence.step, message, advice, {"saturated": share})
            return


def _stuck(evidence: Evidence, layer: Layer) -> float:
    """Return the share of gates that are stuck, of the level of a recurrent layer that has most, if it is as it was drawn."""
    return float(layer.gates.columns.mean.max()) if layer.gates is not None and is_drawn(evidence, layer) else 0.0


def culprit(evidence: Evidence, layer: Layer) -> ParameterFacts | None:
    """Return the bias that silences or saturates a layer: its own, or that of the normalisation behind it."""
    graph = evidence.graph
    own = evidence.parameters.get(f"{layer.name}.bias")
    if own is not None and one_sided(own, max(ALONE * layer.output.signal, SHUT if makes_gates(graph, layer) else 0.0)):
        return own
    for node in graph.nodes:
        if node.op in NORMALISATIONS and layer.node in node.parents:
            for parent in (graph.nodes[p] for p in node.parents):
                facts = evidence.parameters.get(parent.name)
                if facts is not None and parent.name.endswith("bias") and one_sided(facts, 2.0):
                    return facts
    return None


def is_dead(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether nearly all units of the rectifier behind a layer are silent on the whole batch."""
    after, facts = layer.activation, evidence.parameters.get(layer.weight)
    if layer.source is not None and layer.source.largest == 0:
        return False  # as in a branch that starts at zero
    if layer.calls > 1 and facts is not None and facts.gradient:
        return False  # the first of several steps may be silent, as spiking units are
    if after is None or layer.nonlinearity not in ("relu", "relu6") or len(after.low) < LEAST_UNITS or after.rows < LEAST_ROWS:
        return False
    return after.silent_units >= DEAD


def _may_be_saturated(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether a layer is trained, or makes gates that a bias opens or closes."""
    facts, bias = evidence.parameters.get(layer.weight), evidence.parameters.get(f"{layer.name}.bias")
    gates = bias is not None and one_sided(bias, ALONE * layer.output.signal) and makes_gates(evidence.graph, layer)
    return gates or (facts is not None and not facts.fresh and can_tell(facts.shape))


def is_saturated(layer: Layer) -> bool:
    """Tell whether half of the values of a bounded activation lie at their bounds."""
    return layer.activation is not None and float(layer.activation.saturated) > SATURATED


def makes_gates(graph: Graph, layer: Layer) -> bool:
    """Tell whether a sigmoid follows a layer and multiplies data."""
    if layer.nonlinearity != "sigmoid":
        return False
    sigmoid = next((n for n in graph.nodes if n.op == "sigmoid" and layer.node in graph.ancestors(n.index)), None)
    return sigmoid is not None and "product" in graph.follows(sigmoid.index)


def one_sided(bias: ParameterFacts, distance: float) -> bool:
    """Tell whether all elements of a bias lie on one side of zero, further than a distance."""
    return bias.high < -distance or bias.low > distance
