"""The rule about what the loss receives: is it made for log-probabilities, for several labels, for each sample alone?"""

from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.reading import producer
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.class_numbers import each_the_class_number, the_class_number
from lit_training.diagnosis.rules.cosines import bounded_cosines
from lit_training.diagnosis.rules.guessing import ROUNDING, flat_behind
from lit_training.diagnosis.rules.last_activation import single_softmax
from lit_training.diagnosis.rules.likelihoods import widened_errors
from lit_training.tracing.graph import Node
from lit_training.tracing.probe import Layer

__all__ = ["wrong_loss"]

COUNTED = 2.0
SAME = 1e-4  # of gradients of one size
CERTAIN = 12.0  # exp of which is what float32 hardly tells from certainty


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
        and single_softmax(evidence) is None
    ):
        message = f"The loss does not depend on the outputs: its gradient at {heads[0].name} is exactly 0."
        return heads[0].name, message, "Look at its last operations: a cosine or softmax over one column, a step, a clamp."
    return None
