"""The rule about what the first batches hold: not finite, outliers, codes for what is missing, samples that are all alike."""

import math
from collections.abc import Iterator

import torch

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.parts import BEYOND, Part
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import FLUNG, risen
from lit_training.diagnosis.rules.inputs import is_off

__all__ = ["bad_data"]

ALIKE, MANY = 0.2, 64
EMPTY, BUSY = 0.25, 0.3
OUTLIERS = 10.0


@rule(
    explains=[
        "overfit_no_regularisation",
        "train_val_mismatch",
        "unnormalised_input",
        "unnormalised_target",
        "init_exploding",
        "nan_loss",
        "lr_too_low",
        "lr_too_high",
        "exploding_gradient",
    ]
)
def bad_data(evidence: Evidence) -> Iterator[Finding]:
    """The first batches hold NaN or infinite values that reach the loss, or nearly all samples are one and the same.

    What it means: one such value makes the loss NaN, and the update then makes every weight NaN. Typical causes: missing
    values read as NaN, the logarithm of zero, a division by a standard deviation of zero.

    Samples that are all alike come from files that failed to load, or a data set that ignores the index; empty ones from files
    that failed to load and were replaced by zeros.

    How it is measured: every floating-point tensor of the first four batches, and the loss; how many samples of the batch
    differ, and how many are one number everywhere; the std beside half the width of the middle 68 %.

    Threshold: a single value, if the loss is not finite; fewer than a fifth of 16 or more samples differ in what they hold; a
    quarter of 16 or more samples of 16 or more elements are empty, while at least 30 % of the others' elements are not;
    a std of 10 times that of the middle, where that of the first validation batch is below twice it; of the first four batches,
    the first whose loss is above 5 times a guess's and the first batch's, if it holds a number 30 times as large as any that the
    first batch has at that place, as a code for what is missing is (without one it is lr_too_high); inputs that are too large for
    a layer (unnormalised_input) and that hold one number three times or more, in columns that otherwise vary, where all others
    are 30 times as small and the std is 10 times that of the middle; in a table of 16 rows or more, one number at the end of a
    column, three times or more and in less than half of the rows, 10 times as far from the others as those span (too far for the
    pixels of a picture: a byte's 255 steps do not leave room for so large a gap and so many others); of 64 samples or more in the
    first epoch's first four batches, fewer than a fifth differ, and fewer than in the first validation batch.

    Not an alarm: such a number in a table that the network compares with something, as one that masks does; missing targets
    that are masked out of the loss, and masks of minus infinity, which leave the loss finite; sparse features; a few columns of
    a few values each, half of whose combinations occur (one-hot columns exclude each other, so that few do); one of several inputs
    that is missing; empty samples, or the far number, if they are a state of their own, as night, drought and standstill are: then
    their targets are alike (a quarter of the others' variance at most, 2.5 standard errors from chance), as those of what failed
    to load or went missing are not.

    What to do: find the sample (`torch.isfinite`), and drop or impute it.
    """
    yield from (
        _not_finite(evidence) or _flung(evidence) or _wild(evidence) or _coded(evidence) or _alike(evidence) or _again(evidence)
    )


def _finding(evidence: Evidence, message: str, advice: str, **figures: float) -> list[Finding]:
    return [Finding("bad_data", "error", "", evidence.step, message, advice, figures)]


def _not_finite(evidence: Evidence) -> list[Finding]:
    """Say so if NaN or infinite values reach the loss."""
    advice = "Drop or impute such samples: torch.isfinite(x).all()."
    broken = sum(not stats.finite for stats in evidence.inputs.values())
    if broken and (evidence.loss is None or not math.isfinite(evidence.loss)):
        message = f"{broken} tensor(s) of the first batch hold NaN or infinity, and so the loss is {evidence.loss}."
        return _finding(evidence, message, advice)
    later = evidence.later
    if later is not None and evidence.samples.broken and not all(map(math.isfinite, later.losses)):
        message = f"Batch {evidence.samples.broken[0]} holds NaN or infinity, and the loss becomes NaN."
        return _finding(evidence, message, advice)
    return []


def _flung(evidence: Evidence) -> list[Finding]:
    """Say so if a batch that holds wild numbers has a loss far above the others'."""
    flung = _flung_by(evidence)
    if flung is None:
        return []
    batch, value, reach, times = flung
    message = (
        f"Batch {batch} holds a number of size {value:.3g}, where batch 0 stays within {reach:.2g}, and its loss is "
        f"{times:.2g} times that of a guess or of the first one."
    )
    advice = "Is it a code for what is missing (-999), a glitch, another unit? Drop, impute or clip it."
    return _finding(evidence, message, advice, value=value, reach=reach, times=times)


