"""The rule about classes of which some are rare."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import correlation

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding, is_alarm
from lit_training.diagnosis.reading import logits_of, producer
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import classes_told
from lit_training.diagnosis.rules.targets import ENOUGH, diversity
from lit_training.tracing.graph import Graph
from lit_training.tracing.loss_calls import LossCall

__all__ = ["class_imbalance", "learned_anyway"]

MAJORITY, OF_TWO = 0.86, 0.9
FEW_CLASSES = 0.45
BACKGROUND = 0.97
APART, FOLLOWS, ALONG = 2.0, 0.5, 0.9


@rule(explains=["overfit_no_regularisation", "constant_output", "dead_relu"])
def class_imbalance(evidence: Evidence) -> Iterator[Finding]:
    """A few classes make up nearly all of the samples, and the loss does not make up for it.

    What it means: always naming the common class is nearly as good, so that the rare ones are learned late or never (Buda
    et al. 2018). Accuracy does not show it.

    How it is measured: labels of the first four batches under cross-entropy or BCE of torch, without class weights; of labels
    for each pixel of pictures, those of the first batch, if that is all the loss.

    At the end of a run (`LossMonitor`): a guess is good in training because of a common label, and validation never gets to it.
    If training and validation end below .6 of what naming the labels by their frequency costs, the alarm becomes a note: the
    rare ones are learnt, as risks and clicks of which only the order counts. Two fifths of the deviance explained is an
    excellent fit (.2 to .4; McFadden 1979); measured, sound tables of 5 to 12 % positives end at .35 to .58, networks that
    hardly name a rare one at .65 and above.

    Besides: class weights that grow with how common a class is, instead of falling.

    Threshold: 48 or more labels; one class has more than 86 % by a standard deviation of such a sample (89 % of 128 labels, so
    that 84 % are hardly taken for it), of two classes 90 % (one default in nine is a usual scorecard; faults begin at 95 %),
    or, with five classes and more, the effective number of classes (the exponential of the labels' entropy) is below .45 of
    them. For pixels 97 %: a background of 77 to 90 % is learnt well without weights, neighbours help; lesions of 2 % are not.
    Weights: from the rarest to the commonest class, which is twice as common or more, by more than the root of that factor,
    with a correlation of .9 (of logarithms).

    Not an alarm: `weight=`, `pos_weight=` (unless they are all alike), other losses such as focal loss, a Dice or rank loss of
    the same logits beside, samplers that balance the batches; the next word, letter or item, where five classes or more are the
    rows of an embedding that the network reads with: they are as common as they are.

    What to do: weights, a balancing sampler; judge by balanced accuracy, F1, or the area under the curve.
    """
    targets, classes = evidence.samples.targets, classes_told(evidence)
    advice = "weight= (or pos_weight=) in the loss, or a WeightedRandomSampler; judge by balanced accuracy or F1."
    if (background := _background(evidence)) >= BACKGROUND:
        message = f"{background:.1%} of the pixels have one label, and the loss does not make up for it."
        advice = "pos_weight= or weight= in the loss, or a Dice loss beside it; judge by the overlap."
        yield Finding("class_imbalance", "warning", "", evidence.step, message, advice, {"share": background})
        return
    grown = _grown_weights(evidence)
    if grown is not None:
        message = "Class weights grow with how common a class is, from {:.3g} for {:.0%} of the labels to {:.3g} for {:.0%}."
        advice = "Take the inverse: weight = counts.sum() / counts."
        yield Finding("class_imbalance", "error", "", evidence.step, message.format(*grown), advice)
    light = _light_positives(evidence)
    if light is not None:
        message = "Positives, {:.0%} of the targets, have a weight of {:.3g}, which makes them rarer still."
        advice = "Take the inverse: pos_weight = negatives / positives."
        yield Finding("class_imbalance", "error", "", evidence.step, message.format(*light), advice)
        return
    if targets is None or len(targets) < ENOUGH or classes < 2 or _is_weighted(evidence) or _is_helped(evidence):
        return
    values, counts = evidence.samples.counts
    counts = counts[values >= 0] if evidence.samples.labels else counts
    known = int(counts.sum())
    if known < ENOUGH or len(counts) < 2 or _are_words(evidence, classes):
        return
    share, effective = float(counts.max()) / known, diversity(counts)
    majority = OF_TWO if classes == 2 else MAJORITY
    if share >= majority + math.sqrt(majority * (1 - majority) / known) or (
        classes >= 5 and effective < FEW_CLASSES * classes and known > 8 * classes
    ):
        spread = f"they are as diverse as {effective:.1f} of {classes} classes, equally common"
        message = f"Of the first {known} samples {share:.0%} have one label; {spread}."
        yield Finding(
            "class_imbalance", "warning", "", evidence.step, message, advice, {"share": share, "effective": effective}
        )


def learned_anyway(findings: Sequence[Finding]) -> list[Finding]:
    """Make notes of `class_imbalance`, for a run whose losses ended far below what naming the labels by their frequency costs.

    >>> uneven = Finding("class_imbalance", "warning", message="95% have one label.")
    >>> [f.severity for f in learned_anyway([uneven])]
    ['note']
    """
    told = "The losses end far below what naming them by their frequency costs: the rare ones are learnt."
    meant = {id(f) for f in findings if f.rule == "class_imbalance" and is_alarm(f)}
    notes = [replace(f, severity="note", message=f"{f.message} {told}") if id(f) in meant else f for f in findings]
    return sorted(notes, key=lambda f: not is_alarm(f))


def _grown_weights(evidence: Evidence) -> tuple[float, float, float, float] | None:
    """Return the weight and the share of the rarest and of the commonest label, where weights follow how common labels are."""
    weights = next((call.class_weights for call in evidence.losses if call.class_weights), ())
    if not weights or not evidence.samples.labels:
        return None
    values, counts = evidence.samples.counts
    known = [
        (count, weights[int(v)]) for v, count in zip(values.tolist(), counts.tolist(), strict=True) if 0 <= v < len(weights)
    ]
    total = sum(count for count, _ in known)
    if total < ENOUGH or len(known) < 2 or min(weight for _, weight in known) <= 0:
        return None
    (rare, low), (common, high) = min(known), max(known)
    if common < APART * rare or math.log(high / low) < FOLLOWS * math.log(common / rare):
        return None
    logs = [(math.log(count), math.log(weight)) for count, weight in known]
    if len(known) > 2 and correlation(*zip(*logs, strict=True)) < ALONG:
        return None
    return low, rare / total, high, common / total


def _light_positives(evidence: Evidence) -> tuple[float, float] | None:
    """Return the share of the positives and their weight in BCE, if they are rare and it makes them count for less."""
    calls = [call for call in evidence.losses if call.op == "binary_cross_entropy_with_logits" and call.class_weights]
    values, counts = evidence.samples.counts
    if not calls or values.tolist() != [0, 1] or int(counts.sum()) < ENOUGH:
        return None
    share, weight = float(counts[1]) / float(counts.sum()), calls[0].class_weights[0]
    return (share, weight) if APART * counts[1] < counts[0] and weight < 1 / APART else None


def _are_words(evidence: Evidence, classes: int) -> bool:
    """Tell whether classes are the words of the vocabulary that the network reads."""
    tables = (facts for facts in evidence.parameters.values() if facts.kind == "embedding")
    return classes >= 5 and any(facts.shape[0] == classes for facts in tables)


def _background(evidence: Evidence) -> float:
    """Return the share of the commonest label among pixels, 0 unless their unweighted loss is all that is minimised."""
    if len(evidence.losses) != 1 or _is_weighted(evidence) or evidence.loss is None:
        return 0.0
    call = evidence.losses[0]
    alone = call.value is not None and math.isclose(call.value, evidence.loss, rel_tol=1e-3)
    return call.background or 0.0 if alone else 0.0


def _is_weighted(evidence: Evidence) -> bool:
    """Tell whether a loss got weights that differ; a weighting after an unreduced loss counts too."""
    return any(call.weighted or call.value is None for call in evidence.losses if _is_classification(call))


def _is_helped(evidence: Evidence) -> bool:
    """Tell whether the loss also compares the logits with the targets in another way, as a rank loss or an overlap does."""
    graph = evidence.graph
    before = set().union(*(graph.ancestors(loss) for loss in evidence.differentiated))
    for call in evidence.losses:
        logits = producer(graph, logits_of(graph, call) or graph.nodes[call.prediction]).index
        given = {i for i in graph.ancestors(call.target) if graph.nodes[i].name == "batch"} - graph.ancestors(logits)
        own = graph.ancestors(call.node) | _made_of(graph, call.node)
        if (_made_of(graph, logits) & before - own).intersection(*(_made_of(graph, i) for i in given)) and given:
            return True
    return False


def _made_of(graph: Graph, index: int) -> set[int]:
    """Return the nodes that were computed from a node, itself included."""
    made = {index}
    for node in graph.nodes[max(index, 0) + 1 :]:
        if not made.isdisjoint(node.parents):
            made.add(node.index)
    return made


def _is_classification(call: LossCall) -> bool:
    return "nll" in call.op or "binary_cross_entropy" in call.op
