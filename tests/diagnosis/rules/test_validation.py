"""Validation data beside training data."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics
from tests.diagnosis.rules.fitting import RULES, found


def test_validation_that_is_scaled_otherwise_is_named(data) -> None:
    x, y = data
    assert found(x, y, val=(255 * x[:64], y[:64])) == ["train_val_mismatch"]
    assert found(x, y, val=(x[:64] + 10, y[:64])) == ["train_val_mismatch"]
    assert found(x, y, val=(1.3 * x[:64] + 0.3, y[:64])) == []


def test_validation_in_the_order_of_time_need_not_look_like_all_of_training(data) -> None:
    _, y = data
    season = 2 * torch.linspace(0, 12, 512).sin()[:, None] + 0.1 * torch.randn(512, 6)
    later = season[100:164]  # one slope of the wave
    assert found(season, y, val=(later + 3, y[:64])) == []
    assert found(season, y, val=(later[torch.randperm(64)] + 3, y[:64])) == ["train_val_mismatch"]
    assert found(season, y, val=(255 * later + 1000, y[:64])) == ["train_val_mismatch"]


def test_other_shares_of_yes_and_no_are_no_other_scale(data) -> None:
    x, _ = data
    train, val = (torch.arange(n) % every == 0 for n, every in ((512, 2), (64, 32)))
    assert found(x, train.float(), val=(x[:64], val.float()), loss="mse", outputs=1) == []
    assert found(x, train.float(), val=(x[:64], 50 * val.float()), loss="mse", outputs=1) == ["train_val_mismatch"]


def test_outliers_alone_are_no_other_scale(data) -> None:
    x, y = data
    amounts = x.clone()
    amounts[:64:16] *= 50
    assert found(x, y, val=(amounts[:64], y[:64])) == []


def test_outliers_that_only_training_has_are_bad_data(data) -> None:
    x, y = data
    glitches = torch.where(torch.rand(x.shape) < 0.03, 500.0, x)
    assert found(glitches, y, val=(x[:64], y[:64])) == ["bad_data"]
    assert found(x.exp().exp().clamp(max=50), y, val=(x[:64].exp().exp().clamp(max=50), y[:64])) == []


@pytest.mark.parametrize(("rows", "cause"), [(16, []), (32, ["train_val_mismatch"])])
def test_few_series_at_levels_of_their_own_are_no_other_offset(data, rows: int, cause: list[str]) -> None:
    levels = torch.linspace(-1.7, 1.7, 32)[torch.randperm(32), None]  # of a standard deviation of 1
    x = (levels + 0.1 * torch.randn(32, 6)).repeat(16, 1)
    apart = levels[torch.randperm(32)[:rows]] + 1.45 + 0.1 * torch.randn(rows, 6)
    assert found(x, data[1], val=(apart, data[1][:rows])) == cause


@pytest.mark.parametrize(("rows", "cause"), [(8, []), (16, ["train_val_mismatch"])])
def test_eight_samples_may_all_be_of_one_kind(data, rows: int, cause: list[str]) -> None:
    levels = torch.tensor([-1.0, 1.0]).repeat(256)[:, None]
    x = levels + 0.1 * torch.randn(512, 6)
    assert found(x, data[1], val=(x[::2][:rows], data[1][:rows])) == cause


class OnlyInTraining(LitModule):
    """Centres pictures of 100 to 110 in one of its two steps."""

    both = False

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0] - 105, batch[1]), batch_idx)

    def validation_step(self, batch, batch_idx):
        return super().validation_step((batch[0] - 105 * self.both, batch[1]), batch_idx)


@pytest.mark.parametrize(("both", "rules"), [(False, ["train_val_mismatch"]), (True, [])])
def test_what_only_the_training_step_does_to_a_batch_is_named(data, both: bool, rules: list[str]) -> None:
    x, y = data
    module = OnlyInTraining(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)), metrics=[])
    module.both = both
    watch = Diagnostics(verbose=False, select=RULES)
    loader = DataLoader(TensorDataset(x / x.std() + 105, y), 32, shuffle=True)
    pl.Trainer(max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
               enable_model_summary=False, callbacks=[watch]).fit(module, loader, loader)  # fmt: skip
    assert [finding.rule for finding in watch.findings if finding.severity != "note"] == rules
    assert not module.network._forward_pre_hooks


def test_the_first_validation_batch_changes_nothing(data) -> None:
    x, y = data
    weights = []
    for callbacks in ([], [Diagnostics(verbose=False)]):
        pl.seed_everything(0, verbose=False)
        module = LitModule(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4)))
        trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                             callbacks=callbacks)  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(x, y), 32, shuffle=True), DataLoader(TensorDataset(x, y), 32))
        weights.append([p.detach().clone() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
