"""Callback: how training and validation losses went. What they tell is in `lit_training.diagnosis.rules.course`."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_training.callbacks.harmless import harmless
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rules.course import Course, diverged, overfit_no_regularisation
from lit_training.loss_curve import LossCurve

__all__ = ["LossMonitor"]


class LossMonitor(Callback):
    """Follow the loss that is minimised and the validation loss that the module logs; judge both when training ends.

    The training loss stays on the device in at most 64 sums, also the first step at which it was not finite; a step costs three
    operations on one number. In manual optimisation it does nothing, since losses of several kinds alternate there.

    Attributes:
        diverged: `lr_too_high` or `nan_loss` for a training loss that diverged.
        compared: `overfit_no_regularisation` or `train_val_mismatch` for a validation loss (logged under a name with `val` and
            `loss`) that rises while training's vanishes. Anything else that is wrong explains it.
        findings: both.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> monitor = LossMonitor()
        >>> Trainer(max_steps=1, callbacks=[monitor], barebones=True, accelerator="cpu").fit(BoringModel())
        >>> monitor.findings
        []
    """

    def __init__(self) -> None:
        self.diverged: list[Finding] = []
        self.compared: list[Finding] = []
        self._curve = LossCurve()
        self._validation: list[float] = []

    @property
    def findings(self) -> list[Finding]:
        """What was found."""
        return [*self.diverged, *self.compared]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, also when the same trainer fits twice."""
        self.diverged, self.compared, self._curve, self._validation = [], [], LossCurve(), []

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the loss, as it was before Lightning divided it for accumulation."""
        if pl_module.automatic_optimization:
            self._note(loss * trainer.accumulate_grad_batches)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the validation loss."""
        if not trainer.sanity_checking:
            self._note_validation(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge on rank 0, and tell all ranks."""
        self.diverged, self.compared = trainer.strategy.broadcast(self._judge(trainer) or ([], []))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Judge what there is, on this rank."""
        self.diverged, self.compared = self._judge(trainer) or ([], [])

    @harmless
    def _note(self, loss: Tensor) -> None:
        if loss.numel() == 1:
            self._curve.note(loss.reshape(()))

    @harmless
    def _note_validation(self, trainer: Trainer) -> None:
        logged = {name: value for name, value in trainer.callback_metrics.items() if "val" in name and "loss" in name}
        if logged:
            self._validation.append(float(next(iter(logged.values()))))

    @harmless
    def _judge(self, trainer: Trainer) -> tuple[list[Finding], list[Finding]]:
        course = self._course(trainer)
        return diverged(course), overfit_no_regularisation(course)

    def _course(self, trainer: Trainer) -> Course:
        curve = self._curve
        return Course(tuple(curve.means()), tuple(self._validation), trainer.global_step, curve.first_broken())
