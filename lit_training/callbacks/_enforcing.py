"""What the enforcers share: hooks on optimisers, strategies that are refused, one dict of scalars a logged step."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

__all__ = [
    "OptimizerHooks",
    "callbacks_of",
    "is_skipped",
    "listed",
    "log_prefix",
    "log_scalars",
    "refuse_flat_shards",
    "should_log",
]

PreHook = Callable[[Optimizer, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]] | None]
PostHook = Callable[[Optimizer, tuple[Any, ...], dict[str, Any]], None]


class OptimizerHooks:
    """The hooks that one callback has on optimisers. A copied or pickled callback starts without any."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def attach(self, optimizers: Iterable[Optimizer], *, before: PreHook | None = None, after: PostHook | None = None) -> None:
        """Register on each optimiser what runs before and after its `step`."""
        for optimizer in optimizers:
            if before is not None:
                self._handles.append(optimizer.register_step_pre_hook(before))
            if after is not None:
                self._handles.append(optimizer.register_step_post_hook(after))

    def remove(self) -> None:
        """Take all hooks off again; harmless if there are none."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __reduce__(self) -> tuple[type["OptimizerHooks"], tuple[()]]:
        return OptimizerHooks, ()


def is_skipped(optimizer: Optimizer) -> bool:
    """Tell, inside `step`, whether a fused optimiser skips it because the GradScaler found overflow (reads the device)."""
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())


def refuse_flat_shards(trainer: Trainer, pl_module: LightningModule, who: str) -> None:
    """Raise where parameters are flat shards: no unit, weight or bias can be told apart in them."""
    wrapped = any(type(m).__name__ == "FullyShardedDataParallel" for m in pl_module.modules())
    if wrapped or isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy)):
        strategy = "FullyShardedDataParallel" if wrapped else type(trainer.strategy).__name__
        raise ValueError(
            f"{who} cannot be exact under {strategy}, which flattens parameters or steps on copies of them; use "
            "Trainer(strategy=ModelParallelStrategy(...)) with fully_shard in configure_model (FSDP2), or strategy='ddp'"
        )


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the trainer's callbacks (an attribute that Lightning does not declare)."""
    return list(trainer.callbacks)  # type: ignore[attr-defined]


def should_log(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Tell, in `on_train_batch_end`, whether Lightning logs the loss of this batch: then so do we, at the same step."""
    if not trainer.loggers or not trainer._logger_connector.should_update_logs:
        return False
    return not (pl_module.automatic_optimization and trainer.fit_loop._should_accumulate())


def log_scalars(trainer: Trainer, scalars: Mapping[str, Tensor]) -> None:
    """Send one dict of scalars to every logger, on rank 0, with the step under which the loss is logged."""
    if not trainer.is_global_zero:
        return
    metrics = {name: value.item() for name, value in scalars.items()}
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def log_prefix(trainer: Trainer, callback: Callback, family: str) -> str:
    """Return `family`, or `family_2`, `family_3` for the second and third instance of the callback in this trainer."""
    same = [other for other in callbacks_of(trainer) if type(other) is type(callback)]
    position = next(i for i, other in enumerate(same, start=1) if other is callback)
    return family if position == 1 else f"{family}_{position}"


def listed(names: list[str], shown: int = 5) -> str:
    """Return up to five names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
