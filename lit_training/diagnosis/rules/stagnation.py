"""What the losses of a whole run tell that learned nothing: a rate, an offset, or targets that do not belong to their inputs."""

import math

from lit_training.diagnosis.course import ALIKE, UNMOVED, Course
from lit_training.diagnosis.finding import Finding, Severity

__all__ = ["ENOUGH_PASSES", "FAR", "NOTHING", "collapsed", "learned_nothing"]

NOTHING, HARD, KNOWN_HARD, FELL = 0.85, 0.98, 0.99, 0.85
ENOUGH_PASSES, ENOUGH_UPDATES = 3, 80
STILL, FAR, LOST, ABOVE = 0.03, 4.0, 0.9, 10.0
CAME_TO, BACK, BEYOND = 0.8, 0.9, 1.5
ROSE_FIRST, SIGNIFICANT, OVERWRITTEN = 1.15, 5.0, 1.0
OFF, SPENT, NO_MORE = 5.0, 0.25, 0.92
NEVER_NEAR = 2.0
FEW = 250
FLAT_START, FLAT_MOVED, FLAT_TRAINED = 0.5, 0.3, 0.93


def learned_nothing(course: Course) -> list[Finding]:
    """Say so if the training loss stays at what saying the same for every sample costs, and name what that leaves.

    Weights that hardly moved were not moved enough: `lr_too_low`. Weights that were thrown far from where they were drawn, or a
    first epoch that ended lower than the run, or that overwrote themselves while the loss of classes rose at first: `lr_too_high`.
    If they moved as they do in training, and nothing else is wrong, the inputs tell nothing about the targets: `labels_broken`. Of
    numbers that lie so far from where the outputs begin that a good part of the run went into coming near them, it is their offset:
    `unnormalised_target`.

    Threshold: after 3 epochs and 80 updates the losses are, and the validation losses always were, above .85 of that cost (of 340
    healthy set-ups the slowest was at .62; clicks, prices and bases of DNA that hardly follow from anything come to .8 to .97, so
    that `labels_broken` and `lr_too_low` take validation losses above .98, or for numbers and rare labels .99 of what a guess costs
    in validation, which may hold other years or more of the rare label; where that is not known, numbers above 1, and 2 % more of
    the training loss where there is no validation). Ten thousand validation samples tell a gain of .3 % from chance
    (`Course.by_chance`): whether a price goes up is told no better. Of 250 the gain of a tenth is four standard errors; of fewer,
    training must have gained nothing either. A run that ends above a guess's cost in validation and at it in training kept nothing.
    Changes of less than 3 %; if the last validation loss is no gain, of more than 4 times the weights (those behind a thousand
    words start small, and get there while they learn), or a first epoch that ends below .9 of the run's end (250 validation samples
    or more); and of more than their size where a stretch of the run's first quarter is 15 %, and 5 standard deviations of a
    stretch, above both the first loss and a guess's (healthy set-ups that hardly learn: 0 %, and 6 % for numbers). A loss of
    numbers that fell by 15 % since the first epoch learned something, whatever the first targets cost: they may lack the few large
    ones, or hold too many: where validation's targets are not known, weights that moved by 30 %, while training gained less than 7
    % since the first epoch, and validation never 4.5 % since before it, learned nothing. A loss above 10 times a guess's that still
    falls is another fault. Offset: a first loss above 5 times a guess's that did not rise, and a quarter of the run above twice
    that cost; or all of it, if it fell.

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
    fell = course.sampled and course.first_pass is not None and course.end < FELL * course.first_pass
    nothing = min((course.end / guess, *course.shares)) >= NOTHING
    if falling or (fell and not _came_down(course)) or not (nothing or _is_flat(course)):
        return []
    cause = _cause(course, nothing)
    if cause is None:
        return []
    rule, happened, advice = cause
    message = f"After {course.passes} epochs the loss is {course.end:.3g}; saying the same for every sample costs {guess:.3g}."
    severity: Severity = "warning" if rule == "labels_broken" else "error"
    numbers = {"end": course.end, "guess": guess, "moved": course.moved}
    return [Finding(rule, severity, "", course.updates, message + happened, advice, numbers)]


def _cause(course: Course, nothing: bool) -> tuple[str, str, str] | None:
    """Return the rule, what happened in words, and advice; `None` if something may have been learned."""
    moved, best = course.moved or 0.0, min(course.shares, default=course.last)
    told = not course.guess_apart or course.samples_apart >= FEW
    lost = told and course.first_pass is not None and course.first_pass < LOST * course.end
    if moved < STILL and nothing and best >= _least(course) and not _knew(course):
        advice = f"Raise lr, tenfold at first: {course.updates} updates moved weights by {moved:.1%}."
        return "lr_too_low", "", advice
    if _came_down(course) and nothing and (moved > FAR or best >= NO_MORE):
        advice = "Standardise the targets with the training data's mean and std; scale predictions back."
        return "unnormalised_target", f" It began at {course.first:.3g}, and came down no further.", advice
    if _never_came(course):
        advice = "Standardise the targets with the training data's mean and std (scale predictions back), or raise lr."
        return "unnormalised_target", f" It began at {course.first:.3g}, and never came near.", advice
    if nothing and (_was_flung(course) if course.last < _hard(course) else moved > FAR or lost):
        return "lr_too_high", "", f"Lower lr by a factor of 10 or so: weights moved by {moved:.2g} times their size."
    if not _is_flat(course) and (not _ends_at_nothing(course, best) or _may_have_learned(course)):
        return None
    return "labels_broken", "", "Print a few targets next to their inputs: are they of the same sample, of the same time?"


def collapsed(course: Course) -> list[Finding]:
    """Say so if a run that had learned something fell back to the cost of a guess and stayed there: `lr_too_high`.

    Threshold: a stretch of the first half of the run is below .8 of a guess's cost, all of the last quarter and the last
    validation loss, over what a guess costs there, between .9 and 1.5 of it; some validation loss was below .9, since a calm
    beginning of a stream is low in training only; weights moved by more than 30 %.

    >>> fell = Course((2.5, 1.9, 1.8, 1.9, *[2.35] * 20), (1.9, 2.35), 240, guess=2.48, passes=16, moved=2.0)
    >>> collapsed(fell)[0].rule
    'lr_too_high'
    """
    guess, training = course.guess, course.training
    if not guess or course.moved is None or course.passes < ENOUGH_PASSES or course.updates < ENOUGH_UPDATES:
        return []
    quarter = max(1, len(training) // 4)
    best = min(training[: 2 * quarter], default=math.inf)
    ends = (*(loss / guess for loss in training[-quarter:]), *course.shares[-1:])
    back = len(training) > 4 and all(BACK < share < BEYOND for share in ends) and min(course.shares, default=0.0) < BACK
    if not back or best > CAME_TO * guess or course.moved < FLAT_MOVED:
        return []
    message = (
        f"The loss had come to {best:.3g}, and is back at {course.end:.3g}; saying the same for every sample costs {guess:.3g}."
    )
    advice = "Lower lr by a factor of 3 to 10, warm up, or clip gradients: single steps threw away what was learned."
    return [
        Finding("lr_too_high", "error", "", course.updates, message, advice, {"best": best, "end": course.end, "guess": guess})
    ]


def _was_flung(course: Course) -> bool:
    """Tell whether the loss rose at first above a guess's and its own start, by weights that moved by more than their size."""
    if course.sampled or course.uneven or course.first is None or course.guess is None or course.moved is None:
        return False
    early, level = max(course.training[: max(1, len(course.training) // 4)]), max(course.first, course.guess)
    return early > max(ROSE_FIRST * level, level + SIGNIFICANT * course.noise) and course.moved > OVERWRITTEN


def _least(course: Course) -> float:
    """Return the share of a guess's cost below which targets surely follow from the inputs, if only just."""
    if course.guess_apart and (course.sampled or course.uneven):
        return KNOWN_HARD
    return 1.0 if course.sampled else HARD


def _hard(course: Course) -> float:
    """Return the same where so many validation samples tell it that less can be no chance."""
    return max(_least(course), 1 - course.by_chance)


def _ends_at_nothing(course: Course, best: float) -> bool:
    """Tell whether validation never was better than a guess, or is worse in the end, while training gained nothing either."""
    lost_all = course.samples_apart >= FEW and course.last >= 1 and course.end >= HARD * (course.guess or 0.0)
    return best >= _hard(course) or lost_all


def _knew(course: Course) -> bool:
    """Tell whether validation was better than a guess before training, by more than chance has it."""
    return course.before is not None and course.before < (1 - course.by_chance) * (course.guess_apart or 0.0)


def _may_have_learned(course: Course) -> bool:
    """Tell whether too few validation samples to show a gain of a tenth hide what training shows, or a rough guess what both do."""
    few = bool(course.guess_apart) and course.samples_apart < FEW
    return course.doubtful or (few and course.end < HARD * (course.guess or 0.0))


def _is_flat(course: Course) -> bool:
    """Tell whether weights moved far enough to learn, and neither loss fell at all from about what a guess is known to cost."""
    guess, before, first_pass, moved = course.guess, course.before, course.first_pass, course.moved
    if guess is None or before is None or first_pass is None or moved is None or not course.validation:
        return False
    roughly = course.sampled and not course.guess_apart
    if not roughly or not course.one_formula or not FLAT_MOVED <= moved <= FAR or before < FLAT_START * guess:
        return False
    return course.end > FLAT_TRAINED * first_pass and min(course.validation) > UNMOVED * before


def _never_came(course: Course) -> bool:
    """Tell whether the loss of a regression fell, and stayed twice as high as that of the targets' mean, in validation, too."""
    guess, first = course.guess or math.inf, course.first
    fell = course.sampled and first is not None and course.end < first
    return fell and min((course.end / guess, *course.shares)) > NEVER_NEAR


def _came_down(course: Course) -> bool:
    """Tell whether the loss of a regression began far above a guess's, and took a good part of the run to come down to it."""
    first, guess = course.first, course.guess or 0.0
    if not course.sampled or first is None or first < OFF * guess or max(course.training) > ALIKE * first:
        return False
    return sum(loss > 2 * guess for loss in course.training) > SPENT * len(course.training)
