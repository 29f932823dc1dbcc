"""What the losses of a whole run tell: diverged, held back, overfitted, or validated on something else."""

import math

from lit_training.diagnosis.course import Course
from lit_training.diagnosis.finding import Finding, Severity
from lit_training.diagnosis.rules.sinking import sinks
from lit_training.diagnosis.rules.stagnation import ENOUGH_PASSES, FAR, NOTHING, collapsed, learned_nothing

__all__ = ["diverged", "judge_course", "overfit_no_regularisation", "validated_apart"]

ROSE, HARDENED = 3.0, 0.75
GAP, HUGE, WORSE = 30.0, 100.0, 1.2
SUBSTANTIAL, NEVER_GOOD, NEVER_AS_GOOD, FELL_ANYWAY = 0.9, 0.3, 1.5, 0.8
SEEN_THROUGH = 0.85
USUAL_DROPOUT, HALF, HELD_BACK = 0.5, 0.5, 1.1
SETTLED, FEW_PASSES, MANY_PASSES = 4, 12, 30
HARDLY, GAIN, TOLD, APART = 0.7, 0.95, 0.99, 0.8
FEW_SAMPLES, FEW_TO_LEARN = 64, 1000
SIGNIFICANT = 3.0
BY_HEART, POOR, NEVER_FAIR, FAR_APART = 0.01, 0.45, 0.25, 60.0
SLIGHT, SOMETHING = 0.6, 0.1
HARDLY_LEFT, MANY_TIMES = 0.15, 6.0
REWINDS, LEFT = 3, 0.2
SHRUNK, HARDLY_FELL = 0.1, 0.4


def judge_course(course: Course) -> list[Finding]:
    """Return what the first finds of the checks of a whole run."""
    checks = (
        sinks,
        went_back,
        undone,
        shrank_away,
        learned_nothing,
        collapsed,
        held_back,
        validated_apart,
        overfit_no_regularisation,
    )
    return next((found for check in checks if (found := check(course))), [])


def diverged(course: Course) -> list[Finding]:
    """Say so if the training loss became NaN or ended far above its start: `lr_too_high` if it rose, else `nan_loss`.

    Threshold: 3 times its start, without having come back to it in the second half of the run, by weights that were thrown to
    more than 4 times their size (faulty rates: 12 times or more). A loss that grows while weights stay near is a harder task:
    longer rollouts, penalties that are ramped up, values that a network learns to expect; one that rises from a single small
    batch is noise (by less than 3 standard deviations of a stretch, unless it ends above 3 times a guess's cost), as may be one
    that ends below three quarters of that.

    >>> [finding.rule for finding in diverged(Course((1.0, 5.0, math.nan), broken=17))]
    ['lr_too_high']
    >>> [finding.rule for finding in diverged(Course((1.0, 0.5, math.nan), broken=17))]
    ['nan_loss']
    """
    finite = [loss for loss in course.training if math.isfinite(loss)]
    rose = bool(finite) and finite[0] > 0 and finite[-1] > ROSE * finite[0]
    hardened = course.broken is None and bool(finite) and finite[-1] < HARDENED * (course.guess or 0.0)
    if rose and not hardened and (course.broken is not None or _stayed_up(course, finite[0])):
        end = f"and became NaN at step {course.broken}" if course.broken is not None else "and stayed there"
        message = f"The training loss rose from {finite[0]:.3g} to {finite[-1]:.3g} {end}."
        advice = "Lower lr by a factor of 3 to 10, warm up, or clip gradients."
        return [Finding("lr_too_high", "error", "", course.updates, message, advice, {"start": finite[0], "end": finite[-1]})]
    if course.broken is not None:
        message = f"The training loss became NaN or infinite at step {course.broken}; it had not risen before."
        advice = "Look for logarithms, roots and quotients that reach 0, and for NaN in that batch's data."
        return [Finding("nan_loss", "error", "", course.broken, message, advice)]
    return []


