"""What the losses of a whole run tell of a network that could do its task before: training made it forget."""

import math
from statistics import fmean

from lit_training.diagnosis.course import Course
from lit_training.diagnosis.finding import Finding

__all__ = ["forgot"]

KNEW = 0.5
ROSE, ABOVE = 2.0, 0.1
FAR = 0.3
WINDOW = 4


def forgot(course: Course) -> list[Finding]:
    """Say so if training made a network worse that could do its task: `lr_too_high`.

    A rate that is made for training from scratch throws trained weights away in its first updates (Howard and Ruder, ULMFiT, ACL
    2018, section 3.2); what comes after is learned anew, from whatever data there are.

    Threshold: before training, the validation loss and the loss of the first batch are below half of a guess's; in the first half
    of the run training comes to more than twice the higher of them, over four of the 64 stretches that it is kept in; no
    validation loss is as low as twice that before, all are above both by a tenth of a guess's, and weights moved by more than 30 %
    (fine-tuning that does no harm: below 17 %, see `pretrained_lr_too_high`).

    Not an alarm: a bump that validation recovers from, as under warm-up; a new head, whose first loss is a guess; harder data,
    noise or augmentation, which raise the training loss and leave validation or the weights where they are; overfitting, whose
    training loss does not rise.

    >>> forgot(Course((0.1, 0.9, 0.8, 0.7, *[0.1] * 20), (0.9, 0.7), 90, guess=1.39, before=0.09, first=0.1, moved=0.7))[0].rule
    'lr_too_high'
    """
    guess, before, first = course.guess, course.before, course.first
    if not course.known or guess is None or before is None or first is None or course.moved is None:
        return []
    start, best = max(before, first), min(course.validation)
    knew = 0 < start < KNEW * guess
    worse = best > ROSE * before and best > start + ABOVE * guess
    if not knew or not worse or not course.moved > FAR or not math.isfinite(start):
        return []
    half = course.training[: max(WINDOW, len(course.training) // 2)]
    highest = max(fmean(half[i : i + WINDOW]) for i in range(max(1, len(half) - WINDOW + 1)))
    if not highest > ROSE * start:
        return []
    message = (
        f"It began at {before:.2g} in validation, {first:.2g} in training; that rose to {highest:.2g}, and validation never came "
        f"below {best:.2g}: what it knew is lost."
    )
    advice = (
        f"Lower lr by a factor of 10 or more, or warm up: fine-tuning moves weights by a few per cent, not {course.moved:.0%}."
    )
    numbers = {"before": before, "highest": highest, "best": best, "moved": course.moved}
    return [Finding("lr_too_high", "error", "", course.updates, message, advice, numbers)]
