"""Rules about the form of the loss: its sign and its reduction."""

import math
from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.reading import terms
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.cosines import similarity_alone
from lit_training.diagnosis.rules.directions import (
    away_from_choices,
    away_from_partners,
    away_from_targets,
    concave_divergence,
    heavy_divergence,
    is_even,
    is_open,
    is_turned,
    lowers_errors,
)
from lit_training.diagnosis.rules.guessing import guesses
from lit_training.diagnosis.rules.likelihoods import sunk_likelihood
from lit_training.diagnosis.updates import kept, promised
from lit_training.tracing.graph import LOSSES, Node

__all__ = ["loss_reduction", "loss_sign"]

LARGE_CHANGE = 0.5
SIGNIFICANT = 4.0
HEAVY, HEAVY_BY_CODE = 1.5, 3.0
LEAST_ROWS, DROWNS = 8, 100.0
TIMES_MORE, LONG_RUN = 4, 100


@rule(explains=["lr_too_high", "loss_diverging", "nan_loss", "bad_initial_loss", "slow_convergence", "lr_too_low"])
def loss_sign(evidence: Evidence) -> Iterator[Finding]:
    """Training climbs: a step against the gradient takes the outputs away from their targets.

    What it means: the better the network was, the larger this loss. Typical causes: a log-likelihood, a similarity or minus a
    loss returned as the loss; `maximize=True` in the optimiser.

    How it is measured: the cosine between minus the gradient at the output of the network and the way to the targets, both
    centred over the batch (`direction.agreement`). Cross-entropy's gradient is p - y, that of a squared error y_hat - y, and
    for every usual loss the cosine is near 1 at the start. The targets are the only tensor of the batch that the network
    does not read; where there is none, an autoencoder's input that is compared with the output as it is, or scaled. Besides:
    the loss is minus the value of the only one of torch's losses that the step called, one that is never negative; the gradient
    at `output - target`, where a step writes that out, has the other sign than the difference itself (99 % of 8 or more, and no
    other part of the loss draws to targets); what `gather` picks by the target, or an overlap of probabilities and target
    (Dice), is taken the other way than is meant: scores and similarities down, distances up; in a contrastive loss, each row of
    the similarities between samples has a positive gradient at one partner and negative ones elsewhere that add up to zero, the
    opposite of p - y; all of the loss is a cosine to vectors that no layer made; the loss holds `u - exp(u)` or `log(v) - v` of
    what layers made, where Gaussian divergences and Poisson likelihoods hold `exp(u) - u`; all that the loss adds up, sizes of
    what layers give apart, are logarithms of probabilities (`logsigmoid`, `log_softmax`, the log of a sigmoid or softmax) with
    a factor above zero: a likelihood, 0 at best, that falls without bound (ranking, negative sampling, policies).

    At the end of a run (`LossMonitor`): the loss falls below zero faster and faster, as no likelihood does; or a logged reward
    or return falls all through the run.

    Threshold: below zero with four standard errors of a correlation (Fisher's z, atanh(r) sqrt(n - 3), n the number of
    samples).

    Not an alarm: losses that are negative by nature (Gaussian and Poisson likelihoods, minus a similarity); outputs that fall
    where targets rise, below an error that falls (a decay rate, a disparity, the score of the other class), as the rate of
    an exponential likelihood, or where only the order of the targets is read, or if they are turned round on every way to the
    targets (`margin - distance`, `1 / depth`, `log_softmax(-energy)`); errors that are the same for outputs of the other
    sign, as scale-invariant ones of speech (Le Roux et al. 2019), which go where they are nearer; gradient reversal in the
    network; a loss that is not finite, whose gradient says nothing; batches with several tensors beside the inputs, as with
    rewards, weights or noise; adversaries whose error is raised while another loss falls; generators that raise `exp(u)` of a
    critic, or lower log(1 - D) of a discriminator that is frozen, in another optimiser, or has a loss of its own;
    log-probabilities beside other parts, or times an advantage.

    What to do: drop the minus, or add one; `maximize=False`.
    """
    if evidence.loss is not None and not math.isfinite(evidence.loss):
        return
    climbs = evidence.maximizes
    message, found = _of_outputs(evidence) or _negated(evidence) or _of_comparisons(evidence) or ("", {})
    if message:
        advice = "Remove maximize=True." if climbs else "Minimise minus this loss, or drop its minus sign."
        yield Finding("loss_sign", "error", "", evidence.step, message, advice, found)


_Verdict = tuple[str, dict[str, float]] | None


