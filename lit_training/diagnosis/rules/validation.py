"""The rule about validation data beside training data."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding, is_alarm
from lit_training.diagnosis.parts import Part
from lit_training.diagnosis.rule import rule

__all__ = ["holds_anyway", "train_val_mismatch"]

SHIFT, STRETCH, FAR = 1.0, 3.0, 10.0
HEAVY, CORE_STRETCH = 2.5, 2.0
NUMBERS, SAMPLES, SIGNIFICANT = 32, 16, 5.0
CROPPED, SAME_RANGE = 2, 0.5


@rule(explains=["train_val_mismatch", "overfit_no_regularisation", "train_val_gap", "overfitting"])
def train_val_mismatch(evidence: Evidence) -> Iterator[Finding]:
    """Validation batches have another scale or offset than training batches.

    What it means: one of the two is preprocessed differently, and the validation figures say nothing (Breck et al. 2019, "Data
    validation for machine learning": training-serving skew).

    How it is measured: mean and std over all elements of each floating-point tensor of the first validation batch (seen in the
    sanity check before training) and of the first training batch; and of what the first network is given in both steps, if it
    is the same network, for what the module itself does to a batch.

    At the end of a run (`LossMonitor`): what was learned in the first epoch, from samples that were new then, never held in
    validation, whose loss stays at that of a guess.

    Threshold: a mean that differs by more than a std (the larger of the two), or a std that differs by a factor of more than 3,
    where the width of the middle 68 % does by 2: outliers alone are no scale; 16 samples (8 may all be of one kind) and 32 numbers
    or more each. Both have to be five times what so few samples leave to chance, which have levels and scales of their own, or the
    width ten times another: two batches of 8 series, each at its level, differ by a std in one run of 40. Of what networks are
    given, where a call may hold one task or one episode, two stds. A validation batch whose neighbours are alike (windows of a
    series one after the other, rows of a picture, samples sorted by what is told) is a part of the data, no sample of them: it has
    to be ten times as far away, and may be as narrow as it likes. So is one whose targets are of so few kinds that a draw by the
    shares that training has them in hits it once in ten thousand times (a folder of one class after the other), or that holds one
    tensor that is constant and varies in training (a noise level, a task). Samples of twice as many elements as the training's,
    which are crops of such, have to be ten times as far away, or as wide. The beginning of a stream
    (`IterableDataset`: a replay buffer, a curriculum, a shard) is no sample of it either: ten times as far away, or as wide.

    Not an alarm: other augmentation, other sizes of pictures; other shares of 0 and 1, as where a rare class is sampled more
    often in training, or negatives are drawn; time stamps; training samples that follow each other in time; means that a few
    large values make (a std of 2.5 times half the width of the middle 68 %); a validation loss by another formula or in other
    units; targets of which training draws rare ones more often: both have half of their range in common, and training's are
    wider; targets in units that validation converts outputs to: the first thing that meets them there is unlike what training's
    loss gets, and nearer to them than to training's; what a network is given that validation calls three times as often as
    training, as a sampler that begins with noise does. A run whose validation loss ends at a tenth of what a guess costs on its
    data, or below, turns the alarm into a note, unless the validation batch is wider by a factor of 3 or ten stds away.

    What to do: normalise both with the training data's statistics.
    """
    samples = evidence.samples
    found = _apart(samples.train, samples.val, begins=samples.streamed, section=samples.section, target=samples.target)
    if found is not None and found[0] == samples.target and _is_converted(evidence, *found[1:3]):
        found = None
    what = "targets" if found is not None and found[0] == samples.target else "inputs"
    advice = "Preprocess both alike, with the training data's statistics."
    if found is None and samples.fed_train[0] == samples.fed_val[0]:
        fed_train, fed_val = samples.fed_train[1], samples.fed_val[1]
        found = _apart(fed_train, fed_val, shift_of=2 * SHIFT, begins=samples.streamed, section=samples.section)
        what, advice = "inputs that the network gets", "Do in validation_step to a batch what training_step does to it."
    if found is not None:
        _, ours, theirs, numbers = found
        message = (
            f"The {what} have mean {ours.mean:.3g} and std {ours.std:.3g} in training, {theirs.mean:.3g} and {theirs.std:.3g} "
            "in validation."
        )
        yield Finding("train_val_mismatch", "error", "", evidence.step, message, advice, numbers)


def holds_anyway(findings: Sequence[Finding]) -> list[Finding]:
    """Make notes of `train_val_mismatch`, for a run whose validation loss ended at a tenth of a guess's, or below.

    Not of what is wider than training by a factor of 3, or further away than ten stds, which no section of the data is.

    >>> apart = Finding("train_val_mismatch", "error", evidence={"shift": 1.3, "wider": 0.6})
    >>> [f.severity for f in holds_anyway([apart])]
    ['note']
    """
    told = "What was learned holds in validation all the same: its first batch may be a section of the data."
    alarms = [f for f in findings if f.rule == "train_val_mismatch" and is_alarm(f)]
    meant = {id(f) for f in alarms if f.evidence.get("wider", FAR) < STRETCH and f.evidence.get("shift", FAR) < FAR}
    notes = [replace(f, severity="note", message=f"{f.message} {told}") if id(f) in meant else f for f in findings]
    return sorted(notes, key=lambda f: not is_alarm(f))


def _apart(
    train: Sequence[Part | None],
    val: Sequence[Part | None],
    *,
    shift_of: float = SHIFT,
    begins: bool = False,
    section: bool = False,
    target: int | None = None,
) -> tuple[int, Part, Part, dict[str, float]] | None:
    """Return the first tensor whose scale differs, its place, and by how much."""
    if len(train) != len(val) or _in_order(train):
        return None
    pairs = [(place, *pair) for place, pair in enumerate(zip(train, val, strict=True))]
    part_of = section or _in_order(val) or any(a and b and b.std == 0 < a.std and b.samples >= SAMPLES for _, a, b in pairs)
    for place, ours, theirs in pairs:
        if (
            ours is None
            or theirs is None
            or len(ours.shape) != len(theirs.shape)
            or min(ours.samples, theirs.samples) < SAMPLES
            or (place == target and _is_drawn_evenly(ours, theirs))
        ):
            continue
        cropped = math.prod(theirs.shape) >= CROPPED * math.prod(ours.shape)
        far = FAR if part_of or begins or cropped else 1.0
        numbers = _differences(ours, theirs, shift_of, far=far, part_of=part_of)
        if numbers is not None:
            return place, ours, theirs, numbers
    return None


def _is_drawn_evenly(ours: Part, theirs: Part) -> bool:
    """Tell whether training holds other shares of the same range, and is wider, as where it draws rare values more often."""
    common = min(ours.high, theirs.high) - max(ours.low, theirs.low)
    return ours.std > theirs.std and common >= SAME_RANGE * (max(ours.high, theirs.high) - min(ours.low, theirs.low))


def _is_converted(evidence: Evidence, ours: Part, theirs: Part) -> bool:
    """Tell whether validation compares its targets with what outputs were converted to, which lies nearer to them than to ours."""
    samples = evidence.samples
    told = samples.told_val[samples.target] if samples.target is not None and samples.told_val else None
    if told is None or told.std <= 0 or len(evidence.losses) != 1:
        return False
    low, high = evidence.losses[0].prediction_range
    span, width = high - low, told.high - told.low
    as_it_was = span > 0 and _factor(span, width) < STRETCH and low - span < told.mean < high + span
    return not as_it_was and _distance(told, theirs) < _distance(told, ours)


def _distance(a: Part, b: Part) -> float:
    """Return how far apart the means of two tensors lie, in the larger's std, and how much their scales differ."""
    return abs(a.mean - b.mean) / max(a.std, b.std) + abs(math.log(a.std / b.std))


def _in_order(batch: Sequence[Part | None]) -> bool:
    """Tell whether some tensor of a batch shows that its samples follow each other."""
    return any(part is not None and part.ordered for part in batch)


def _differences(ours: Part, theirs: Part, shift_of: float, *, far: float, part_of: bool) -> dict[str, float] | None:
    """Return by how much two tensors differ in offset and scale, `None` if that is little, or says nothing of their units."""
    if not all(map(math.isfinite, (ours.mean, ours.std, theirs.mean, theirs.std))) or min(ours.std, theirs.std) <= 0:
        return None
    if min(math.prod(part.shape) * part.samples for part in (ours, theirs)) < NUMBERS:
        return None
    if _is_yes_or_no(ours) and _is_yes_or_no(theirs):
        return None
    shift, stretch = abs(ours.mean - theirs.mean) / max(ours.std, theirs.std), _factor(ours.std, theirs.std)
    chance = SIGNIFICANT * math.sqrt(1 / ours.samples + 1 / theirs.samples)
    least = max(far * shift_of, chance * max(ours.between, theirs.between) / max(ours.std, theirs.std))
    widest = min(FAR, math.exp(chance * max(ours.uneven, theirs.uneven) / 2))
    if part_of:
        differs = shift > least or theirs.std > max(far, widest) * ours.std
    elif _core_differs(ours, theirs):
        differs = shift > least or stretch > max(far, STRETCH, widest)
    else:
        differs = shift > least and not _is_heavy(ours) and not _is_heavy(theirs)
    return {"shift": shift, "stretch": stretch, "wider": theirs.std / ours.std} if differs else None


def _is_yes_or_no(part: Part) -> bool:
    """Tell whether values are 0 and 1, whose share is all that may differ: then their variance is mean (1 - mean)."""
    elements = part.samples * math.prod(part.shape)
    variance = part.mean * (1 - part.mean) * elements / (elements - 1)
    return 0 < part.mean < 1 and math.isclose(part.std**2, variance, rel_tol=1e-3)


def _core_differs(ours: Part, theirs: Part) -> bool:
    """Tell whether the middle of two tensors differs in width, too, as far as they have a middle."""
    return min(ours.core, theirs.core) <= 0 or _factor(ours.core, theirs.core) > CORE_STRETCH


def _is_heavy(part: Part) -> bool:
    """Tell whether a few large values make the mean and the deviation."""
    return part.core <= 0 or part.std > HEAVY * part.core


def _factor(a: float, b: float) -> float:
    return max(a / b, b / a)
