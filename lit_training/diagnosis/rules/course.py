"""What the losses of a whole run tell: diverged, learned nothing, overfitted, or validated on something else."""

import math
from dataclasses import dataclass

from lit_training.diagnosis.finding import Finding, Severity

__all__ = ["Course", "diverged", "judge_course", "learned_nothing", "overfit_no_regularisation", "validated_apart"]

ROSE = 3.0
GAP = 30.0
HUGE = 100.0
WORSE = 1.2
SUBSTANTIAL = 0.9
NEVER_GOOD = 0.3
NEVER_AS_GOOD = 1.5
NOTHING, HARD, HARDER = 0.85, 0.92, 0.97
ENOUGH_PASSES, ENOUGH_UPDATES = 4, 80
STILL, FAR, LOST, ABOVE = 0.03, 4.0, 0.9, 10.0
OFF, SPENT = 5.0, 0.25
OTHER = 3.0
MASTERED, HARDENED = 0.25, 0.75
SEEN_THROUGH = 0.85
USUAL_DROPOUT, HALF, HELD_BACK = 0.5, 0.5, 1.1
ALIKE = 1.7
FEW_PASSES, MANY_PASSES = 12, 30
HARDLY, GAIN, APART = 0.7, 0.95, 0.8
BY_HEART, POOR, NEVER_FAIR, FAR_APART = 0.01, 0.45, 0.25, 60.0
SLIGHT = 0.6