def _of_outputs(evidence: Evidence) -> _Verdict:
    climbs = evidence.maximizes
    if not climbs and lowers_errors(evidence):
        return None
    compared = [
        (layer, -layer.agreement if climbs else layer.agreement)
        for layer in evidence.layers
        if layer.agreement is not None
        and layer.output.rows >= 8
        and not (layer.node and any(free(evidence, layer.node) for free in (is_open, is_even, is_turned)))
    ]
    # of a mean and its log variance the mean tells: what the other does follows the errors' squares
    layer, towards = max(compared, key=lambda pair: abs(pair[1]), default=(None, 0.0))
    if layer is None or towards >= 0:
        return None
    if math.atanh(min(-towards, 0.999999)) * math.sqrt(layer.output.rows - 3) <= SIGNIFICANT:
        return None
    why = "the optimiser has maximize=True" if climbs else "the loss has the wrong sign"
    message = f"Each step takes the outputs of {layer.name} away from the targets (cosine {towards:.2f}, not near 1): {why}."
    return message, {"cosine": towards}


def _negated(evidence: Evidence) -> _Verdict:
    positive = [call for call in evidence.losses if call.value is not None and call.value > 0 and abs(call.scale) < 0.01]
    if not evidence.maximizes and len(evidence.losses) == 1 and positive and evidence.loss is not None:
        value = positive[0].value or 0.0
        if abs(evidence.loss + value) < 1e-3 * value:
            message = f"The loss that is minimised is {evidence.loss:.4g}: minus {positive[0].op}, so training makes it worse."
            return message, {"loss": evidence.loss}
    return None


def _of_comparisons(evidence: Evidence) -> _Verdict:
    climbs = evidence.maximizes
    if away_from_targets(evidence, climbs):
        return "Each step makes every difference between outputs and targets larger.", {}
    if away_from_choices(evidence, climbs):
        return "Each step lowers scores, similarities or overlaps that belong to the targets, or parts what has one label.", {}
    if away_from_partners(evidence, climbs):
        return "Each step makes partners less alike, and every sample more like all others.", {}
    if (likelihood := sunk_likelihood(evidence)) is not None:
        return f"All of the loss is a log-likelihood ({likelihood}), at best 0, and each step lowers it without bound.", {}
    if similarity_alone(evidence) * (-1 if climbs else 1) > 0:
        return (
            "All of the loss is a cosine similarity to what is given, and each step lowers it: the loss has the wrong sign.",
            {},
        )
    part = None if climbs else concave_divergence(evidence)
    if part is not None:
        return f"A part of the loss, {part}, has no lower bound: a divergence or likelihood with the wrong sign.", {}
    return None


@rule(explains=["loss_diverging", "nan_loss", "bad_initial_loss", "exploding_gradient", "lr_too_high", "oscillating_loss"])
def loss_reduction(evidence: Evidence) -> Iterator[Finding]:
    """The loss is summed over the batch with a learning rate made for its mean, or averaged twice.

    What it means: with plain gradient descent the step grows with the number of samples in the batch, and the rate that a
    tutorial gives for the mean is too high by the batch size. A mean that is divided by the batch size once more makes it too
    low.

    How it is measured: the traced loss is followed back to the operations that reduced it. A sum over the samples that nothing
    divides is an alarm if some weight is held by SGD and its first updates add up to more than half the weight itself. A mean
    that is divided by exactly the batch size (4 or more) is one under SGD; where the loop adds up the gradients of k batches
    for each of its first four updates, one that is divided by exactly k times the batch size; so is a sum that is divided by
    four times what it adds up, or more, if all updates of a run of 100 or more would lower it by less than itself. A Gaussian's
    divergence that is summed over the samples and not divided, beside an error that is averaged, is one under any optimiser if
    it outweighs the error: the posterior then collapses, and every sample is rebuilt alike. So is one of torch's losses that is
    summed over the samples and 100 times as large as those of torch's that are averaged and added to it.

    Threshold: momentum m adds up 1 / (1 - m) such updates; together they are longer than half of a weight. Healthy sums, whose
    rate was lowered to match, stay below .12. For the divergence, a code of k numbers costs k times its weight, more than 1.5
    times what meeting all targets instead of their mean gains; a sum whose small factor makes up for the batch stays below. 3
    times where the divergence is averaged over the batch, and the error over the elements of a sample, too (healthy ones: 1.7).

    Not an alarm: a sum with a rate that was lowered to match; an error summed over features and averaged over samples; a sum
    under Adam and others that divide by the gradient's size; a large step of a weight of one number beside others; a gradient
    that is clipped to a smaller step; a mean divided by as many batches as make an update, or by as many terms as are added up,
    though a batch has that many samples too; a sum over the few samples that have a label, divided by their number.

    What to do: `reduction="mean"`, or divide by `len(target)`, once.
    """
    found = _summed_or_twice_averaged(evidence) or _sum_beside_mean(evidence) or _divided_by_more(evidence)
    weight, over_samples = heavy_divergence(evidence) or (0.0, False)
    if found is None and weight > (HEAVY if over_samples else HEAVY_BY_CODE):
        over = "the batch" if over_samples else "a code"
        message = f"The divergence is summed over {over}, the error averaged: it weighs {weight:.3g} times what it can gain."
        found = message, "Sum each over a sample's elements, then take the mean of both over the batch.", {"weight": weight}
    if found is not None:
        message, advice, figures = found
        yield Finding("loss_reduction", "error", "", evidence.step, message, advice, figures)


