"""The rule about validation data beside training data."""

import math
from collections.abc import Iterator, Sequence

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.samples import Part

__all__ = ["train_val_mismatch"]

SHIFT, STRETCH = 1.0, 3.0


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

    Threshold: a mean that differs by more than a std, or a std that differs by a factor of more than 3; 8 samples or more each. Of
    what networks are given, where a call may hold one task or one episode, two stds and 16 samples.

    Not an alarm: other augmentation, other sizes of pictures, a validation loss by another formula or in other units.

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
    for place, (ours, theirs) in enumerate(zip(train, val, strict=True)):
        if (
            ours is None
            or theirs is None
            or len(ours.shape) != len(theirs.shape)
            or min(ours.samples, theirs.samples) < samples
        ):
            continue
        if not all(map(math.isfinite, (ours.mean, ours.std, theirs.mean, theirs.std))) or min(ours.std, theirs.std) <= 0:
            continue
        shift, stretch = abs(ours.mean - theirs.mean) / ours.std, max(ours.std / theirs.std, theirs.std / ours.std)
        if shift > shift_of or stretch > STRETCH:
            return place, ours, theirs, {"shift": shift, "stretch": stretch}
    return None
