"""Which parts train when: phases, what begins them, and the plateau that a phase may wait for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from itertools import pairwise, zip_longest
from typing import Any, Literal

from torch import nn

from lit_training.groups import layers

__all__ = ["Phase", "Plateau", "Progress", "as_phases", "current_phase", "differences", "gradual", "plain"]


@dataclass(frozen=True)
class Phase:
    """One stretch of training: what trains, what begins it, and how the frozen part behaves. Everything else is frozen.

    Args:
        train: shell patterns on qualified parameter names; naming a module means its subtree, `"*"` is everything.
        epoch: begins with this epoch, counted from 0.
        step: begins after this many optimiser steps (`trainer.global_step`).
        fraction: begins after this share of the planned run, between 0 and 1.
        plateau: begins when this logged metric has stopped to improve during the phase before. A later phase that begins at a
            given time does so then, whether or not the plateau came.
        train_bn: also train batch norm in the frozen part: weights, biases and statistics. By default it is in eval mode there.
        train_dropout: leave dropout on in the frozen part; `False` switches `nn.Dropout` layers there off.
        patience: for `plateau`: how many checks without improvement make one. A check is an epoch end, or a validation where
            there is not exactly one in each epoch, as for Lightning's `EarlyStopping`.
        mode: for `plateau`: whether `"min"` or `"max"` is better.
        min_delta: for `plateau`: smaller improvements do not count.
        restore_best: for `plateau`: first go back to the weights (of the part that trained) at the best check of the phase
            before. They are kept on the CPU and in checkpoints; the optimiser's own state goes on.

    Raises:
        ValueError: for nothing to train, two triggers, a trigger out of range, or plateau settings without `plateau`.

    >>> Phase(["layer4", "head"], epoch=2).trigger
    'epoch=2'
    """

    train: str | Sequence[str]
    _: KW_ONLY
    epoch: int | None = None
    step: int | None = None
    fraction: float | None = None
    plateau: str | None = None
    train_bn: bool = False
    train_dropout: bool = True
    patience: int = 3
    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0
    restore_best: bool = False

    def __post_init__(self) -> None:
        patterns = (self.train,) if isinstance(self.train, str) else tuple(self.train)
        if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
            raise ValueError(f"Phase: train must name at least one pattern such as 'head', got {self.train!r}")
        object.__setattr__(self, "train", patterns)
        given = [f"{name}={value!r}" for name, value in self._triggers().items()]
        if len(given) > 1:
            raise ValueError(
                f"Phase({list(patterns)}): give only one of epoch, step, fraction and plateau, got {', '.join(given)}"
            )
        for name in ("epoch", "step"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 0):
                raise ValueError(f"Phase({list(patterns)}): {name} must be a whole number from 0, got {value!r}")
        if self.fraction is not None and not 0 <= self.fraction < 1:
            raise ValueError(f"Phase({list(patterns)}): fraction must lie in [0, 1), got {self.fraction!r}")
        self._check_plateau(list(patterns))

    def _check_plateau(self, patterns: list[str]) -> None:
        if self.mode not in ("min", "max"):
            raise ValueError(f"Phase({patterns}): mode must be 'min' or 'max', got {self.mode!r}")
        if self.patience < 1 or self.min_delta < 0:
            raise ValueError(
                f"Phase({patterns}): patience must be at least 1 and min_delta not negative, "
                f"got {self.patience!r} and {self.min_delta!r}"
            )
        if self.plateau is None and (self.patience, self.mode, self.min_delta, self.restore_best) != (3, "min", 0.0, False):
            raise ValueError(
                f"Phase({patterns}): patience, mode, min_delta and restore_best need plateau, such as plateau='val_loss'"
            )

    def _triggers(self) -> dict[str, Any]:
        names = ("epoch", "step", "fraction", "plateau")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def trigger(self) -> str:
        """What begins the phase, as it is written, or `"the start"`."""
        return next((f"{name}={value!r}" for name, value in self._triggers().items()), "the start")


@dataclass(frozen=True)
class Progress:
    """How far a run is: epochs begun, optimiser steps done, and the share of the planned run (nan where it has no end)."""

    epoch: int
    step: int
    fraction: float


def as_phases(phases: Sequence[Phase | Mapping[str, Any]]) -> tuple[Phase, ...]:
    """Check a list of phases, or of plain dicts with the arguments of `Phase`, as YAML gives them.

    Raises:
        ValueError: if there are none, the first one has to wait, a later one has no trigger, or times do not increase.
        TypeError: for what is no phase, or has an unknown argument.

    >>> [phase.trigger for phase in as_phases([{"train": "head"}, {"train": "*", "epoch": 2}])]
    ['the start', 'epoch=2']
    """
    if isinstance(phases, (str, Phase, Mapping)) or not phases:
        raise ValueError(f"phases must be a non-empty list such as [Phase('head'), Phase('*', epoch=2)], got {phases!r}")
    checked = tuple(_as_phase(phase) for phase in phases)
    first = checked[0]
    if first.plateau is not None or any(getattr(first, name) for name in ("epoch", "step", "fraction")):
        raise ValueError(f"phases: the first one begins with the training; write it without {first.trigger}")
    for phase in checked[1:]:
        if phase.trigger == "the start":
            raise ValueError(f"phases: {phase.train} needs epoch=, step=, fraction= or plateau=; only the first may go without")
    for name in ("epoch", "step", "fraction"):
        times = [0, *(getattr(phase, name) for phase in checked[1:] if getattr(phase, name) is not None)]
        if any(later <= earlier for earlier, later in pairwise(times)):
            raise ValueError(f"phases: out of order, {name} must increase from phase to phase, got {times[1:]}")
    return checked


def _as_phase(phase: Phase | Mapping[str, Any]) -> Phase:
    if isinstance(phase, Phase):
        return phase
    if not isinstance(phase, Mapping):
        raise TypeError(f"phases: expected a Phase or a dict of its arguments, got {phase!r}")
    return Phase(**phase)


def current_phase(phases: Sequence[Phase], current: int, progress: Progress, *, plateaued: bool = False) -> int:
    """Return the index of the phase that a run is in: the last one that has begun. It never goes back.

    Args:
        phases: as checked by `as_phases`.
        current: the phase so far.
        progress: how far the run is.
        plateaued: whether the plateau that the next phase waits for has come.

    >>> phases = as_phases([Phase("head"), Phase("body", plateau="val_loss"), Phase("*", epoch=9)])
    >>> [current_phase(phases, 0, Progress(epoch, 10 * epoch, epoch / 12)) for epoch in (0, 8, 9)]
    [0, 0, 2]
    """
    begun = [i for i, phase in enumerate(phases) if i > current and _has_begun(phase, progress)]
    if begun:
        return begun[-1]
    waits = current + 1 < len(phases) and phases[current + 1].plateau is not None
    return current + 1 if waits and plateaued else current


def _has_begun(phase: Phase, progress: Progress) -> bool:
    return (
        (phase.epoch is not None and progress.epoch >= phase.epoch)
        or (phase.step is not None and progress.step >= phase.step)
        or (phase.fraction is not None and progress.fraction >= phase.fraction)
    )


@dataclass
class Plateau:
    """Watches a metric during one phase: the best value, and the checks since then without improvement.

    >>> watch, phase = Plateau(), Phase("*", plateau="val_loss", patience=2)
    >>> [watch.update(value, phase) for value in (1.0, 0.5, 0.6, float("nan"))], watch.is_over(phase)
    ([True, True, False, False], True)
    """

    best: float | None = None
    bad_checks: int = 0

    def update(self, value: float, phase: Phase) -> bool:
        """Take one value of the metric, and tell whether it is the best so far (nan never is)."""
        sign = 1.0 if phase.mode == "min" else -1.0
        best = math.inf if self.best is None else sign * self.best
        if sign * value < best - phase.min_delta:
            self.best, self.bad_checks = value, 0
            return True
        self.bad_checks += 1
        return False

    def is_over(self, phase: Phase) -> bool:
        """Tell whether there were `phase.patience` checks without improvement."""
        return self.bad_checks >= phase.patience


def gradual(model: nn.Module, every: int = 1) -> list[Phase]:
    """Build the phases of gradual unfreezing: first the head, then one more block from the top every few epochs.

    Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", 2018, section 3.3. What a block is, says
    `lit_training.groups.layers`.

    Args:
        model: the LightningModule that will be trained (names are relative to it).
        every: epochs between two phases.

    Raises:
        ValueError: if `every` is less than 1, or the model has only one layer.

    >>> mlp = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [(phase.train, phase.trigger) for phase in gradual(mlp)]
    [(('4',), 'the start'), (('4', '2'), 'epoch=1'), (('*',), 'epoch=2')]
    """
    if every < 1:
        raise ValueError(f"every must be at least 1 epoch, got {every!r}")
    depth = [[info.name for info in layer.parameters] for layer in layers(model)]
    if len(depth) < 2:
        raise ValueError(f"gradual: {type(model).__name__} has {len(depth)} layer, there is nothing to unfreeze after the head")
    names = [name for layer in depth for name in layer]
    trained: list[str] = []
    phases = []
    for i, layer in enumerate(reversed(depth)):
        trained += _shortest_patterns(layer, names)
        last = i == len(depth) - 1
        phases.append(Phase("*" if last else trained, epoch=i * every or None))
    return phases


def _shortest_patterns(layer: Sequence[str], names: Sequence[str]) -> list[str]:
    """Name a layer's parameters by the highest modules that hold nothing else."""
    others = set(names) - set(layer)
    found: dict[str, None] = {}
    for name in layer:
        parts = name.split(".")
        prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        found[next(prefix for prefix in prefixes if not any(other.startswith(f"{prefix}.") for other in others))] = None
    return list(found)


def plain(phase: Phase) -> dict[str, Any]:
    """Return the arguments of a phase as plain types, for a checkpoint.

    >>> as_phases([plain(Phase(["head", "norm"]))]) == (Phase(["head", "norm"]),)
    True
    """
    return asdict(phase) | {"train": list(phase.train)}


def differences(saved: Sequence[Phase], phases: Sequence[Phase]) -> list[str]:
    """Return one line for each setting that differs between a checkpoint's phases and this run's, none if they are equal.

    >>> differences([Phase("head"), Phase("*", epoch=2)], [Phase("head"), Phase("*", epoch=3)])
    ['phase 1: epoch was 2, is 3']
    """
    lines = []
    for i, (before, now) in enumerate(zip_longest(map(plain, saved), map(plain, phases))):
        if before is None or now is None:
            phase = now or before
            lines.append(f"phase {i}: {phase['train']} is {'new' if now else 'gone'}")
        else:
            lines += [f"phase {i}: {name} was {before[name]!r}, is {now[name]!r}" for name in now if before[name] != now[name]]
    return lines
