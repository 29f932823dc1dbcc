"""Rules about what the loss receives: logits or probabilities, within a range that can reach the targets."""

import math
from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.reading import is_masked, logits_of, producer
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.class_numbers import each_the_class_number, the_class_number
from lit_training.diagnosis.rules.cosines import bounded_cosines
from lit_training.diagnosis.rules.guessing import ROUNDING, flat_behind
from lit_training.diagnosis.rules.likelihoods import raw_probability, rectified_log_rate, softmax_of_several, widened_errors
from lit_training.tracing.graph import Graph, Node
from lit_training.tracing.loss_calls import LossCall
from lit_training.tracing.probe import Layer

__all__ = ["wrong_last_activation", "wrong_loss"]

COUNTED = 2.0
AT_FLOOR, OF_PIXELS = 0.125, 0.05  # of the variance; of standard normal targets ReLU cuts off .5, tanh .15
SAME = 1e-4  # of gradients of one size
CERTAIN = 12.0  # exp of which is what float32 hardly tells from certainty
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
    found = _constant(evidence) or _no_logits(evidence) or _out_of_reach(evidence) or _unfit(evidence)
    if found is not None:
        yield found


@rule(
    explains=[
        "lr_too_high",
        "slow_convergence",
        "lr_too_low",
        "bad_initial_loss",
        "loss_diverging",
        "loss_sign",
        "vanishing_gradient",
    ]
)
def wrong_loss(evidence: Evidence) -> Iterator[Finding]:
    """The loss is not made for what it gets: log-probabilities, several classes, labels that exclude each other.

    What it means: the number that is minimised is not the one that was meant, and often it can be made small without learning.

    How it is measured, on the traced operations of the real step:
    `nll_loss` or `ctc_loss` of something else than log-probabilities: the mean over the batch of log(sum(exp(prediction))) over
    the classes is 0 for log-probabilities; above 0.01 is an alarm (below lie the likelihoods of generative classifiers, which
    are fine; for CTC nine of ten steps have to be off, since padded ones may hold anything). Raw logits make this loss unbounded
    from below, probabilities give no gradient where it is needed. Cross-entropy,
    over a single class: its probability is always 1, its gradient 0. Cross-entropy
    of target rows that do not sum to 1 (their mean is off by more than 0.05): labels that do not exclude each other. A squared or
    absolute error of one output and labels that the loader gives as integers, 0 to 3 or more, each of which is about as common:
    their entropy is within 3 % (and what chance takes) of the largest.
    `kl_div` of probabilities: its first argument is the output of a softmax or sigmoid instead of log-probabilities.
    A Gaussian likelihood whose log variance is added and widens the errors, too, instead of narrowing them.
    Cross-entropy of cosines (products of vectors that were divided by their norms) times a known s, over C classes: it cannot
    fall below log(1 + (C - 1) exp(-2 s)); an alarm if that is more than .9 of log C, what guessing costs.

    Not an alarm: log_softmax before cross-entropy, soft or smoothed labels, Brier scores, losses of one's own; a multinomial
    likelihood of counts (2 and more), of what the network itself has read, or written out with a sum for each sample (sets of
    items: Liang et al. 2018); means that are compared beside other terms,
    so that each sample gets a gradient of its own; an ensemble, each of whose networks tells one number; ratings, counts and
    grades, some of which are rare; cosines times 1 or more, and with a scale that is learnt, by which they may grow.

    What to do: `cross_entropy` on logits; `binary_cross_entropy_with_logits` for one output or for labels that do not exclude
    each other; `kl_div` on `log_softmax`; cosines divided by their temperature.
    """
    checks = (
        _nll_of_others,
        _single_class,
        _several_labels,
        _kl_of_probabilities,
        _means_compared,
        _widened,
        _scaled_down,
        _unheard,
        _flat,
        each_the_class_number,
        the_class_number,
    )
    found = next((verdict for check in checks if (verdict := check(evidence))), None)
    if found:
        where, message, advice = found
        yield Finding("wrong_loss", "error", where, evidence.step, message, advice)


