"""Callback: did a phase change of `LayerFreezing` destroy what was pretrained? The arithmetic is in `lit_training.thawing`."""

from dataclasses import replace

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_training.callbacks.harmless import harmless
from lit_training.callbacks.layer_freezing import LayerFreezing
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rules.divergence import pretrained_lr_too_high
from lit_training.selection import classify
from lit_training.thawing import Thaw, ThawWatch

__all__ = ["ThawMonitor"]

UPDATES = 20


class ThawMonitor(Callback):
    """Watch loss and weights for 20 updates after each phase change of the trainer's `LayerFreezing`; without one do nothing.

    Attributes:
        findings: a `pretrained_lr_too_high` warning for each phase change after which the loss jumped and weights moved far.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> monitor = ThawMonitor()
        >>> Trainer(max_steps=1, callbacks=[monitor], barebones=True, accelerator="cpu").fit(BoringModel())
        >>> monitor.findings
        []
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._freezing: LayerFreezing | None = None
        self._watch = ThawWatch(UPDATES)
        self._seen = 1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, also when the same trainer fits twice."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self._freezing = next((callback for callback in callbacks if isinstance(callback, LayerFreezing)), None)
        self.findings, self._watch, self._seen = [], ThawWatch(UPDATES), 1

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the loss; after a phase change remember the weights, before their first update."""
        if self._freezing is not None:
            self._note(trainer, pl_module, self._freezing, loss)

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Conclude some updates after a change, on all ranks at the same step."""
        if self._watch.step is not None and trainer.global_step - self._watch.step >= UPDATES:
            thaw = self._conclude(trainer)
            if trainer.strategy.reduce_boolean_decision(thaw is not None) and thaw is not None:
                self._judge(trainer, thaw)

    @harmless
    def _note(self, trainer: Trainer, pl_module: LightningModule, freezing: LayerFreezing, loss: Tensor) -> None:
        if len(freezing.changes) > self._seen and self._watch.step is None:
            self._seen = len(freezing.changes)
            thawed = freezing.changes[-1].thawed
            self._watch.begin({i.name: i.parameter for i in classify(pl_module) if i.name in thawed}, trainer.global_step)
        self._watch.note(loss)

    @harmless
    def _conclude(self, trainer: Trainer) -> Thaw | None:
        updates = trainer.global_step - (self._watch.step or 0)
        return self._watch.conclude(updates)

    @harmless
    def _judge(self, trainer: Trainer, thaw: Thaw) -> None:
        """Average over the ranks what each saw, so that all of them find the same."""
        numbers = torch.tensor([thaw.before, thaw.highest_before, thaw.after, *thaw.moved.values()])
        joint = trainer.strategy.reduce(numbers.to(trainer.strategy.root_device), reduce_op="mean")
        before, highest, after, *moved = joint.tolist()
        moved_by_name = dict(zip(thaw.moved, moved, strict=True))
        self.findings += pretrained_lr_too_high(
            replace(thaw, before=before, highest_before=highest, after=after, moved=moved_by_name)
        )
