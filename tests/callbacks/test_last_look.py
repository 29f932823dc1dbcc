"""What the end of a run tells about bodies that were frozen at its start."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training.callbacks import Diagnostics
from lit_training.diagnosis.modules import left_out_norms


class Body(pl.LightningModule):
    """A body and a head; the optimiser holds what `held` says of a parameter's name."""

    def __init__(self, *held: str, thaws: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = nn.Sequential(nn.Linear(8, 32), nn.ReLU()), nn.Linear(32, 2)
        self.held, self.thaws = held, thaws

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.head(self.backbone(batch[0])).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Have all gradients cleared, as Lightning does at every validation."""

    def on_train_epoch_start(self) -> None:
        if self.thaws and self.current_epoch == 1:
            self.backbone.requires_grad_(True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((p for name, p in self.named_parameters() if name.startswith(self.held)), lr=0.1)


def found(module: Body, *callbacks: pl.Callback, expect_frozen: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    data = DataLoader(TensorDataset(torch.randn(64, 8)), batch_size=16)
    watch = Diagnostics(
        verbose=False, select=["frozen_by_accident", "not_in_optimizer", "bn_stats"], expect_frozen=expect_frozen
    )
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
                         callbacks=[*callbacks, watch], enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, data, data)
    return [(f.rule, f.where) for f in watch.findings if f.severity == "error"]


@pytest.mark.parametrize(
    ("held", "said"), [(["head"], [("not_in_optimizer", "backbone.0.weight")]), (["head", "backbone"], [])], ids=str
)
def test_what_is_thawed_during_the_run_is_to_be_in_an_optimiser(held: list[str], said: list[tuple[str, str]]) -> None:
    module = Body(*held, thaws=True)
    module.backbone.requires_grad_(False)
    assert found(module, expect_frozen=("backbone",)) == said


@pytest.mark.parametrize(
    ("epoch", "expect", "said"),
    [(10, (), [("frozen_by_accident", "backbone.0.weight")]), (1, (), []), (10, ("backbone",), [])],
)
def test_a_random_body_that_is_never_thawed_is_told(epoch: int, expect: tuple[str, ...], said: list[tuple[str, str]]) -> None:
    thaw = pl.callbacks.BackboneFinetuning(epoch, lambda_func=lambda _: 1.0, backbone_initial_ratio_lr=1.0)
    assert found(Body("head"), thaw, expect_frozen=expect) == said


class Averaging(Body):
    """Keeps a running average of a body with batch norm; of its buffers, too, or not."""

    def __init__(self, buffers: bool) -> None:
        super().__init__("backbone", "head")
        self.backbone = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.average, self.buffers_too = copy.deepcopy(self.backbone).requires_grad_(False), buffers

    @torch.no_grad()
    def on_train_batch_end(self, *_: object) -> None:
        for mine, its in zip(self.average.parameters(), self.backbone.parameters(), strict=True):
            mine.lerp_(its, 0.5)
        for mine, its in zip(self.average.buffers(), self.backbone.buffers(), strict=True):
            if self.buffers_too:
                mine.copy_(its)


@pytest.mark.parametrize(("buffers", "said"), [(True, []), (False, [("bn_stats", "average.1")])])
def test_an_average_is_to_hold_the_statistics_too(buffers: bool, said: list[tuple[str, str]]) -> None:
    assert found(Averaging(buffers), expect_frozen=("average",)) == said


def test_torchs_own_averages_get_theirs_in_the_end() -> None:
    average = torch.optim.swa_utils.AveragedModel(nn.Sequential(nn.BatchNorm1d(3)))
    average.requires_grad_(False)
    average.module[0].weight.copy_(torch.tensor([0.8, 0.9, 1.1]))
    average.module[0].bias.fill_(0.1)
    parts = list(average.named_modules())
    assert left_out_norms(parts) == ()
    assert left_out_norms([(name, part) for name, part in parts if part is not average]) == ("module.0",)