_Verdict = tuple[str, str, str] | None


def _nll_of_others(evidence: Evidence) -> _Verdict:
    for call in evidence.losses:
        if call.scale > 0.01:
            maker = producer(evidence.graph, evidence.graph.nodes[call.prediction])
            what = "probabilities" if maker.op in ("softmax", "sigmoid") else "raw outputs"
            name = "ctc_loss" if "ctc" in call.op else "nll_loss"
            message = f"{name} gets {what}: log(sum(exp(prediction))) is {call.scale:.2f} instead of 0."
            advice = "torch.nn.functional.cross_entropy on the outputs before any softmax"
            return maker.scope, message, f"Use {'log_softmax(output, dim=-1)' if name == 'ctc_loss' else advice}."
    return None


def _single_class(evidence: Evidence) -> _Verdict:
    graph = evidence.graph
    for call in evidence.losses:
        maker = producer(graph, graph.nodes[call.prediction])
        if maker.op == "log_softmax" and maker.scalars and maker.shape[int(maker.scalars[0])] == 1:
            message = (
                f"{maker.op} is taken over a single class (shape {list(maker.shape)}), so it is constant and has no gradient."
            )
            advice = "For one output use binary_cross_entropy_with_logits; for K classes give the last layer K outputs."
            return maker.scope, message, advice
    return None


def _several_labels(evidence: Evidence) -> _Verdict:
    readers = evidence.graph.consumers()
    for product, rows in evidence.label_rows.items():
        if not any(evidence.graph.nodes[i].op == "sum" and not evidence.graph.nodes[i].shape for i in readers[product]):
            continue  # summed for each sample: a likelihood that somebody wrote down
        total = float(rows.columns.mean[0])
        if abs(total - 1) > 0.05 and float(rows.high[1]) < COUNTED:
            message = f"cross_entropy gets target rows that sum to {total:.2g} on average, not 1: several labels per sample."
            return "", message, "Use binary_cross_entropy_with_logits, which asks about each label on its own."
    return None


def _kl_of_probabilities(evidence: Evidence) -> _Verdict:
    """Recognise `target * log(target) - target * prediction`, which is what `kl_div` computes."""
    graph = evidence.graph
    for node in graph.nodes:
        parents = [graph.nodes[p] for p in node.parents]
        if node.op == "sub" and [p.op for p in parents] == ["xlogy", "mul"]:
            target = parents[0].parents[:1]
            for operand in parents[1].parents:
                maker = producer(graph, graph.nodes[operand])
                if (operand,) != target and maker.op in ("softmax", "sigmoid"):
                    message = f"kl_div gets the output of {maker.op}, but needs log-probabilities."
                    return maker.scope, message, "Give kl_div torch.log_softmax(output, dim=1)."
    return None


def _means_compared(evidence: Evidence) -> _Verdict:
    """Recognise a loss whose prediction was averaged over the batch before it was compared."""
    graph = evidence.graph
    for call in evidence.losses:
        maker = producer(graph, graph.nodes[call.prediction])
        arriving = graph.nodes[maker.parents[0]].shape if maker.parents else ()
        averaged = maker.op in ("mean", "sum") and arriving[:1] == (evidence.batch_size,) != maker.shape[:1]
        if (
            averaged
            and _gives_one_gradient(evidence, maker)
            and evidence.batch_size > 1
            and any(
                graph.nodes[i].name == "batch" and graph.nodes[i].shape[:1] == (evidence.batch_size,)
                for i in graph.ancestors(call.target)
            )
        ):
            message = f"{call.op} compares the batch's {maker.op}, of shape {list(maker.shape)}: all samples get one gradient."
            return maker.scope, message, "Compare sample by sample, and average the loss: loss_fn(output, target)."
    return None


def _widened(evidence: Evidence) -> _Verdict:
    found = widened_errors(evidence)
    if found is None:
        return None
    message = "Squared errors are multiplied by exp(u), and u is added: both fall with u, whatever the errors are."
    return found.scope, message, "u + error * exp(-u) for a log variance u: torch.nn.functional.gaussian_nll_loss."


