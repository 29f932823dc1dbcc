"""The rule about gains that no vanishing or exploding signal shows: of norms, of SELU layers, and of recurrent weights."""

import math
from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.parameters import ParameterFacts
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import hidden
from lit_training.diagnosis.unrolled import recurrence
from lit_training.tracing.following import residual_branch_ends
from lit_training.tracing.graph import NORMALISATIONS

__all__ = ["bad_gain"]

LEAST_DEPTH = 8
RECURRENT, UNROLLED = 3.0, 4
FORGETFUL = 0.1
ENOUGH_UNITS, SKEW, ALIKE = 8, 0.3, 2.0
BOUNDED = frozenset(["tanh", "sigmoid"])


@rule(explains=["lr_too_high", "vanishing_gradient", "slow_convergence", "lr_too_low"])
def bad_gain(evidence: Evidence) -> Iterator[Finding]:
    """Gains of normalisations are drawn at random, SELU layers for another one, recurrent weights far too large or too small.

    What it means: SELU keeps mean 0 and variance 1 from layer to layer only if its weights have variance 1/fan_in (Klambauer
    et al. 2017, "Self-Normalizing Neural Networks", theorem 1). torch's default for linear layers has a third of that, He's
    scheme twice as much, and the deviations multiply.

    How it is measured: the gains (root mean square of the output over that of the input) of hidden layers that SELU follows,
    in nets without normalisation and skip connections; their geometric mean. Of recurrent weights, those of torch's layers and
    cells, and square ones that a forward uses four times or more in front of a tanh or sigmoid: the root mean square of their
    rows' norms, which is the gain of one step, while they look freshly drawn. Of a small one, also what is left of the gradient
    from the last step to the first of eight or more, each of which reads another part of the batch: gates, skip connections and a
    loss at every step keep it. Of batch, layer and group norms the gains, which are ones at the start, or zeros.

    Threshold: at least half of the norms, and two, have gains whose lowest and highest lie about zero (their sum is less than
    .3 of their distance; RepVGG draws them about .1, with a deviation of .1), of one size within a factor of 2, as training
    does not leave them. A recurrent gain above 3 (torch draws .6, an orthogonal matrix has 1): the state saturates, whatever
    comes in (Pascanu et al. 2013). Or one below .1, with less than .2 left of the gradient at each step, since a random matrix
    stretches nothing by more than twice its gain: what was read eight steps ago is below float32's rounding. For SELU 8 layers
    or more, with a mean gain below 3/4 or above 4/3. Measured with default initialisation (gain 0.6 to 0.7) on 16 layers, 250
    steps: 45 % right instead of 97 % under SGD, 55 % under Adam; with 4 layers 92 %. Gains of other activations are judged
    where they do harm: init_vanishing, init_exploding.

    Not an alarm: shallow SELU nets; SELU behind a normalisation; N(0, .01) at width 100 and more, and in a language model; layers
    applied again and again to the same input. Steps inside a fused kernel are not seen.

    What to do: `torch.nn.init.kaiming_normal_(w, nonlinearity="linear")` and zero biases, or `lit_training.initialize_(model,
    "he")`, which reads off what follows.
    """
    drawn = _drawn_about_zero(evidence)
    if drawn:
        first = drawn[0]
        message = (
            f"{len(drawn)} normalisations have gains drawn about zero ({first.low:.2g} to {first.high:.2g}), not 1: what they give"
            " shrinks, and half of it changes sign."
        )
        advice = "Leave the weights of normalisations at 1: draw parameters with two dimensions or more only."
        yield Finding("bad_gain", "error", first.name, evidence.step, message, advice, {"low": first.low, "high": first.high})
        return
    for name, each in _recurrent_gains(evidence).items():
        if each > RECURRENT:
            message = f"Each step multiplies the state by about {each:.2g}, where 1 keeps it: its units saturate."
            advice = f"torch.nn.init.orthogonal_ on {name}, or torch's default."
            yield Finding("bad_gain", "error", name, evidence.step, message, advice, {"gain": each})
            return
    for name, each in _forgetful(evidence).items():
        message = (
            f"Each step leaves {each:.2g} of the state and of its gradient, where 1 keeps them: early steps teach nothing."
        )
        advice = f"torch.nn.init.orthogonal_ on {name}, or torch's default."
        yield Finding("bad_gain", "error", name, evidence.step, message, advice, {"gain": each})
        return
    layers = [layer for layer in hidden(evidence) if layer.nonlinearity == "selu"]
    layers = [layer for layer in layers if layer.source is not None and layer.source.rms > 0]
    normalises = any(node.op in NORMALISATIONS for node in evidence.graph.nodes)
    if len(layers) < LEAST_DEPTH or normalises or residual_branch_ends(evidence.graph):
        return
    gains = [layer.output.rms / layer.source.rms for layer in layers if layer.source is not None and layer.output.rms > 0]
    each = math.exp(sum(math.log(g) for g in gains) / len(gains)) if gains else 0.0
    if not 0.75 <= each <= 4 / 3:
        message = f"{len(layers)} SELU layers have a gain of {each:.2f} each where 1 makes them normalise themselves."
        advice = 'Draw weights with kaiming_normal_(w, nonlinearity="linear"), biases zero.'
        yield Finding(
            "bad_gain", "error", layers[0].name, evidence.step, message, advice, {"gain": each, "layers": len(layers)}
        )


