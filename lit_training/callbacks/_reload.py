"""Restore optimiser state that a strategy left out because its parameters were frozen when it loaded the checkpoint."""

from collections.abc import Collection

from lightning.pytorch import LightningModule, Trainer

from lit_training.selection import classify

__all__ = ["reload_optimizers"]


def reload_optimizers(trainer: Trainer, module: LightningModule, trained: Collection[str]) -> None:
    """Load the checkpoint that the run resumes from once more, on all ranks, where the strategy restores its own optimizers.

    FSDP2 restores the state of those parameters alone that require a gradient at that moment, and does so before any callback
    has its state: too early to know the phase. Other strategies restore all of it.

    Args:
        trainer: of the resumed run.
        module: its model; what was ever trained requires a gradient afterwards.
        trained: names of the parameters that were ever trained, and so have optimizer state.
    """
    if trainer.strategy.lightning_restore_optimizer or not trainer.ckpt_path:
        return
    for info in classify(module):
        info.parameter.requires_grad_(info.name in trained)
    for optimizer in trainer.optimizers:
        optimizer.state.clear()
    trainer.strategy.load_checkpoint(trainer.ckpt_path)
