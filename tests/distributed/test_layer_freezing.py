"""`LayerFreezing` on two processes: replicas stay equal to the bit, and equal one process that sees the same rows."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from lit_training.callbacks import Diagnostics, LayerFreezing, Phase, RankConsistency

pytestmark = [pytest.mark.timeout(150), pytest.mark.filterwarnings("ignore")]

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


def test_diagnostics_compares_the_ranks_too(on_two_ranks: Run) -> None:
    def run() -> list[tuple[str, str]]:
        watch = Diagnostics(verbose=False, select=["ranks_diverged"])
        fit("ddp", [BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.1), watch], net=Backbone())
        return [(finding.rule, finding.where) for finding in watch.findings]

    mine, other = on_two_ranks(run)
    assert mine == other
    assert mine[0][0] == "ranks_diverged"


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


class Hooked(Callback):
    """Register a communication hook by hand, as Lightning does only on CUDA, and count its calls."""

    def __init__(self, hook: Any, state: Any) -> None:
        self.hook, self.state, self.calls = hook, state, 0
        self.wrappers: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def counted(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            self.calls += 1
            return self.hook(state, bucket)

        trainer.strategy.model.register_comm_hook(self.state, counted)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.wrappers.append(self.calls)


def test_a_communication_hook_carries_over_to_every_phase(on_two_ranks: Run) -> None:
    def run() -> tuple[list[int], dict[str, Tensor]]:
        hooked = Hooked(allreduce_hook, None)
        return hooked.wrappers, fit("ddp", [LayerFreezing(PHASES), hooked]).steps[-1]

    (calls, mine), (_, other) = on_two_ranks(run)
    assert calls[0] >= 8
    assert calls[1] - calls[0] >= 8
    assert calls[2] - calls[1] >= 8
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_powersgd_begins_its_warm_up_anew_with_the_new_buckets(on_two_ranks: Run) -> None:
    def run() -> tuple[int, dict[str, Tensor]]:
        state = PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=3, min_compression_rate=1)
        trace = fit("ddp", [LayerFreezing([Phase("head"), Phase("*", step=10)]), Hooked(powerSGD_hook, state)], max_steps=20)
        return state.iter, trace.steps[-1]

    (mine, weights), (_, other) = on_two_ranks(run)
    assert mine == 10  # ten steps since the change, of which the hook counts those of its warm-up
    assert all(torch.equal(weights[name], other[name]) for name in weights)


def test_a_parameter_thawed_by_someone_else_is_refrozen_and_ranks_stay_equal(on_two_ranks: Run) -> None:
    class Meddler(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.base.requires_grad_(True)

    def run() -> tuple[list[int], dict[str, Tensor]]:
        trace = fit("ddp", [Meddler(), LayerFreezing([Phase("head"), Phase("*", epoch=2)])])
        return trace.trained, trace.steps[-1]

    (trained, mine), (_, other) = on_two_ranks(run)
    assert trained[0] == 2
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_parameter_that_ddp_does_not_synchronise_is_an_error(on_two_ranks: Run) -> None:
    class Meddler(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.base.requires_grad_(True)

    def run() -> str:
        try:
            fit("ddp", [LayerFreezing([Phase("head")]), Meddler()])
        except RuntimeError as error:
            return str(error)
        return "no error"

    assert all("4 parameters train but DDP synchronises 2" in message for message in on_two_ranks(run))


def test_a_plateau_is_decided_by_rank_0_for_all(on_two_ranks: Run) -> None:
    """Rank 1 sees a metric that always improves; were it to decide for itself, the ranks would wait for each other for ever."""

    def run() -> list[tuple[int, int]]:
        net = Net()
        net.log_value = lambda epoch, rank: 1.0 if rank == 0 else -float(epoch)
        freezing = LayerFreezing([Phase("head"), Phase("*", plateau="val_loss", patience=2)])
        fit("ddp", [freezing], net=net, max_epochs=5)
        return [(change.step, change.phase) for change in freezing.changes]

    assert on_two_ranks(run) == [[(0, 0), (24, 1)]] * 2  # best after epoch 0, then two epochs without improvement


def test_restored_weights_are_the_best_ones_on_all_ranks(on_two_ranks: Run) -> None:
    def run(kind: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        class AtChange(Callback):
            def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
                self.weights = whole(pl_module)

        net = Net(shard=kind == "fsdp2")
        net.log_value = lambda epoch, _: abs(epoch - 1.0)  # best after epoch 1
        freezing = LayerFreezing([Phase("head"), Phase("*", plateau="val_loss", patience=1, restore_best=True)])
        probe = AtChange()
        trace = fit(kind, [freezing, probe], net=net, max_epochs=4)
        return trace.steps[15], trace.steps[23], probe.weights

    for kind in ("ddp", "fsdp2"):
        for best, last, restored in on_two_ranks(run, kind):
            assert not torch.equal(best["head.weight"], last["head.weight"])
            assert torch.equal(best["head.weight"], restored["head.weight"])


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_resuming_in_mid_epoch_within_a_later_phase_equals_the_uninterrupted_run(
    on_two_ranks: Run, tmp_path: Path, kind: str
) -> None:
    phases = [Phase("head"), Phase("top", epoch=1), Phase("*", step=19)]  # the head's momentum waits in the checkpoint

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 12:
                trainer.save_checkpoint(tmp_path / f"{kind}.ckpt")

    class Rows(Net):
        """A loader would begin its epoch anew: take the rows from the step instead."""

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            generator = torch.Generator().manual_seed(2 * self.trainer.global_step + self.trainer.global_rank)
            x = torch.randn(4, 5, generator=generator)
            return nn.functional.cross_entropy(self(x), x[:, :3].argmax(dim=1))

    def run() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        straight = fit(kind, [LayerFreezing(phases), Save()], net=Rows(shard=kind == "fsdp2"))
        resumed = fit(kind, [LayerFreezing(phases)], net=Rows(shard=kind == "fsdp2"), ckpt_path=tmp_path / f"{kind}.ckpt")
        assert len(resumed.steps) == 12
        return straight.steps[-1], resumed.steps[-1]

    for straight, resumed in on_two_ranks(run):
        for name, value in straight.items():
            assert torch.equal(value, resumed[name]), name


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_rank_consistency_is_silent_on_a_healthy_run_with_batch_norm_and_dropout(on_two_ranks: Run, kind: str) -> None:
    def run() -> tuple[list[str], bool]:
        net = Net()
        net.top = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))
        net.shard = kind == "fsdp2"
        watch = RankConsistency(every=1)
        fit(kind, [LayerFreezing(PHASES), watch], net=net)
        return [str(finding) for finding in watch.findings], watch._checked_step == 24

    assert on_two_ranks(run) == [([], True)] * 2


def test_rank_consistency_names_a_buffer_and_a_parameter_that_one_rank_changed_alone(on_two_ranks: Run) -> None:
    class Alone(Callback):
        @torch.no_grad()
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            if trainer.global_rank == 1 and trainer.global_step == 3:
                pl_module.head.bias[1] += 2**-20
                pl_module.mean += 1

    def run() -> tuple[dict[str, float], list[int]]:
        net = Net()
        net.register_buffer("mean", torch.zeros(2, dtype=torch.int64))
        watch = RankConsistency(every=2)
        fit("ddp", [watch, Alone()], net=net, strategy=DDPStrategy(broadcast_buffers=False))
        return watch.diverged, [finding.step for finding in watch.findings]

    for diverged, steps in on_two_ranks(run):
        assert set(diverged) == {"head.bias", "mean"}
        assert diverged["mean"] == 1.0
        assert 0 < diverged["head.bias"] < 1e-3
        assert steps == [4]


def test_gradients_as_views_of_buckets_survive_a_change(on_two_ranks: Run) -> None:
    def run() -> dict[str, Tensor]:
        strategy = DDPStrategy(gradient_as_bucket_view=True, bucket_cap_mb=1e-4)
        return fit("ddp", [LayerFreezing(PHASES)], strategy=strategy).steps[-1]

    mine, other = on_two_ranks(run)
    expected = fit(None, [LayerFreezing(PHASES)]).steps[-1]
    for name, value in expected.items():
        assert torch.equal(mine[name], other[name])
        torch.testing.assert_close(mine[name], value, rtol=0.0, atol=1e-5)
