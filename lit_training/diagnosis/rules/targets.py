"""Rules about labels: what they are, how often, and in which order."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding, is_alarm
from lit_training.diagnosis.reading import is_masked, summands
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import classes_of
from lit_training.loss_calls import LossCall

__all__ = ["class_imbalance", "data_not_shuffled", "labels_broken", "learned_anyway"]

ENOUGH = 48
ONE_VALUE = 0.95
IGNORED = 0.9
MAJORITY = 0.86
FEW_CLASSES = 0.45
BACKGROUND = 0.97
SORTED = 5.0
BY_CHANCE, BY_CHANCE_IN_ORDER = math.log(1e6), math.log(50)
FEW_VALUES = 10
SEVERAL, NEARLY_ALL = 4.0, 0.8


@rule(
    explains=[
        "train_val_mismatch",
        "overfit_no_regularisation",
        "lr_too_low",
        "data_not_shuffled",
        "class_imbalance",
        "wrong_loss",
        "bad_initial_loss",
        "loss_sign",
        "loss_diverging",
        "no_update",
    ]
)
def labels_broken(evidence: Evidence) -> Iterator[Finding]:
    """The targets cannot be what was meant: all alike, nearly all ignored, or outside of what the loss takes.

    What it means: the network learns to say one thing, or learns from next to nothing, and the loss looks good (Humbatova
    et al. 2020, "wrong labels"). Typical causes: a label column read from the wrong place, a cast to integers before
    scaling, masks of 0 and 255, labels -1 and 1; a language model whose targets are its inputs, not shifted by one; a
    label that has the number of CTC's blank.

    How it is measured: the targets of the first four batches, where the loss takes one a sample; the range of the targets
    of BCE; whether the targets are the tokens that an embedding looked up, on a way with a place for each token through a recurrent
    layer of one direction or a causal mask.

    At the end of a run (`LossMonitor`): the loss never fell below what saying the same for every sample costs, in training or in
    validation only, though weights moved as they do and nothing else is wrong.

    Threshold: of 48 or more targets all labels, or 95 % of the numbers, are one and the same; 90 % of the labels are the
    `ignore_index`; a target of BCE is below 0 or above 1.

    Not an alarm: a loader that reads a sorted data set in order (data_not_shuffled), masks of tokens, soft labels, numbers in
    place of labels that are not known, where a mask or weights made of the batch take them out of the loss; few labels, and a
    loss that has other parts; rare amounts, such as rain, that differ from each other; an autoencoder of sequences, which goes
    through one vector; a translation, which reads other tokens, too.

    What to do: print `batch[1]` next to the data it belongs to.
    """
    if any(call.seen for call in evidence.losses):
        message = "The network gets at each place the very token that it is to predict there, so it learns to copy."
        advice = "Shift the targets by one: logits[:, :-1] against tokens[:, 1:]."
        yield Finding("labels_broken", "error", "", evidence.step, message, advice)
        return
    blank = next((call.blank for call in evidence.losses if call.blank is not None), None)
    if blank is not None:
        message = f"A label is {blank}, which CTC takes for its blank: it can never be told apart from nothing."
        advice = "Number the labels from 1 and give the network one output more, or give blank= a number of its own."
        yield Finding("labels_broken", "error", "", evidence.step, message, advice, {"blank": blank})
        return
    for call in evidence.losses:
        low, high = call.target_range
        if "binary_cross_entropy" in call.op and (low < -1e-6 or high > 1 + 1e-6) and not is_masked(evidence.graph, call):
            targets = evidence.samples.targets
            several = targets is not None and len(torch.unique(targets)) > FEW_VALUES
            if several or not (low.is_integer() and high.is_integer()):
                message = f"BCE is given numbers from {low:.4g} to {high:.4g}; it asks for a yes or no."
                yield Finding(
                    "wrong_loss", "error", "", evidence.step, message, "Use mse_loss for numbers, or scale them to 0...1."
                )
                return
            message = f"The targets of BCE go from {low:.4g} to {high:.4g}; it takes 0 to 1."
            advice = "Scale them, e.g. masks of 0 and 255 by / 255, labels of -1 and 1 by (y + 1) / 2."
            yield Finding("labels_broken", "error", "", evidence.step, message, advice, {"low": low, "high": high})
            return
    targets, samples = evidence.samples.targets, evidence.samples
    if targets is None or len(targets) < ENOUGH or _classes(evidence) == 1 or not evidence.losses:
        return
    value, share = _commonest(targets)
    if samples.labels and value < 0 and share >= IGNORED and _only_takes_labels(evidence):
        message = f"{share:.0%} of the first {len(targets)} labels are {value:g}, which the loss ignores."
        advice = "See why they were not read or were masked: the network learns from the rest only."
        yield Finding("labels_broken", "error", "", evidence.step, message, advice, {"share": share})
    elif (
        share >= (1.0 if samples.labels or _classes(evidence) or _varies(targets[targets != value]) else ONE_VALUE)
        and not samples.in_order
    ):
        message = f"{share:.0%} of the first {len(targets)} targets are {value:.4g}; there is nothing to tell apart."
        advice = "Look at how targets are read: the right column, no cast to integers before scaling."
        yield Finding("labels_broken", "error", "", evidence.step, message, advice, {"share": share})


@rule(
    explains=[
        "overfit_no_regularisation",
        "class_imbalance",
        "train_val_mismatch",
        "oscillating_loss",
        "constant_output",
        "bad_initial_loss",
    ]
)
def data_not_shuffled(evidence: Evidence) -> Iterator[Finding]:
    """The samples come sorted by their target.

    What it means: each batch shows one class or one range of the targets, and the network learns and forgets them in turn; with
    batch norm its statistics are those of one class (Bengio 2012, "Practical recommendations", section 3.1).

    How it is measured: the targets of the first four batches in the order in which they came. Labels: the number of times that
    the label changes from one sample to the next, against what chance gives (the runs test of Wald and Wolfowitz 1940).
    Numbers: the correlation of the ranks of neighbours.

    Threshold: 48 or more targets; fewer changes than chance by 5 standard deviations, and less than half of them, or all
    samples of each label in one block, which chance does less than once in a million (in fifty, where the loader is known
    to read in order); a correlation above .9. If all labels are one and the same: a loader that is known to read its data
    set in order.

    Not an alarm: balanced or stratified batches, which change more often than chance, or hold one label after the other: four
    or more of them each, or nearly as many as all batches together (effective numbers); batches that are sorted and span
    what the others do; tokens of a text, one target a sequence of a shuffled set.

    What to do: `DataLoader(..., shuffle=True)`, or shuffle a stream's buffer.
    """
    samples, targets = evidence.samples, evidence.samples.targets
    if targets is None or len(targets) < ENOUGH or samples.in_order is False:
        return
    advice = "DataLoader(..., shuffle=True)."
    if samples.labels or len(torch.unique(targets)) <= 2:
        changes, expected, deviation = _changes(targets)
        if expected == 0 and samples.in_order and _classes(evidence) > 1 and float(targets[0]) >= 0:
            message = f"The first {len(targets)} samples, read in order, all have the label {float(targets[0]):g}."
        elif not _are_mixed(targets, samples.sizes) and (
            (changes < expected / 2 and changes < expected - SORTED * deviation)
            or _in_blocks(targets, changes, BY_CHANCE_IN_ORDER if samples.in_order else BY_CHANCE)
        ):
            order = f"in random order about {expected:.0f} times"
            message = f"From one sample to the next the label changes {changes} times in {len(targets)}, {order}."
        else:
            return
        yield Finding(
            "data_not_shuffled", "error", "", evidence.step, message, advice, {"changes": changes, "expected": expected}
        )
    elif (correlation := _neighbours(targets)) > 0.9 and not _spread_alike(targets, samples.sizes):
        message = f"Neighbouring samples have neighbouring targets: their ranks correlate by {correlation:.2f}, not 0."
        yield Finding("data_not_shuffled", "error", "", evidence.step, message, advice, {"correlation": correlation})


@rule(explains=["overfit_no_regularisation", "constant_output", "dead_relu"])
def class_imbalance(evidence: Evidence) -> Iterator[Finding]:
    """A few classes make up nearly all of the samples, and the loss does not make up for it.

    What it means: always naming the common class is nearly as good, so that the rare ones are learned late or never (Buda
    et al. 2018). Accuracy does not show it.

    How it is measured: labels of the first four batches under cross-entropy or BCE of torch, without class weights; of labels
    for each pixel of pictures, those of the first batch, if that is all the loss.

    At the end of a run (`LossMonitor`): a guess is good in training because of a common label, and validation never gets to it. If
    training and validation end below a quarter of what naming the labels by their frequency costs, the alarm becomes a note: the
    rare ones are learnt.

    Threshold: 48 or more labels; one class has more than 86 % by a standard deviation of such a sample (89 % of 128 labels, so
    that 84 % are hardly taken for it), or, with five classes and more, the effective number of classes (the exponential of the
    labels' entropy) is below .45 of them. For pixels 97 %: a background of 77 to 90 % is learnt well without weights,
    neighbours help; lesions of 2 % are not.

    Not an alarm: `weight=`, `pos_weight=` (unless they are all alike), other losses such as focal loss, a Dice loss beside,
    samplers that balance the batches; the next word, letter or item, where five classes or more are the rows of an embedding
    that the network reads with: they are as common as they are.

    What to do: weights, a balancing sampler; judge by balanced accuracy, F1, or the area under the curve.
    """
    targets, classes = evidence.samples.targets, _classes(evidence)
    advice = "weight= (or pos_weight=) in the loss, or a WeightedRandomSampler; judge by balanced accuracy or F1."
    if (background := _background(evidence)) >= BACKGROUND:
        message = f"{background:.1%} of the pixels have one label, and the loss does not make up for it."
        advice = "pos_weight= or weight= in the loss, or a Dice loss beside it; judge by the overlap."
        yield Finding("class_imbalance", "warning", "", evidence.step, message, advice, {"share": background})
        return
    if targets is None or len(targets) < ENOUGH or classes < 2 or _is_weighted(evidence):
        return
    known = targets[targets >= 0] if evidence.samples.labels else targets
    if len(known) < ENOUGH or len(torch.unique(known)) < 2 or _are_words(evidence, classes):
        return
    _, share = _commonest(known)
    effective = _diversity(known)
    if share >= MAJORITY + math.sqrt(MAJORITY * (1 - MAJORITY) / len(known)) or (
        classes >= 5 and effective < FEW_CLASSES * classes and len(known) > 8 * classes
    ):
        spread = f"they are as diverse as {effective:.1f} of {classes} classes, equally common"
        message = f"Of the first {len(known)} samples {share:.0%} have one label; {spread}."
        yield Finding(
            "class_imbalance", "warning", "", evidence.step, message, advice, {"share": share, "effective": effective}
        )


def _are_words(evidence: Evidence, classes: int) -> bool:
    """Tell whether classes are the words of the vocabulary that the network reads."""
    tables = (facts for facts in evidence.parameters.values() if facts.kind == "embedding")
    return classes >= 5 and any(facts.shape[0] == classes for facts in tables)


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


def _background(evidence: Evidence) -> float:
    """Return the share of the commonest label among pixels, 0 unless their unweighted loss is all that is minimised."""
    if len(evidence.losses) != 1 or _is_weighted(evidence) or evidence.loss is None:
        return 0.0
    call = evidence.losses[0]
    alone = call.value is not None and math.isclose(call.value, evidence.loss, rel_tol=1e-3)
    return call.background or 0.0 if alone else 0.0


def _only_takes_labels(evidence: Evidence) -> bool:
    """Tell whether the loss is a cross-entropy with nothing beside it, such as the consistency of what has no label."""
    labelled = {call.node for call in evidence.losses if "nll" in call.op}
    parts = [node for loss in evidence.differentiated for node, _ in summands(evidence.graph, loss) if node.origin == "data"]
    return bool(labelled) and all(node.index in labelled for node in parts)


def _varies(others: Tensor) -> bool:
    """Tell whether the targets beside the commonest are numbers of all sizes, which a cast to integers would not leave."""
    return len(others) >= 3 and len(torch.unique(others)) == len(others)


def _classes(evidence: Evidence) -> int:
    """Return how many classes the first loss that is a classification tells apart, 0 where there is none."""
    return next((n for call in evidence.losses if (n := classes_of(evidence, call))), 0)


def _is_weighted(evidence: Evidence) -> bool:
    """Tell whether a loss got weights that differ; a weighting after an unreduced loss counts too."""
    return any(call.weighted or call.value is None for call in evidence.losses if _is_classification(call))


def _is_classification(call: LossCall) -> bool:
    return "nll" in call.op or "binary_cross_entropy" in call.op


def _commonest(values: Tensor) -> tuple[float, float]:
    """Return the commonest value and its share."""
    unique, counts = torch.unique(values, return_counts=True)
    return float(unique[counts.argmax()]), float(counts.max()) / len(values)


def _changes(labels: Tensor) -> tuple[int, float, float]:
    """Return how often neighbours differ, and mean and standard deviation of that in random order."""
    n, counts = len(labels), torch.unique(labels, return_counts=True)[1].double()
    squares, cubes = float(counts.square().sum()), float(counts.pow(3).sum())
    variance = (squares * (squares + n * (n + 1)) - 2 * n * cubes - n**3) / (n**2 * (n - 1))
    return int((labels[1:] != labels[:-1]).sum()), n - squares / n, math.sqrt(max(variance, 0.0))


def _are_mixed(labels: Tensor, sizes: Sequence[int]) -> bool:
    """Tell whether each batch for itself shows several labels, in whatever order: a sampler has put it together."""
    if len(sizes) < 2 or sum(sizes) != len(labels):
        return False
    each = min(_diversity(batch) for batch in labels.split(list(sizes)))
    return each >= min(SEVERAL, NEARLY_ALL * _diversity(labels)) and each > 1


def _spread_alike(values: Tensor, sizes: Sequence[int]) -> bool:
    """Tell whether the numbers of each batch scatter nearly as far as all of them."""
    if len(sizes) < 2 or sum(sizes) != len(values) or min(sizes) < 2:
        return False
    return min(float(batch.double().std()) for batch in values.split(list(sizes))) > NEARLY_ALL * float(values.double().std())


def _diversity(labels: Tensor) -> float:
    """Return the exponential of the labels' entropy: of how many, equally common, they are as diverse."""
    shares = torch.unique(labels, return_counts=True)[1].double() / len(labels)
    return math.exp(-float((shares * shares.log()).sum()))


def _in_blocks(labels: Tensor, changes: int, by_chance: float) -> bool:
    """Tell whether all samples of a label lie together, which chance would do less than once in e^by_chance times."""
    counts = torch.unique(labels, return_counts=True)[1].tolist()
    orders = math.lgamma(len(labels) + 1) - sum(math.lgamma(count + 1) for count in counts)
    return 0 < changes == len(counts) - 1 and orders - math.lgamma(len(counts) + 1) > by_chance


def _neighbours(values: Tensor) -> float:
    """Return the correlation between the ranks of neighbours."""
    ranks = values.double().argsort().argsort().double()
    return float(torch.corrcoef(torch.stack([ranks[1:], ranks[:-1]]))[0, 1])
