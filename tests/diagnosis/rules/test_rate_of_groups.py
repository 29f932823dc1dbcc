"""A group of parameters whose rate is far below that of others: of a fresh body, or of one that was trained."""

from collections.abc import Callable

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics
from tests.diagnosis.rules.looking import mlp


def in_groups(body: float, optimizer: type[torch.optim.Optimizer], change: Callable[[nn.Module], object] = len) -> list[str]:
    """What is said of a net whose body has a rate of its own beside the head's, and was changed first."""
    net = mlp(8, 32, 32, 2)
    change(net[:4])
    watch = Diagnostics(verbose=False, select=["lr_too_low"])

    class Grouped(LitModule):
        def configure_optimizers(self):
            head = 0.1 if optimizer is torch.optim.SGD else 1e-2
            return optimizer([{"params": net[:4].parameters(), "lr": body}, {"params": net[4].parameters(), "lr": head}])

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.should_stop = self.global_step > 5

    trainer = pl.Trainer(max_steps=200, min_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, callbacks=[watch])  # fmt: skip
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    trainer.fit(Grouped(net, metrics=[]), DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), 32))
    return [finding.where for finding in watch.findings]


def shift_a_little(body: nn.Module) -> None:
    """Do what a short training does: weights leave the bounds that they were drawn in."""
    for parameter in body.parameters():
        parameter.data.add_(1e-2 * torch.randn_like(parameter))


@pytest.mark.parametrize(
    ("optimizer", "rate", "where"),
    [
        (torch.optim.Adam, 1e-5, ["network.0.weight"]),
        (torch.optim.Adam, 5e-4, []),
        (torch.optim.Adam, 0.0, []),
        (torch.optim.SGD, 1e-5, ["network.0.weight"]),
        (torch.optim.SGD, 1e-3, []),
    ],
)
def test_a_fresh_body_whose_group_cannot_move_it_is_named(optimizer, rate: float, where: list[str]) -> None:
    assert in_groups(rate, optimizer) == where
    assert in_groups(rate, optimizer, shift_a_little) == []


@pytest.mark.parametrize(("biases", "where"), [(nn.init.zeros_, ["network.0.weight"]), (nn.init.normal_, [])])
def test_weights_drawn_without_bounds_count_while_their_biases_are_zero(biases, where: list[str]) -> None:
    def draw(body: nn.Module) -> None:
        for layer in (body[0], body[2]):
            nn.init.kaiming_normal_(layer.weight)
            biases(layer.bias)

    assert in_groups(1e-5, torch.optim.Adam, draw) == where
