"""A small network that is fine-tuned in phases, on one process or as one of two that see the same rows between them."""

import os
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from lit_training.callbacks import Phase

__all__ = ["PHASES", "Net", "Run", "fit", "whole"]

Run = Callable[..., list[Any]]
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
PHASES = [Phase("head"), Phase(["top", "head"], epoch=1), Phase("*", step=11)]
ROWS, BATCH = 32, 2


class Net(LightningModule):
    """A pretrained backbone (`base`, `top`) and a head; the names that each tool wants are aliases of the same modules."""

    def __init__(self, shard: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base, self.top, self.head = (
            nn.Linear(5, 8),
            nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh()),
            nn.Linear(8, 3),
        )
        self.shard = shard
        self.log_value: Callable[[int, int], float] | None = None

    def configure_model(self) -> None:
        if self.shard and not isinstance(self.base.weight, DTensor):
            mesh = self.device_mesh["data_parallel"]
            for part in (self.base, self.top, self.head):
                fully_shard(part, mesh=mesh)
            fully_shard(self, mesh=mesh)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.top(self.base(x).tanh()))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        if self.log_value is not None:
            self.log("val_loss", self.log_value(self.trainer.current_epoch, self.trainer.global_rank))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


class Trace(Callback):
    """Keep all weights after each batch, and the names of the trained ones."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.trained: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.steps.append(whole(pl_module))
        self.trained.append(sum(p.requires_grad for p in pl_module.parameters()))


def whole(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in [*module.named_parameters(), *module.named_buffers()]
    }


def data(rank: int | None) -> DataLoader:
    """Rows of one of two ranks, or all, so that a joint batch holds the rows of both ranks' batches."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(ROWS, 5, generator=generator), torch.randint(3, (ROWS,), generator=generator)
    rows = torch.arange(ROWS).view(-1, 2, BATCH)
    mine = rows.flatten() if rank is None else rows[:, rank].flatten()
    return DataLoader(TensorDataset(x[mine], y[mine]), batch_size=BATCH * (2 if rank is None else 1))


def strategy_of(kind: str) -> Any:
    if kind == "fsdp2":
        return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    return {"ddp": "ddp", "ddp_unused": "ddp_find_unused_parameters_true"}[kind]


def fit(kind: str | None, callbacks: list[Callback], accumulate: int = 1, *, net: Net | None = None, **options: Any) -> Trace:
    """Train on one process (`kind=None`) or as one of two."""
    rank = None if kind is None else int(os.environ["LOCAL_RANK"])
    trace = Trace()
    settings = {"max_epochs": 3, "enable_checkpointing": False, **QUIET, **options}
    ckpt_path = settings.pop("ckpt_path", None)
    if kind is not None:
        settings |= {"strategy": settings.get("strategy", strategy_of(kind)), "devices": 2, "use_distributed_sampler": False}
    trainer = Trainer(callbacks=[*callbacks, trace], accumulate_grad_batches=accumulate, **settings)
    module = net or Net(shard=kind == "fsdp2")
    trainer.fit(module, data(rank), data(rank), ckpt_path=ckpt_path)
    return trace
