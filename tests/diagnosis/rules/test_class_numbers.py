"""The number of a class is no amount: what looks like one, and the integers that are."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics

ALIKE = torch.arange(256) % 8
GRADES = (2 + torch.randn(256, generator=torch.Generator().manual_seed(0))).round().clamp(0, 4).long()
RATINGS = 1 + torch.arange(256) % 5


def said(targets: Tensor, loss=F.mse_loss, outputs: int = 1) -> list[str]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, outputs), *([nn.Flatten(0)] if outputs == 1 else []))
    watch = Diagnostics(verbose=False, select=["wrong_loss"])
    module = LitModule(
        net, loss=lambda output, target: loss(output, target.float() if outputs == 1 else target), lr=0.01, metrics=[]
    )
    data = DataLoader(TensorDataset(torch.randn(256, 6), targets), 32, shuffle=True)
    pl.Trainer(max_steps=8, barebones=True, accelerator="cpu", callbacks=[watch]).fit(module, data)
    return [finding.rule for finding in watch.findings]


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.smooth_l1_loss])
def test_one_output_for_the_number_of_a_class_is_found(loss) -> None:
    assert said(ALIKE, loss) == ["wrong_loss"]


@pytest.mark.parametrize("targets", [GRADES, RATINGS, ALIKE % 3, ALIKE.float()], ids=["grades", "ratings", "three", "floats"])
def test_grades_ratings_few_and_plain_numbers_are_silent(targets: Tensor) -> None:
    assert said(targets) == []


def test_cross_entropy_of_the_same_labels_is_silent() -> None:
    assert said(ALIKE, F.cross_entropy, outputs=8) == []
