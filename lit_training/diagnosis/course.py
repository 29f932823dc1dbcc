"""How the losses of a run went, from its first step to its end."""

import math
from dataclasses import dataclass

__all__ = ["Course"]

ALIKE = 1.7
OTHER, UNITS, LEARNS = 3.0, 1.5, 0.5
MASTERED = 0.6


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
        kept: the largest part of its size at the start that a weight has at the end, `None` if not known.
        rewinds: how many epochs began with the very weights of the one before, although validation had become better in between.
        level: the validation loss of the weights that the last epoch began with, `None` if not known.
        dropout: largest probability of a dropout layer.
        sampled: whether that cost is known to a tenth or so only, from some targets.
        uneven: whether a guess costs little because some labels are far more common than others.
        guess_apart: what it costs to say the same for every validation sample, `None` if that is not known; then `guess` is taken.
        samples_apart: of how many validation samples that is known, 0 if it is not.
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
    dropout: float = 0.0
    sampled: bool = False
    uneven: bool = False
    guess_apart: float | None = None
    samples_apart: int = 0

    @property
    def known(self) -> bool:
        """Whether there are several losses of both kinds, and all are finite."""
        return (
            len(self.training) > 1 and len(self.validation) > 1 and all(map(math.isfinite, (*self.training, *self.validation)))
        )

    @property
    def shares(self) -> tuple[float, ...]:
        """Return the validation losses over what a guess costs on those data."""
        guess = self.guess_apart or self.guess or math.inf
        return tuple(loss / guess for loss in self.validation)

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
    def end(self) -> float:
        """Mean training loss of the last tenth of the run."""
        last = self.training[-max(1, len(self.training) // 10) :]
        return sum(last) / len(last)
