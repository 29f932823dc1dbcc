"""Callback: everything that watches a training run, as one: the audit of the first step, and the monitors."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_training.callbacks.activation_monitor import ActivationMonitor
from lit_training.callbacks.harmless import harmless, stop_if_asked
from lit_training.callbacks.init_auditor import InitAuditor
from lit_training.callbacks.loss_monitor import LossMonitor
from lit_training.callbacks.rank_consistency import RankConsistency
from lit_training.callbacks.thaw_monitor import ThawMonitor
from lit_training.diagnosis.finding import Finding, is_alarm
from lit_training.diagnosis.rule import Check, in_causal_order
from lit_training.diagnosis.rules import MONITORED
from lit_training.diagnosis.rules.imbalance import learned_anyway
from lit_training.diagnosis.rules.validation import holds_anyway
from lit_training.showing.console import show, verdict_view

__all__ = ["Diagnostics", "diagnostics"]


def diagnostics(
    *,
    expect_frozen: Sequence[str] = (),
    select: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    stop_on: Literal["error", "warning"] | None = None,
) -> list[Callback]:
    """Return the callbacks that diagnose a run: `Trainer(callbacks=diagnostics())`, or `[*diagnostics(), ...]` with others.

    Args: as `Diagnostics`.

    >>> [type(callback).__name__ for callback in diagnostics()]
    ['Diagnostics']
    """
    return [Diagnostics(expect_frozen=expect_frozen, select=select, ignore=ignore, stop_on=stop_on)]


def _on_parts(name: str) -> Callable[..., None]:
    """Make a hook that calls the hook of the same name on every part, and stops if what monitors found asks for it."""
    judges = name in ("on_train_start", "on_train_batch_end", "on_train_epoch_end")

    def hook(self: "Diagnostics", *args: Any, **kwargs: Any) -> None:
        if name not in self._hooks:
            self._hooks[name] = [getattr(part, name) for part in self._own if _has(part, name)]
        for call in self._hooks[name]:
            call(*args, **kwargs)
        if judges and self.auditor.stop_on is not None:
            stop_if_asked(self.auditor.stop_on, self._monitored)

    hook.__name__ = name
    hook.__doc__ = f"Call `{name}` on every part."
    return hook


def _has(part: Callback, name: str) -> bool:
    """Tell whether a part has a hook of its own, rather than Lightning's, which does nothing."""
    return getattr(type(part), name) is not getattr(Callback, name)


