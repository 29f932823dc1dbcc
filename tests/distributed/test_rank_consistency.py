"""`RankConsistency` on two processes: it names what drifts apart, in the act, and is silent on healthy runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lit_training.callbacks import Diagnostics, LayerFreezing, RankConsistency
from tests.staged import PHASES, Net, Run, fit

pytestmark = [pytest.mark.timeout(150), pytest.mark.filterwarnings("ignore")]


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