def _batches_added(evidence: Evidence) -> int | None:
    """Return of how many batches the loop itself adds up the gradients for an update, which a mean may be divided by.

    `None` where that is not known, or where it is not the same number each time.
    """
    later = evidence.later
    if later is None:
        return None
    if later.batches < 2 * (later.steps + 1):
        return 1
    batches, left = divmod(later.batches + 1, (later.steps + 1) * evidence.plan.accumulated)
    return None if left or later.steps < 1 else batches


def _summed_or_twice_averaged(evidence: Evidence) -> tuple[str, str, dict[str, float]] | None:
    weights = [f for f in evidence.parameters.values() if f.kind == "weight"]
    weights = [f for f in weights if math.prod(f.shape) > 1] or weights
    changes = [f.first_change * kept(evidence, f) for f in weights if f.first_change is not None]
    if not changes or evidence.batch_size < 4:
        return None
    total = max(changes) / (1 - min(evidence.momentum, 0.99))
    for loss in evidence.differentiated:
        found = list(terms(evidence.graph, loss))
        if any(term.summed(evidence.graph, evidence.batch_size) for term in found) and total > LARGE_CHANGE:
            longest = (
                f"the first SGD steps add up to {total:.2g} times the length of a weight, where healthy sums stay below .12"
            )
            message = f"The loss is a sum over {evidence.batch_size} samples; {longest}."
            return message, f"Use reduction='mean', or divide the loss by {evidence.batch_size}.", {"change": total}
        added = _batches_added(evidence) or 0
        twice = [
            t
            for t in found
            if t.node.op in (*LOSSES, "mean")
            and t.divisor in {added * n for n in (evidence.batch_size, _targets(evidence, t.node))}
        ]
        if len(twice) < evidence.batch_size and any(t.node.op == "mean" or t.node.scalars[:1] != (2.0,) for t in twice):
            message = (
                f"The mean loss is divided by the {twice[0].divisor / added:.0f} that it is a mean of once more: steps are that"
                " much too small."
            )
            return message, "Drop the division: the loss is a mean already.", {}
    return None


def _targets(evidence: Evidence, node: Node) -> int:
    """Return how many targets one of torch's losses took, 0 for what is none of them, or took a sample's at a time."""
    shape = evidence.graph.nodes[node.parents[1]].shape if node.op in LOSSES else ()
    count = math.prod(shape)
    return count if count > evidence.batch_size >= LEAST_ROWS else 0


def _sum_beside_mean(evidence: Evidence) -> tuple[str, str, dict[str, float]] | None:
    """Return a loss of torch's that is summed over the batch, if it drowns those that are averaged and added to it."""
    counted = (call for call in evidence.losses if not ("nll" in call.op and call.target_range[0] < 0))  # it skips samples
    values = {call.node: call.value for call in counted if call.value is not None and call.value > 0}
    rows = evidence.batch_size
    for loss in evidence.differentiated if rows >= LEAST_ROWS else ():
        known = [term for term in terms(evidence.graph, loss) if term.node.index in values and term.divisor > 0]
        parts = [(term.summed(evidence.graph, rows), values[term.node.index] / term.divisor) for term in known]
        largest = max((value for summed, value in parts if summed), default=0.0)
        averaged = sum(value for summed, value in parts if not summed)
        if averaged > 0 and largest > DROWNS * averaged:
            message = f"A loss summed over {rows} samples is {largest / averaged:.3g} times the averaged one it is added to."
            return message, "Use reduction='mean' in both, and weigh them.", {"times": largest / averaged}
    return None


def _divided_by_more(evidence: Evidence) -> tuple[str, str, dict[str, float]] | None:
    """Return a sum over a batch that is divided by far more than it adds up, if all planned updates lower the loss by little."""
    fall = promised(evidence, clipped=False)
    plain = any(f.descent is not None for f in evidence.parameters.values())
    if fall is None or fall >= 1 or not plain or (evidence.plan.updates or 0) < LONG_RUN or not guesses(evidence):
        return None
    nodes = evidence.graph.nodes
    for term in (term for loss in evidence.differentiated for term in terms(evidence.graph, loss)):
        of_torch = term.node.op in LOSSES and term.node.scalars[:1] == (2.0,)
        if not (of_torch or term.node.op == "sum"):
            continue
        added = math.prod(nodes[term.node.parents[1 if "nll" in term.node.op else 0]].shape)
        if term.divisor >= TIMES_MORE * added:
            message = (
                f"A sum of {added} errors is divided by {term.divisor:.4g}, so that {evidence.plan.updates} updates lower the loss"
                f" by {fall:.1g} of itself."
            )
            return message, "Use reduction='mean': divide by the samples of the batch, not by those of the data set.", {}
    return None
