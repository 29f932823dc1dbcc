"""`LayerFreezing` on two processes: replicas stay equal to the bit, and equal one process that sees the same rows."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from lit_training.callbacks import LayerFreezing, Phase, RankConsistency

pytestmark = [pytest.mark.timeout(150), pytest.mark.filterwarnings("ignore")]

Run = Callable[..., list[Any]]
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
PHASES = [Phase("head"), Phase(["top", "head"], epoch=1), Phase("*", step=11)]
ROWS, BATCH = 32, 2


class Net(LightningModule):
    """A pretrained backbone (`base`, `top`) and a head; the names that each tool wants are aliases of the same modules."""

    def __init__(self, shard: bool = False, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(8) if norm else nn.LayerNorm(8)
        self.base, self.top, self.head = nn.Linear(5, 8), nn.Sequential(nn.Linear(8, 8), middle, nn.Tanh()), nn.Linear(8, 3)
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


def traced(kind: str | None, accumulate: int = 1) -> tuple[list[dict[str, Tensor]], list[int]]:
    trace = fit(kind, [LayerFreezing(PHASES if accumulate == 1 else [*PHASES[:2], Phase("*", step=3)])], accumulate)
    return trace.steps, trace.trained


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("kind", ["ddp", "ddp_unused", "fsdp2"])
def test_ranks_are_bit_equal_at_every_step_and_equal_one_process(on_two_ranks: Run, kind: str, accumulate: int) -> None:
    (mine, trained), (other, _) = on_two_ranks(traced, kind, accumulate)
    expected, expected_trained = traced(None, accumulate)
    assert trained == expected_trained
    assert len(set(trained)) == 3
    assert len(mine) == len(expected) == 24
    for step, reference in enumerate(expected):
        for name, value in reference.items():
            assert torch.equal(mine[step][name], other[step][name]), (step, name)
            torch.testing.assert_close(mine[step][name], value, rtol=0.0, atol=1e-5, msg=f"{name} at batch {step}")


class Backbone(Net):
    """The same network with the attribute that Lightning's callback wants, and an optimiser of the head alone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(self.base, self.top)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.head.parameters(), lr=0.1, momentum=0.9)


def diverged_under(callback: Callback, net: Net, folder: Path) -> tuple[dict[str, float], list[str], dict[str, Tensor]]:
    watch = RankConsistency()
    net.log_value = lambda epoch, _: float(-epoch)
    trace = fit("ddp", [callback, watch], net=net, default_root_dir=folder, enable_checkpointing=True)
    return watch.diverged, [str(finding) for finding in watch.findings], trace.steps[-1]


def test_rank_consistency_catches_backbone_finetuning_in_the_act(on_two_ranks: Run, tmp_path: Path) -> None:
    def run() -> tuple[dict[str, float], list[str], dict[str, Tensor]]:
        return diverged_under(BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.1), Backbone(), tmp_path)

    check_divergence(on_two_ranks(run))


def test_rank_consistency_catches_finetuning_scheduler_in_the_act(on_two_ranks: Run, tmp_path: Path) -> None:
    fts = pytest.importorskip("finetuning_scheduler")
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text(
        "0:\n  params: ['head.weight', 'head.bias']\n  max_transition_epoch: 1\n"
        "1:\n  params: ['base.*', 'top.*']\n  lr: 0.1\n  max_transition_epoch: 9\n"
    )

    def run() -> tuple[dict[str, float], list[str], dict[str, Tensor]]:
        options = {"ft_schedule": str(schedule), "epoch_transitions_only": True, "restore_best": False}
        return diverged_under(fts.FinetuningScheduler(**options), Filtered(), tmp_path)

    check_divergence(on_two_ranks(run))


class Filtered(Net):
    """An optimiser of what requires a gradient, as finetuning-scheduler asks for."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


def check_divergence(ranks: list[Any]) -> None:
    (diverged, findings, mine), (_, _, other) = ranks
    apart = {name: float((mine[name] - other[name]).abs().max()) for name in mine if not torch.equal(mine[name], other[name])}
    assert {name.partition(".")[0] for name in apart} == {"base", "top"}  # the head's gradients are averaged
    assert max(apart.values()) > 1e-2
    assert set(diverged) == set(apart)
    assert len(findings) == 1
    assert "ERROR ranks_diverged at base.weight: 2 processes hold different values of base.weight" in findings[0]
