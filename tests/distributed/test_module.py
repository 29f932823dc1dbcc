"""`LitModule` with two processes: metrics over the samples of both."""

import os

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule


def rows():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    return x, (x.sum(1) > 0.5).long()


def validated(start, stop, **kwargs):
    torch.manual_seed(0)
    x, y = rows()
    loader = DataLoader(TensorDataset(x[start:stop], y[start:stop]), batch_size=4)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "use_distributed_sampler": False}
    return Trainer(**options, **kwargs).validate(LitModule(nn.Linear(4, 2)), loader, verbose=False)[0]


def test_metrics_are_those_of_all_samples_also_when_ranks_hold_different_numbers(on_two_ranks):
    def run():
        start, stop = ((0, 18), (18, 30))[int(os.environ["LOCAL_RANK"])]
        return validated(start, stop, devices=2, strategy="ddp")

    first, second = on_two_ranks(run)
    assert first == second == pytest.approx(validated(0, 30), rel=1e-6)
