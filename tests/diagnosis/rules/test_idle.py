"""Optimisers that a loop forgets."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training.callbacks import Diagnostics


class TwoOptimizers(pl.LightningModule):
    """An autoencoder whose halves have an optimiser each, of which some are stepped."""

    def __init__(self, stepped: tuple[int, ...], lr: float = 1e-2, late: int = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), nn.Linear(4, 8)
        self.stepped, self.lr, self.late = stepped, lr, late

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> None:
        loss = nn.functional.mse_loss(self.decoder(self.encoder(batch[0])), batch[0])
        both = self.optimizers()
        for each in both:
            each.zero_grad()
        self.manual_backward(loss)
        for place in self.stepped:
            both[place].step()
        if self.late and batch_idx == self.late:
            both[0].step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.encoder.parameters(), self.lr), torch.optim.Adam(self.decoder.parameters(), 1e-2)]


def findings(module: pl.LightningModule) -> list[tuple[str, str]]:
    watch = Diagnostics(verbose=False)
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[watch])  # fmt: skip
    data = torch.randn(640, 4, generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    trainer.fit(module, DataLoader(TensorDataset(data), 32))
    return [(finding.rule, finding.where) for finding in watch.findings if finding.severity != "note"]


@pytest.mark.parametrize(("stepped", "where"), [((1,), "encoder.0.weight"), ((0,), "decoder.weight")])
def test_an_optimiser_that_is_never_stepped_is_named(stepped: tuple[int, ...], where: str) -> None:
    assert findings(TwoOptimizers(stepped)) == [("no_update", where)]


@pytest.mark.parametrize("module", [TwoOptimizers((0, 1)), TwoOptimizers((1,), lr=0.0), TwoOptimizers((1,), late=7)])
def test_optimisers_that_have_their_turn_or_a_rate_of_zero_are_silent(module: pl.LightningModule) -> None:
    assert findings(module) == []