class Diagnostics(Callback):
    """Name what is wrong with a training run, why, and what to do: before the first weight update, and while it trains.

    Its parts are an `InitAuditor`, an `ActivationMonitor`, with more than one process a `RankConsistency`, a `LossMonitor`,
    and a monitor of what `LayerFreezing` thaws. A part that the user adds to the trainer by hand is adopted: its findings
    count here, and it does not run twice. Nothing that it does changes the training: trained weights are bit-identical to
    those of a run without it, and an exception inside it becomes one warning.

    Args:
        expect_frozen: patterns of parameters that are meant to be frozen (`"body"` is `"body.*"`).
        select: patterns of the rules to run; `None` runs all.
        ignore: patterns of rules not to report, or of `rule:place`, e.g. `["dead_relu", "saturation:features.*"]`.
        rules: more rules, each a function from `Evidence` to findings.
        stop_on: stop training, with a `DiagnosisError` on all ranks, at a finding of this severity: `"error"`, `"warning"` (or
            worse), or `None` for never.
        every_n_steps: sampling interval of the monitors, as in `ActivationMonitor`.
        save_to: file to write the findings to as JSON; `None` writes none.
        verbose: print the audit's table before the first update and the verdict at the end.

    Attributes:
        findings: of all parts, in causal order; there after `fit`, also after one that crashed.

    Raises:
        ValueError: in `__init__` for a pattern that matches no rule (the nearest are listed), or an unknown `stop_on`.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> watch = Diagnostics(verbose=False)
        >>> Trainer(max_steps=1, callbacks=[watch], barebones=True, accelerator="cpu").fit(BoringModel())
        >>> [finding.rule for finding in watch.findings]
        []
    """

    def __init__(
        self,
        *,
        expect_frozen: Sequence[str] = (),
        select: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        rules: Sequence[Check] = (),
        stop_on: Literal["error", "warning"] | None = None,
        every_n_steps: int | None = None,
        save_to: str | Path | None = None,
        verbose: bool = True,
    ) -> None:
        self.auditor = InitAuditor(
            expect_frozen=expect_frozen,
            select=select,
            ignore=ignore,
            rules=rules,
            stop_on=stop_on,
            save_to=save_to,
            verbose=verbose,
        )
        self.activations = ActivationMonitor(every_n_steps)
        self.ranks = RankConsistency()
        self.thaws = ThawMonitor()
        self.losses = LossMonitor()
        self.verbose = verbose
        self._own: list[Callback] = [self.auditor, self.activations, self.ranks, self.thaws, self.losses]
        self._hooks: dict[str, list[Callable[..., None]]] = {}

    @property
    def findings(self) -> list[Finding]:
        """What all parts found, in causal order."""
        audited = learned_anyway(self.auditor.findings) if self.losses.learned else self.auditor.findings
        audited = holds_anyway(audited) if self.losses.holds else audited
        found = in_causal_order([*audited, *self._monitored], (*self.auditor.rules, *MONITORED))
        cause = next(filter(is_alarm, found), None)
        course = [finding for finding in self.losses.compared if self.auditor.wanted.wants(finding)]
        return [*found, *(finding.as_symptom_of(cause) for finding in course)] if cause else [*course, *found]

    @property
    def _monitored(self) -> list[Finding]:
        found = [*self.ranks.findings, *self.thaws.findings, *self.losses.diverged, *self.activations.findings]
        return [finding for finding in found if self.auditor.wanted.wants(finding)]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Adopt monitors that the user added by hand."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, InitAuditor):
                self.auditor = callback
            elif isinstance(callback, ActivationMonitor):
                self.activations = callback
            elif isinstance(callback, RankConsistency):
                self.ranks = callback
            elif isinstance(callback, ThawMonitor):
                self.thaws = callback
            elif isinstance(callback, LossMonitor):
                self.losses = callback
        parts = (self.auditor, self.activations, self.ranks, self.thaws, self.losses)
        self._own = [part for part in parts if part not in trainer.callbacks]  # type: ignore[attr-defined]
        self._hooks = {}
        for part in self._own:
            part.setup(trainer, pl_module, stage)

    on_fit_start = _on_parts("on_fit_start")
    on_validation_batch_start = _on_parts("on_validation_batch_start")
    on_validation_batch_end = _on_parts("on_validation_batch_end")
    on_train_start = _on_parts("on_train_start")
    on_train_batch_start = _on_parts("on_train_batch_start")
    on_before_backward = _on_parts("on_before_backward")
    on_after_backward = _on_parts("on_after_backward")
    on_before_optimizer_step = _on_parts("on_before_optimizer_step")
    on_validation_end = _on_parts("on_validation_end")
    on_train_batch_end = _on_parts("on_train_batch_end")
    on_exception = _on_parts("on_exception")
    teardown = _on_parts("teardown")
    _parts_at_epoch_end = _on_parts("on_train_epoch_end")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call `on_train_epoch_end` on every part; what the audit knows of guessing the losses are compared with."""
        self._parts_at_epoch_end(trainer, pl_module)
        self.losses.guess, self.losses.mapped = self.auditor.guess, self.auditor.mapped

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the run as a whole, and print one verdict of a few lines."""
        for part in self._own:
            part.on_train_end(trainer, pl_module)
        if self.verbose and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._tell()

    @harmless
    def _tell(self) -> None:
        show(verdict_view(self.findings))
