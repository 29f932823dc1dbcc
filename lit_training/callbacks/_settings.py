"""What a trainer is set to that the rules have to know."""

import math
from typing import Any

from lightning.pytorch import Trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lit_training.callbacks._scaled import loss_scale
from lit_training.diagnosis.plan import Plan, future_rates, named_peak, overrun

__all__ = ["gradient_factor", "plan_of"]

_BETTER = {
    "min": ("loss", "error", "err", "perplexity", "mse", "rmse", "mae", "nll"),
    "max": ("acc", "accuracy", "f1", "auc", "auroc", "iou", "r2", "map"),
}


def plan_of(trainer: Trainer) -> Plan:
    """Read planned updates, schedule and clipping off a trainer."""
    by_value = trainer.gradient_clip_algorithm == "value"
    limit = trainer.estimated_stepping_batches
    updates = int(limit) if math.isfinite(limit) else None
    scheduler, every = _stepped(trainer)
    if updates is None or scheduler is None:
        rates, peak, too_short = tuple[float, ...](), 1.0, ""
    else:
        rates = future_rates(scheduler, updates, lambda update: update % every == 0)
        peak, too_short = named_peak(scheduler), overrun(scheduler, updates // every)
    return Plan(
        updates=updates,
        clip=None if by_value else trainer.gradient_clip_val,
        clip_value=trainer.gradient_clip_val if by_value else None,
        scheduled=bool(trainer.lr_scheduler_configs),
        rates=rates,
        peak=peak,
        overrun=too_short,
        backwards=_backwards(trainer),
        accumulated=trainer.accumulate_grad_batches,
        loss_scaled=loss_scale(trainer) != 1.0,
        open_end=bool(trainer.early_stopping_callbacks),
    )


def gradient_factor(trainer: Trainer, scale: float) -> float:
    """Return what gradients at the layers have to be multiplied by to be those of the mean loss, given its scale."""
    return trainer.accumulate_grad_batches / scale / trainer.world_size


def _stepped(trainer: Trainer) -> tuple[Any, int]:
    """Return the only schedule that Lightning steps and after how many updates it does; `None` if there is not just one."""
    configs = trainer.lr_scheduler_configs
    if len(configs) != 1 or not trainer.lightning_module.automatic_optimization:
        return None, 1
    config = configs[0]
    if config.interval == "step":
        return config.scheduler, config.frequency
    batches = trainer.num_training_batches
    if not math.isfinite(batches):
        return None, 1
    return config.scheduler, config.frequency * max(math.ceil(batches / trainer.accumulate_grad_batches), 1)


def _backwards(trainer: Trainer) -> str:
    """Return the metric that a `ReduceLROnPlateau` takes for better in the wrong direction, by its name."""
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, ReduceLROnPlateau) and config.monitor:
            words = config.monitor.lower().replace("/", "_").replace("-", "_").split("_")
            wrong = _BETTER["max" if config.scheduler.mode == "min" else "min"]
            right = _BETTER[config.scheduler.mode]
            if any(word in wrong for word in words) and not any(word in (*right, "neg", "negative") for word in words):
                return f"mode={config.scheduler.mode!r} with {config.monitor}"
    return ""
