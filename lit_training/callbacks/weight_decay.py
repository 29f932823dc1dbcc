"""Callback: weight decay, L1 and elastic net, exact at every optimiser step. The arithmetic is in `lit_training.regularizers`."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

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
from lit_training.decay_audit import DecayAudit, decay_audit
from lit_training.regularizers import add_l2_gradient, decay_, l1_penalty, l2_penalty, soft_threshold_, sparsity
from lit_training.selection import Patterns, select

__all__ = ["WeightDecay"]


class WeightDecay(Callback):
    r"""Regularise exactly the chosen parameters, once at every real optimiser step, with any optimiser.

    Of the penalty $\frac{\lambda}{2} \lVert W \rVert_2^2 + \lambda_1 \lVert W \rVert_1$ the L2 part is

    - decoupled (default): $W \leftarrow (1 - \eta \lambda) W$ after the backward pass and before the update, with the group's
      current rate $\eta$, so that warm-up and schedules hold. With Adam this is AdamW; with SGD *with momentum* it is SGDW
      (Loshchilov and Hutter 2019), **not** `SGD(weight_decay=...)`: there decay passes through the momentum and is
      $1 / (1 - \mu)$ times as strong;
    - coupled (`decoupled=False`): $g \leftarrow g + \lambda W$ after clipping, equal to `SGD(weight_decay=...)` also with momentum.

    The L1 part is a soft threshold after the update: weights become exactly zero. Its width is $\eta \lambda_1$ if decoupled, and
    $\eta \lambda_1 (1 - d) / (1 - \mu)$ if coupled, with SGD's momentum $\mu$ and dampening $d$: then training by SGD ends where
    loss + penalty is least, elastic net as well. With optimisers that rescale gradients (Adam) decoupled decay and L1 are
    regularisers in their own right, not the minimiser of a penalised loss.
    The lecture's elastic net has no half: for its $\lambda_2$ give `weight_decay` $= 2 \lambda_2$.

    Args:
        weight_decay: $\lambda \ge 0$, in `torch.optim`'s convention.
        l1: $\lambda_1 \ge 0$.
        decoupled: see above.
        include: patterns of what to regularise, as in `lit_training.select`; `None` for all weights.
        exclude: patterns of what to leave out.
        biases: also regularise biases.
        norms: also regularise normalisation, scales and gates.
        embeddings: also regularise embedding tables and tokens.
        optimizer_decay: what to do with a non-zero `weight_decay` in the optimiser's group of a chosen parameter: `"error"`, or
            `"replace"` to set it to 0 for the whole group. Decay that a checkpoint brings back on resume is always set to 0.
        verbose: print the decay audit when training starts.

    Logs:
        `weight_decay/penalty` (the formula above), `weight_decay/weight_norm` ($\lVert W \rVert_2$ of all chosen weights) and,
        with L1, `weight_decay/sparsity` (fraction of exact zeros), whenever Lightning logs the loss. A second instance logs
        under `weight_decay_2`.

    Raises:
        ValueError: in `__init__` for a negative or non-finite strength, or none at all; at the start of `fit` for a pattern without
            a match, decay in the optimiser, another `WeightDecay` on the same parameter, sparse gradients, FSDP1 or DeepSpeed, and
            LBFGS with decoupled decay or L1 (its line search would not see them).

    Parameters without gradient in a step (frozen, unused) are left alone, as by `torch.optim`; frozen ones are noted at the start.
    It holds no state: a checkpoint is the same with and without it. It acts under accumulation, manual optimisation with several
    optimisers, AMP (not at steps that the scaler skips), DDP, FSDP2 and tensor parallelism. Averaged weights (EMA, SWA)
    are averages of regularised weights; they are not sparse.

    Example:
        >>> trainer = Trainer(callbacks=[WeightDecay(1e-2, exclude="head")], logger=False, barebones=True)
    """

    def __init__(
        self,
        weight_decay: float = 5e-4,
        *,
        l1: float = 0.0,
        decoupled: bool = True,
        include: str | list[str] | None = None,
        exclude: str | list[str] | None = None,
        biases: bool = False,
        norms: bool = False,
        embeddings: bool = False,
        optimizer_decay: Literal["error", "replace"] = "error",
        verbose: bool = False,
    ) -> None:
        for name, value in (("weight_decay", weight_decay), ("l1", l1)):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"WeightDecay: {name} must be a finite number >= 0, got {value!r}")
        if weight_decay == 0 and l1 == 0:
            raise ValueError("WeightDecay: weight_decay=0 with l1=0 does nothing; give one of them, or remove the callback")
        if optimizer_decay not in ("error", "replace"):
            raise ValueError(f"WeightDecay: optimizer_decay must be 'error' or 'replace', got {optimizer_decay!r}")
        self.weight_decay = weight_decay
        self.l1 = l1
        self.decoupled = decoupled
        self.include: Patterns = include
        self.exclude: Patterns = exclude
        self.biases = biases
        self.norms = norms
        self.embeddings = embeddings
        self.optimizer_decay = optimizer_decay
        self.verbose = verbose
        self._hooks = OptimizerHooks()
        self._chosen: dict[Tensor, str] = {}
        self._gradients: dict[Tensor, Tensor] = {}

    def audit(self, module: nn.Module) -> DecayAudit:
        """Return the table of every parameter of `module`: regularised by this callback or not, and why."""
        return decay_audit(module, **self._selection())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse, before the first batch, what cannot be done as configured."""
        refuse_flat_shards(trainer, pl_module, "WeightDecay")
        self._chosen = self._choose(pl_module)
        self._check_other_instances(trainer, pl_module)
        self._check_sparse_layers(pl_module)
        for optimizer in trainer.optimizers:
            self._check_optimizer(optimizer)
            if self.optimizer_decay == "error":
                self._refuse_decay(optimizer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act from here on: now a checkpoint's weights and optimiser groups are in place."""
        for optimizer in trainer.optimizers:
            self._replace_decay(optimizer)
        self._hooks.remove()
        self._hooks.attach(trainer.optimizers, before=self._before_update, after=self._after_step)
        self._note_left_alone(trainer)
        if self.verbose:
            rank_zero_info(str(self.audit(pl_module)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log penalty, norm and sparsity of the chosen weights at the steps at which the loss is logged."""
        if not should_log(trainer, pl_module):
            return
        weights = [parameter.detach() for parameter in self._chosen]
        prefix = log_prefix(trainer, self, "weight_decay")
        half_square = l2_penalty(weights, 1.0)
        scalars = {
            f"{prefix}/penalty": self.weight_decay * half_square,
            f"{prefix}/weight_norm": (2 * half_square).sqrt(),
        }
        if self.l1:
            scalars[f"{prefix}/penalty"] += l1_penalty(weights, self.l1)
            scalars[f"{prefix}/sparsity"] = sparsity(weights)
        log_scalars(trainer, scalars)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the optimisers as they were."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimisers as they were."""
        self._detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimisers as they were."""
        self._detach()

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle the settings; parameters belong to the running fit."""
        return self.__dict__ | {"_chosen": {}, "_gradients": {}}

    def _detach(self) -> None:
        self._hooks.remove()
        self._chosen = {}
        self._gradients = {}

    def _before_update(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Decay between backward and update: after the closure, in which Lightning runs both passes, or at once without one."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._act(optimizer)
            return None
        acted = False

        def closure_then_decay() -> Any:
            nonlocal acted
            loss = closure()
            if not (acted and self.decoupled):
                acted = True
                self._act(optimizer)
            if isinstance(optimizer, LBFGS) and loss is not None:  # the line search compares values
                return loss + l2_penalty([parameter.detach() for parameter in self._gradients], self.weight_decay)
            return loss

        if len(args) > 1:
            return (args[0], closure_then_decay, *args[2:]), kwargs
        return args, {**kwargs, "closure": closure_then_decay}

    def _act(self, optimizer: Optimizer) -> None:
        if self.optimizer_decay == "error":
            self._refuse_decay(optimizer)
        else:
            self._replace_decay(optimizer)
        if not self.weight_decay or is_skipped(optimizer):
            return
        if self.decoupled:
            for group, parameters in self._trained(optimizer):
                decay_(parameters, group["lr"] * self.weight_decay)
        else:
            self._couple([parameter for _, parameters in self._trained(optimizer) for parameter in parameters], optimizer)

    def _couple(self, parameters: list[nn.Parameter], optimizer: Optimizer) -> None:
        """Give the optimiser gradients with the L2 term; its own copies come back after the step."""
        loss_scale = getattr(optimizer, "grad_scale", None)  # fused optimisers unscale gradients themselves
        strength = self.weight_decay if loss_scale is None else self.weight_decay * loss_scale
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self._gradients = dict(zip(parameters, gradients, strict=True))
        for parameter, gradient in zip(parameters, add_l2_gradient(gradients, parameters, strength), strict=True):
            parameter.grad = gradient

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient
        self._gradients = {}
        if not self.l1 or is_skipped(optimizer):
            return
        for group, parameters in self._trained(optimizer):
            soft_threshold_(parameters, self._step_size(group) * self.l1)

    def _step_size(self, group: dict[str, Any]) -> float | Tensor:
        """Return how far a constant gradient of 1 moves a weight a step; if coupled, in the long run of SGD's momentum."""
        rate: float | Tensor = group["lr"]
        if group.get("momentum") and not self.decoupled:
            rate = rate * (1 - group.get("dampening", 0)) / (1 - group["momentum"])
        return rate

    def _trained(self, optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], list[nn.Parameter]]]:
        """Yield each group with the chosen parameters that it updates in this step."""
        for group in optimizer.param_groups:
            parameters = [p for p in group["params"] if p in self._chosen and p.requires_grad and p.grad is not None]
            for parameter in parameters:
                if parameter.grad.layout != torch.strided:
                    raise ValueError(_sparse_message(self._chosen[parameter]))
            if parameters:
                yield group, parameters

    def _choose(self, pl_module: LightningModule) -> dict[Tensor, str]:
        return {parameter: name for name, parameter in select(pl_module, **self._selection()).items()}

    def _selection(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("include", "exclude", "biases", "norms", "embeddings")}

    def _decayed_groups(self, optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """Yield groups in which the optimiser itself decays chosen parameters, with their names."""
        for group in optimizer.param_groups:
            if group.get("weight_decay"):
                names = [self._chosen[parameter] for parameter in group["params"] if parameter in self._chosen]
                if names:
                    yield group, names

    def _refuse_decay(self, optimizer: Optimizer) -> None:
        for group, names in self._decayed_groups(optimizer):
            raise ValueError(
                f"WeightDecay: {type(optimizer).__name__} decays {listed(names)} too (weight_decay={group['weight_decay']}), so "
                "they would decay twice; build the optimiser with weight_decay=0 (LitModule(weight_decay=0)), or write "
                "WeightDecay(..., optimizer_decay='replace')"
            )

    def _replace_decay(self, optimizer: Optimizer) -> None:
        for group, names in self._decayed_groups(optimizer):
            others = len(group["params"]) - len(names)
            rank_zero_warn(
                f"WeightDecay: sets weight_decay={group['weight_decay']} to 0 in the {type(optimizer).__name__} group of "
                f"{listed(names)}" + (f" and of {others} parameters that now do not decay" if others else "")
            )
            group["weight_decay"] = 0.0

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        owned = [group for group in optimizer.param_groups if any(parameter in self._chosen for parameter in group["params"])]
        if owned and isinstance(optimizer, LBFGS) and (self.decoupled or self.l1):
            raise ValueError(
                "WeightDecay: LBFGS minimises what its closure returns, which decoupled decay and L1 are not part of; use "
                "WeightDecay(..., decoupled=False) with l1=0, or another optimiser"
            )
        if any("lr" not in group for group in owned) and (self.decoupled or self.l1):
            raise ValueError(
                f"WeightDecay: {type(optimizer).__name__} has no learning rate 'lr' in its groups, which decoupled decay and L1 "
                "multiply with; use WeightDecay(..., decoupled=False) with l1=0"
            )

    def _check_other_instances(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for other in callbacks_of(trainer):
            if isinstance(other, WeightDecay) and other is not self:
                shared = [name for parameter, name in other._choose(pl_module).items() if parameter in self._chosen]
                if shared:
                    raise ValueError(
                        f"WeightDecay: two instances act on {listed(shared)}; separate them with include= and exclude="
                    )

    def _check_sparse_layers(self, pl_module: LightningModule) -> None:
        for module in pl_module.modules():
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse and module.weight in self._chosen:
                raise ValueError(_sparse_message(self._chosen[module.weight]))

    def _note_left_alone(self, trainer: Trainer) -> None:
        owned = {p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        frozen = [name for parameter, name in self._chosen.items() if not parameter.requires_grad]
        absent = [name for parameter, name in self._chosen.items() if parameter.requires_grad and parameter not in owned]
        for names, why in ((frozen, "frozen"), (absent, "in no optimizer")):
            if names:
                rank_zero_info(f"WeightDecay: leaves {listed(names)} alone ({why})")


def _sparse_message(name: str) -> str:
    return (
        f"WeightDecay: {name} has sparse gradients, but decay changes every row at every step; build the layer with sparse=False, "
        "or leave it out with exclude="
    )
