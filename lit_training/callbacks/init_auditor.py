"""Callback: audit the first real step before the first weight update. What it looks for is in `lit_training.diagnosis.rules`.

This file only decides when to look, and makes one evidence of what all processes saw.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lit_training.callbacks._first_step import FirstStep, HandedOut, LeftOut
from lit_training.callbacks._last_look import LastLook
from lit_training.callbacks._next_steps import NextSteps
from lit_training.callbacks._scaled import loss_scale
from lit_training.callbacks.harmless import DiagnosisError, harmless, stop_if_asked
from lit_training.diagnosis.crash import explain_crash
from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding, is_alarm, save_findings
from lit_training.diagnosis.loss_crash import explain_loss_crash, explain_loss_shape
from lit_training.diagnosis.mirrors import MappedSamples
from lit_training.diagnosis.ranks import across_ranks
from lit_training.diagnosis.rule import Check, Diagnosis, Filter, Rule, diagnose
from lit_training.diagnosis.rules import MONITORED, RULES
from lit_training.diagnosis.rules.guessing import Guess, cost_of_guessing
from lit_training.selection import classify, match, names_of
from lit_training.showing.console import show, verdict_view
from lit_training.showing.report import AuditReport, audit_view, report

__all__ = ["InitAuditor"]

LOOK_AGAIN = 4
PATIENCE = 256


class InitAuditor(Callback):
    """Audit the first real forward and backward, and report before the first weight update.

    It observes the step that the loop takes anyway, with hooks that are gone afterwards, so it is right under DDP, FSDP2, mixed
    precision, accumulation, manual optimisation and any `training_step`, and the trained weights are bit-identical to those of a
    run without it (of a compiled network up to rounding: it runs eagerly while it is watched). Under several processes it reports
    on the joint batch, once. A resumed run is not audited again. Under a GradScaler the first step that is not left out is audited.

    What starts at zero by design looks dead at first, so it looks again before the fourth update (where there is none, at the end
    of the epoch or after 256 batches): do weights move, do gradients arrive, are they set back between steps?

    Args:
        expect_frozen: patterns of parameters that are meant to be frozen (`"body"` is `"body.*"`).
        select: patterns of the rules to run, e.g. `["init_*"]`; `None` runs all.
        ignore: patterns of rules not to report, or of `rule:place`, e.g. `["dead_relu", "saturation:features.*"]`.
        rules: more rules, each a function from `Evidence` to findings.
        stop_on: stop training, with a `DiagnosisError` on all ranks, at a finding of this severity: `"error"`, `"warning"` (or
            worse), or `None` for never.
        save_to: file to write the findings to as JSON; `None` writes none.
        verbose: print the table and the conclusion.

    Attributes:
        findings: in causal order; the first alarm is the cause to fix first.
        report: the whole `AuditReport`, `None` before the audit.
        mapped: some samples of the first batch, if their targets are maps, until training ends.
        guess: what it costs to say the same for every sample, `None` where the loss has other parts or is not known.

    Raises:
        ValueError: in `__init__` for a pattern that matches no rule (the nearest are listed), or an unknown `stop_on`; when `fit`
            starts, for a pattern of `expect_frozen` that matches no parameter.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> auditor = InitAuditor(verbose=False)
        >>> Trainer(max_steps=1, callbacks=[auditor], barebones=True, accelerator="cpu").fit(BoringModel())
        >>> [row.name for row in auditor.report.layers]
        ['layer']
    """

    def __init__(
        self,
        *,
        expect_frozen: Sequence[str] = (),
        select: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        rules: Sequence[Check] = (),
        stop_on: Literal["error", "warning"] | None = None,
        save_to: str | Path | None = None,
        verbose: bool = True,
    ) -> None:
        if stop_on not in (None, "error", "warning"):
            raise ValueError(f"stop_on must be 'error', 'warning' or None, got {stop_on!r}")
        own = [check if isinstance(check, Rule) else Rule(check) for check in rules]
        self.rules = (*RULES, *own)
        self.wanted = Filter(None if select is None else _patterns(select, "select"), _patterns(ignore, "ignore"))
        self.wanted.check((*self.rules, *MONITORED))
        self.expect_frozen = _patterns(expect_frozen, "expect_frozen")
        self.stop_on, self.save_to, self.verbose = stop_on, save_to, verbose
        self.findings: list[Finding] = []
        self.report: AuditReport | None = None
        self.guess: Guess | None = None
        self.mapped: MappedSamples | None = None
        self._step: FirstStep | None = None
        self._done = False
        self._evidence: Evidence | None = None
        self._diagnosis = Diagnosis(self.rules, self.wanted)
        self._next: NextSteps | None = None
        self._last = LastLook((), self.expect_frozen)
        self._handed_out = HandedOut()
        self._updates = self._batches = 0
        self._left_out = LeftOut()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say so if there is nothing to train."""
        built_later = type(pl_module).configure_model is not LightningModule.configure_model
        if stage == "fit" and not built_later and next(pl_module.parameters(), None) is None:
            rank_zero_warn(
                f"{type(pl_module).__name__} has no parameters, so there is nothing to train or to audit. Assign layers to "
                "attributes in __init__; a plain list or dict hides them, nn.ModuleList and nn.ModuleDict do not."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, also when the same trainer fits twice; refuse a pattern of `expect_frozen` without a match."""
        match(self.expect_frozen, names_of(classify(pl_module)), "expect_frozen")
        self.release()
        self.findings, self.report, self.guess, self.mapped, self._done = [], None, None, None, False
        self._updates = self._batches = 0
        self._left_out = LeftOut()
        self._handed_out = HandedOut()
        self._diagnosis = Diagnosis(self.rules, self.wanted)
        self._last = LastLook((), self.expect_frozen)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the first validation batch of the sanity check."""
        if trainer.sanity_checking and dataloader_idx == 0:
            self._handed_out.before_validation(pl_module, batch)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the first validation batch of the sanity check."""
        if trainer.sanity_checking and dataloader_idx == 0:
            self._handed_out.note_validation(pl_module, batch)
        self._handed_out.release()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start observing the first batch of a run that was not resumed; keep the targets of the first few."""
        if self._step is not None or self._evidence is not None or not self._done:
            self._handed_out.note_training(batch)
        if self._done or (self._step is not None and not self._left_out.again):
            return
        if trainer.global_step > 0 and not self._left_out.again:
            self._done = True
            return
        self._step, self._left_out.again = FirstStep(pl_module, batch), False

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the loss, and what it is scaled by."""
        if self._step is not None:
            self._step.before_backward(trainer, loss)
        if self._next is not None:
            self._next.before_backward(loss / loss_scale(trainer))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the gradients before anything clips them, and go on watching."""
        if self._step is not None:
            self._step.after_backward(pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Conclude: gradients are complete, unscaled and reduced, and no weight has moved. Look again a few updates later."""
        if self._idle or self._left_out.leaves_out(trainer, optimizer, self._step):
            return
        self._conclude(trainer, optimizer)
        if self._next is not None:
            self._next.before_step(optimizer)
        self._updates += 1
        if self._updates == LOOK_AGAIN * max(len(trainer.optimizers), 1):
            self._look_again(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Detach from the module after the first batch; conclude if no optimiser step is still to come."""
        if trainer.is_last_batch:
            self._note_thawed(trainer, pl_module)
        if self._idle:
            return
        if self._step is not None:
            self._step.detach()
        if batch_idx + 1 >= trainer.accumulate_grad_batches and not self._left_out.again:
            self._conclude(trainer)
        self._batches += 1
        if self._next is not None and self._batches <= LOOK_AGAIN:
            self._next.after_batch()
        if self._batches == PATIENCE:
            self._look_again(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Conclude in any case."""
        self._conclude(trainer)
        self._look_again(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Revise what was said about freezing."""
        self._look_back(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing attached; say what a layer or the loss could not take, and what the first step showed until it raised."""
        if isinstance(exception, Exception) and not isinstance(exception, DiagnosisError):
            self._explain(trainer, pl_module, exception)
        self.release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave nothing attached, and let go of samples."""
        self.release()
        self.mapped = None

    def release(self) -> None:
        """Detach from the module and forget what was observed."""
        self._handed_out.release()
        if self._step is not None:
            self._step.detach()
        self._step = self._evidence = self._next = None

    @property
    def _idle(self) -> bool:
        """Whether it has looked again, or will never look."""
        return self._done and self._evidence is None

    @harmless
    def _explain(self, trainer: Trainer, module: LightningModule, exception: Exception) -> None:
        """Tell on the rank that raised: the others may never come here."""
        step = trainer.global_step
        found = [*explain_crash(exception, module, step), *explain_loss_crash(exception, step)]
        if self._step is not None and self._step.loss is not None and not found:
            found = explain_loss_shape(self._step.loss, step)
            found = found or diagnose(self._step.collect(trainer, None, self.expect_frozen, self._handed_out), self.rules)
        found = [finding for finding in found if self.wanted.wants(finding)]
        self.findings += found
        if found and self.verbose:
            show(verdict_view(found))

    def _conclude(self, trainer: Trainer, optimizer: Optimizer | None = None) -> None:
        """Merge what all ranks saw, judge it once, and tell all ranks; what fails on one rank must not leave others waiting."""
        if self._done or self._step is None:
            return
        self._done = True
        evidence = self._collect(trainer, optimizer, self._step)
        self.mapped = self._step.mapped_samples()
        self._step = None
        if not trainer.strategy.reduce_boolean_decision(evidence is not None) or evidence is None:
            return
        evidence = self._evidence = across_ranks(evidence)
        self._last = LastLook({f.name for f in evidence.parameters.values() if not f.requires_grad}, self.expect_frozen)
        self._judge(trainer, evidence)
        if trainer.is_global_zero and self.report is not None:
            self._tell(self.report)
        stop_if_asked(self.stop_on, self.findings)
        self._next = NextSteps(trainer)

    def _look_again(self, trainer: Trainer) -> None:
        """Judge once more, with what the first updates showed; what fails on one rank must not leave others waiting."""
        if self._evidence is None:
            return
        evidence, following = self._evidence, self._next
        self.release()
        later = None if following is None else following.conclude(self._batches)
        if not trainer.strategy.reduce_boolean_decision(later is not None):
            return
        before = {(finding.rule, finding.where) for finding in self.findings if is_alarm(finding)}
        self._judge(
            trainer, replace(evidence, later=later, samples=self._handed_out.with_targets(evidence.samples) or evidence.samples)
        )
        new = [finding for finding in self.findings if is_alarm(finding) and (finding.rule, finding.where) not in before]
        if trainer.is_global_zero and new and self.report is not None:
            self._tell(self.report)
        if new:
            stop_if_asked(self.stop_on, self.findings)

    def _judge(self, trainer: Trainer, evidence: Evidence) -> None:
        findings = self._diagnose(evidence) if trainer.is_global_zero else None
        self.findings = trainer.strategy.broadcast(findings or [])
        self.report = self._lay_out(evidence)
        self._weigh_guessing(evidence)

    @harmless
    def _diagnose(self, evidence: Evidence) -> list[Finding]:
        return self._diagnosis(evidence)

    @harmless
    def _lay_out(self, evidence: Evidence) -> AuditReport:
        return report(evidence, self.findings)

    @harmless
    def _note_thawed(self, trainer: Trainer, module: LightningModule) -> None:
        self._last.note(trainer, module)

    @harmless
    def _look_back(self, trainer: Trainer, module: LightningModule) -> None:
        self.findings = self._last.revise(self.findings, self.wanted, trainer, module)

    @harmless
    def _weigh_guessing(self, evidence: Evidence) -> None:
        self.guess = cost_of_guessing(evidence)

    @harmless
    def _collect(self, trainer: Trainer, optimizer: Optimizer | None, step: FirstStep) -> Evidence:
        return step.collect(trainer, optimizer, self.expect_frozen, self._handed_out, self._left_out.may_overflow)

    @harmless
    def _tell(self, audited: AuditReport) -> None:
        if self.save_to is not None:
            save_findings(audited.findings, self.save_to)
        if self.verbose:
            show(audit_view(audited))


def _patterns(value: Sequence[str], argument: str) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ValueError(f"{argument} must be a list of patterns, got the string {value!r}; write [{value!r}]")
    return tuple(value)