def _wild(evidence: Evidence) -> list[Finding]:
    """Say so if a few values make most of the std, and none do in validation."""
    samples = evidence.samples
    ours = next((train for train, val in zip(samples.train, samples.val, strict=False) if _is_wild(train, val)), None)
    if ours is None or len(samples.train) != len(samples.val):
        return []
    message = f"A few values make the std {ours.std:.3g}; of the middle two thirds it is {ours.core:.2g}, and so in validation."
    advice = "Look at the largest values: error codes, glitches, another unit? Drop or clip them."
    return _finding(evidence, message, advice, std=ours.std, core=ours.core)


def _coded(evidence: Evidence) -> list[Finding]:
    """Say so if a number stands for what is missing, as it is or standardised with the rest."""
    samples = evidence.samples
    inputs = {place: part for place, part in enumerate(samples.train) if place != samples.target and part is not None}
    advice = "Is it a code for what is missing? Impute it (0 once standardised, with a column that says so), do not feed it."
    code = next((part.code for part in inputs.values() if part.code), 0.0)
    gap = max((part.gap for place, part in inputs.items() if place not in samples.states), default=0.0)
    if code and any(is_off(evidence, layer) for layer in evidence.layers):
        message = f"{code:.4g} stands in several places, {BEYOND:g} times as far from zero as any other number of its tensor."
        return _finding(evidence, message, advice, value=code)
    if gap and not any(n.dtype == torch.bool and evidence.graph.reads_batch(n.index) for n in evidence.graph.nodes):
        message = f"A column has one number several times, {gap:.2g} times as far from its other numbers as those span."
        return _finding(evidence, message, advice, gap=gap)
    return []


def _alike(evidence: Evidence) -> list[Finding]:
    """Say so if most samples are one and the same, or many are empty."""
    samples = evidence.samples
    places = [place for place in range(len(samples.train)) if place != samples.target]
    inputs = [samples.train[place] for place in places]
    known = [part for part in inputs if part is not None and math.prod(part.shape) >= 2 and part.samples >= 16]
    if samples.target is None or not inputs or len(known) != len(inputs):
        return []
    first = known[0]
    if all(p.distinct < ALIKE * p.samples and not _is_all_there_is(p) for p in known):
        message = f"Only {max(p.distinct for p in known)} of the {first.samples} samples of the first batch differ."
        advice = "Look at a few inputs: does the data set use the index, did the files load?"
        return _finding(evidence, message, advice, distinct=float(first.distinct))
    own = places[0] in samples.states
    if len(known) == 1 and not own and math.prod(first.shape) >= 16 and first.blank >= EMPTY and first.busy >= BUSY:
        message = f"{first.blank:.0%} of the {first.samples} samples of the first batch are one number everywhere."
        advice = "Look at a few of them: did the files load? Drop what could not be read."
        return _finding(evidence, message, advice, blank=first.blank)
    return []


def _again(evidence: Evidence) -> list[Finding]:
    """Say so if the first batches hold the same few samples again and again, and validation does not."""
    samples = evidence.samples
    count, distinct = samples.different
    if count < MANY or distinct >= ALIKE * count or len(samples.train) != len(samples.val):
        return []
    both = [pair for place, pair in enumerate(zip(samples.train, samples.val, strict=True)) if place != samples.target]
    if all(ours and theirs and theirs.distinct > distinct and not _is_all_there_is(ours) for ours, theirs in both):
        message = f"Only {distinct} of the first {count} training samples differ, and they come again and again."
        advice = "Print the indices that __getitem__ gets, and what it reads: a sampler, a cache, a modulo?"
        return _finding(evidence, message, advice, distinct=float(distinct))
    return []


def _flung_by(evidence: Evidence) -> tuple[int, float, float, float] | None:
    """Return the first batch whose loss is far above, if it holds wild numbers: which, their size, the usual size, how far."""
    if evidence.later is None or evidence.later.batches >= 2 * (evidence.later.steps + 1):
        return None
    first, times = next(((i, times) for i, times in enumerate(risen(evidence), 1) if times > FLUNG), (0, 0.0))
    return next(((*wild, times) for wild in evidence.samples.wild if wild[0] == first), None)


def _is_all_there_is(part: Part) -> bool:
    """Tell whether samples are alike because their columns take few values, such as three answers of yes or no."""
    return part.distinct > 1 and math.log(2 * part.distinct) >= part.combinations


def _is_wild(ours: Part | None, theirs: Part | None) -> bool:
    """Tell whether outliers make a tensor's std, and a validation batch has none."""
    if ours is None or theirs is None or min(ours.samples, theirs.samples) < 8 or ours.core <= 0:
        return False
    return math.isfinite(ours.std) and ours.std > OUTLIERS * ours.core and theirs.std < 2 * ours.core
