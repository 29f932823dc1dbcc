"""Rules about how the weights were drawn: does the signal reach every layer at a scale it can learn from?"""

import math
from collections.abc import Iterator
from statistics import median

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.gains import gain
from lit_training.probe import Layer

__all__ = ["init_exploding", "init_symmetry", "init_vanishing"]

VANISHED = 1e-3
STEEP = 5.0
RECTIFIERS = ("relu", "relu6", "leaky_relu", "prelu", "gelu", "silu", "elu", "mish")
REINITIALISE = "Initialise with kaiming_normal_ (ReLU family) or xavier_normal_ (tanh, linear), or normalise between layers."


@rule(explains=["vanishing_gradient", "constant_output", "slow_convergence", "dead_relu", "bad_gain"])
def init_symmetry(evidence: Evidence) -> Iterator[Finding]:
    """All units of a layer start with the same weights and get the same gradient, so they stay copies of one unit for ever.

    Measured on every weight of two or more units: the slices along the first dimension are equal to 1e-5 of the largest weight,
    and so are those of its gradient. Rumelhart, Hinton and Williams 1986 broke this symmetry with random weights, and the lecture
    names all-zero initialisation as the first mistake. A layer of equal units has the capacity of one unit.

    Not an alarm: zero-initialised last layers, residual branches and LoRA's B, whose units start equal but get different
    gradients; embeddings, biases and normalisation, which start equal by design; layers that are frozen.

    What to do: draw the weights at random; only biases and the last layer of a branch may start at zero.
    """
    alike = [
        facts
        for facts in evidence.parameters.values()
        if facts.kind == "weight" and facts.requires_grad and facts.equal_units and facts.equal_gradients
    ]
    if alike:
        first = alike[0]
        value = "zero" if first.norm == 0 else "the same"
        yield Finding(
            "init_symmetry",
            "error",
            _module(first.name),
            evidence.step,
            f"All {first.shape[0]} units start with weights that are {value} and get the same gradient, so they will stay equal"
            f" ({len(alike)} weight(s) like this).",
            f"Draw {first.name} at random: torch.nn.init.kaiming_normal_({first.name}).",
            {"units": first.shape[0], "weights": len(alike)},
        )


@rule(
    explains=[
        "exploding_gradient",
        "loss_diverging",
        "nan_loss",
        "oscillating_loss",
        "bad_initial_loss",
        "saturation",
        "bad_gain",
    ]
)
def init_exploding(evidence: Evidence) -> Iterator[Finding]:
    """A layer multiplies the signal far more than its nonlinearity takes away, so activations or gradients blow up.

    Measured: the gain of a layer is the signal of its output over the signal that arrives; the gain that keeps the scale is
    1/sqrt(E[f(z)^2]) for the rectifier f that follows (He et al. 2015), else 1. A layer's excess is the one over the other. It is
    too steep when its excess is over 5 times the median of the net, which counts as between 1/2 and 1.

    The threshold: with weights drawn at random the excess over a width of 16 or more scatters by less than a factor of 2, and
    trained nets stay below 4.

    Not an alarm: the last layer, whose scale is the loss's business; layers that read integers (embeddings).

    What to do: initialise the layer for the fan it has (`kaiming_normal_`, `xavier_normal_`).
    """
    layers = [(layer, excess) for layer in _hidden(evidence) if (excess := _excess(layer)) is not None and excess > 0]
    if not layers:
        return
    usual = median(excess for _, excess in layers)
    steep = [(layer, excess) for layer, excess in layers if excess > STEEP * max(min(usual, 1.0), 0.5)]
    if steep:
        layer, excess = steep[0]
        yield _finding(evidence, "init_exploding", layer, excess, "what keeps the scale", len(steep))


@rule(explains=["vanishing_gradient", "constant_output", "slow_convergence", "dead_relu", "bad_gain", "no_update"])
def init_vanishing(evidence: Evidence) -> Iterator[Finding]:
    """The signal dies on its way through the layers, so that the last layers see the same input whatever the sample.

    Measured: the signal (the std over the batch of each unit, averaged over units) that arrives at each layer, over the largest
    that arrived anywhere before it. Below 1e-3 the alarm is raised, at the first layer on the way whose gain is below 3/4 of what
    its nonlinearity needs. The overall std does not tell: biases keep it at 10^-1.2 in a 30-layer ReLU net with torch's default
    initialisation, while the signal is 10^-8.6.

    The threshold: He-initialised ReLU nets of 30 layers keep a signal of 0.2 (correlations between samples grow with depth), tanh
    nets with Glorot's 0.1; at 1e-3 the gradient that reaches the first layers is a thousand times smaller than that of the last,
    and SGD does not move them in the time it takes the head to settle (Glorot and Bengio 2010, He et al. 2015, figure 3).

    Not an alarm: zero-initialised heads and branches next to a skip connection (the signal that arrives is what counts), nets
    with normalisation between the layers.

    What to do: initialise for the nonlinearity (`kaiming_normal_` for ReLU), normalise, or add skip connections.
    """
    strongest = 0.0
    passed: list[Layer] = []
    for layer in evidence.layers:
        arriving = layer.source.signal if layer.source is not None else math.nan
        if math.isnan(arriving):
            passed.append(layer)
            continue
        if passed and strongest > 0 and arriving < VANISHED * strongest:
            culprit = next((p for p in passed if _weak(p)), passed[0])
            ratio = arriving / strongest
            yield Finding(
                "init_vanishing",
                "error",
                culprit.name,
                evidence.step,
                f"The signal falls to {_power(ratio)} of its strength by {layer.name}: {_gain_text(culprit)}.",
                REINITIALISE,
                {"signal_ratio": ratio, "gain": _gain(culprit) or 0.0, "needed": _needed(culprit)},
            )
            return
        strongest = max(strongest, arriving)
        passed.append(layer)


def _finding(evidence: Evidence, rule_id: str, layer: Layer, excess: float, what: str, count: int) -> Finding:
    more = f" ({count} layers like this)" if count > 1 else ""
    return Finding(
        rule_id,
        "error",
        layer.name,
        evidence.step,
        f"The gain is {excess:.1f} times {what}: {_gain_text(layer)}{more}.",
        REINITIALISE,
        {"excess": excess, "gain": _gain(layer) or 0.0, "needed": _needed(layer), "layers": count},
    )


def _hidden(evidence: Evidence) -> list[Layer]:
    """Return the layers whose output another layer reads."""
    readers = evidence.graph.consumers()
    return [layer for layer in evidence.layers if layer.node is None or evidence.graph.reaches_layer(layer.node, readers)]


def _gain(layer: Layer) -> float | None:
    if layer.source is None or not layer.source.signal > 0:
        return None
    return layer.output.signal / layer.source.signal


def _needed(layer: Layer) -> float:
    """Return the gain that keeps the scale: that of the nonlinearity for rectifiers, 1 for what is linear around zero."""
    return gain(layer.nonlinearity) if layer.nonlinearity in RECTIFIERS else 1.0


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
    return f"{layer.name} has {figure}, {_needed(layer):.2g} keeps the scale{follows}"


def _power(value: float) -> str:
    return f"10^{math.log10(value):.1f}" if value > 0 else "0"


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter
