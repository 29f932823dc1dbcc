"""Fitting with two processes merges what both see."""

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule, Standardize


class Net(LitModule):
    def __init__(self, folder):
        super().__init__(nn.Linear(3, 2), normalize="fit")
        self.folder = folder

    def on_train_end(self):
        torch.save((self._normalize.mean, self._normalize.std), self.folder / f"{self.global_rank}.pt")


def test_both_ranks_hold_the_statistics_of_all_rows(tmp_path):
    x = torch.randn(33, 3) * 5 + torch.arange(33.0)[:, None]
    loader = DataLoader(TensorDataset(x, torch.randint(2, (33,))), batch_size=4)
    Trainer(max_steps=1, accelerator="cpu", devices=2, strategy="ddp_fork", barebones=True).fit(Net(tmp_path), loader)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    expected = Standardize.fit(x)
    for a, b, whole in zip(first, second, (expected.mean, expected.std), strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a, whole, rtol=1e-6)
