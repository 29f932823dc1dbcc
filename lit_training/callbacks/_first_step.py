"""What `InitAuditor` holds while the first step runs, and what it keeps of the batches that loaders hand out."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import IterableDataset

from lit_training.callbacks._scaled import is_left_out, is_unscaled, loss_scale
from lit_training.callbacks._settings import gradient_factor, plan_of
from lit_training.callbacks.eager import eager
from lit_training.callbacks.harmless import harmless
from lit_training.callbacks.layer_freezing import declared_frozen
from lit_training.columns import batch_size_of, leaves_of
from lit_training.diagnosis.evidence import Evidence, collect
from lit_training.diagnosis.experiments import SEVERAL, Calls, fed
from lit_training.diagnosis.figures import norms, to_host
from lit_training.diagnosis.mirrors import MappedSamples, mapped_samples
from lit_training.diagnosis.modules import in_train_mode, tracked
from lit_training.diagnosis.parts import Fed, Part, summary
from lit_training.diagnosis.samples import FirstBatches, Samples, in_order, target_place
from lit_training.diagnosis.sections import holds_few_kinds, kinds
from lit_training.diagnosis.states import own_states
from lit_training.selection import clean_names
from lit_training.tracing.ctc import lengths_at_hand
from lit_training.tracing.device_asserts import Refusing
from lit_training.tracing.meeting import Meetings
from lit_training.tracing.probe import Probe

__all__ = ["FirstStep", "HandedOut", "LeftOut"]

_MOST_LEFT_OUT = 24  # from 2^16, where a GradScaler starts, down to 2^-8


class HandedOut:
    """What is kept of the first batches.

    Of training their targets; of validation the scale of the first batch and of what the network made it into, and its mode.
    """

    def __init__(self) -> None:
        self._batches = FirstBatches()
        self._watching = ExitStack()
        self._val_calls: Calls | None = None
        self._fed_val: Fed = ("", ())
        self._val: tuple[Part | None, ...] = ()
        self._val_kinds: tuple[Tensor | None, ...] = ()
        self._met: Meetings | None = None
        self._told: tuple[Part | None, ...] = ()
        self._val_passes = 0
        self._val_modes: tuple[str, ...] | None = None

    @harmless
    def note_training(self, batch: Any) -> None:
        """Keep the targets of one of the first few batches."""
        self._batches.note(batch)

    @harmless
    def before_validation(self, module: LightningModule, batch: Any) -> None:
        """Watch what the first validation batch is made into before the network gets it."""
        if self._val_modes is None:
            self._watching.enter_context(eager())
            if module.device.type == "cuda":
                self._watching.enter_context(lengths_at_hand())
                self._watching.enter_context(Refusing())
            self._val_calls = self._watching.enter_context(Calls(module, training=False))
            self._met = self._watching.enter_context(Meetings(batch))

    @harmless
    def note_validation(self, module: nn.Module, batch: Any) -> None:
        """Keep the scale of the first validation batch and of what was made of it, and which layers were in train mode after it."""
        if self._val_modes is None:
            partners = {} if self._met is None else dict(self._met.partners)
            self._told = summary([partners.get(place, 0) for place, _ in enumerate(leaves_of(batch))])
            self._val, self._fed_val = summary(batch), fed(self._val_calls.seen if self._val_calls is not None else ())
            self._val_kinds = kinds(batch)
            self._val_passes = self._val_calls.most if self._val_calls is not None else 0
            self._val_modes = in_train_mode(clean_names(module), dropout=self._val_passes < SEVERAL)

    def release(self) -> None:
        """Leave nothing attached to the module."""
        self._watching.close()
        self._val_calls = self._met = None

    def at_first_step(self, trainer: Trainer, probe: Probe, calls: Calls) -> Samples:
        """Return what is known at the first step."""
        train, target = summary(probe.batch), target_place(probe)
        return Samples(
            in_order=in_order(trainer.train_dataloader),
            streamed=isinstance(getattr(trainer.train_dataloader, "dataset", None), IterableDataset),
            per_batch=getattr(trainer.train_dataloader, "batch_size", None),
            train=train,
            val=self._val,
            val_modes=self._val_modes or (),
            target=target,
            states=own_states(probe.batch, train, target),
            fed_train=fed(calls.seen, list(zip(leaves_of(probe.batch), train, strict=True))),
            fed_val=self._fed_val if self._val_passes < SEVERAL * max(calls.most, 1) else ("", ()),
            told_val=self._told,
            section=holds_few_kinds(kinds(probe.batch), self._val_kinds, target),
        )

    @harmless
    def with_targets(self, known: Samples) -> Samples:
        """Add to what is known the targets of all batches seen so far."""
        return known.with_targets(self._batches)


class FirstStep:
    """Observe the first step of a training from its first forward to its first optimiser step.

    The tracer is off during backward passes, whose operations are no part of the graph.
    """

    def __init__(self, module: LightningModule, batch: Any) -> None:
        self.loss: Tensor | None = None
        self._loss_scale = 1.0
        self._probe: Probe | None = None
        self._calls: Calls | None = None
        self._attached = ExitStack()
        self._tracked: dict[str, int] = {}
        self._arrived: dict[int, Tensor] = {}
        self._attach(module, batch)

    @harmless
    def _attach(self, module: LightningModule, batch: Any) -> None:
        self._tracked = tracked(clean_names(module))
        self._attached.enter_context(eager())
        self._calls = self._attached.enter_context(Calls(module))
        self._probe = self._attached.enter_context(Probe(module, batch_size_of(batch), batch))

    def detach(self) -> None:
        """Leave nothing attached to the module."""
        self._attached.close()

    def is_finite(self) -> bool:
        """Whether the loss is a number, as far as it is known."""
        return self.loss is None or bool(self.loss.isfinite().all())

    @harmless
    def before_backward(self, trainer: Trainer, loss: Tensor) -> None:
        """Note the loss as it was before mixed precision scaled it, and by what."""
        scale = loss_scale(trainer)
        if self._probe is not None:
            divided = trainer.lightning_module.automatic_optimization
            self._probe.differentiate(loss, scaled=scale != 1, divided=divided)
            self._probe.tracer.pause()
        if self.loss is None:
            self._loss_scale = scale
            self.loss = loss.detach() / scale

    @harmless
    def after_backward(self, module: LightningModule) -> None:
        """Note how large the gradients are before anything clips them; go on watching, as a manual loop may run forward again."""
        learning = [p for p in module.parameters() if p.grad is not None]
        self._arrived = dict(zip(map(id, learning), norms([p.grad for p in learning if p.grad is not None]), strict=True))
        if self._probe is not None and not module.automatic_optimization:
            self._probe.tracer.resume()

    @harmless
    def mapped_samples(self) -> MappedSamples | None:
        """Keep some samples whose targets are maps, `None` if they are not."""
        return None if self._probe is None or self._calls is None else mapped_samples(self._probe, self._calls.seen)

    def collect(
        self,
        trainer: Trainer,
        optimizer: Optimizer | None,
        expect_frozen: Sequence[str],
        handed_out: HandedOut,
        may_overflow: bool = True,
    ) -> Evidence:
        """Gather this rank's evidence; `may_overflow` tells that mixed precision may still lower the loss's scale.

        Raises:
            RuntimeError: if nothing was observed; or whatever ended the recording.
        """
        self.detach()
        if self._probe is None or self._calls is None:
            raise RuntimeError("nothing was observed")
        if self._probe.tracer.failure is not None:
            raise self._probe.tracer.failure
        plan = plan_of(trainer)
        return collect(
            self._probe,
            loss=None if self.loss is None else self.loss * trainer.accumulate_grad_batches,
            gradient_factor=gradient_factor(trainer, self._loss_scale),
            gradient_scale=1.0 if is_unscaled(optimizer) else self._loss_scale,
            expect_frozen=(*expect_frozen, *declared_frozen(trainer)),
            stepping=optimizer,
            calls=self._calls.seen,
            samples=handed_out.at_first_step(trainer, self._probe, self._calls),
            optimizers=trainer.optimizers,
            plan=replace(plan, loss_scaled=plan.loss_scaled and may_overflow),
            tracked_before=self._tracked,
            arrived=self._norms(),
        )

    def _norms(self) -> dict[int, float]:
        """Return the norms of the gradients as the last backward pass left them, those of the loss itself."""
        return {i: norm / self._loss_scale for i, norm in zip(self._arrived, to_host(self._arrived.values()), strict=True)}


class LeftOut:
    """Count the steps that were left out, before the audit and until it looks again.

    Attributes:
        again: whether the step under observation was left out, so that the next one is to be observed.
    """

    def __init__(self) -> None:
        self.again = False
        self._count = 0

    @property
    def may_overflow(self) -> bool:
        """Whether it may still be the scale's fault."""
        return self._count < _MOST_LEFT_OUT

    def leaves_out(self, trainer: Trainer, optimizer: Optimizer, step: FirstStep | None) -> bool:
        """Tell whether an optimiser's step is left out; if it is the one under observation, stop observing it.

        What fails on one rank, or is infinite there alone, is decided for all.
        """
        if self.again or not self.may_overflow or not is_left_out(trainer, optimizer):
            return self.again
        self._count += 1
        if step is not None:
            step.detach()
            self.again = trainer.strategy.reduce_boolean_decision(step.is_finite())
        return step is None or self.again
