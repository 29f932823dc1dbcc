"""The rule about the network's last activation: does it leave logits where the loss wants them, and can it reach the targets?"""

import math
from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.reading import is_masked, logits_of, producer
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.likelihoods import raw_probability, rectified_log_rate, softmax_of_several
from lit_training.tracing.graph import Graph, Node
from lit_training.tracing.loss_calls import LossCall

__all__ = ["single_softmax", "wrong_last_activation"]

AT_FLOOR, OF_PIXELS = 0.125, 0.05  # of the variance; of standard normal targets ReLU cuts off .5, tanh .15
NARROW = 4.0  # the odds of two classes then stay below e^4 = 55
_UNIT, _POSITIVE = (0.0, 1.0), (0.0, math.inf)
_RANGES = {
    **dict.fromkeys(("sigmoid", "softmax", "hardsigmoid"), _UNIT),
    **dict.fromkeys(("relu", "softplus", "exp", "square", "abs"), _POSITIVE),
    "relu6": (0.0, 6.0),
    "tanh": (-1.0, 1.0),
}


@rule(
    explains=["slow_convergence", "lr_too_low", "bad_initial_loss", "no_update", "dead_relu", "constant_output", "saturation"]
)
def wrong_last_activation(evidence: Evidence) -> Iterator[Finding]:
    """The network ends in an activation that its loss applies again, or that cannot produce the targets.

    Measured on the traced operations of the real step: what produced the tensor that the loss received, looking through
    reshaping only. Cross-entropy and BCE-with-logits take logits; a softmax or sigmoid before them bounds the logits to 0...1,
    so that the loss cannot fall below a floor and gradients shrink (UMLAUT, TheDeepChecker), a ReLU, tanh or a clamp to a range
    below 4 bounds them too. A softmax over a single column is always 1. A regression whose output, or mean, passes a bounded or
    positive activation cannot reach targets outside of its range; that is an alarm only if the first batch holds such targets
    by more than a tenth of the targets' spread. A Poisson likelihood `exp(u) - y * u` takes the logarithm of the rate; behind a
    ReLU or softplus no rate is below 1, an alarm if counts are. A softmax makes rows that sum to 1; compared column by column
    with targets whose rows are off that by more than 0.2 on average (labels that may hold together), it cannot reach them. A
    binary cross-entropy of probabilities, torch's or written out as log(p) and log(1 - p), gets a layer's raw outputs, some of
    them below 0 or above 1 by more than 0.05: a clamp hides the NaN, and where it holds there is no gradient.

    Not an alarm: log_softmax before cross-entropy, which changes nothing; a bounded output for targets within its range, or
    beyond it where a mask or weights made of the batch may take such targets out of the loss, or where noise alone may
    leave it: amounts below a floor of 0 that make less than an eighth of the variance (less their background), or pixels that
    come back when averaged with their neighbours, but for a twentieth of the variance (Noise2Noise); a softmax
    against one-hot or soft labels under BCE; a log rate above 0 for counts that are all 1 or more.

    What to do: remove the last activation, and apply it where predictions are read; a sigmoid for labels that may hold together.
    """
    found = single_softmax(evidence) or _no_logits(evidence) or _out_of_reach(evidence) or _unfit(evidence)
    if found is not None:
        yield found


def _no_logits(evidence: Evidence) -> Finding | None:
    graph = evidence.graph
    for call in evidence.losses:
        logits = logits_of(graph, call)
        if logits is None:
            continue
        maker = producer(graph, logits)
        if maker.op in ("softmax", "sigmoid", "relu", "relu6", "tanh", "hardsigmoid") or _is_narrow(maker):
            name = "cross_entropy" if "nll" in call.op else "binary_cross_entropy_with_logits"
            return _last(evidence, maker, f"{name} gets the output of {maker.op}, but needs logits", name)
    return None


def single_softmax(evidence: Evidence) -> Finding | None:
    """Say so if a softmax over one column, which is always 1, goes into the loss."""
    for call in evidence.losses:
        maker = producer(evidence.graph, evidence.graph.nodes[call.prediction])
        if maker.op == "softmax" and maker.scalars and maker.shape[int(maker.scalars[0])] == 1:
            message = (
                f"softmax is taken over a single column (shape {list(maker.shape)}), so the output is 1 and has no gradient."
            )
            advice = "For one output drop the softmax, and use binary_cross_entropy_with_logits; for K classes give K outputs."
            return Finding("wrong_last_activation", "error", maker.scope, evidence.step, message, advice)
    return None


def _out_of_reach(evidence: Evidence) -> Finding | None:
    for call in evidence.losses or evidence.differences:
        maker = producer(evidence.graph, evidence.graph.nodes[call.prediction])
        if is_masked(evidence.graph, call):
            continue
        if call.op in ("", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss") and maker.op in _RANGES:
            (low, high), (lowest, highest) = _RANGES[maker.op], call.target_range
            margin = 0.1 * (highest - lowest)
            if (lowest < low - margin or highest > high + margin) and not _is_noise(evidence.graph, call, low, high):
                message = f"targets go from {lowest:.3g} to {highest:.3g}, which {maker.op} at the end cannot reach"
                return _last(evidence, maker, message, call.op or "the loss")
    return None


def _is_noise(graph: Graph, call: LossCall, low: float, high: float) -> bool:
    """Tell whether noise alone explains what leaves a range: a little below the floor of amounts, or pixels whose means stay."""
    (below, _), (_, above) = call.outside.get(low, (0.0, 0.0)), call.outside.get(high, (0.0, 0.0))
    pixels = len(graph.nodes[call.target].shape) == 4
    most = AT_FLOOR if high == math.inf else OF_PIXELS if pixels else 0.0
    return call.spread is not None and below + above < most * call.spread[0]


def _unfit(evidence: Evidence) -> Finding | None:
    """Judge what likelihoods of rates and of probabilities get."""
    if (maker := rectified_log_rate(evidence)) is not None:
        message = f"the Poisson likelihood takes the logarithm of the rate, and {maker.op} at the end keeps all rates above 1"
        return _last(evidence, maker, message, "the likelihood, or use log_input=False")
    if (maker := softmax_of_several(evidence)) is not None:
        message = "softmax makes outputs that sum to 1, and the rows of the targets do not"
        return _last(evidence, maker, message, "the loss; a sigmoid keeps labels apart")
    if (maker := raw_probability(evidence)) is not None:
        message = f"A binary cross-entropy of probabilities gets the raw outputs of {maker.scope}, which leave 0...1."
        advice = "Use binary_cross_entropy_with_logits, or a sigmoid at the end of the network."
        return Finding("wrong_last_activation", "error", maker.scope, evidence.step, message, advice)
    return None


def _is_narrow(maker: Node) -> bool:
    """Tell whether values are clamped into a range that is too narrow for logits."""
    return maker.op in ("clamp", "hardtanh") and len(maker.scalars) == 2 and maker.scalars[1] - maker.scalars[0] < NARROW


def _last(evidence: Evidence, maker: Node, message: str, loss: str) -> Finding:
    advice = f"Remove the {maker.op} at the end of the network; apply it to predictions only, not before {loss}."
    return Finding("wrong_last_activation", "error", maker.scope, evidence.step, f"{message}.", advice)
