"""`LayerFreezing` beside Lightning's `BackboneFinetuning` and finetuning-scheduler: equal where they are right, and where not.

How far their processes drift apart is in `tests/distributed`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lit_training.callbacks import LayerFreezing, Phase

pytestmark = pytest.mark.filterwarnings("ignore")
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
PHASES = [Phase("head"), Phase("*", epoch=1)]


class Net(LightningModule):
    def __init__(self, *, norm: bool = False, head_only: bool = False, filtered: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        self.head_only, self.filtered = head_only, filtered

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.backbone(batch)), batch[:, :3].argmax(dim=1))

    def validation_step(self, batch: Tensor, _: int) -> None:
        self.log("val_loss", -float(self.trainer.current_epoch))

    def configure_optimizers(self) -> Optimizer:
        wanted = self.head.parameters() if self.head_only else self.parameters()
        return torch.optim.SGD([p for p in wanted if p.requires_grad or not self.filtered], lr=0.1, momentum=0.9)


def fit(net: LightningModule, *callbacks: Callback, folder: Path | None = None, **options: Any) -> Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    rows = torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
    settings = {"max_epochs": 3, "enable_checkpointing": folder is not None, "default_root_dir": folder, **QUIET, **options}
    trainer = Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(net, DataLoader(rows, batch_size=4), DataLoader(rows, batch_size=24), ckpt_path=ckpt_path, weights_only=False)
    return trainer


def backbone_finetuning() -> BackboneFinetuning:
    return BackboneFinetuning(1, lambda_func=lambda _: 1.0, backbone_initial_lr=0.1, should_align=False)


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_on_the_same_schedule_the_weights_equal_those_of_backbone_finetuning() -> None:
    ours, theirs = Net(), Net(head_only=True)
    fit(ours, LayerFreezing(PHASES))
    fit(theirs, backbone_finetuning())
    assert torch.equal(weights(ours), weights(theirs))


def test_on_the_same_schedule_the_weights_equal_those_of_finetuning_scheduler(tmp_path: Path) -> None:
    fts = pytest.importorskip("finetuning_scheduler")
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text(
        "0:\n  params: ['head.*']\n  max_transition_epoch: 1\n1:\n  params: ['backbone.*']\n  max_transition_epoch: 3\n  lr: 0.1\n"
    )
    ours, theirs = Net(), Net(filtered=True)
    fit(ours, LayerFreezing(PHASES))
    fit(
        theirs,
        fts.FinetuningScheduler(ft_schedule=str(schedule), epoch_transitions_only=True, restore_best=False),
        folder=tmp_path,
    )
    assert torch.equal(weights(ours), weights(theirs))


def test_resuming_does_not_freeze_again_what_was_thawed(tmp_path: Path) -> None:
    """`BackboneFinetuning` freezes the backbone in `setup` and thaws it at one epoch alone (Lightning issue 21901)."""
    thawed = {}
    for name, make, head_only in [("ours", lambda: LayerFreezing(PHASES), False), ("theirs", backbone_finetuning, True)]:
        path = tmp_path / f"{name}.ckpt"
        fit(Net(head_only=head_only), make(), max_epochs=2).save_checkpoint(path)
        resumed = Net(head_only=head_only)
        fit(resumed, make(), ckpt_path=path)
        thawed[name] = all(p.requires_grad for p in resumed.backbone.parameters())
    assert thawed == {"ours": True, "theirs": False}


def test_parameters_of_equal_values_are_not_taken_for_each_other() -> None:
    """`BackboneFinetuning` asks by value whether the optimizer has a parameter: two biases of zeros are one to it."""
    moved = {}
    for name, callback, head_only in [("ours", LayerFreezing(PHASES), False), ("theirs", backbone_finetuning(), True)]:
        net = Net(head_only=head_only)
        for layer in (net.backbone[3], net.head[0]):
            nn.init.zeros_(layer.bias).requires_grad_(True)
        net.head[0].bias.register_hook(lambda gradient: gradient * 0)  # still zero when the backbone thaws
        fit(net, callback)
        moved[name] = bool(net.backbone[3].bias.abs().max() > 0)
    assert moved == {"ours": True, "theirs": False}


def test_frozen_batch_norm_uses_its_statistics_not_those_of_the_batch() -> None:
    """`BaseFinetuning.freeze` sets `track_running_stats=False`, so that a row's features depend on the rows beside it."""

    class Freeze(BaseFinetuning):
        def freeze_before_training(self, pl_module: LightningModule) -> None:
            self.freeze(pl_module.backbone, train_bn=False)

        def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None: ...

    class Probe(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            rows = torch.randn(4, 5, generator=torch.Generator().manual_seed(7))
            apart, together = pl_module.backbone(rows)[:2], pl_module.backbone(rows[:2])
            self.independent = torch.allclose(apart, together, atol=1e-6)

    independent = {}
    for name, callback in [("ours", LayerFreezing([Phase("head")])), ("theirs", Freeze())]:
        probe = Probe()
        fit(Net(norm=True), callback, probe, max_epochs=1)
        independent[name] = probe.independent
    assert independent == {"ours": True, "theirs": False}


def test_a_backbone_stays_in_the_one_optimizer_that_it_was_given_to() -> None:
    """`BackboneFinetuning` adds it to each optimizer, which then take turns at it."""

    class Two(Net):
        def __init__(self, *, backbone_too: bool) -> None:
            super().__init__()
            self.automatic_optimization, self.backbone_too = False, backbone_too

        def configure_optimizers(self) -> list[Optimizer]:
            first = [*self.head[0].parameters(), *(self.backbone.parameters() if self.backbone_too else ())]
            return [torch.optim.SGD(first, lr=0.1), torch.optim.SGD(self.head[2].parameters(), lr=0.1)]

        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            loss = super().training_step(batch, batch_idx)
            self.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()

    owners = {}
    for name, callback, net in [
        ("ours", LayerFreezing(PHASES), Two(backbone_too=True)),
        ("theirs", backbone_finetuning(), Two(backbone_too=False)),
    ]:
        trainer = fit(net, callback)
        owned = [{p for group in optimizer.param_groups for p in group["params"]} for optimizer in trainer.optimizers]
        owners[name] = sum(net.backbone[0].weight in parameters for parameters in owned)
    assert owners == {"ours": 1, "theirs": 2}
