"""The rule about the order in which samples come."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import classes_told
from lit_training.diagnosis.rules.targets import ENOUGH, diversity
from lit_training.diagnosis.samples import Samples

__all__ = ["data_not_shuffled"]

SORTED = 5.0
SEVERAL, NEARLY_ALL = 4.0, 0.8
BY_CHANCE, BY_CHANCE_IN_ORDER = math.log(1e6), math.log(50)


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
    counts = samples.counts[1]
    if samples.labels or len(counts) <= 2:
        changes, expected, deviation = _changes(targets, counts)
        if expected == 0 and samples.in_order and classes_told(evidence) > 1 and float(targets[0]) >= 0:
            message = f"The first {len(targets)} samples, read in order, all have the label {float(targets[0]):g}."
        elif (
            (changes < expected / 2 and changes < expected - SORTED * deviation)
            or _in_blocks(counts, changes, BY_CHANCE_IN_ORDER if samples.in_order else BY_CHANCE)
        ) and not _are_mixed(samples):
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


def _changes(labels: Tensor, counts: Tensor) -> tuple[int, float, float]:
    """Return how often neighbours differ, and mean and standard deviation of that in random order."""
    n, counts = len(labels), counts.double()
    squares, cubes = float(counts.square().sum()), float(counts.pow(3).sum())
    variance = (squares * (squares + n * (n + 1)) - 2 * n * cubes - n**3) / (n**2 * (n - 1))
    return int((labels[1:] != labels[:-1]).sum()), n - squares / n, math.sqrt(max(variance, 0.0))


def _are_mixed(samples: Samples) -> bool:
    """Tell whether each batch for itself shows several labels, in whatever order: a sampler has put it together."""
    labels, sizes = samples.targets, samples.sizes
    if labels is None or len(sizes) < 2 or sum(sizes) != len(labels):
        return False
    each = min(diversity(torch.unique(batch, return_counts=True)[1]) for batch in labels.split(list(sizes)))
    return each >= min(SEVERAL, NEARLY_ALL * diversity(samples.counts[1])) and each > 1


def _spread_alike(values: Tensor, sizes: Sequence[int]) -> bool:
    """Tell whether the numbers of each batch scatter nearly as far as all of them."""
    if len(sizes) < 2 or sum(sizes) != len(values) or min(sizes) < 2:
        return False
    return min(float(batch.double().std()) for batch in values.split(list(sizes))) > NEARLY_ALL * float(values.double().std())


def _in_blocks(counts: Tensor, changes: int, by_chance: float) -> bool:
    """Tell whether all samples of a label lie together, which chance would do less than once in e^by_chance times."""
    orders = math.lgamma(int(counts.sum()) + 1) - sum(math.lgamma(count + 1) for count in counts.tolist())
    return 0 < changes == len(counts) - 1 and orders - math.lgamma(len(counts) + 1) > by_chance


def _neighbours(values: Tensor) -> float:
    """Return the correlation between the ranks of neighbours."""
    ranks = values.double().argsort().argsort().double()
    return float(torch.corrcoef(torch.stack([ranks[1:], ranks[:-1]]))[0, 1])
