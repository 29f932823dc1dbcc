"""The rule about validation data beside training data."""

import math
from collections.abc import Iterator, Sequence

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.samples import Part

__all__ = ["train_val_mismatch"]

SHIFT, STRETCH = 1.0, 3.0
CORE_STRETCH = 2.0
SUCCESSIVE, IN_TIME = 0.3, 10.0
NUMBERS = 32


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
    where the width of the middle 68 % does by 2: outliers alone are no scale; 8 samples and 32 numbers or more each. Of what
    networks are given, where a call may hold one task or one episode, two stds and 16 samples. Validation samples that follow
    each other in time (neighbours differ by less than .3 of what any two do, in the mean square) show one season of many: they
    have to be ten times as far apart, and may be as narrow as they like.

    Not an alarm: other augmentation, other sizes of pictures; other shares of 0 and 1, as where a rare class is sampled more
    often in training, or negatives are drawn; time stamps; training samples that follow each other in time.

    What to do: normalise both with the training data's statistics.
    """
    samples = evidence.samples
    found = _apart(samples.train, samples.val)
    what = "targets" if found is not None and found[0] == samples.target else "inputs"
    advice = "Preprocess both alike, with the training data's statistics."
    if found is None and samples.fed_train[0] == samples.fed_val[0]:
        found = _apart(samples.fed_train[1], samples.fed_val[1], shift_of=2 * SHIFT, samples=16)
        what, advice = "inputs that the network gets", "Do in validation_step to a batch what training_step does to it."
    if found is not None:
        _, ours, theirs, numbers = found
        message = (
            f"The {what} have mean {ours.mean:.3g} and std {ours.std:.3g} in training, {theirs.mean:.3g} and {theirs.std:.3g} "
            "in validation."
        )
        yield Finding("train_val_mismatch", "error", "", evidence.step, message, advice, numbers)


def _apart(
    train: Sequence[Part | None], val: Sequence[Part | None], *, shift_of: float = SHIFT, samples: int = 8
) -> tuple[int, Part, Part, dict[str, float]] | None:
    """Return the first tensor whose scale differs, its place, and by how much."""
    if len(train) != len(val):
        return None
    in_time = _in_time(val)
    if _in_time(train):
        return None
    for place, (ours, theirs) in enumerate(zip(train, val, strict=True)):
        if (
            ours is None
            or theirs is None
            or len(ours.shape) != len(theirs.shape)
            or min(ours.samples, theirs.samples) < samples
        ):
            continue
        numbers = _differences(ours, theirs, shift_of, in_time=in_time)
        if numbers is not None:
            return place, ours, theirs, numbers
    return None


def _differences(ours: Part, theirs: Part, shift_of: float, *, in_time: bool) -> dict[str, float] | None:
    """Return by how much two tensors differ in offset and scale, `None` if that is little, or says nothing of their units."""
    if not all(map(math.isfinite, (ours.mean, ours.std, theirs.mean, theirs.std))) or min(ours.std, theirs.std) <= 0:
        return None
    if (ours.binary and theirs.binary) or min(math.prod(part.shape) * part.samples for part in (ours, theirs)) < NUMBERS:
        return None
    shift, stretch = abs(ours.mean - theirs.mean) / max(ours.std, theirs.std), _factor(ours.std, theirs.std)
    wider = theirs.std > IN_TIME * STRETCH * ours.std if in_time else stretch > STRETCH and _core_differs(ours, theirs)
    moved = shift > shift_of * (IN_TIME if in_time else 1.0)
    return {"shift": shift, "stretch": stretch} if wider or moved else None


def _in_time(batch: Sequence[Part | None]) -> bool:
    """Tell whether some tensor of a batch shows that its samples follow each other."""
    return any(part is not None and part.jumps < SUCCESSIVE for part in batch)


def _core_differs(ours: Part, theirs: Part) -> bool:
    """Tell whether the middle of two tensors differs in width, too, as far as they have a middle."""
    return min(ours.core, theirs.core) <= 0 or _factor(ours.core, theirs.core) > CORE_STRETCH


def _factor(a: float, b: float) -> float:
    return max(a / b, b / a)