def _stayed_up(course: Course, start: float) -> bool:
    """Tell whether a loss that is a number throughout never came back to its start, and the weights were thrown far."""
    thrown = course.moved is None or not course.moved < FAR
    surely = course.end > ROSE * (course.guess or 0.0) or course.end - start > SIGNIFICANT * course.noise
    return thrown and surely and course.end > ROSE * start and min(course.training[len(course.training) // 2 :]) > start


def went_back(course: Course) -> list[Finding]:
    """Say so if epoch after epoch begins with the same weights, and what was learned in between is lost: `no_update`.

    Threshold: 3 epochs and half of them began with the weights of the one before, to the bit, although that had lowered the
    validation loss by 1 %; the weights that they go back to are above half of the validation loss before training. A loop that
    returns to its best weights keeps an epoch that was better.

    >>> went_back(Course((1.4, 1.2), (1.3, 1.2), 200, before=1.4, passes=8, rewinds=6, level=1.3))[0].rule
    'no_update'
    """
    often = course.rewinds >= REWINDS and course.rewinds >= HALF * course.passes
    if not often or course.level is None or course.before is None or not course.level > HALF * course.before:
        return []
    message = (
        f"{course.rewinds} of {course.passes} epochs began with the weights of the one before, though it had made them better."
    )
    advice = "Look for code that loads weights at an epoch's start or end: does it keep the best ones, or the worst?"
    return [Finding("no_update", "error", "", course.updates, message, advice, {"rewinds": float(course.rewinds)})]


def undone(course: Course) -> list[Finding]:
    """Say so if what each update changed was gone before the next step began: `no_update`.

    Threshold: less than a fifth of the first updates was left (an optimiser's own averages act within its step; clipped or
    renormalised weights keep more, and averages that are loaded for validation are taken out again).

    >>> undone(Course((1.4, 1.4), updates=200, lasting=0.1))[0].rule
    'no_update'
    """
    if course.lasting is None or course.lasting >= LEFT:
        return []
    message = f"Of what the first updates changed {course.lasting:.0%} was left when the next step began."
    advice = (
        "Look for code that writes to the weights after each step: an average has to be taken from them, not put into them."
    )
    return [Finding("no_update", "error", "", course.updates, message, advice, {"lasting": course.lasting})]


def shrank_away(course: Course) -> list[Finding]:
    """Say so if all weights ended near zero, and little was learned: `weight_decay_too_strong`.

    Threshold: each weight of several columns has less than a tenth of its size at the start, and the training loss ends above .4
    of its start, or validation's above .4 of that before training. Two factors that start small get little gradient from each
    other: a penalty of a tenth of the loss then draws both to zero (healthy factors and layers grow, or keep a third or more).

    >>> shrank_away(Course((1.1, 0.8), (0.9, 0.8), 200, before=1.0, first=1.1, kept=0.01))[0].rule
    'weight_decay_too_strong'
    """
    if not course.known or course.kept is None or course.kept >= SHRUNK:
        return []
    start = course.training[0] if course.first is None else course.first
    after = course.validation[-1] > HARDLY_FELL * course.before if course.before else False
    if not (start > 0 and course.end > HARDLY_FELL * start) and not after:
        return []
    message = f"All weights shrank to {course.kept:.1%} of their size or less, and the loss ends at {course.end:.3g}."
    advice = "Lower weight_decay, or the factor of the penalty in the loss: it holds all weights at zero."
    return [Finding("weight_decay_too_strong", "error", "", course.updates, message, advice, {"kept": course.kept})]


def held_back(course: Course) -> list[Finding]:
    """Say so if dropout leaves too little to learn with: `dropout_too_high`.

    Threshold: a layer drops more than half, training ends 10 % above validation, which runs without dropout, and 3 standard errors
    of a loss of so many samples; and both above half of a guess's cost (healthy set-ups with dropout come to .2 and below, where
    labels are not noisy). What is held back is slow: validation still gains 5 % in the second half of the run. If it stays where
    it is, what is left is more likely noise in the targets, which dropout cannot help.

    >>> held_back(Course((1.4, 1.1), (1.3, 0.9), 200, guess=1.39, before=1.4, passes=6, dropout=0.8))[0].rule
    'dropout_too_high'
    """
    slow = course.known and course.guess and course.one_formula and course.passes >= ENOUGH_PASSES
    if not slow or course.dropout <= USUAL_DROPOUT or min(course.validation) < HALF * (course.guess or 0.0):
        return []
    last, half = course.validation[-1], (len(course.validation) + 1) // 2
    if min(course.validation[half:]) > GAIN * min(course.validation[:half]):
        return []
    if course.end < max(HELD_BACK, 1 + SIGNIFICANT * course.spread) * last:
        return []
    message = f"The loss ends at {course.end:.3g} in training, with dropout {course.dropout:g}, at {last:.3g} without."
    advice = "Use dropout 0.5 or less; a network that does not fit its training data needs none."
    return [Finding("dropout_too_high", "warning", "", course.updates, message, advice, {"dropout": course.dropout})]


def validated_apart(course: Course) -> list[Finding]:
    """Say so if what is learned in training does not hold in validation, whose loss stays at that of a guess.

    In the first epoch each sample is new when its loss is computed. If that loss falls below all of validation's, or if validation
    gains a little and loses it again within a few epochs although the first one taught nothing yet, the two are not computed on the
    same kind of data or in the same way: `train_val_mismatch`. If nothing is gained at all, training learns samples one by one:
    targets that have nothing to do with their inputs (`labels_broken`). After many epochs, or if the little that can be gained is
    gained by both, it is `overfit_no_regularisation` (a note where `EarlyStopping` ends the run). If a guess is good in training
    because of a common label, and not in validation, it is `class_imbalance`.

    Threshold: over what a guess costs on the same data, the training loss ends below .8 of all validation losses, the last of which
    is above .85 and all above .7 (of 340 healthy set-ups none stayed above .54); the first epoch's last below .85 of the lowest, by
    3 standard errors; of a gain that is lost again, a thousand training samples, since fewer are known by heart within a few
    epochs; a gain of 5 % (of 1 % for labels that are not broken, where validation's targets are known); 12 epochs with one, 30
    without. Of fewer than 4 epochs, a validation loss that falls may fall further. Of fewer than 64 validation samples nothing is
    said: their loss is chance; nor of overfitting if validation is at its best in the end, within 2 %, and better than a guess.
    Validation before training is within a factor of 1.7 of training's first losses, so that both are one formula.

    >>> apart = Course((1.4, 0.3), (1.9, 2.4), 200, guess=1.39, before=1.4, first_pass=0.7, passes=6)
    >>> validated_apart(apart)[0].rule
    'train_val_mismatch'
    """
    guess, passes = course.guess, course.passes
    if not course.known or not guess or course.first_pass is None or not course.one_formula or passes < ENOUGH_PASSES:
        return []
    if course.doubtful or (course.guess_apart and course.samples_apart < FEW_SAMPLES):
        return []
    first, end = course.first_pass / guess, course.end / guess
    best, last = min(course.shares), course.shares[-1]
    if best < HARDLY or last < NOTHING or end > APART * best or (passes < SETTLED and last < course.shares[0]):
        return []
    costs = f"saying the same for every sample costs {guess:.3g}"
    came = f"from at best {min(course.validation):.3g} to {course.validation[-1]:.3g}"
    message = f"Training comes to {course.end:.3g}, validation {came}; {costs}."
    gained = best < GAIN
    seen_through = first + SIGNIFICANT * course.first_pass_error / guess < SEEN_THROUGH * best
    lost_again = gained and passes <= FEW_PASSES and first > GAIN and course.samples >= FEW_TO_LEARN and not course.stops_early
    if course.uneven:
        rule, advice = "class_imbalance", "weight= in the loss, or a WeightedRandomSampler; are validation's classes as common?"
    elif not seen_through and course.still_gains:
        return []
    elif seen_through or lost_again:
        rule = "train_val_mismatch"
        advice = "Compare a validation batch with a training batch: preprocessing, label numbers, columns, mode of batch norm."
    elif best < (max(TOLD, 1 - course.by_chance) if course.guess_apart else GAIN) or passes > MANY_PASSES:
        rule, advice = "overfit_no_regularisation", "Get more data, a smaller network, weight_decay, dropout, augmentation."
    else:
        rule = "labels_broken"
        advice = "Print a few training targets next to their inputs: samples are learned one by one, and nothing in common."
    numbers = {"end": end, "best": best, "last": last, "first_pass": first}
    severity: Severity = "note" if rule == "overfit_no_regularisation" and course.stops_early else "error"
    return [Finding(rule, severity, "", course.updates, message, advice, numbers)]


def overfit_no_regularisation(course: Course) -> list[Finding]:
    """The network learns its training data by heart: the validation loss rises while the training loss goes to nothing.

    What it means: there are more weights than the data can pin down, and nothing holds them back; noise and single samples are
    memorised (Zhang et al. 2017). Typical causes: too little data, no weight decay, dropout or augmentation, too long a run.

    How it is measured: the validation loss that the module logs (`val_loss`, `valid/loss` or the like; of several names with both
    words, one without other words) after each validation, the mean training loss of equal stretches of the run.

    Threshold: at the end the validation loss is more than 30 times the training loss and 1.2 times its own minimum, or 100
    times the training loss, and as high as at the start (.9 times), without ever having been below .3 of that. Healthy
    set-ups end below 20 times, most below 3. If it was never below 1.5 times the training loss at the start, the two are
    computed on different things: `train_val_mismatch`. Where it is known what a guess costs: the training loss ends below
    .01 of that, the validation loss above .45 of it and 60 times the training loss, and never below .25 (of 400 healthy
    set-ups the nearest ended at .38 and 42 times); or after 12 epochs below .15, validation never below .3 of it, and 6 times the
    training loss (of 600 healthy set-ups the nearest came to .19 and 4 times).

    Not an alarm: a gap that closes, or a validation loss that is at its best (by 2 %) in the end, and better than a guess's, while
    training still costs a tenth of that; tiny losses on both sides; a validation loss of another size than training's, by a factor
    of 3, before anything is learned (another formula, other units: currency, a sum over the batch) that fell by a fifth; one that
    comes below .3 of its first value: it learns too. A run that `EarlyStopping` ends gets a note.

    What to do: stop at the minimum (`EarlyStopping`), `weight_decay`, dropout, augmentation, more data, a smaller network.

    >>> overfit_no_regularisation(Course((1.4, 0.5, 0.001), (0.9, 0.8, 1.6), updates=300))[0].rule
    'overfit_no_regularisation'
    """
    training, validation = course.training, course.validation
    if not course.known or min(training[0], training[-1], min(validation)) <= 0:
        return []
    if course.other_formula and min(validation) < FELL_ANYWAY * max(course.before or 0.0, validation[0]):
        return []
    gap, worse = validation[-1] / training[-1], validation[-1] / min(validation)
    own_start = max(course.before or 0.0, validation[0])
    learns = min(validation) < NEVER_GOOD * own_start and validation[-1] < NEVER_AS_GOOD * min(validation)
    risen = not learns and gap >= GAP and (gap >= HUGE or worse >= WORSE) and validation[-1] >= SUBSTANTIAL * training[0]
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
    severity: Severity = "note" if course.stops_early else "warning"
    return [Finding("overfit_no_regularisation", severity, "", course.updates, message, advice, numbers)]


def _by_heart(course: Course) -> bool:
    """Tell whether little is left of the training loss, and much of a guess's cost in a validation loss."""
    if not course.guess or not course.one_formula or (course.still_gains and course.end > SOMETHING * course.guess):
        return False
    best, last = min(course.validation), course.validation[-1]
    vanished = course.end < BY_HEART * course.guess and last > max(POOR * course.guess, FAR_APART * course.end)
    slight = course.passes >= FEW_PASSES and best > HALF * course.guess and last > max(SLIGHT * course.guess, 3 * course.end)
    left, fair = course.end / course.guess, min(course.shares) > NEVER_GOOD
    apart = course.passes >= FEW_PASSES and fair and left < HARDLY_LEFT and course.shares[-1] > MANY_TIMES * left
    return (vanished and best > NEVER_FAIR * course.guess) or slight or apart
