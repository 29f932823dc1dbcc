"""Callback: do all processes still train the same model? The hashes are in `lit_training.fingerprints`."""

from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_training.callbacks.harmless import harmless
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rules.divergence import ranks_diverged
from lit_training.fingerprints import diverged, fingerprints, shared_tensors

__all__ = ["RankConsistency"]


class RankConsistency(Callback):
    """Compare all parameters and buffers across processes, to the bit, and name those that diverged, whoever caused it.

    Each process hashes its tensors on their device, and one small collective (16 bytes a tensor and process) compares the hashes:
    when training starts, and then at every epoch's end or every few steps. With one process it does nothing. Under FSDP2 replicas
    of a shard are compared; a tensor of which each process holds another shard has nothing to be compared with.

    Args:
        every: `"epoch"`, or an interval in optimiser steps.

    Attributes:
        findings: one `ranks_diverged` error for each check that found tensors not reported before.
        diverged: name to largest difference between two processes, nan for what is sharded.

    Raises:
        ValueError: in `__init__`, for another `every`.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> watch = RankConsistency()
        >>> Trainer(max_steps=1, callbacks=[watch], barebones=True, accelerator="cpu").fit(BoringModel())
        >>> watch.findings
        []
    """

    def __init__(self, every: Literal["epoch"] | int = "epoch") -> None:
        if every != "epoch" and (not isinstance(every, int) or every < 1):
            raise ValueError(f"every must be 'epoch' or a number of optimizer steps from 1, got {every!r}")
        self.every = every
        self.findings: list[Finding] = []
        self.diverged: dict[str, float] = {}
        self._checked_step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, also when the same trainer fits twice."""
        self.findings, self.diverged, self._checked_step = [], {}, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare what training starts from."""
        self._check(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare every few steps."""
        if isinstance(self.every, int) and trainer.global_step - self._checked_step >= self.every:
            self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare after each epoch."""
        if self.every == "epoch":
            self._check(trainer, pl_module)

    @harmless
    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._checked_step = trainer.global_step
        if trainer.world_size == 1 or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        tensors = shared_tensors(pl_module, getattr(trainer.strategy.model, "parameters_to_ignore", ()))
        gathered = trainer.strategy.all_gather(fingerprints(list(tensors.values()), pl_module.device))
        names = list(tensors)
        new = [names[i] for i in diverged(gathered.cpu()) if names[i] not in self.diverged]
        differences = {name: _largest_difference(tensors[name]) for name in new}
        self.diverged |= differences
        found = ranks_diverged(differences, trainer.global_step, trainer.world_size)
        self.findings += found
        for finding in found:
            rank_zero_warn(str(finding))


@torch.no_grad()
def _largest_difference(tensor: Tensor) -> float:
    """Return how far apart two processes are in any element; all processes take part."""
    if isinstance(tensor, DTensor):
        return float("nan")
    value = tensor.detach().clone()
    value = torch.view_as_real(value) if value.is_complex() else value
    highest = value.float() if value.dtype == torch.bool else value
    lowest = highest.clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    return float((highest - lowest).abs().max()) if highest.numel() else 0.0
