"""Losses that the first updates fling up, and those that a batch of its own kind makes large."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics, InitAuditor
from tests.diagnosis.rules.looking import alarms, mlp, numbers, vectors

RULES = ["lr_too_high", "lr_too_low", "clip_too_small", "dropout_too_high", "bad_data"]


@pytest.mark.parametrize(("lr", "rules"), [(0.05, []), (2.0, ["lr_too_high"])])
def test_a_loss_that_is_flung_up_by_the_first_updates_is_seen(lr: float, rules: list[str]) -> None:
    assert alarms(
        mlp(16, 32, 1), numbers(), nn.functional.mse_loss, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=lr)
    ) == (rules)


class Jumping(nn.Module):
    """Says everything so many times as loud at one step after the other."""

    def __init__(self, *louder: float) -> None:
        super().__init__()
        self.net, self.louder = mlp(16, 32, 4), iter(louder)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x) * (next(self.louder, 1.0) if self.training else 1.0)
        return out


@pytest.mark.parametrize(("louder", "rules"), [((1, 60, 1, 1), []), ((1, 60, 30, 1), ["lr_too_high"])])
def test_a_loss_that_jumps_once_and_is_back_was_not_flung(louder: tuple[float, ...], rules: list[str]) -> None:
    x, y = vectors(128)
    watch = Diagnostics(verbose=False, select=["lr_too_high"])
    trainer = pl.Trainer(max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[watch],
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    module = LitModule(Jumping(*louder), lr=1e-3, loss=nn.functional.cross_entropy, metrics=[])
    trainer.fit(module, DataLoader(TensorDataset(x, y), 32))
    assert [f.rule for f in watch.findings if f.severity == "error"] == rules


def test_a_batch_of_far_larger_targets_than_the_first_is_no_loss_that_was_flung() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(128, 16), torch.randn(128, 2)
    y[32:] *= 10
    data = DataLoader(TensorDataset(x, y), 32)
    watch = Diagnostics(verbose=False, select=["lr_too_high"])
    trainer = pl.Trainer(max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[watch],
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(LitModule(mlp(16, 32, 2), lr=1e-3, loss=nn.functional.mse_loss, metrics=[]), data)
    assert watch.findings == []


def test_a_converged_network_may_jump_below_the_level_of_guessing() -> None:
    net, (x, y) = mlp(16, 32, 1), numbers()
    y = net(x).detach() + 1e-3 * y
    assert alarms(net, (x, y), nn.functional.mse_loss, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.3)) == []


def test_a_later_batch_that_is_not_finite_is_bad_data_and_no_rate() -> None:
    x = torch.randn(256, 8)
    x[40] = torch.nan
    data = DataLoader(TensorDataset(x, torch.randint(2, (256,))), 32)
    watch = Diagnostics(verbose=False, select=RULES)
    trainer = pl.Trainer(max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[watch])  # fmt: skip
    trainer.fit(LitModule(mlp(8, 16, 2), lr=0.1, metrics=[]), data)
    found = [finding for finding in watch.findings if finding.severity != "note"]
    assert [finding.rule for finding in found] == ["bad_data"]
    assert "Batch 1" in found[0].message


@pytest.mark.parametrize(
    ("code", "lr", "rules"),
    [(-999.0, 0.05, ["bad_data"]), (-9.0, 0.05, []), (0.0, 5.0, ["lr_too_high"]), (-9.0, 5.0, ["lr_too_high"])],
)
def test_a_code_that_flings_the_loss_of_its_batch_is_bad_data_and_no_rate(code: float, lr: float, rules: list[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = x.sum(1, keepdim=True)
    x[32:256:7, 3] = code
    watch = Diagnostics(verbose=False, select=RULES)
    trainer = pl.Trainer(max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[watch])  # fmt: skip
    trainer.fit(LitModule(mlp(8, 16, 1), lr=lr, momentum=0.0, loss="mse", metrics=[]), DataLoader(TensorDataset(x, y), 32))
    assert [finding.rule for finding in watch.findings if finding.severity != "note"] == rules


class Pieces(pl.LightningModule):
    """Four updates a batch, each on the next piece of it, whose targets are larger."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(16, 32, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        for factor in (0.3, 1.0, 3.0, 9.0):
            optimizer.zero_grad()
            self.manual_backward(F.mse_loss(self.net(batch[0]), factor * batch[1]))
            optimizer.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def test_losses_of_the_pieces_of_a_batch_are_not_held_against_each_other() -> None:
    watch = InitAuditor(verbose=False)
    loader = DataLoader(TensorDataset(*numbers(128)), 32)
    pl.Trainer(callbacks=[watch], max_steps=16, barebones=True, accelerator="cpu").fit(Pieces(), loader)
    assert "lr_too_high" not in [finding.rule for finding in watch.findings]
