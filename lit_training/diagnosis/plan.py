"""What a training is going to do: how many updates, at which rates, with which clipping."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

__all__ = ["Plan", "future_rates", "named_peak", "overrun"]

MOST = 20_000


@dataclass(frozen=True)
class Plan:
    """What a training is set to do.

    Args:
        updates: that the whole run will do, `None` without a limit.
        clip: norm that gradients are clipped to, `None` if they are not.
        clip_value: what each of their elements is clipped to.
        scheduled: whether a schedule changes the learning rate.
        rates: that the schedule has for each update, over the rate that the optimiser was made with (the highest of its groups of
            parameters); empty where that is not known.
        open_end: whether `EarlyStopping` ends the run, so that `updates` are the most that there may be.
        peak: the rate that the schedule itself names as its highest, over the one that the optimiser was made with.
        overrun: in words, that the schedule is stepped more often than it allows, `""` if it is not.
        backwards: what a `ReduceLROnPlateau` watches in the wrong direction, `""` if it does not.
        accumulated: of how many batches Lightning averages the gradients for an update.
        loss_scaled: whether mixed precision scales the loss, so that an overflow now and then is part of it.
    """

    updates: int | None = None
    clip: float | None = None
    clip_value: float | None = None
    scheduled: bool = False
    rates: tuple[float, ...] = ()
    peak: float = 1.0
    overrun: str = ""
    backwards: str = ""
    accumulated: int = 1
    loss_scaled: bool = False
    open_end: bool = False


def future_rates(
    scheduler: LRScheduler, updates: int, steps_after: Callable[[int], bool] = lambda update: True
) -> tuple[float, ...]:
    """Return the learning rate of each of the coming updates, of the group of parameters whose rate is the highest then.

    A copy of the scheduler runs ahead on a stand-in for its optimiser; nothing of the original is touched.

    Args:
        scheduler: as it stands before the first update.
        updates: how many.
        steps_after: tells of each update, counted from 1, whether the schedule steps after it.

    Returns:
        The rates over the one that the group was made with; empty if they cannot be told: the scheduler waits for a metric,
        cannot be copied, or the run is longer than 20000 updates.

    >>> import torch
    >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    >>> [round(rate, 3) for rate in future_rates(torch.optim.lr_scheduler.ExponentialLR(sgd, 0.1), 4)]
    [1.0, 0.1, 0.01, 0.001]
    >>> sgd.param_groups[0]["lr"]
    0.5
    """
    if isinstance(scheduler, ReduceLROnPlateau) or updates > MOST:
        return ()
    stand_in: Any = _StandIn(scheduler.optimizer)
    try:
        ahead = copy.deepcopy(scheduler, {id(scheduler.optimizer): stand_in})
        return tuple(_run_ahead(ahead, stand_in, updates, steps_after))
    except Exception:  # whatever a scheduler of the user's own holds or does
        return ()


def named_peak(scheduler: LRScheduler) -> float:
    """Return the highest rate that `OneCycleLR` is told to reach, over the one it starts with; 1 for other schedules.

    >>> import torch
    >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    >>> round(named_peak(OneCycleLR(sgd, max_lr=1.0, total_steps=100)))
    25
    """
    group = scheduler.optimizer.param_groups[0]
    return float(group["max_lr"]) / float(group["initial_lr"]) if isinstance(scheduler, OneCycleLR) else 1.0


def overrun(scheduler: LRScheduler, steps: int) -> str:
    """Say so if a schedule raises before it has taken so many steps: `OneCycleLR` does behind its last one.

    >>> import torch
    >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    >>> overrun(OneCycleLR(sgd, max_lr=1.0, total_steps=10), 300)
    'OneCycleLR is made for 10 steps, and raises at the next of 300'
    """
    if not isinstance(scheduler, OneCycleLR) or steps <= scheduler.total_steps:
        return ""
    return f"OneCycleLR is made for {scheduler.total_steps} steps, and raises at the next of {steps}"


def _run_ahead(scheduler: LRScheduler, stand_in: "_StandIn", updates: int, steps_after: Callable[[int], bool]) -> list[float]:
    groups = [(group, float(group.get("initial_lr", group["lr"]))) for group in stand_in.param_groups]
    rates = []
    for update in range(1, updates + 1):
        rates.append(max(float(group["lr"]) / made_with if made_with > 0 else 0.0 for group, made_with in groups))
        if steps_after(update):
            scheduler.step()
    return rates


class _StandIn:
    """An optimiser's settings without its parameters: what a scheduler reads and writes."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.param_groups = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
        self.param_groups = copy.deepcopy(self.param_groups)
        self.defaults = dict(optimizer.defaults)
        self._opt_called = True

    def step(self) -> None:
        """Be there: schedulers look whether `step` was called before them."""
