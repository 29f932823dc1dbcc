"""Rules about targets on a run of Lightning: each fault, and what looks like it and is none."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics
from tests.diagnosis.rules.fitting import found
from tests.diagnosis.rules.looking import adam, alarms, mlp


def test_healthy_labels_are_silent(data) -> None:
    x, y = data
    assert found(x, y, val=(x[:64], y[:64])) == []


@pytest.mark.parametrize("descending", [False, True])
def test_sorted_labels_are_not_shuffled(data, descending: bool) -> None:
    x, y = data
    order = y.argsort(descending=descending)
    assert found(x[order], y[order], shuffle=False) == ["data_not_shuffled"]
    assert found(x[order], y[order]) == []


def log_cosh(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).cosh().log().mean()


def test_order_is_seen_under_losses_that_are_not_torchs(data) -> None:
    x, _ = data
    y = x.sum(1) + 0.1 * torch.randn(len(x))
    order = y.argsort()
    assert found(x[order], y[order], loss=log_cosh, outputs=1, shuffle=False) == ["data_not_shuffled"]
    assert found(x[order], y[order], loss=log_cosh, outputs=1) == []
    assert found(x, torch.zeros(len(x)), loss=log_cosh, outputs=1) == []  # what all targets being alike means, is not known


def test_blocks_of_two_classes_are_not_shuffled_though_no_batch_is_sorted(data) -> None:
    x, y = data
    y = (torch.arange(512) // 48) % 4
    assert found(x, y, shuffle=False) == ["data_not_shuffled"]


def test_reading_in_order_is_fine_if_the_order_is_random_or_balanced(data) -> None:
    x, y = data
    assert found(x, y, shuffle=False) == []
    assert found(x, torch.arange(512) % 4, shuffle=False) == []


def test_sorted_numbers_are_not_shuffled(data) -> None:
    x, _ = data
    y = x[:, 0].sort().values
    assert found(x, y, loss="mse", outputs=1, shuffle=False) == ["data_not_shuffled"]
    assert found(x, y, loss="mse", outputs=1) == []


def test_labels_that_are_all_alike_are_broken_if_shuffled(data) -> None:
    x, y = data
    assert found(x, torch.zeros_like(y)) == ["labels_broken"]
    assert found(x, torch.zeros_like(y), shuffle=False) == ["data_not_shuffled"]


def test_labels_that_the_loss_ignores_are_broken(data) -> None:
    x, y = data
    mostly = torch.where(torch.arange(512) % 16 == 0, y, -100)
    half = torch.where(torch.arange(512) % 2 == 0, y, -100)
    assert found(x, mostly) == ["labels_broken"]
    assert found(x, half) == []


def test_numbers_that_are_nearly_all_zero_are_broken(data) -> None:
    x, _ = data
    y = x[:, 0]
    assert found(x, (0.2 * y).trunc() * (y > 5), loss="mse", outputs=1) == ["labels_broken"]
    assert found(x, y.clamp_min(float(y.median())), loss="mse", outputs=1) == []


class Plain(pl.LightningModule):
    """A module that is not ours, which refuses nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0))

    def training_step(self, batch, batch_idx):
        return nn.functional.binary_cross_entropy_with_logits(self.layers(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.parametrize(("low", "high", "broken"), [(-1, 1, True), (0, 255, True), (0, 1, False), (0.1, 0.9, False)])
def test_bce_takes_0_to_1(data, low: float, high: float, broken: bool) -> None:
    x, y = data
    watch = Diagnostics(verbose=False, select=["labels_broken"])
    loader = DataLoader(TensorDataset(x, torch.where(y % 2 == 0, low, high).float()), 32)
    pl.Trainer(max_steps=6, barebones=True, accelerator="cpu", callbacks=[watch]).fit(Plain(), loader)
    assert [finding.rule for finding in watch.findings] == ["labels_broken"] * broken


def test_yes_or_no_that_was_divided_once_more_is_no_answer_but_small_shares_are(data) -> None:
    x, y = data
    bce = {"loss": F.binary_cross_entropy_with_logits, "outputs": 1}
    assert found(x, (y > 1).float() / 255, **bce) == ["labels_broken"]
    assert found(x, 0.04 * torch.rand(512) * (y > 1), **bce) == []


def test_a_sorted_set_that_begins_with_one_class_and_a_few_of_the_next_is_not_shuffled(data) -> None:
    x, y = data
    y = (torch.arange(512) >= 122).long()
    assert found(x, y, shuffle=False, outputs=2) == ["data_not_shuffled"]
    y = (torch.arange(512) % 16 == 3).long()
    assert found(x, y, shuffle=False, outputs=2) == ["class_imbalance"]


def test_numbers_are_nothing_for_bce() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(256, 6), torch.randn(256)
    watch = Diagnostics(verbose=False)
    trainer = pl.Trainer(max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[watch])  # fmt: skip
    asks = lambda output, target: nn.functional.binary_cross_entropy_with_logits(output, target)  # noqa: E731
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0))
    trainer.fit(
        LitModule(net, loss=asks, lr=0.01, metrics=[]),
        DataLoader(TensorDataset(x, y), 32),
    )
    assert next(finding.rule for finding in watch.findings if finding.severity != "note") == "wrong_loss"


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = mlp(16, 32, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.tower(x), self.tower(x.flip(0))


@pytest.mark.parametrize("low", [-1, 0])
def test_a_loss_for_one_and_minus_one_takes_no_notice_of_zeros(low: int) -> None:
    x, y = torch.randn(64, 16), torch.where(torch.arange(64) % 2 == 0, 1, low)
    said = alarms(Pair(), (x, y), lambda pair, y: F.cosine_embedding_loss(*pair, y), optimizer=adam)
    assert ("labels_broken" in said) == (low == 0)
