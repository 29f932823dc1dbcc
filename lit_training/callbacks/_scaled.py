"""What mixed precision does to a loss, its gradients and an optimiser's step."""

import math

from lightning.pytorch import Trainer
from torch.optim import Optimizer

from lit_training.callbacks.harmless import harmless
from lit_training.diagnosis.figures import norms, to_host

__all__ = ["is_left_out", "is_unscaled", "loss_scale"]


def loss_scale(trainer: Trainer) -> float:
    """Return what mixed precision multiplies the loss by before the backward pass."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


def is_unscaled(optimizer: Optimizer | None) -> bool:
    """Tell whether gradients are themselves again as an optimiser is about to step; fused ones unscale within their step."""
    return optimizer is not None and not getattr(optimizer, "_step_supports_amp_scaling", False)


def is_left_out(trainer: Trainer, optimizer: Optimizer) -> bool:
    """Tell whether mixed precision will leave out an optimiser's step, as its gradients overflow at the loss's scale."""
    if getattr(trainer.precision_plugin, "scaler", None) is None:
        return False
    return trainer.strategy.reduce_boolean_decision(bool(_overflow(optimizer)), all=False)


@harmless
def _overflow(optimizer: Optimizer) -> bool:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return not all(map(math.isfinite, to_host(norms(gradients))))