def _drawn_about_zero(evidence: Evidence) -> list[ParameterFacts]:
    """Return the gains of normalisations that lie on both sides of zero, if at least half of all that are not constant zeros do."""
    graph = evidence.graph
    norms = (node for node in graph.nodes if node.op in NORMALISATIONS)
    first = (next((graph.nodes[p].name for p in node.parents if graph.nodes[p].op == "parameter"), "") for node in norms)
    gains = [facts for name in dict.fromkeys(first) if (facts := evidence.parameters.get(name)) is not None]
    gains = [f for f in gains if f.requires_grad and math.prod(f.shape) >= ENOUGH_UNITS and not f.low == f.high == 0]
    drawn = [f for f in gains if abs(f.low + f.high) < SKEW * (f.high - f.low)]
    sizes = [f.norm / math.sqrt(math.prod(f.shape)) for f in drawn]
    return drawn if len(drawn) > 1 and 2 * len(drawn) >= len(gains) and max(sizes) < ALIKE * min(sizes) else []


def _recurrent_gains(evidence: Evidence) -> dict[str, float]:
    """Return the gain of a step through each recurrent weight that is trained and looks freshly drawn."""
    repeated = [layer for layer in evidence.layers if layer.calls >= UNROLLED and layer.node is not None]
    acts = {layer.weight: evidence.graph.follows(layer.node) for layer in repeated if layer.node is not None}
    unrolled = {weight for weight, follows in acts.items() if not BOUNDED.isdisjoint(follows)}
    facts = (f for f in evidence.parameters.values() if f.requires_grad and f.fresh and len(f.shape) == 2)
    recurrent = (f for f in facts if "weight_hh" in f.name or (f.name in unrolled and f.shape[0] == f.shape[1]))
    return {f.name: f.norm / math.sqrt(f.shape[0]) for f in recurrent}


def _forgetful(evidence: Evidence) -> dict[str, float]:
    """Return the gain of a step through each fresh recurrent weight that lets the state and its gradient vanish."""
    gains = {}
    for name, left in evidence.fading.items():
        facts = evidence.parameters.get(name)
        if facts is None or not (facts.requires_grad and facts.fresh) or left >= 2 * FORGETFUL:
            continue
        each = facts.norm / math.sqrt(min(facts.shape))
        calls = [node.index for node in evidence.graph.layers() if node.weight == name]
        if each < FORGETFUL and recurrence(evidence.graph, calls) is not None:
            gains[name] = each
    return gains
