"""How losses went: overfitted, diverged, validated on something else, and what looks like it and is none."""

import math

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics, LossMonitor
from lit_training.diagnosis.course import Course
from lit_training.diagnosis.rules.course import diverged, overfit_no_regularisation
from lit_training.loss_curve import LossCurve


@pytest.mark.parametrize("steps", [1, 64, 65, 200, 1000])
def test_a_curve_keeps_the_mean_of_each_stretch(steps: int) -> None:
    losses = torch.rand(steps, generator=torch.Generator().manual_seed(0))
    curve = LossCurve()
    for loss in losses:
        curve.note(loss)
    means = curve.means()
    stretch = 2 ** max(math.ceil(math.log2(steps / 64)), 0)
    assert means == pytest.approx([float(part.mean()) for part in losses.split(stretch)], rel=1e-5)
    assert curve.first_broken() is None


def test_a_loss_that_the_module_changes_in_place_afterwards_counts_as_it_was() -> None:
    class Forgetful(LitModule):
        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            self.last = nn.functional.mse_loss(self(batch[0]), batch[1])
            return self.last

        def on_train_batch_end(self, *_: object) -> None:
            self.last.detach().zero_()

    monitor = LossMonitor()
    data = DataLoader(TensorDataset(torch.zeros(8, 2), torch.full((8, 1), 2.0)), batch_size=4)
    trainer = pl.Trainer(max_epochs=1, barebones=True, accelerator="cpu", callbacks=[monitor], accumulate_grad_batches=2)
    trainer.fit(Forgetful(nn.Linear(2, 1, bias=False)), data)
    assert monitor._curve.means() == [4.0, 4.0]


def test_a_curve_knows_the_first_step_that_broke() -> None:
    curve = LossCurve()
    for loss in (1.0, 2.0, math.inf, 1.0, math.nan):
        curve.note(torch.tensor(loss))
    assert curve.first_broken() == 2


@pytest.mark.parametrize(
    ("training", "validation", "rules"),
    [
        ((1.4, 0.4, 0.001), (0.9, 0.8, 1.6), ["overfit_no_regularisation"]),
        ((1.4, 0.4, 0.001), (1.5, 1.4, 1.4), ["overfit_no_regularisation"]),
        ((1.4, 0.4, 0.02), (0.9, 0.8, 0.8), []),  # still at its best
        ((1.4, 0.4, 0.2), (0.9, 0.3, 0.5), []),  # a common gap
        ((1.4, 0.01, 1e-6), (0.01, 1e-4, 2e-4), []),  # tiny on both sides
        ((0.69, 0.1, 0.005), (0.6, 0.5, 0.6), []),  # worse than training, better than guessing
        ((1.1, 0.1, 1e-7), (0.2, 0.13, 1.6), []),  # sure of itself, and mostly right
        ((1.4, 0.4, 0.001), (7.0, 9.0, 16.0), ["train_val_mismatch"]),
        ((1.4, 0.4, 0.001), (math.nan, 1.0), []),
        ((-1.4, -3.0), (0.9, 1.6), []),
        ((1.4,), (0.9,), []),
    ],
)
def test_what_a_gap_between_the_losses_means(training, validation, rules) -> None:
    assert [finding.rule for finding in overfit_no_regularisation(Course(training, validation))] == rules


@pytest.mark.parametrize(
    ("course", "rules"),
    [
        (Course((1.0, 0.5)), []),
        (Course((1.0, 2.5)), []),
        (Course((1.0, 40.0)), ["lr_too_high"]),
        (Course((-1.0, 40.0)), []),
        (Course((1.0, 9.0, math.nan), broken=7), ["lr_too_high"]),
        (Course((1.0, 0.3, math.nan), broken=7), ["nan_loss"]),
        (Course(()), []),
    ],
)
def test_what_a_rise_means(course: Course, rules: list[str]) -> None:
    assert [finding.rule for finding in diverged(course)] == rules


class Validated(LitModule):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


