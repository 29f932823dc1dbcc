"""What thawing did to a pretrained part: how far its weights moved, and how the loss took it."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Thaw", "ThawWatch"]

_SAMPLE = 4096


@dataclass(frozen=True)
class Thaw:
    """The losses around a phase change, and how far the thawed weights moved after it, as parts of their norm.

    >>> Thaw(step=40, updates=20, before=0.1, highest_before=0.2, after=2.0, moved={"body.weight": 0.5}).jumped
    True
    """

    step: int
    updates: int
    before: float
    highest_before: float
    after: float
    moved: Mapping[str, float]

    @property
    def jumped(self) -> bool:
        """Whether the mean loss rose by more than itself, and above the worst single batch before; NaN counts as a jump."""
        return not self.after <= max(self.before + abs(self.before), self.highest_before)


class ThawWatch:
    """Watch losses and thawed weights around phase changes.

    Nothing waits for the device before `conclude`. Of each weight at most 4096 elements, drawn with an own generator, are kept.

    >>> watch, weight = ThawWatch(), torch.ones(2, 2)
    >>> watch.note(torch.tensor(1.0))
    >>> watch.begin({"w": weight}, step=7)
    >>> watch.note(torch.tensor(3.0)); weight *= 1.5
    >>> watch.conclude(updates=1)
    Thaw(step=7, updates=1, before=1.0, highest_before=1.0, after=3.0, moved={'w': 0.5})
    """

    def __init__(self, window: int = 20) -> None:
        self.step: int | None = None
        self._before: deque[Tensor] = deque(maxlen=window)
        self._after: list[Tensor] = []
        self._weights: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def note(self, loss: Tensor) -> None:
        """Take the loss of one batch."""
        (self._before if self.step is None else self._after).append(loss.detach().clone())

    def begin(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Remember the weights that were thawed before `step`; vectors, such as biases, are left out."""
        generator = torch.Generator().manual_seed(step)
        self.step, self._after = step, []
        for name, weight in weights.items():
            if weight.ndim < 2 or weight.numel() == 0:
                continue
            values = _local(weight)
            places = torch.randint(max(values.numel(), 1), (min(values.numel(), _SAMPLE),), generator=generator).to(
                values.device
            )
            if values.numel() <= _SAMPLE:
                places = torch.arange(values.numel(), device=values.device)
            self._weights[name] = (weight, places, values[places].clone())

    @torch.no_grad()
    def conclude(self, updates: int) -> Thaw | None:
        """Compare, and watch for the next change; `None` where no loss was seen on one of the sides."""
        step, after, weights = self.step, self._after, self._weights
        before = list(self._before)
        self.step, self._after, self._weights = None, [], {}
        self._before.extend(after)
        if step is None or not before or not after:
            return None
        moved = {}
        for name, (weight, places, start) in weights.items():
            now = _local(weight)[places].float()
            moved[name] = float((now - start.float()).norm() / start.float().norm().clamp_min(1e-12))
        earlier, later = torch.stack(before).float().cpu(), torch.stack(after).float().cpu()
        return Thaw(step, updates, float(earlier.mean()), float(earlier.max()), float(later.mean()), moved)


def _local(weight: Tensor) -> Tensor:
    return (weight.to_local() if hasattr(weight, "to_local") else weight).detach().flatten()
