"""Callback: keep the norm of each unit's incoming weights below a bound. The arithmetic is in `lit_training.constraints`."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from lit_training.callbacks._enforcing import (
    OptimizerHooks,
    callbacks_of,
    is_skipped,
    listed,
    log_prefix,
    log_scalars,
    refuse_flat_shards,
    should_log,
)
from lit_training.constraints import MaxNormProjection, check_max_norm
from lit_training.selection import Patterns
from lit_training.units import UnitWeight, unit_weights

__all__ = ["MaxNorm"]


class MaxNorm(Callback):
    r"""Project each unit's incoming weights onto the ball $\lVert w \rVert_2 \le c$ after every optimiser step.

    Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014, section 5.1 (there c = 3 or 4).
    The lecture bounds the square, $\lVert w \rVert_2^2 \le c$: that is `max_norm` $= \sqrt{c}$ here. What a unit is, layer by
    layer, is told by `lit_training.units.unit_weights`; rounding and NaN by `lit_training.max_norm_`.

    Args:
        max_norm: c, in the weights' units.
        include: patterns of what to constrain; `None` for weights of all layers and embedding tables.
        exclude: patterns of what to leave out.
        per: `"unit"`, or `"tensor"` to bound the norm of each whole weight.

    Logs:
        `max_norm/at_bound`, the fraction of units that the step's update had taken outside and that were projected, and
        `max_norm/largest`, the largest norm before projection, whenever Lightning logs the loss. A second instance logs under
        `max_norm_2`.

    Raises:
        ValueError: in `__init__` for a bound that is not positive and finite, or an unknown `per`; at the start of `fit` for a
            pattern without a match, another `MaxNorm` (or an `Embedding(max_norm=...)` that differs) on the same weight, a weight
            behind a parametrisation, FSDP1 or DeepSpeed.

    It projects once when training starts and after each real step of the optimiser that owns the weight: with accumulation, manual
    optimisation with several optimisers, LBFGS, AMP (not at steps that the scaler skips), DDP, FSDP2 and tensor parallelism, where
    a unit split across ranks has the norm of the whole unit. Frozen weights are left alone, until they thaw. Averages of
    projected weights (EMA, SWA) lie in the ball; what Lightning's averaging callbacks copied before training started is
    projected too, before it is evaluated or saved. It holds no state: a checkpoint is the same with and without it.

    Attributes:
        projections: how often it has projected in this `fit`: real optimiser steps + 1.

    Example:
        >>> trainer = Trainer(callbacks=[MaxNorm(3.0, exclude="head")], logger=False, barebones=True)
    """

    def __init__(
        self,
        max_norm: float = 3.0,
        *,
        include: str | list[str] | None = None,
        exclude: str | list[str] | None = None,
        per: Literal["unit", "tensor"] = "unit",
    ) -> None:
        check_max_norm(max_norm)
        if per not in ("unit", "tensor"):
            raise ValueError(f"MaxNorm: per must be 'unit' or 'tensor', got {per!r}")
        self.max_norm = max_norm
        self.include: Patterns = include
        self.exclude: Patterns = exclude
        self.per = per
        self.projections = 0
        self._hooks = OptimizerHooks()
        self._units: dict[Tensor, UnitWeight] = {}
        self._plans: dict[Optimizer, tuple[list[int], MaxNormProjection]] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse, before the first batch, what cannot be done as configured."""
        refuse_flat_shards(trainer, pl_module, "MaxNorm")
        self._units = self._find(pl_module)
        for other in callbacks_of(trainer):
            if isinstance(other, MaxNorm) and other is not self:
                shared = [unit.name for parameter, unit in other._find(pl_module).items() if parameter in self._units]
                if shared:
                    raise ValueError(
                        f"MaxNorm: two instances act on {listed(shared)}; separate them with include= and exclude="
                    )
        self._check_embeddings(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Project what training starts from, a checkpoint's weights included, and act from here on."""
        self._plans = {}
        self._project(self._units.values())
        self._project_averages(trainer)
        self.projections = 1
        self._hooks.remove()
        self._hooks.attach(trainer.optimizers, after=self._after_step)
        self._note(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the latest projections met, at the steps at which the loss is logged."""
        projections = [projection for _, projection in self._plans.values() if projection.units]
        if not projections or not should_log(trainer, pl_module):
            return
        prefix = log_prefix(trainer, self, "max_norm")
        count = torch.stack([projection.count().cpu() for projection in projections]).sum()
        largest = torch.stack([projection.largest().cpu() for projection in projections]).amax()
        units = sum(projection.units for projection in projections)
        log_scalars(trainer, {f"{prefix}/at_bound": count / units, f"{prefix}/largest": largest})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Project averaged weights before they are swapped in for evaluation."""
        self._project_averages(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Project averaged weights before they are saved; the model's own are projected already."""
        self._project_averages(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the optimisers as they were; averaged weights that become the model's are projected first."""
        self._project_averages(trainer)
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimisers as they were."""
        self._detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimisers as they were."""
        self._detach()

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle the settings; parameters belong to the running fit."""
        return self.__dict__ | {"_units": {}, "_plans": {}}

    def _detach(self) -> None:
        self._hooks.remove()
        self._units = {}
        self._plans = {}

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_skipped(optimizer):
            return
        self._plan(optimizer)()
        self.projections += 1

    def _plan(self, optimizer: Optimizer) -> MaxNormProjection:
        """Return the optimiser's projection, made anew when weights thaw, join the optimiser or move in memory."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad and p in self._units]
        addresses = [p.data_ptr() for p in parameters]
        known = self._plans.get(optimizer)
        if known is None or known[0] != addresses:
            known = addresses, self._projection([self._units[p] for p in parameters])
            self._plans[optimizer] = known
        return known[1]

    def _projection(self, units: Iterable[UnitWeight]) -> MaxNormProjection:
        return MaxNormProjection([unit.view() for unit in units], self.max_norm)

    def _project(self, units: Iterable[UnitWeight]) -> None:
        """Project weights once, those that are trained and exist already (lazy layers do not before the first batch)."""
        ready = [u for u in units if u.parameter.requires_grad and not isinstance(u.parameter, UninitializedParameter)]
        self._projection(ready)()

    def _project_averages(self, trainer: Trainer) -> None:
        """Project the copies that Lightning's WeightAveraging and StochasticWeightAveraging keep."""
        trained = {unit.name for parameter, unit in self._units.items() if parameter.requires_grad}
        for callback in callbacks_of(trainer) if trained else ():
            average = getattr(callback, "_average_model", None)
            if isinstance(average, nn.Module):
                self._projection([unit for unit in self._find(average).values() if unit.name in trained])()

    def _find(self, module: nn.Module) -> dict[Tensor, UnitWeight]:
        units = unit_weights(module, include=self.include, exclude=self.exclude, per=self.per)
        return {unit.parameter: unit for unit in units}

    def _check_embeddings(self, pl_module: LightningModule) -> None:
        for module in pl_module.modules():
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
                unit = self._units.get(module.weight)
                if unit and (self.per, module.max_norm, module.norm_type) != ("unit", self.max_norm, 2.0):
                    raise ValueError(
                        f"MaxNorm({self.max_norm}, per={self.per!r}) contradicts {unit.name}'s own max_norm={module.max_norm}, "
                        f"norm_type={module.norm_type}; remove one, or pass exclude={unit.name!r}"
                    )

    def _note(self, trainer: Trainer) -> None:
        owned = {p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        units: Sequence[UnitWeight] = list(self._units.values())
        frozen = [unit.name for unit in units if not unit.parameter.requires_grad]
        absent = [unit.name for unit in units if unit.parameter.requires_grad and unit.parameter not in owned]
        assumed = [unit.name for unit in units if unit.assumed and self.per == "unit"]
        for names, why in ((frozen, "frozen"), (absent, "in no optimizer")):
            if names:
                rank_zero_info(f"MaxNorm: leaves {listed(names)} alone ({why})")
        if assumed:
            rank_zero_warn(
                f"MaxNorm: takes {listed(assumed)} of unknown layers as [out, in, ...]; if units lie elsewhere, leave them out "
                "with exclude=, or bound whole tensors with per='tensor'"
            )
