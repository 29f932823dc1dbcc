"""Callback: train in phases, each with its own part of the network. What trains when is decided in `lit_training.phases`."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from lit_training.callbacks import _freezing_checks as checks
from lit_training.callbacks._averages import keep_equal_values
from lit_training.callbacks._reducer import check_reducer, check_strategy, reducer_knows, rewrap
from lit_training.callbacks._reload import reload_optimizers
from lit_training.callbacks.logging import log_scalars, logged_step
from lit_training.freezing import frozen_tree, release, train_only
from lit_training.phases import Phase, Plateau, Progress, as_phases, current_phase, differences, gradual, plain
from lit_training.selection import classify
from lit_training.snapshots import restore_snapshot, take_snapshot

__all__ = ["LayerFreezing", "Phase", "PhaseChange", "declared_frozen", "gradual"]


@dataclass(frozen=True)
class PhaseChange:
    """What one phase change did: the optimiser steps before it, the phase begun, and the parameters it thawed and froze."""

    step: int
    phase: int
    thawed: frozenset[str]
    frozen: frozenset[str]


class LayerFreezing(Callback):
    """Train in phases: first the new head, then more of the pretrained network, each phase exactly as written.

        LayerFreezing([Phase("head"), Phase(["layer4", "head"], epoch=2), Phase("*", plateau="val_loss")])
        LayerFreezing(gradual(model))

    Phases only switch `requires_grad`: all parameters are in the optimiser from the start, so that any scheduler and any
    checkpoint keeps working. Lower rates for lower layers come from named groups, made once in `configure_optimizers`:
    `parameter_groups(self, lr=1e-3, weight_decay=1e-2, layer_decay=.75)`. Do not filter by `requires_grad` there.

    Frozen means frozen: no gradient (so neither momentum nor weight decay moves a weight), and batch norm in eval mode with
    its statistics unchanged, whoever calls `train()`. Dropout stays on unless the phase says `train_dropout=False`.

    A frozen part still costs its memory and its forward pass. Below the lowest trained layer there is no backward pass, no
    gradient, no optimiser state and nothing to synchronise; above it the backward pass must go through frozen layers too.

    Under DDP a parameter that was frozen when the model was wrapped is never synchronised: this callback freezes before the
    model is wrapped, and wraps it again through the strategy at each phase change (one broadcast of the model). Communication
    hooks, SyncBatchNorm and gradient accumulation carry over; a change waits for the end of an accumulation window.

    Args:
        phases: what trains when, in order: `Phase`, or dicts of its arguments. The first begins with the training.

    Attributes:
        phases: as checked.
        changes: one `PhaseChange` for each phase that this process began.

    Logs:
        `layer_freezing/phase` (its index) and `layer_freezing/trainable_parameters` (their number), at each phase change.

    Raises:
        ValueError: in `__init__`, for a malformed list of phases; when `fit` starts, for a pattern without a match, a phase that
            trains nothing, phases out of order, a parameter that a phase trains but no optimiser has, a `fraction` of a run
            without end, DDP with `static_graph=True`, FSDP1 and other engines that own the parameters,
            `StochasticWeightAveraging` where it would reset frozen batch norm; in training, for a plateau metric that is not
            logged; on resume, if the checkpoint was trained with other phases.
        RuntimeError: if DDP does not synchronise exactly what trains, because someone else froze or thawed.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> freezing = LayerFreezing([Phase("layer.bias"), Phase("*", step=2)])
        >>> Trainer(callbacks=freezing, max_steps=4, barebones=True).fit(BoringModel())
        >>> [(change.step, sorted(change.thawed)) for change in freezing.changes]
        [(0, ['layer.bias']), (2, ['layer.weight'])]
    """

    def __init__(self, phases: Sequence[Phase | dict[str, Any]]) -> None:
        self.phases = as_phases(phases)
        self.changes: list[PhaseChange] = []
        self._fitting = True
        self._names: frozenset[str] = frozenset()
        self._trained: frozenset[str] = frozenset()
        self._begin()

    def _begin(self) -> None:
        self._phase = 0
        self._plateau = Plateau()
        self._best: dict[str, Tensor] = {}
        self._validated: dict[str, float] = {}
        self._ever_trained: set[str] = set()
        self._resumed = False
        self._first_epoch = 0

    @property
    def phase(self) -> int:
        """Index of the phase that the run is in."""
        return self._phase

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the parameters that the current phase keeps frozen; empty before `fit`."""
        return self._names - self._trained

    # ---- where it acts ----

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze before the strategy wraps the model; patterns are checked later, for layers that do not exist yet."""
        self._fitting = stage == "fit"
        if not self._fitting:
            return
        check_strategy(trainer.strategy)
        if trainer.global_step == 0 and trainer.current_epoch == 0:
            self._begin()
            self.changes = []
        try:
            self._set_trained(pl_module)
        except ValueError:
            return
        release(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check everything that needs the model, and freeze what only exists now."""
        check_strategy(trainer.strategy)
        trained = checks.trained_in(pl_module, self.phases)
        checks.check_optimizers(trainer, pl_module, trained)
        checks.check_swa(trainer, pl_module, self.phases[-1], trained[-1])
        keep_equal_values(_callbacks(trainer))
        self._apply(trainer, pl_module)
        release(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply the phase that the run starts or resumes in."""
        checks.check_length(trainer, pl_module, self.phases)
        self._first_epoch = trainer.current_epoch
        if self._resumed and self._ever_trained != self._trained:
            reload_optimizers(trainer, pl_module, self._ever_trained)
        self._apply(trainer, pl_module)
        self._announce(trainer, pl_module, thawed=self._trained, frozen=frozenset())
        self._update(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the phases that are due at an epoch, and see that nobody else froze or thawed."""
        self._update(trainer, pl_module)
        check_reducer(trainer.strategy, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin the phases that are due within an epoch, where no gradient is being accumulated."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._update(trainer, pl_module, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Let a GradScaler pass over an optimiser whose parameters are all frozen: its step changes nothing."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None or any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            return
        found = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
        if not found:
            found[pl_module.device] = torch.zeros((), device=pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the metrics that phases wait for, and check them where validation does not come once an epoch."""
        if self._fitting and not trainer.sanity_checking:
            for name in self._awaited():
                value = self._read(trainer, name)
                if value is not None:
                    self._validated[name] = value
            if not _checked_at_epoch_end(trainer):
                self._check_plateaus(trainer, pl_module, required=trainer.current_epoch > self._first_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the metrics that phases wait for, where validation comes once an epoch."""
        if _checked_at_epoch_end(trainer):
            first_of_resumed = self._resumed and trainer.current_epoch == self._first_epoch
            self._check_plateaus(trainer, pl_module, required=not first_of_resumed)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let batch norm follow `train()` again."""
        release(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let batch norm follow `train()` again; what is frozen stays so, as the last phase left it."""
        if stage == "fit":
            release(pl_module)

    # ---- phases ----

    def _update(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int = 0) -> None:
        """Begin the phase that is due, if it is another one."""
        if self._phase + 1 == len(self.phases):
            return
        following = self.phases[self._phase + 1]
        plateaued = following.plateau is not None and self._plateau.is_over(following)
        due = current_phase(self.phases, self._phase, _progress(trainer, batch_idx), plateaued=plateaued)
        if due == self._phase:
            return
        if due == self._phase + 1 and plateaued and following.restore_best:
            restore_snapshot(pl_module, self._best)
        before = self._trained
        self._phase, self._plateau, self._best = due, Plateau(), {}
        self._apply(trainer, pl_module)
        self._announce(trainer, pl_module, thawed=self._trained - before, frozen=before - self._trained)

    def _apply(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze and thaw as the phase says, and make DDP synchronise exactly what trains."""
        before = {p for p in pl_module.parameters() if p.requires_grad}
        self._set_trained(pl_module)
        changed = before != {p for p in pl_module.parameters() if p.requires_grad}
        if changed or not reducer_knows(trainer.strategy, pl_module):
            rewrap(trainer.strategy, pl_module)
        check_reducer(trainer.strategy, pl_module)

    def _set_trained(self, pl_module: LightningModule) -> None:
        phase = self.phases[self._phase]
        trains = train_only(pl_module, phase.train, train_bn=phase.train_bn, train_dropout=phase.train_dropout)
        self._names, self._trained = frozenset(info.name for info in classify(pl_module)), frozenset(trains)

    def _announce(self, trainer: Trainer, pl_module: LightningModule, thawed: frozenset[str], frozen: frozenset[str]) -> None:
        self._ever_trained |= self._trained
        self.changes.append(PhaseChange(trainer.global_step, self._phase, thawed, frozen))
        phase = self.phases[self._phase]
        rank_zero_info(
            f"LayerFreezing: phase {self._phase + 1} of {len(self.phases)} (from {phase.trigger}) at step {trainer.global_step}\n"
            f"{frozen_tree(pl_module)}"
        )
        trainable = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        scalars = {"layer_freezing/phase": float(self._phase), "layer_freezing/trainable_parameters": float(trainable)}
        log_scalars(trainer, scalars, logged_step(trainer))

    # ---- plateaus ----

    def _awaited(self) -> list[str]:
        """Return the metrics that this and later phase changes wait for."""
        return list(dict.fromkeys(phase.plateau for phase in self.phases[self._phase + 1 :] if phase.plateau is not None))

    def _read(self, trainer: Trainer, name: str) -> float | None:
        """Return what rank 0 logged, on all ranks: they must change phase together."""
        value = trainer.callback_metrics.get(name)
        known: float | None = trainer.strategy.broadcast(None if value is None else float(value))
        return known

    def _check_plateaus(self, trainer: Trainer, pl_module: LightningModule, *, required: bool) -> None:
        """Feed the metric that the next phase waits for to its plateau, and keep the best weights if it asks for them."""
        following = self.phases[min(self._phase + 1, len(self.phases) - 1)]
        for name in self._awaited():
            noted = self._validated.pop(name, None)
            value = self._read(trainer, name)
            value = noted if value is None else value
            if value is None and required:
                logged = sorted(trainer.callback_metrics)
                raise ValueError(f"LayerFreezing: a phase waits for plateau={name!r}, which is not logged; logged are {logged}")
            if value is None or name != following.plateau:
                continue
            if self._plateau.update(value, following) and following.restore_best:
                self._best = take_snapshot(pl_module, self._trained)

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """Return the phases and where the run is in them, as plain types and tensors."""
        return {
            "phases": [plain(phase) for phase in self.phases],
            "phase": self._phase,
            "plateau": asdict(self._plateau),
            "validated": dict(self._validated),
            "best": self._best,
            "ever_trained": sorted(self._ever_trained),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was, and refuse other phases than it was trained with."""
        if not self._fitting:
            return
        changed = differences(as_phases(state_dict["phases"]), self.phases)
        if changed:
            raise ValueError(
                "LayerFreezing: the checkpoint was trained with other phases: "
                + "; ".join(changed)
                + ". Resume with the same ones, or begin a new run from its weights (load_from_checkpoint, fit without ckpt_path)"
            )
        self._phase = state_dict["phase"]
        self._plateau = Plateau(**state_dict["plateau"])
        self._validated = dict(state_dict["validated"])
        self._best = dict(state_dict["best"])
        self._ever_trained = set(state_dict["ever_trained"])
        self._resumed = True


def declared_frozen(trainer: Trainer) -> frozenset[str]:
    """Return the names of the parameters that a fine-tuning callback of the trainer keeps frozen now, empty if it has none."""
    if any(isinstance(callback, BaseFinetuning) for callback in _callbacks(trainer)):
        return frozenset(info.name for info in classify(trainer.lightning_module) if not info.parameter.requires_grad)
    frozen = (callback.frozen for callback in _callbacks(trainer) if isinstance(callback, LayerFreezing))
    return frozenset[str]().union(*frozen)


def _callbacks(trainer: Trainer) -> list[Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]


def _progress(trainer: Trainer, batch_idx: int) -> Progress:
    """Return how far the run is; of two limits (max_epochs, max_steps) the one that is nearer counts."""
    batches, shares = trainer.num_training_batches, []
    if trainer.max_epochs not in (None, -1) and math.isfinite(batches):
        shares.append((trainer.current_epoch * batches + batch_idx) / (trainer.max_epochs * batches))
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    return Progress(trainer.current_epoch, trainer.global_step, max(shares, default=math.nan))


def _checked_at_epoch_end(trainer: Trainer) -> bool:
    """Tell whether there is exactly one validation in each epoch, or none at all."""
    once = trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1
    return once or not trainer.enable_validation
