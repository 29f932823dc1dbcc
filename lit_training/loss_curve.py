"""The training loss of a whole run in little memory, kept on the device until it is asked for."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["LossCurve"]

_MOST = 64


@dataclass
class LossCurve:
    """Means of the loss over equal stretches of a run: at first a step each, twice as long whenever there are 64.

    Nothing waits for the device before `means` or `first_broken`.

    >>> curve = LossCurve()
    >>> for loss in (4.0, 2.0, 1.0):
    ...     curve.note(torch.tensor(loss))
    >>> curve.means(), curve.first_broken()
    ([4.0, 2.0, 1.0], None)
    """

    steps: int = 0
    _stretch: int = 1
    _sums: list[Tensor] = field(default_factory=list)
    _broken: Tensor | None = None

    @torch.no_grad()
    def note(self, loss: Tensor) -> None:
        """Add the loss of the next step."""
        loss = loss.detach().float()
        if self.steps % self._stretch == 0:
            if len(self._sums) == _MOST:
                self._sums = [a + b for a, b in zip(self._sums[::2], self._sums[1::2], strict=True)]
                self._stretch *= 2
            self._sums.append(loss.clone())
        else:
            self._sums[-1] += loss
        if self._broken is None:
            self._broken = torch.full_like(loss, -1.0)
        self._broken.masked_fill_(~loss.isfinite() & (self._broken < 0), float(self.steps))
        self.steps += 1

    def means(self) -> list[float]:
        """Return the mean of each stretch; the last one may be shorter."""
        if not self._sums:
            return []
        last = self.steps - self._stretch * (len(self._sums) - 1)
        lengths = [*[self._stretch] * (len(self._sums) - 1), last]
        return [total / length for total, length in zip(torch.stack(self._sums).tolist(), lengths, strict=True)]

    def first_broken(self) -> int | None:
        """Return the first step, from 0, whose loss was NaN or infinite."""
        step = -1 if self._broken is None else int(self._broken)
        return step if step >= 0 else None