@pytest.mark.parametrize(("noise", "rules"), [(0.5, ["overfit_no_regularisation"]), (0.0, [])])
def test_a_run_that_learns_noise_by_heart_is_told_so(noise: float, rules: list[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(600, 8)
    y = (x[:, 0] > 0).long()
    y = torch.where(torch.rand(600) < noise, torch.randint(2, (600,)), y)
    size = 64 if noise else 500
    net = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 2))
    watch, monitor = Diagnostics(verbose=False), LossMonitor()
    trainer = pl.Trainer(max_steps=400, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[watch, monitor],
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    module = Validated(net, optimizer=torch.optim.Adam, lr=3e-3, metrics=[], weight_decay=0.0)
    loaders = (DataLoader(TensorDataset(x[a:b], y[a:b]), 32, shuffle=a == 0) for a, b in ((0, size), (500, 600)))
    trainer.fit(module, *loaders)
    assert [finding.rule for finding in watch.findings if finding.severity != "note"] == rules
    assert watch.losses is monitor  # adopted, not run twice


@pytest.mark.parametrize(("binary", "expected"), [(False, 4 * 1.0), (True, math.log(2))])
def test_what_a_guess_costs_is_told_from_all_targets_of_either_kind(binary: bool, expected: float) -> None:
    generator = torch.Generator().manual_seed(0)
    signs = torch.tensor([[0.0], [1.0]]).repeat(64, 1) if binary else torch.tensor([[-2.0], [2.0]]).repeat(64, 1)
    data = TensorDataset(torch.randn(128, 3, generator=generator), signs)
    few = TensorDataset(torch.randn(128, 3, generator=generator), signs / 2)
    loss = nn.functional.binary_cross_entropy_with_logits if binary else nn.functional.mse_loss

    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 1)

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            return loss(self.net(batch[0]), batch[1])

        def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
            self.log("val_loss", loss(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    watch = Diagnostics(verbose=False)
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[watch],
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Net(), DataLoader(data, 4), DataLoader(few, 16))
    course = watch.losses._course(trainer)
    quarter = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert course.guess == pytest.approx(expected, rel=1e-3)
    assert course.guess_apart == pytest.approx(quarter if binary else 1.0, rel=1e-3)
    assert course.samples_apart == 128


@pytest.mark.parametrize(("shuffled", "rules"), [(True, ["labels_broken"]), (False, [])])
def test_labels_that_are_smoothed_are_judged_by_what_is_above_their_floor(shuffled: bool, rules: list[str]) -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(4, (1600,), generator=g)
    x = torch.randn(1600, 8, generator=g) + 2 * torch.eye(4, 8)[y]
    y = y[torch.randperm(1600, generator=g)] if shuffled else y
    torch.manual_seed(0)
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    module = LitModule(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), loss=loss, lr=0.01, metrics=[])
    watch = Diagnostics(verbose=False)
    trainer = pl.Trainer(max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[watch])  # fmt: skip
    train, val = (DataLoader(TensorDataset(x[part], y[part]), 50, shuffle=True) for part in (slice(1000), slice(1000, None)))
    trainer.fit(module, train, val)
    course = watch.losses._course(trainer)
    assert [f.rule for f in watch.findings if f.severity != "note"] == rules
    assert course.guess == pytest.approx(math.log(4) - watch.losses.guess.floor, rel=0.01)  # type: ignore[union-attr]
    assert shuffled or course.end < 0.5 * course.guess  # type: ignore[operator]


@pytest.mark.parametrize(("back", "rules"), [(0.95, ["no_update"]), (0.0, [])])
def test_an_average_that_is_written_into_the_weights_undoes_the_updates(back: float, rules: list[str]) -> None:
    class Averaged(LitModule):
        def on_train_start(self) -> None:
            self.average = [p.detach().clone() for p in self.parameters()]

        @torch.no_grad()
        def on_train_batch_end(self, *_: object) -> None:
            for p, mean in zip(self.parameters(), self.average, strict=True):
                p.lerp_(mean, back)

    torch.manual_seed(0)
    monitor, x = LossMonitor(), torch.randn(320, 4)
    module = Averaged(nn.Linear(4, 1), loss="mse_loss", lr=0.1, metrics=[])
    trainer = pl.Trainer(max_epochs=1, barebones=True, accelerator="cpu", callbacks=[monitor])
    trainer.fit(module, DataLoader(TensorDataset(x, x[:, :1]), 16))
    assert [finding.rule for finding in monitor.findings] == rules
