"""What must hold before a run with `LayerFreezing` begins."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lit_training.freezing import trained_by
from lit_training.phases import Phase
from lit_training.selection import classify

__all__ = ["check_length", "check_optimizers", "check_swa", "trained_in"]


def trained_in(module: LightningModule, phases: Sequence[Phase]) -> list[set[str]]:
    """Return what each phase trains.

    Raises:
        ValueError: for a pattern that matches nothing, or a phase that trains nothing.
    """
    trained = []
    for i, phase in enumerate(phases):
        try:
            trained.append(trained_by(module, phase.train, train_bn=phase.train_bn))
        except ValueError as error:
            raise ValueError(f"LayerFreezing: phase {i}: {error}") from None
    return trained


def check_optimizers(trainer: Trainer, module: LightningModule, trained: Sequence[set[str]]) -> None:
    """Refuse to train what no optimiser has, and to freeze again under LBFGS.

    Raises:
        ValueError: as said, with the line to write.
    """
    owned = {p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
    wanted = set().union(*trained)
    missing = [info.name for info in classify(module) if info.name in wanted and info.parameter not in owned]
    if missing:
        few = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(
            f"LayerFreezing: {len(missing)} parameters are trained by a phase but are in no optimizer: {few}. Give the optimizer "
            "all parameters in configure_optimizers, the frozen ones too: `torch.optim.AdamW(self.parameters(), ...)` or "
            "`torch.optim.AdamW(lit_training.parameter_groups(self, lr=..., weight_decay=..., layer_decay=...))`, without a filter "
            "on requires_grad; or name only what should train in the phases"
        )
    again = any(before - after for before, after in pairwise(trained))
    if again and any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        raise ValueError("LayerFreezing: LBFGS moves all parameters along its history and cannot freeze again what has trained")


def check_swa(trainer: Trainer, module: LightningModule, last: Phase, trained: set[str]) -> None:
    """Refuse `StochasticWeightAveraging` where it would reset the statistics of frozen batch norm.

    Raises:
        ValueError: as said.
    """
    swa = any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    norms = {p for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) for p in part.parameters()}
    frozen = [info.name for info in classify(module) if info.parameter in norms and info.name not in trained]
    if swa and frozen and not last.train_bn:
        raise ValueError(
            f"LayerFreezing: StochasticWeightAveraging resets the statistics of every batch norm, also of frozen ones such as "
            f"{frozen[0]!r}. Use EMAWeightAveraging, or let the last phase train them (train_bn=True)"
        )


def check_length(trainer: Trainer, module: LightningModule, phases: Sequence[Phase]) -> None:
    """Compare the phases with the planned run: all in one order, and each before the end.

    Raises:
        ValueError: if phases with different kinds of triggers are out of order, or a fraction is asked of a run without end.
    """
    epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    epoch = math.ceil(epoch) if math.isfinite(epoch) else epoch
    ends = [epoch * trainer.max_epochs] if trainer.max_epochs not in (None, -1) else []
    ends += [trainer.max_steps] if trainer.max_steps != -1 else []
    end = min(ends, default=math.inf)
    fractions = [phase for phase in phases if phase.fraction is not None]
    if fractions and not math.isfinite(end):
        raise ValueError(
            f"LayerFreezing: {fractions[0].trigger} needs a run of known length; set max_steps, or use epoch or step"
        )
    if not module.automatic_optimization:
        return  # global_step counts the steps of all optimisers, which no epoch length predicts
    latest, before = 0.0, phases[0]
    for phase in phases[1:]:
        if phase.plateau is not None:
            continue
        start = phase.step or (phase.epoch and phase.epoch * epoch) or (phase.fraction and phase.fraction * end) or 0.0
        if start <= latest:
            raise ValueError(
                f"LayerFreezing: phases out of order, {phase.trigger} (step {start:.0f}) does not come after {before.trigger} "
                f"(step {latest:.0f}), with {epoch:.0f} steps per epoch"
            )
        if start >= end and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(f"LayerFreezing: the phase at {phase.trigger} never begins, the run ends after {end:.0f} steps")
        latest, before = start, phase
