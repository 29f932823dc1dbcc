"""Callback: how training and validation losses went. What they tell is in `lit_training.diagnosis.rules.course`."""

import math
from collections.abc import Callable
from statistics import fmean, stdev
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_training.callbacks.harmless import harmless
from lit_training.diagnosis.course import Course
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.mirrors import MappedSamples
from lit_training.diagnosis.modules import dropouts
from lit_training.diagnosis.rules.course import diverged, judge_course
from lit_training.diagnosis.rules.forgetting import forgot
from lit_training.diagnosis.rules.guessing import Guess
from lit_training.diagnosis.rules.idle import never_stepped
from lit_training.diagnosis.rules.mirrored import turned_apart, turned_targets
from lit_training.diagnosis.rules.rewards import reward_fell, reward_name
from lit_training.diagnosis.samples import Columns
from lit_training.loss_curve import LossCurve, validation_loss
from lit_training.movement import Lasting, Movement, Rewinds
from lit_training.selection import classify, clean_names
from lit_training.tracing.trace import unseen

__all__ = ["LossMonitor"]

_Judged = tuple[list[Finding], list[Finding], bool, bool]


class LossMonitor(Callback):
    """Follow the loss that is minimised and the validation loss that the module logs; judge both when training ends.

    The training loss stays on the device in at most 64 sums, also the first step at which it was not finite; a step costs hardly
    anything. In manual optimisation it follows no loss, since several kinds alternate there. Of each weight it keeps about a
    thousand elements, to tell how far training moved it, and of 32 thousand samples what may be their target, to tell what a guess
    costs on either kind of data. Where targets are maps as large as the pictures, a copy of the network runs once more in the end,
    on 64 samples of the first batch at most.

    Attributes:
        diverged: `lr_too_high` or `nan_loss` for a training loss that diverged.
        compared: whether an optimiser never stepped (`rules.idle.never_stepped`), else whether a logged reward fell
            (`rules.rewards.reward_fell`), else whether targets are turned (`rules.mirrored.turned_targets`) or outputs hold
            mirrored ones (`turned_apart`), else what the training loss tells beside the validation loss
            (`loss_curve.validation_loss`) and beside a guess's (`rules.course.judge_course`, `rules.forgetting.forgot`).
            Anything else that is wrong explains it. learned: whether training and validation loss ended far below a guess's.
            holds: whether the validation loss ended at a tenth of a guess's, or below. findings: both. mapped: some samples
            whose targets are maps; set by `Diagnostics`, `None` if there are none. guess: what saying the same for every sample
            costs; set by `Diagnostics`, `None` if that is not known.

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
        self.learned = self.holds = False
        self.guess: Guess | None = None
        self.mapped: MappedSamples | None = None
        self._reset()

    def _reset(self) -> None:
        self._curve, self._rewards = LossCurve(), LossCurve()
        self._reward: str | None = None
        self._validation: list[float] = []
        self._before: float | None = None
        self._first_pass: float | None = None
        self._first_pass_error = 0.0
        self._passes = 0
        self._movement: Movement | None = None
        self._rewinds, self._lasting = Rewinds(), Lasting()
        self._dropout = 0.0
        self._seen, self._seen_apart = Columns(), Columns()

    @property
    def findings(self) -> list[Finding]:
        """What was found."""
        return [*self.diverged, *self.compared]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, also when the same trainer fits twice."""
        self.diverged, self.compared, self.guess, self.mapped = [], [], None, None
        self.learned = self.holds = False
        self._reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where the weights are."""
        self._remember(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep what may be its targets, and of an epoch where it begins."""
        self._keep(self._seen, batch)
        if batch_idx == 0:
            self._begin_epoch()
        self._look(self._lasting.begin)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep what may be the targets of the first validation."""
        if not trainer.sanity_checking and dataloader_idx == 0 and not self._validation:
            self._keep(self._seen_apart, batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss, as it was before Lightning divided it for accumulation, and a reward; at an epoch's end the weights."""
        self._look(self._lasting.end)
        self._note_reward(trainer, batch_idx)
        if pl_module.automatic_optimization and outputs:
            self._note(outputs["loss"], trainer.accumulate_grad_batches)
        if trainer.is_last_batch:
            self._end_epoch()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the validation loss."""
        self._note_validation(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the loss at the end of the first epoch, whose samples were all new."""
        self._passes += 1
        if self._passes == 1:
            self._note_first_pass()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge on rank 0, and tell all ranks."""
        judged = trainer.strategy.broadcast(self._judge(trainer) or ([], [], False, False))
        self.diverged, self.compared, self.learned, self.holds = judged

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Judge what there is, on this rank."""
        self.diverged, self.compared, self.learned, self.holds = self._judge(trainer) or ([], [], False, False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of samples."""
        self.mapped = None

    @harmless
    def _keep(self, columns: Columns, batch: Any) -> None:
        with unseen():
            columns.note(batch)

    @harmless
    def _note(self, loss: Tensor, divided_by: int) -> None:
        self._curve.note(loss if divided_by == 1 else loss * divided_by)

    @harmless
    def _note_reward(self, trainer: Trainer, batch_idx: int) -> None:
        if batch_idx == 0 and self._passes == 0:
            self._reward = reward_name(trainer.callback_metrics)
        value = None if self._reward is None else trainer.callback_metrics.get(self._reward)
        if value is not None:
            self._rewards.note(value.detach().clone())

    @harmless
    def _remember(self, module: LightningModule) -> None:
        self._movement = Movement(module)
        self._dropout = max(dropouts(clean_names(module)).values(), default=0.0)

    @harmless
    def _look(self, take: Callable[[list[Tensor]], None]) -> None:
        if self._movement is not None and not self._lasting.enough:
            with unseen():
                take(self._movement.now())

    @harmless
    def _begin_epoch(self) -> None:
        if self._movement is not None:
            last = self._validation[-1] if self._validation else self._before
            with unseen():
                self._rewinds.begin(self._movement.now(), last)

    @harmless
    def _end_epoch(self) -> None:
        if self._movement is not None:
            self._rewinds.end(self._movement.now())

    @harmless
    def _note_first_pass(self) -> None:
        means = self._curve.means()
        last = means[-max(1, len(means) // 4) :]
        self._first_pass = fmean(last) if last else None
        known = len(means) > 1 and all(map(math.isfinite, means))
        self._first_pass_error = stdev(means) / math.sqrt(len(last)) if known else 0.0

    @harmless
    def _note_validation(self, trainer: Trainer) -> None:
        name = validation_loss(list(trainer.callback_metrics))
        if name is not None and trainer.sanity_checking:
            self._before = float(trainer.callback_metrics[name])
        elif name is not None:
            self._validation.append(float(trainer.callback_metrics[name]))

    @harmless
    def _judge(self, trainer: Trainer) -> _Judged:
        course = self._course(trainer)
        fell = reward_fell(self._rewards.means(), trainer.global_step)
        compared = self._idle(trainer) or fell or self._mirrored(trainer) or forgot(course) or judge_course(course)
        return diverged(course), compared, course.learned, course.holds

    @harmless
    def _idle(self, trainer: Trainer) -> list[Finding]:
        moved = {} if self._movement is None or len(trainer.optimizers) < 2 else self._movement.moved()
        names = {info.parameter: info.name for info in classify(trainer.lightning_module)} if moved else {}
        return never_stepped(trainer.optimizers, moved, names, trainer.global_step)

    @harmless
    def _mirrored(self, trainer: Trainer) -> list[Finding]:
        if self.mapped is None:
            return []
        step = trainer.global_step
        return turned_targets(self.mapped.turn(), step) or turned_apart(self.mapped.mirror(), step)

    def _course(self, trainer: Trainer) -> Course:
        guess = self.guess
        floor = 0.0 if guess is None else guess.floor
        place = None if guess is None else guess.place
        seen, apart = self._seen.at(place), self._seen_apart.at(place)
        return Course(
            tuple(loss - floor for loss in self._curve.means()),
            tuple(loss - floor for loss in self._validation),
            trainer.global_step,
            self._curve.first_broken(),
            guess=None if guess is None else guess.on(seen) or guess.cost,
            before=_above(floor, self._before),
            first=_above(floor, self._curve.first()),
            first_pass=_above(floor, self._first_pass),
            passes=self._passes,
            moved=None if self._movement is None else self._movement.median(),
            kept=None if self._movement is None else self._movement.kept(),
            rewinds=self._rewinds.count,
            level=self._rewinds.level,
            lasting=self._lasting.share(),
            dropout=self._dropout,
            sampled=guess is not None and guess.sampled,
            uneven=guess is not None and guess.uneven,
            guess_apart=None if guess is None else guess.on(apart),
            samples_apart=0 if apart is None else len(apart),
            classes=0 if guess is None else guess.classes,
            first_pass_error=self._first_pass_error,
            stops_early=bool(trainer.early_stopping_callbacks),
            samples=self._seen.rows // max(self._passes, 1),
        )


def _above(floor: float, loss: float | None) -> float | None:
    return None if loss is None else loss - floor