@dataclass(frozen=True)
class Course:
    """How the losses of a run went.

    Args:
        training: mean training loss of equal stretches of the run, in order.
        validation: validation losses, in order.
        updates: optimiser steps done.
        broken: first step whose training loss was not finite, `None` if all were.
        guess: what it costs to say the same for every sample, `None` if that is not known.
        before: the validation loss before training (sanity check), `None` if there was none.
        first: the training loss of the first step, `None` if that is not known.
        first_pass: mean training loss at the end of the first epoch, when every sample was new; `None` if there was no such end.
        passes: epochs done.
        moved: median change of the weights relative to their start, `None` if not known.
        dropout: largest probability of a dropout layer.
        sampled: whether that cost is known to a tenth or so only, from some targets.
        uneven: whether a guess costs little because some labels are far more common than others.
    """

    training: tuple[float, ...]
    validation: tuple[float, ...] = ()
    updates: int = 0
    broken: int | None = None
    guess: float | None = None
    before: float | None = None
    first: float | None = None
    first_pass: float | None = None
    passes: int = 0
    moved: float | None = None
    dropout: float = 0.0
    sampled: bool = False
    uneven: bool = False

    @property
    def known(self) -> bool:
        """Whether there are several losses of both kinds, and all are finite."""
        return (
            len(self.training) > 1 and len(self.validation) > 1 and all(map(math.isfinite, (*self.training, *self.validation)))
        )

    @property
    def one_formula(self) -> bool:
        """Whether the validation loss before training is near training's first losses."""
        return self.before is not None and self.training[0] > 0 and 1 / ALIKE < self.before / self.training[0] < ALIKE

    @property
    def other_formula(self) -> bool:
        """Whether the validation loss before training, or one that learns without it, is of another size than training's."""
        if self.before is None:
            best = min(self.validation)
            return best > NEVER_AS_GOOD * self.training[0] and best < HALF * self.validation[0]
        starts = [loss for loss in (self.first, self.training[0]) if loss and loss > 0]
        return not any(1 / OTHER < self.before / start < OTHER for start in starts)

    @property
    def learned(self) -> bool:
        """Whether training and validation ended far below a guess's cost."""
        return self.known and max(self.end, self.validation[-1]) < MASTERED * (self.guess or 0.0)

    @property
    def end(self) -> float:
        """Mean training loss of the last tenth of the run."""
        last = self.training[-max(1, len(self.training) // 10) :]
        return sum(last) / len(last)


def judge_course(course: Course) -> list[Finding]:
    """Return what the first finds of `learned_nothing`, `held_back`, `validated_apart` and `overfit_no_regularisation`."""
    checks = (learned_nothing, held_back, validated_apart, overfit_no_regularisation)
    return next((found for check in checks if (found := check(course))), [])


def diverged(course: Course) -> list[Finding]:
    """Say so if the training loss became NaN or ended far above its start: `lr_too_high` if it rose, else `nan_loss`.

    One that ends below three quarters of a guess's cost all the same may come from harder data, or noise.

    >>> [finding.rule for finding in diverged(Course((1.0, 5.0, math.nan), broken=17))]
    ['lr_too_high']
    >>> [finding.rule for finding in diverged(Course((1.0, 0.5, math.nan), broken=17))]
    ['nan_loss']
    """
    finite = [loss for loss in course.training if math.isfinite(loss)]
    rose = bool(finite) and finite[0] > 0 and finite[-1] > ROSE * finite[0]
    hardened = course.broken is None and bool(finite) and finite[-1] < HARDENED * (course.guess or 0.0)
    if rose and not hardened:
        end = f"and became NaN at step {course.broken}" if course.broken is not None else "and stayed there"
        message = f"The training loss rose from {finite[0]:.3g} to {finite[-1]:.3g} {end}."
        advice = "Lower lr by a factor of 3 to 10, warm up, or clip gradients."
        return [Finding("lr_too_high", "error", "", course.updates, message, advice, {"start": finite[0], "end": finite[-1]})]
    if course.broken is not None:
        message = f"The training loss became NaN or infinite at step {course.broken}; it had not risen before."
        advice = "Look for logarithms, roots and quotients that reach 0, and for NaN in that batch's data."
        return [Finding("nan_loss", "error", "", course.broken, message, advice)]
    return []


def learned_nothing(course: Course) -> list[Finding]:
    """Say so if the training loss stays at what saying the same for every sample costs, and name what that leaves.

    Weights that hardly moved were not moved enough: `lr_too_low`. Weights that were thrown far from where they were drawn, or a
    first epoch that ended lower than the run: `lr_too_high`. If they moved as they do in training, and nothing else is wrong, the
    inputs tell nothing about the targets: `labels_broken`. Of numbers that lie so far from where the outputs begin that a good part
    of the run went into coming near them, it is their offset: `unnormalised_target`.

    Threshold: after 4 epochs and 80 updates the losses are, and the validation losses always were, above .85 of that cost (of
    340 healthy set-ups the slowest was at .62; clicks and prices that hardly follow from anything come to .8 to .95, so that
    `labels_broken` takes validation losses above .92, or for numbers 1, and 3 % more of the training loss where there are
    none); changes of less than 3 %, and of more than 4 times the weights; a first epoch that ends below .9 of the run's end. A
    loss above 10 times a guess's that still falls is another fault. Offset: a first loss above 5 times a guess's that did not
    rise, and a quarter of the run above twice that cost.

    >>> at_chance = Course((1.41, 1.39, 1.38), (1.40, 1.39), 200, guess=1.39, passes=6, moved=0.8)
    >>> learned_nothing(at_chance)[0].rule
    'labels_broken'
    """
    guess, start = course.guess, course.training[:1]
    if not guess or course.moved is None or course.passes < ENOUGH_PASSES or course.updates < ENOUGH_UPDATES or not start:
        return []
    if not all(map(math.isfinite, (*course.training, *course.validation))):
        return []
    falling = course.end > ABOVE * guess and course.end < start[0] / 2
    if min((course.end, *course.validation)) < NOTHING * guess or falling:
        return []
    message = f"After {course.passes} epochs the loss is {course.end:.3g}; saying the same for every sample costs {guess:.3g}."
    numbers = {"end": course.end, "guess": guess, "moved": course.moved}
    lost = course.first_pass is not None and course.first_pass < LOST * course.end
    best = min(course.validation, default=course.end * HARDER)
    severity: Severity = "error"
    if course.moved < STILL:
        rule, advice = (
            "lr_too_low",
            f"Raise lr, tenfold at first: {course.updates} updates moved weights by {course.moved:.1%}.",
        )
    elif _came_down(course) and (course.moved > FAR or best >= HARD * guess):
        rule, message = "unnormalised_target", f"{message} It began at {course.first:.3g}, and came down no further."
        advice = "Standardise the targets with the training data's mean and std; scale predictions back."
    elif course.moved > FAR or lost:
        rule, advice = "lr_too_high", f"Lower lr by a factor of 10 or so: weights moved by {course.moved:.2g} times their size."
    elif best < (1.0 if course.sampled else HARD) * guess:
        return []
    else:
        rule, severity = "labels_broken", "warning"
        advice = "Print a few targets next to their inputs: are they of the same sample, of the same time?"
    return [Finding(rule, severity, "", course.updates, message, advice, numbers)]


def _came_down(course: Course) -> bool:
    """Tell whether the loss of a regression began far above a guess's, and took a good part of the run to come down to it."""
    first, guess = course.first, course.guess or 0.0
    if not course.sampled or first is None or first < OFF * guess or max(course.training) > ALIKE * first:
        return False
    return sum(loss > 2 * guess for loss in course.training) > SPENT * len(course.training)


def held_back(course: Course) -> list[Finding]:
    """Say so if dropout leaves too little to learn with: `dropout_too_high`.

    Threshold: a layer drops more than half, training ends 10 % above validation, which runs without dropout, and both above half
    of a guess's cost (healthy set-ups with dropout come to .2 and below).

    >>> held_back(Course((1.4, 1.1), (1.3, 0.9), 200, guess=1.39, before=1.4, passes=6, dropout=0.8))[0].rule
    'dropout_too_high'
    """
    slow = course.known and course.guess and course.one_formula and course.passes >= ENOUGH_PASSES
    if not slow or course.dropout <= USUAL_DROPOUT or min(course.validation) < HALF * (course.guess or 0.0):
        return []
    if course.end < HELD_BACK * course.validation[-1]:
        return []
    last = course.validation[-1]
    message = f"The loss ends at {course.end:.3g} in training, with dropout {course.dropout:g}, at {last:.3g} without."
    advice = "Use dropout 0.5 or less; a network that does not fit its training data needs none."
    return [Finding("dropout_too_high", "warning", "", course.updates, message, advice, {"dropout": course.dropout})]


def validated_apart(course: Course) -> list[Finding]:
    """Say so if what is learned in training does not hold in validation, whose loss stays at that of a guess.

    In the first epoch each sample is new when its loss is computed. If that loss falls below all of validation's, or if
    validation gains a little and loses it again within a few epochs although the first one taught nothing yet, the two are not
    computed on the same kind of data or in the same way: `train_val_mismatch`. If nothing is gained at all, training learns
    samples one by one: targets that have nothing to do with their inputs (`labels_broken`). After many epochs, or if the little
    that can be gained is gained by both, it is `overfit_no_regularisation`. If a guess is good in training because of a common
    label, and not in validation, it is `class_imbalance`.

    Threshold: the training loss ends below .8 of all validation losses, the last of which is above .85 of a guess's and all
    above .7 (of 340 healthy set-ups none stayed above .54); the first epoch's last below .85 of the lowest; a gain of 5 %; 12
    epochs with one, 30 without. Validation before training is within a factor of 1.7 of training's first losses, so that both
    are one formula.

    >>> apart = Course((1.4, 0.3), (1.9, 2.4), 200, guess=1.39, before=1.4, first_pass=0.7, passes=6)
    >>> validated_apart(apart)[0].rule
    'train_val_mismatch'
    """
    guess, passes = course.guess, course.passes
    if not course.known or not guess or course.first_pass is None or not course.one_formula or passes < ENOUGH_PASSES:
        return []
    best = min(course.validation)
    if best < HARDLY * guess or course.validation[-1] < NOTHING * guess or course.end > APART * best:
        return []
    costs = f"saying the same for every sample costs {guess:.3g}"
    message = f"Training comes to {course.end:.3g}, validation from at best {best:.3g} to {course.validation[-1]:.3g}; {costs}."
    gained = best < GAIN * guess
    if course.uneven:
        rule, advice = "class_imbalance", "weight= in the loss, or a WeightedRandomSampler; are validation's classes as common?"
    elif course.first_pass < SEEN_THROUGH * best or (gained and passes <= FEW_PASSES and course.first_pass > GAIN * guess):
        rule = "train_val_mismatch"
        advice = "Compare a validation batch with a training batch: preprocessing, label numbers, columns, mode of batch norm."
    elif gained or passes > MANY_PASSES:
        rule, advice = "overfit_no_regularisation", "Get more data, a smaller network, weight_decay, dropout, augmentation."
    else:
        rule = "labels_broken"
        advice = "Print a few training targets next to their inputs: samples are learned one by one, and nothing in common."
    numbers = {"end": course.end, "best": best, "guess": guess, "first_pass": course.first_pass}
    return [Finding(rule, "error", "", course.updates, message, advice, numbers)]


def overfit_no_regularisation(course: Course) -> list[Finding]:
    """The network learns its training data by heart: the validation loss rises while the training loss goes to nothing.

    What it means: there are more weights than the data can pin down, and nothing holds them back; noise and single samples are
    memorised (Zhang et al. 2017). Typical causes: too little data, no weight decay, dropout or augmentation, too long a run.

    How it is measured: the validation loss that the module logs (a name with `val` and `loss`) after each validation, the mean
    training loss of equal stretches of the run.

    Threshold: at the end the validation loss is more than 30 times the training loss and 1.2 times its own minimum, or 100
    times the training loss, and as high as at the start (.9 times), without ever having been below .3 of that. Healthy
    set-ups end below 20 times, most below 3. If it was never below 1.5 times the training loss at the start, the two are
    computed on different things: `train_val_mismatch`. Where it is known what a guess costs: the training loss ends below
    .01 of that, the validation loss above .45 of it and 60 times the training loss, and never below .25 (of 400 healthy
    set-ups the nearest ended at .38 and 42 times).

    Not an alarm: a gap that closes, or a validation loss that still falls; tiny losses on both sides; a validation loss of another
    size than training's, by a factor of 3, before anything is learned: another formula, or in other units.

    What to do: stop at the minimum (`EarlyStopping`), `weight_decay`, dropout, augmentation, more data, a smaller network.

    >>> overfit_no_regularisation(Course((1.4, 0.5, 0.001), (0.9, 0.8, 1.6), updates=300))[0].rule
    'overfit_no_regularisation'
    """
    training, validation = course.training, course.validation
    if not course.known or min(training[0], training[-1], min(validation)) <= 0 or course.other_formula:
        return []
    gap, worse = validation[-1] / training[-1], validation[-1] / min(validation)
    risen = gap >= GAP and (gap >= HUGE or worse >= WORSE) and validation[-1] >= SUBSTANTIAL * training[0]
    if not (risen and min(validation) >= NEVER_GOOD * training[0]) and not _by_heart(course):
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


def _by_heart(course: Course) -> bool:
    """Tell whether nothing is left of the training loss, or a third of a validation loss that is not far from a guess's."""
    if not course.guess or not course.one_formula:
        return False
    best, last = min(course.validation), course.validation[-1]
    vanished = course.end < BY_HEART * course.guess and last > max(POOR * course.guess, FAR_APART * course.end)
    slight = course.passes >= FEW_PASSES and best > HALF * course.guess and last > max(SLIGHT * course.guess, 3 * course.end)
    return (vanished and best > NEVER_FAIR * course.guess) or slight
