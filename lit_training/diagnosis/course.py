"""How the losses of a run went, from its first step to its end."""

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

__all__ = ["Course"]

ALIKE = 1.7
OTHER, UNITS, LEARNS = 3.0, 1.5, 0.5
MASTERED, HOLDS = 0.6, 0.1
UNSEEN = 0.98
UNMOVED, OFFSET = 0.955, 5.0
BY_CHANCE = 4.0
GAINED, AT_ITS_BEST = 0.95, 1.02
STEPS_OF_NOISE = 0.954  # the median distance of two normal numbers of standard deviation 1


@dataclass(frozen=True)
class Course:
    """How the losses of a run went, above what certainty costs where labels are smoothed.

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
        kept: the largest part of its size at the start that a weight has at the end, `None` if not known.
        rewinds: how many epochs began with the very weights of the one before, although validation had become better in between.
        level: the validation loss of the weights that the last epoch began with, `None` if not known.
        lasting: how much of what the first updates changed was still there when the next step began, `None` if not known.
        dropout: largest probability of a dropout layer.
        sampled: whether that cost is known to a tenth or so only, from some targets.
        uneven: whether a guess costs little because some labels are far more common than others.
        guess_apart: what it costs to say the same for every validation sample, `None` if that is not known; then `guess` is taken.
        samples_apart: of how many validation samples that is known, 0 if it is not.
        classes: how many classes the loss tells apart, 0 for numbers.
        first_pass_error: the standard error of `first_pass`, 0 if that is not known.
        stops_early: whether the run ends when validation gets no better.
        samples: how many training samples there are, as far as they were counted; 0 if that is not known.
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
    kept: float | None = None
    rewinds: int = 0
    level: float | None = None
    lasting: float | None = None
    dropout: float = 0.0
    sampled: bool = False
    uneven: bool = False
    guess_apart: float | None = None
    samples_apart: int = 0
    classes: int = 0
    first_pass_error: float = 0.0
    stops_early: bool = False
    samples: int = 0

    @property
    def known(self) -> bool:
        """Whether there are several losses of both kinds, and all are finite."""
        return (
            len(self.training) > 1 and len(self.validation) > 1 and all(map(math.isfinite, (*self.training, *self.validation)))
        )

    @property
    def shares(self) -> tuple[float, ...]:
        """Return the validation losses over what a guess costs on those data.

        Of classes that training draws more evenly, the guess that training teaches: it cannot know how rare they are in validation.
        """
        guess = self.guess_apart or self.guess or math.inf
        if self.classes and self.guess and self.guess_apart:
            guess = max(self.guess_apart, self.guess)
        return tuple(loss / guess for loss in self.validation)

    @property
    def last(self) -> float:
        """Return the last of `shares`; without validation a little less than that of the training loss, whose samples are known."""
        return self.shares[-1] if self.shares else self.end / (self.guess or math.inf) * UNSEEN

    @property
    def doubtful(self) -> bool:
        """Whether validation came down a little from before training, and what a guess costs is known from a few targets only.

        What came down from far above a guess may have been an offset, if it ended near that.
        """
        if self.guess_apart or not self.sampled or not self.guess or not self.before or not self.validation:
            return False
        best = min(self.validation)
        return best < UNMOVED * self.before and (self.before < OFFSET * self.guess or best > ALIKE * self.guess)

    @property
    def by_chance(self) -> float:
        """Return the share of a guess's cost that validation samples may seem to gain where nothing is to be learned.

        The deviance that the best of some directions gains by chance is a chi-square number: its root is about that of how many
        there are, here of classes but one, with a standard deviation of .7. Six of those leave room for the best of many epochs.
        """
        if not self.guess_apart or not self.samples_apart:
            return math.inf
        deviance = (math.sqrt(max(self.classes - 1, 1)) + BY_CHANCE) ** 2
        return deviance / self.samples_apart / (2 * self.guess_apart if self.classes else 1.0)

    @property
    def still_gains(self) -> bool:
        """Whether validation is at its best in the end, and better than a guess by more than chance has it, or by 5 %."""
        if not self.shares:
            return False
        best = min(self.shares)
        return best < (1 - self.by_chance if self.guess_apart else GAINED) and self.shares[-1] <= AT_ITS_BEST * best

    @property
    def spread(self) -> float:
        """Return the standard error of a validation loss over its mean: of squares of normal numbers, or of about exponential ones.

        0 where it is not known of how many samples it is.
        """
        return math.sqrt((1.0 if self.classes else 2.0) / self.samples_apart) if self.samples_apart else 0.0

    @property
    def noise(self) -> float:
        """Return the standard deviation of a stretch's mean, from how far those of the second half lie from the ones before."""
        half = self.training[len(self.training) // 2 :]
        steps = [abs(b - a) for a, b in pairwise(half)]
        return median(steps) / STEPS_OF_NOISE if steps else math.inf

    @property
    def one_formula(self) -> bool:
        """Whether the validation loss before training is near training's first losses."""
        return self.before is not None and self.training[0] > 0 and 1 / ALIKE < self.before / self.training[0] < ALIKE

    @property
    def other_formula(self) -> bool:
        """Whether the validation loss before training, or one that learns without it, is of another size than training's."""
        if self.before is None:
            best = min(self.validation)
            return best > UNITS * self.training[0] and best < LEARNS * self.validation[0]
        starts = [loss for loss in (self.first, self.training[0]) if loss and loss > 0]
        return not any(1 / OTHER < self.before / start < OTHER for start in starts)

    @property
    def learned(self) -> bool:
        """Whether training and validation ended far below what naming uneven labels by their frequency costs."""
        return self.known and self.uneven and self.end < MASTERED * (self.guess or 0.0) and self.shares[-1] < MASTERED

    @property
    def holds(self) -> bool:
        """Whether validation ended at a tenth of what a guess costs on its data, or below: what was learned holds there."""
        return self.known and bool(self.guess_apart or self.guess) and 0 <= self.shares[-1] < HOLDS

    @property
    def end(self) -> float:
        """Mean training loss of the last tenth of the run."""
        last = self.training[-max(1, len(self.training) // 10) :]
        return sum(last) / len(last)
