"""What a trainer is set to that the rules have to know."""

import math
from collections.abc import Sequence
from typing import TypedDict

from lightning.pytorch import Trainer
from torch.optim import Optimizer

__all__ = ["Settings", "gradient_factor", "loss_scale", "settings_of"]


class Settings(TypedDict):
    """As `evidence.collect` takes them."""

    optimizers: Sequence[Optimizer]
    scheduled: bool
    planned: int | None
    clip: float | None
    clip_value: float | None


def settings_of(trainer: Trainer) -> Settings:
    """Read optimisers, schedule, planned updates and clipping off a trainer."""
    by_value = trainer.gradient_clip_algorithm == "value"
    planned = trainer.estimated_stepping_batches
    return Settings(
        optimizers=trainer.optimizers,
        scheduled=bool(trainer.lr_scheduler_configs),
        planned=int(planned) if math.isfinite(planned) else None,
        clip=None if by_value else trainer.gradient_clip_val,
        clip_value=trainer.gradient_clip_val if by_value else None,
    )


def loss_scale(trainer: Trainer) -> float:
    """Return what mixed precision multiplies the loss by before the backward pass."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


def gradient_factor(trainer: Trainer, scale: float) -> float:
    """Return what gradients at the layers have to be multiplied by to be those of the mean loss, given its scale."""
    return trainer.accumulate_grad_batches / scale / trainer.world_size