def _gives_one_gradient(evidence: Evidence, averaged: Node) -> bool:
    """Tell whether the outputs that were averaged get the same gradient in every sample."""
    behind = evidence.graph.ancestors(averaged.index)
    heads = [
        x for x in evidence.layers if x.node in behind and not evidence.graph.reaches_layer(x.node) and x.gradient is not None
    ]
    return all(x.gradient.signal <= SAME * x.gradient.rms for x in heads if x.gradient is not None)


def _scaled_down(evidence: Evidence) -> _Verdict:
    found = bounded_cosines(evidence)
    if found is None:
        return None
    message = (
        f"The logits are cosines that were scaled down, within {found.bound:.3g} of 0: the cross-entropy of {found.classes} "
        f"classes cannot fall below {found.least:.3f}, and guessing costs {found.guess:.3f}."
    )
    return found.maker.scope, message, "Divide cosines by the temperature, or multiply them by a scale of 10 to 30."


def _unheard(evidence: Evidence) -> _Verdict:
    """Say so if the loss leaves logits, or samples of one label, without a gradient."""
    for layer in evidence.layers:
        if layer.only_at_label and not _are_probabilities(layer) and not _is_normalised_weight(evidence, layer):
            message = f"Of the outputs of {layer.name} only the right class's gets a gradient; nothing holds the others down."
            return layer.name, message, "Use torch.nn.functional.cross_entropy(output, target)."
        if layer.silent_label is not None and not _is_certain(layer):
            message = f"Targets of {layer.silent_label:g} give a gradient of exactly 0 at {layer.name}, the others do not."
            return layer.name, message, "Losses with a margin take targets -1 and 1: 2 * y - 1; or use BCE with logits."
        if layer.unheard and not layer.nonlinearity:
            message = (
                f"{layer.unheard} of the {layer.shape[1]} outputs of {layer.name} have targets that vary, and no gradient."
            )
            return layer.name, message, "Does the loss sum over all outputs? In a loop over them look for = in place of +=."
    return None


def _is_certain(layer: Layer) -> bool:
    """Tell whether a bias has made up the answer to all samples, so that no gradient is left where it is right."""
    return layer.output.rms > CERTAIN and layer.output.signal < layer.output.rms / 4


def _is_normalised_weight(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether weights are made to sum to 1, as in naive Bayes, so that to raise some of an output's is to lower others."""
    graph = evidence.graph
    before = () if layer.node is None else (graph.nodes[i] for i in graph.ancestors(layer.node))
    return any(node.op in ("softmax", "log_softmax", "logsumexp") and node.origin == "parameter" for node in before)


def _are_probabilities(layer: Layer) -> bool:
    """Tell whether a layer's outputs are positive and sum to 1, so that to raise one is to lower the others."""
    return bool((layer.output.low >= 0).all()) and abs(float(layer.output.columns.mean.sum()) - 1) < 0.01


def _flat(evidence: Evidence) -> _Verdict:
    """Say so if the loss has a gradient, and it is zero at every parameter in all of the first steps."""
    learning = [f for f in evidence.parameters.values() if f.gradient is not None]
    always = evidence.later is not None and not any(evidence.later.gradients.values())
    heads = [layer for layer in evidence.layers if layer.node is not None and not evidence.graph.reaches_layer(layer.node)]
    flat = bool(heads) and all(layer.gradient is not None and layer.gradient.largest == 0 < layer.output.rms for layer in heads)
    if (
        always
        and flat
        and learning
        and not any(f.gradient for f in learning)
        and flat_behind(evidence, ROUNDING, heads) is None
        and _constant(evidence) is None
    ):
        message = f"The loss does not depend on the outputs: its gradient at {heads[0].name} is exactly 0."
        return heads[0].name, message, "Look at its last operations: a cosine or softmax over one column, a step, a clamp."
    return None


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


def _constant(evidence: Evidence) -> Finding | None:
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
