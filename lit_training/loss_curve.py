"""The training loss of a whole run in little memory, kept on the device until it is asked for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["LossCurve", "validation_loss"]

_MOST = 64
_OF_VALIDATION = re.compile(r"(?<![a-z])(e?val|valid|validation)(?=[^a-z]|loss|$)")
_ADDED = re.compile(r"/dataloader_idx_\d+$|_(epoch|step)$")


def validation_loss(logged: Sequence[str]) -> str | None:
    """Return which of the names that a module logs is the validation loss, `None` if there is none, or only several parts of one.

    >>> validation_loss(["train_loss", "value_loss", "val_kl_loss", "val_loss"])
    'val_loss'
    >>> validation_loss(["survival_loss", "valid/loss_epoch/dataloader_idx_0", "valid/loss_epoch/dataloader_idx_1"])
    'valid/loss_epoch/dataloader_idx_0'
    """
    spelt = {name: re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in logged}
    found = {name: _without(_ADDED, low) for name, low in spelt.items() if "loss" in low and _OF_VALIDATION.search(low)}
    whole = [name for name, low in found.items() if not re.search("[a-z]", _OF_VALIDATION.sub("", low).replace("loss", ""))]
    alone = list(found)[:1] if len({*found.values()}) == 1 else []
    return next(iter(whole or alone), None)


def _without(pattern: re.Pattern[str], text: str) -> str:
    """Take away whatever a pattern finds at the end of a text, again and again."""
    shorter = pattern.sub("", text)
    return text if shorter == text else _without(pattern, shorter)


@dataclass
class LossCurve:
    """Means of the loss over equal stretches of a run: at first a step each, twice as long whenever there are 64.

    Of a step its loss is held; 64 of them are taken in at once. Nothing waits for the device before it is asked for a number.

    >>> curve = LossCurve()
    >>> for loss in (4.0, 2.0, 1.0):
    ...     curve.note(torch.tensor(loss))
    >>> curve.first(), curve.means(), curve.first_broken()
    (4.0, [4.0, 2.0, 1.0], None)
    """

    steps: int = 0
    _first: Tensor | None = None
    _stretch: int = 1
    _sums: list[Tensor] = field(default_factory=list)
    _pending: list[Tensor] = field(default_factory=list)
    _broken: Tensor | None = None

    def note(self, loss: Tensor) -> None:
        """Add the loss of the next step: one number, without a graph, which nobody changes afterwards."""
        if self._first is None:
            self._first = loss
        self._pending.append(loss)
        self.steps += 1
        if len(self._pending) == _MOST:
            self._take_in()

    def first(self) -> float | None:
        """Return the loss of the first step."""
        return None if self._first is None else float(self._first)

    def means(self) -> list[float]:
        """Return the mean of each stretch; the last one may be shorter."""
        self._take_in()
        if not self._sums:
            return []
        last = self.steps - self._stretch * (len(self._sums) - 1)
        lengths = [*[self._stretch] * (len(self._sums) - 1), last]
        return [total / length for total, length in zip(torch.stack(self._sums).tolist(), lengths, strict=True)]

    def first_broken(self) -> int | None:
        """Return the first step, from 0, whose loss was NaN or infinite."""
        self._take_in()
        step = -1 if self._broken is None else int(self._broken)
        return step if step >= 0 else None

    @torch.no_grad()
    def _take_in(self) -> None:
        if not self._pending:
            return
        values, start = torch.stack([loss.reshape(()) for loss in self._pending]).float(), self.steps - len(self._pending)
        self._pending = []
        broken = ~values.isfinite()
        first = torch.where(broken.any(), start + broken.float().argmax(), -1)
        self._broken = first if self._broken is None else torch.where(self._broken < 0, first, self._broken)
        while len(values):
            filled = start % self._stretch
            if filled == 0 and len(self._sums) == _MOST:
                self._sums = [a + b for a, b in zip(self._sums[::2], self._sums[1::2], strict=True)]
                self._stretch *= 2
                continue
            part, values = values[: self._stretch - filled], values[self._stretch - filled :]
            self._sums = [*self._sums, part.sum()] if filled == 0 else [*self._sums[:-1], self._sums[-1] + part.sum()]
            start += len(part)
