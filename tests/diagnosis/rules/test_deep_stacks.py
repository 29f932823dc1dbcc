"""Thirty layers, as in the lecture: who is named, and who is not."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training.callbacks import InitAuditor

INITS = {
    "normal0.01": lambda w: nn.init.normal_(w, std=0.01),
    "glorot": nn.init.xavier_normal_,
    "he": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "default": lambda w: w,
}


class Deep(LightningModule):
    def __init__(self, init, activation=nn.ReLU, scaled=None):
        super().__init__()
        torch.manual_seed(0)
        parts = [nn.Linear(64, 128), activation()]
        for _ in range(28):
            parts += [nn.Linear(128, 128), activation()]
        self.net = nn.Sequential(*parts, nn.Linear(128, 10))
        with torch.no_grad():
            for layer in self.net[::2]:
                INITS[init](layer.weight)
                if init != "default":
                    layer.bias.zero_()
            if scaled is not None:
                self.net[scaled].weight.mul_(10)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    x = torch.tensor(bunch.data, dtype=torch.float32)
    return DataLoader(TensorDataset((x - x.mean()) / x.std(), torch.tensor(bunch.target)), batch_size=64)


def alarms(module, digits):
    auditor = InitAuditor(verbose=False)
    Trainer(callbacks=[auditor], max_steps=1, barebones=True, accelerator="cpu").fit(module, digits)
    return [(finding.rule, finding.where) for finding in auditor.findings if finding.severity != "note"]


@pytest.mark.parametrize("init", ["normal0.01", "default", "glorot"])
def test_the_first_bad_layer_is_named(init, digits):
    found = alarms(Deep(init), digits)
    assert found[0][0] == "init_vanishing"
    assert found[0][1] in ("net.0", "net.2")  # the first layer's own scale depends on the inputs'


@pytest.mark.parametrize(("init", "activation"), [("he", nn.ReLU), ("glorot", nn.Tanh)])
def test_what_suits_the_nonlinearity_is_silent(init, activation, digits):
    assert alarms(Deep(init, activation), digits) == []


@pytest.mark.parametrize("scaled", [2, 20, 40])
def test_a_block_ten_times_too_large_is_named(scaled, digits):
    assert ("init_exploding", f"net.{scaled}") == alarms(Deep("he", scaled=scaled), digits)[0]
