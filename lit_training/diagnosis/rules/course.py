"""What the losses of a whole run tell: diverged, overfitted, or validated on something else."""

import math
from dataclasses import dataclass

from lit_training.diagnosis.finding import Finding

__all__ = ["Course", "diverged", "overfit_no_regularisation"]

ROSE = 3.0
GAP = 30.0
HUGE = 100.0
WORSE = 1.2
SUBSTANTIAL = 0.9
NEVER_GOOD = 0.3
NEVER_AS_GOOD = 1.5


@dataclass(frozen=True)
class Course:
    """How the losses of a run went.

    Args:
        training: mean training loss of equal stretches of the run, in order.
        validation: validation losses, in order.
        updates: optimiser steps done.
        broken: first step whose training loss was not finite, `None` if all were.
    """

    training: tuple[float, ...]
    validation: tuple[float, ...] = ()
    updates: int = 0
    broken: int | None = None


def diverged(course: Course) -> list[Finding]:
    """Say so if the training loss became NaN or ended far above its start: `lr_too_high` if it rose, else `nan_loss`.

    >>> [finding.rule for finding in diverged(Course((1.0, 5.0, math.nan), broken=17))]
    ['lr_too_high']
    >>> [finding.rule for finding in diverged(Course((1.0, 0.5, math.nan), broken=17))]
    ['nan_loss']
    """
    finite = [loss for loss in course.training if math.isfinite(loss)]
    rose = bool(finite) and finite[0] > 0 and finite[-1] > ROSE * finite[0]
    if rose:
        end = f"and became NaN at step {course.broken}" if course.broken is not None else "and stayed there"
        message = f"The training loss rose from {finite[0]:.3g} to {finite[-1]:.3g} {end}."
        advice = "Lower lr by a factor of 3 to 10, warm up, or clip gradients."
        return [Finding("lr_too_high", "error", "", course.updates, message, advice, {"start": finite[0], "end": finite[-1]})]
    if course.broken is not None:
        message = f"The training loss became NaN or infinite at step {course.broken}; it had not risen before."
        advice = "Look for logarithms, roots and quotients that reach 0, and for NaN in that batch's data."
        return [Finding("nan_loss", "error", "", course.broken, message, advice)]
    return []


def overfit_no_regularisation(course: Course) -> list[Finding]:
    """The network learns its training data by heart: the validation loss rises while the training loss goes to nothing.

    What it means: there are more weights than the data can pin down, and nothing holds them back; noise and single samples are
    memorised (Zhang et al. 2017). Typical causes: too little data, no weight decay, dropout or augmentation, too long a run.

    How it is measured: the validation loss that the module logs (a name with `val` and `loss`) after each validation, the mean
    training loss of equal stretches of the run.

    Threshold: at the end the validation loss is more than 30 times the training loss and 1.2 times its own minimum, or 100
    times the training loss, and as high as at the start (.9 times), without ever having been below .3 of that. Healthy
    set-ups end below 20 times, most below 3. If it was never below 1.5 times the training loss at the start, the two are
    computed on different things: `train_val_mismatch`.

    Not an alarm: a gap that closes, or a validation loss that still falls; tiny losses on both sides.

    What to do: stop at the minimum (`EarlyStopping`), `weight_decay`, dropout, augmentation, more data, a smaller network.

    >>> overfit_no_regularisation(Course((1.4, 0.5, 0.001), (0.9, 0.8, 1.6), updates=300))[0].rule
    'overfit_no_regularisation'
    """
    training, validation = course.training, course.validation
    known = len(training) > 1 and len(validation) > 1 and all(map(math.isfinite, (*training, *validation)))
    if not known or min(training[0], training[-1], min(validation)) <= 0:
        return []
    gap, worse = validation[-1] / training[-1], validation[-1] / min(validation)
    if gap < GAP or (gap < HUGE and worse < WORSE) or validation[-1] < SUBSTANTIAL * training[0]:
        return []
    if min(validation) < NEVER_GOOD * training[0]:
        return []
    figures = f"{training[-1]:.2g} in training, {validation[-1]:.3g} in validation"
    numbers = {"gap": gap, "worse": worse}
    if min(validation) > NEVER_AS_GOOD * training[0]:
        message = f"The loss ends at {figures}, which was never better than {min(validation):.3g}, worse than training's start."
        advice = "Compare a validation batch with a training batch: preprocessing, label numbers, columns, mode of batch norm."
        return [Finding("train_val_mismatch", "error", "", course.updates, message, advice, numbers)]
    message = f"The loss ends at {figures} (at best {min(validation):.3g}): the training data are learned by heart."
    advice = "Stop at the minimum, EarlyStopping('val_loss'), or add weight_decay, dropout, augmentation, data."
    return [Finding("overfit_no_regularisation", "warning", "", course.updates, message, advice, numbers)]
