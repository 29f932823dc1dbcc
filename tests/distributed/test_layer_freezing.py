"""`LayerFreezing` on two processes: replicas stay equal to the bit, and equal one process that sees the same rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from lit_training.callbacks import LayerFreezing, Phase
from tests.staged import PHASES, Net, Run, fit, whole

pytestmark = [pytest.mark.timeout(150), pytest.mark.filterwarnings("ignore")]


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


def test_gradients_as_views_of_buckets_survive_a_change(on_two_ranks: Run) -> None:
    def run() -> dict[str, Tensor]:
        strategy = DDPStrategy(gradient_as_bucket_view=True, bucket_cap_mb=1e-4)
        return fit("ddp", [LayerFreezing(PHASES)], strategy=strategy).steps[-1]

    mine, other = on_two_ranks(run)
    expected = fit(None, [LayerFreezing(PHASES)]).steps[-1]
    for name, value in expected.items():
        assert torch.equal(mine[name], other[name])
        torch.testing.assert_close(mine[name], value, rtol=0.0, atol=1e-5)
