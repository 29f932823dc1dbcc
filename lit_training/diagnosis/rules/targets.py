"""The rule about targets that cannot be what was meant."""

import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.reading import is_masked, summands
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import classes_told
from lit_training.diagnosis.rules.mixing import exchanged_weights
from lit_training.diagnosis.rules.tokens import tokens_shown
from lit_training.tracing.loss_calls import LossCall, from_loader

__all__ = ["ENOUGH", "diversity", "labels_broken"]

ENOUGH = 48
ONE_VALUE = 0.95
IGNORED = 0.9
FEW_VALUES = 10
FAINT = 0.1


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

    What it means: the network learns to say one thing, or learns from next to nothing, and the loss looks good (Humbatova et
    al. 2020, "wrong labels"). Typical causes: a label column read from the wrong place, a cast to integers before scaling,
    masks of 0 and 255, labels -1 and 1; a language model whose targets are its inputs, not shifted by one, or shifted twice, or
    that sees the next token for want of a causal mask; a label that has the number of CTC's blank; mixup whose loss gives each
    sample's target the weight of the other sample.

    How it is measured: the targets of the first four batches, where the loss takes one a sample; the range of the targets of
    BCE; whether the targets are the tokens that an embedding looked up, or those two places ahead, on a way with a place for
    each token through a recurrent layer of one direction or a causal mask. Where they are the next tokens, and no such layer is
    known on the way, a copy of the network runs in eval mode with the last tokens swapped between samples: do outputs in front
    of them change? The weights of a tensor and of itself in another order, whose sum is what the outputs were made of, and those
    of two losses of the same outputs and of targets in that order.

    At the end of a run (`LossMonitor`): the loss never fell below what saying the same for every sample costs, in training or
    in validation only, by more than chance leaves to so many validation samples, though weights moved as they do and nothing
    else is wrong. Or the outputs for maps (masks, pictures) hold the targets' mirror images too, .35 times as much as the
    targets or more, with a correlation of .2 or more: pictures were flipped at random without their masks.

    Threshold: of 48 or more targets all labels, or 95 % of the numbers, are one and the same; 90 % of the labels are the
    `ignore_index`; a target that a loss compares with 1 and -1 is 0, and none is -1; a target of BCE is below 0 or above 1, or
    they are 0 and one other number, below .1; the shares of the two losses are those of the mixed samples exchanged, within
    .001, and further than .05 from a half.

    Not an alarm: a loader that reads a sorted data set in order (data_not_shuffled), masks of tokens, soft labels, numbers in
    place of labels that are not known, where a mask or weights made of the batch take them out of the loss; few labels, and a
    loss that has other parts; rare amounts, such as rain, that differ from each other; an autoencoder of sequences, which goes
    through one vector; a translation, which reads other tokens, too; mixup with weights for each sample, of pasted areas or of
    soft targets, which is not judged.

    What to do: print `batch[1]` next to the data it belongs to.
    """
    questions = (tokens_shown, _blank_labels, _exchanged, _out_of_range, _neither, _one_value)
    found = (finding for question in questions for finding in question(evidence))
    yield from islice(found, 1)


def _blank_labels(evidence: Evidence) -> Iterator[Finding]:
    blank = next((call.blank for call in evidence.losses if call.blank is not None), None)
    if blank is not None:
        message = f"A label is {blank}, which CTC takes for its blank: it can never be told apart from nothing."
        advice = "Number the labels from 1 and give the network one output more, or give blank= a number of its own."
        yield Finding("labels_broken", "error", "", evidence.step, message, advice, {"blank": blank})


def _exchanged(evidence: Evidence) -> Iterator[Finding]:
    mixed = exchanged_weights(evidence)
    if mixed is not None:
        inputs, losses = mixed
        figures = f" ({inputs.share:.2f} of the sample, {losses.share:.2f} of its target)" if inputs.number is None else ""
        message = f"Mixup weighs each sample's target by the share of the other sample{figures}: the two weights are exchanged."
        advice = "As x = a * x + (1 - a) * x[order], so loss = a * loss(out, y) + (1 - a) * loss(out, y[order])."
        yield Finding("labels_broken", "error", "", evidence.step, message, advice)


def _out_of_range(evidence: Evidence) -> Iterator[Finding]:
    """Judge the targets of BCE, the first that are wrong: numbers of all kinds make it the wrong loss."""
    for call in (call for call in evidence.losses if "binary_cross_entropy" in call.op):
        low, high = call.target_range
        if (low < -1e-6 or high > 1 + 1e-6) and not is_masked(evidence.graph, call):
            targets = evidence.samples.targets
            several = targets is not None and len(evidence.samples.counts[0]) > FEW_VALUES
            if several or not (low.is_integer() and high.is_integer()):
                message = f"BCE is given numbers from {low:.4g} to {high:.4g}; it asks for a yes or no."
                advice = "Use mse_loss for numbers, or scale them to 0...1."
                yield Finding("wrong_loss", "error", "", evidence.step, message, advice)
            message = f"The targets of BCE go from {low:.4g} to {high:.4g}; it takes 0 to 1."
            advice = "Scale them, e.g. masks of 0 and 255 by / 255, labels of -1 and 1 by (y + 1) / 2."
            yield Finding("labels_broken", "error", "", evidence.step, message, advice, {"low": low, "high": high})
        if _is_faint(call):
            message = f"The targets of BCE are 0 and {high:.3g} only, so that the answer to all is no."
            advice = "Look at how they are scaled: a mask of 0 and 1 is not to be divided by 255."
            yield Finding("labels_broken", "error", "", evidence.step, message, advice, {"high": high})


def _neither(evidence: Evidence) -> Iterator[Finding]:
    """Judge targets that a loss compares with 1 and with -1, as `cosine_embedding_loss` and `hinge_embedding_loss` do."""
    compared: dict[int, set[float]] = {}
    for node in evidence.graph.nodes:
        if node.op in ("eq", "ne") and node.parents and from_loader(evidence.graph, evidence.graph.nodes[node.parents[0]]):
            compared.setdefault(node.parents[0], set()).update(node.scalars[:1])
    known = set(evidence.samples.counts[0].tolist())
    if {-1.0, 1.0} in compared.values() and 0 in known and -1 not in known:
        share = float(evidence.samples.counts[1][evidence.samples.counts[0] == 0]) / float(evidence.samples.counts[1].sum())
        message = f"The loss takes targets of 1 and -1; {share:.0%} are 0, of which it takes no notice."
        yield Finding("labels_broken", "error", "", evidence.step, message, "Write 2 * y - 1.", {"share": share})


def _one_value(evidence: Evidence) -> Iterator[Finding]:
    targets, samples = evidence.samples.targets, evidence.samples
    if targets is None or len(targets) < ENOUGH or classes_told(evidence) == 1 or not evidence.losses:
        return
    values, counts = samples.counts
    value, share = float(values[counts.argmax()]), float(counts.max()) / len(targets)
    most = 1.0 if samples.labels or classes_told(evidence) or _varies(targets[targets != value]) else ONE_VALUE
    if samples.labels and value < 0 and share >= IGNORED and _only_takes_labels(evidence):
        message = f"{share:.0%} of the first {len(targets)} labels are {value:g}, which the loss ignores."
        advice = "See why they were not read or were masked: the network learns from the rest only."
        yield Finding("labels_broken", "error", "", evidence.step, message, advice, {"share": share})
    elif share >= most and not samples.in_order:
        message = f"{share:.0%} of the first {len(targets)} targets are {value:.4g}; there is nothing to tell apart."
        advice = "Look at how targets are read: the right column, no cast to integers before scaling."
        yield Finding("labels_broken", "error", "", evidence.step, message, advice, {"share": share})


def _is_faint(call: LossCall) -> bool:
    """Tell whether targets are 0 and one small number: then their variance is half of that times their mean deviation."""
    low, high = call.target_range
    if low != 0 or not 0 < high < FAINT or call.spread is None:
        return False
    square, size, _ = call.spread
    return math.isclose(square, high * size / 2, rel_tol=1e-3)


def _only_takes_labels(evidence: Evidence) -> bool:
    """Tell whether the loss is a cross-entropy with nothing beside it, such as the consistency of what has no label."""
    labelled = {call.node for call in evidence.losses if "nll" in call.op}
    parts = [node for loss in evidence.differentiated for node, _ in summands(evidence.graph, loss) if node.origin == "data"]
    return bool(labelled) and all(node.index in labelled for node in parts)


def _varies(others: Tensor) -> bool:
    """Tell whether the targets beside the commonest are numbers of all sizes, which a cast to integers would not leave."""
    return len(others) >= 3 and len(torch.unique(others)) == len(others)


def diversity(counts: Tensor) -> float:
    """Return the exponential of the entropy of labels that came so often: of how many, equally common, they are as diverse."""
    shares = counts.double() / counts.sum()
    return math.exp(-float((shares * shares.log()).sum()))
