"""What `InitAuditor` holds while the first updates run."""

from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

from lit_training.callbacks.harmless import harmless
from lit_training.diagnosis.later import FirstSteps, Later

__all__ = ["NextSteps"]


class NextSteps:
    """Follow the first updates of a run; what fails in it costs a warning, and what it would have seen."""

    def __init__(self, trainer: Trainer) -> None:
        self._steps: FirstSteps | None = None
        self._follow(trainer)

    @harmless
    def _follow(self, trainer: Trainer) -> None:
        self._steps = FirstSteps(trainer.lightning_module, trainer.optimizers)

    @harmless
    def before_backward(self, loss: Tensor) -> None:
        """Keep the loss, and whether gradients were set back."""
        if self._steps is not None:
            self._steps.before_backward(loss)

    @harmless
    def before_step(self, optimizer: Optimizer) -> None:
        """Note the gradients that an optimiser is about to use."""
        if self._steps is not None:
            self._steps.before_step(optimizer)

    @harmless
    def after_batch(self) -> None:
        """Note the gradients where no optimiser has stepped yet, else what clipping left of them."""
        if self._steps is not None and self._steps.steps == 0:
            self._steps.note_gradients()
        elif self._steps is not None:
            self._steps.after_step()

    @harmless
    def conclude(self, batches: int) -> Later | None:
        """Compare the weights with those at the start, `None` if they were not followed."""
        if self._steps is None:
            return None
        self._steps.note_gradients()
        return self._steps.conclude(batches)
