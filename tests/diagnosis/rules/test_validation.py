"""Validation data beside training data."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics
from lit_training.diagnosis.course import Course
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rules.validation import holds_anyway
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


@pytest.mark.parametrize(("labels", "cause"), [("sorted", []), ("drawn", ["train_val_mismatch"])])
def test_a_folder_of_one_class_is_no_sample_of_the_data(labels: str, cause: list[str]) -> None:
    y = torch.arange(512) % 4
    quiet = torch.randn(512, 6) * torch.tensor([0.05, 1.0, 1.2, 1.4])[y][:, None]
    first = torch.arange(0, 128, 4)
    told = y[first] if labels == "sorted" else y[:32]
    assert found(quiet, y, val=(quiet[first], told)) == cause


def test_a_folder_in_other_units_is_named_all_the_same() -> None:
    y = torch.arange(512) % 4
    x, first = torch.randn(512, 6) + y[:, None] / 2, torch.arange(0, 128, 4)
    assert found(x, y, val=(x[first] - 1, y[first])) == []
    assert found(x, y, val=(255 * x[first] + 100, y[first])) == ["train_val_mismatch"]


@pytest.mark.parametrize(("scale", "cause"), [(1.0, []), (0.25, ["train_val_mismatch"])])
def test_targets_that_training_draws_evenly_are_no_other_units(data, scale: float, cause: list[str]) -> None:
    x, _ = data
    evenly, as_they_are = 6 * torch.rand(512), 6 * torch.rand(64) ** 6
    assert found(x, evenly, val=(x[:64], scale * as_they_are), loss="mse", outputs=1) == cause


class InEuros(LitModule):
    """Scales its outputs to euros, which the targets of validation are in."""

    converts = True

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("error", (250_000 + 80_000 * self(x) if self.converts else self(x)).sub(y).abs().mean())


class Sampler(LitModule):
    """Validates what it draws from noise, in many passes or in one."""

    passes = 8

    def validation_step(self, batch, batch_idx):
        x = 50 * torch.randn_like(batch[0])
        for _ in range(self.passes):
            x = 0.9 * x + 0 * self(x).sum()
        self.log("size", x.abs().mean())


def said(module: LitModule, train: tuple[torch.Tensor, ...], val: tuple[torch.Tensor, ...]) -> list[str]:
    watch = Diagnostics(verbose=False, select=RULES)
    trainer = pl.Trainer(max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[watch])  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*train), 32, shuffle=True), DataLoader(TensorDataset(*val), 32))
    return [finding.rule for finding in watch.findings if finding.severity != "note"]


@pytest.mark.parametrize(("converts", "cause"), [(True, []), (False, ["train_val_mismatch"])])
def test_targets_in_units_that_outputs_are_converted_to_are_meant(data, converts: bool, cause: list[str]) -> None:
    x, y = data[0], torch.randn(512, 1)
    module = InEuros(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)), loss="mse", metrics=[])
    module.converts = converts
    assert said(module, (x, y), (x, 250_000 + 80_000 * y)) == cause


@pytest.mark.parametrize(("passes", "cause"), [(8, []), (1, ["train_val_mismatch"])])
def test_the_noise_that_a_sampler_begins_with_is_no_other_input(data, passes: int, cause: list[str]) -> None:
    module = Sampler(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)), metrics=[])
    module.passes = passes
    assert said(module, data, data) == cause


class Pooled(nn.Module):
    """Tells pictures of all sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize(("crop", "cause"), [(8, []), (16, ["train_val_mismatch"])])
def test_crops_are_no_sample_of_whole_pictures(data, crop: int, cause: list[str]) -> None:
    pictures = 0.3 * torch.randn(512, 1, 16, 16) - 1
    inside = 1 + 0.3 * torch.randn(512, 1, crop, crop)
    assert said(LitModule(Pooled(), metrics=[]), (inside, data[1]), (pictures[:64], data[1][:64])) == cause


@pytest.mark.parametrize(("last", "holds"), [(0.05, True), (0.5, False)])
def test_what_is_learned_and_holds_in_validation_makes_a_note_of_it(last: float, holds: bool) -> None:
    assert Course((1.0, 0.01), (0.9, last), 200, guess=1.0, guess_apart=1.0, samples_apart=128).holds == holds
    assert not Course((1.0, 0.01), (0.9, last), 200).holds


@pytest.mark.parametrize(("wider", "severity"), [(0.6, "note"), (60.0, "error")])
def test_no_section_of_the_data_is_wider_than_they_are(wider: float, severity: str) -> None:
    apart = Finding("train_val_mismatch", "error", message="Another mean.", evidence={"shift": 1.2, "wider": wider})
    assert {(f.rule, f.severity) for f in holds_anyway([Finding("bad_data", "error"), apart])} == {
        ("bad_data", "error"), ("train_val_mismatch", severity)
    }  # fmt: skip


@pytest.mark.parametrize(("wrong", "severity"), [(0.0, "note"), (3.0, "error")])
def test_winter_first_is_a_note_where_validation_ends_well(wrong: float, severity: str) -> None:
    season = 1.5 * torch.linspace(0, 40, 512).sin()[:, None] + 0.2 * torch.randn(512, 6)
    x = season[torch.randperm(512)]
    y = x.mean(1, keepdim=True)
    cold = x[(y < -0.8).squeeze(1)]
    val = torch.cat([cold[:32], x]), torch.cat([cold[:32], x]).mean(1, keepdim=True)
    module = LitModule(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)), loss="mse", lr=0.01, metrics=[])
    watch = Diagnostics(verbose=False, select=RULES)
    trainer = pl.Trainer(max_epochs=8, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[watch])  # fmt: skip
    loaders = DataLoader(TensorDataset(x, y), 32, shuffle=True), DataLoader(TensorDataset(val[0] - wrong, val[1]), 32)
    trainer.fit(module, *loaders)
    assert next(f.severity for f in watch.findings if f.rule == "train_val_mismatch") == severity
