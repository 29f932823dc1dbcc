"""What the losses of a whole run tell of one that has no lower bound: a term of it has the wrong sign."""

import math
from statistics import fmean

from lit_training.diagnosis.course import Course
from lit_training.diagnosis.finding import Finding

__all__ = ["sinks"]

SLOWER, FASTER = 1.2, 1.5
DEEP = 10.0
STRETCHES = 12


def sinks(course: Course) -> list[Finding]:
    """Say so if the training loss falls below zero faster and faster: `loss_sign`.

    A likelihood of numbers may be negative, and falls ever more slowly as the data are told better. A loss without a bound, such as
    a Gaussian's with `- log_var` for `+ log_var`, a maximised error or minus a penalty, gains more by each step than by the last.

    Threshold: it ends below -10, and below ten times its size at the start; of the run's thirds the second brings 1.5 times as much
    as the first, and the last 1.2 times as much as the second. Of 23 healthy losses below zero, in 1285 runs, none comes near: the
    deepest ends at -5, and those that fall faster in the second third fall below 1.4 in it.

    >>> sinks(Course((0.3, *(-float(i**2) for i in range(24))), updates=300))[0].rule
    'loss_sign'
    """
    training = course.training
    if len(training) < STRETCHES or not all(map(math.isfinite, training)):
        return []
    wide = len(training) // STRETCHES
    begins = (0, len(training) // 3, 2 * len(training) // 3, len(training) - wide)
    start, second, third, end = (fmean(training[i : i + wide]) for i in begins)
    falls = start - second, second - third, third - end
    deep = end < -DEEP * max(1.0, abs(start))
    if not deep or not falls[0] > 0 or falls[1] < FASTER * falls[0] or falls[2] < SLOWER * falls[1]:
        return []
    message = (
        f"The training loss falls faster and faster, from {start:.3g} over {third:.3g} to {end:.3g}: it has no lower bound."
    )
    advice = "Look for a term with the wrong sign: a log-variance, a log-probability, an error or a penalty that is subtracted."
    return [Finding("loss_sign", "error", "", course.updates, message, advice, {"start": start, "end": end})]
