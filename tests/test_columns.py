"""What a batch holds, whatever it is kept in."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_training.callbacks import Diagnostics
from lit_training.columns import batch_size_of, leaves_of

X, Y = torch.randn(8, 3), torch.arange(8) % 2
Pair = namedtuple("Pair", "x y")


@dataclass
class Batch:
    x: Tensor
    y: Tensor


class Loads:
    """A batch that knows how to move itself and shows no tensor."""

    __slots__ = ("x", "y")

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y


@pytest.mark.parametrize(
    "batch", [(X, Y), {"x": X, "y": Y}, Pair(X, Y), Batch(X, Y), SimpleNamespace(x=X, y=[Y]), ((X,), {"y": Y})]
)
def test_leaves_are_found_in_any_container(batch) -> None:
    assert [leaf is tensor for leaf, tensor in zip(leaves_of(batch), (X, Y), strict=True)] == [True, True]
    assert batch_size_of(batch) == 8


def test_a_batch_without_tensors_has_no_size() -> None:
    assert batch_size_of(["a", 3]) == batch_size_of(Loads(X, Y)) == 0


@pytest.mark.parametrize("kind", [Batch, Loads])
def test_a_batch_of_the_users_own_is_no_fault(kind: type) -> None:
    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.model(batch.x), batch.y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    rows = [(X[i % 8], Y[i % 8]) for i in range(64)]
    loader = DataLoader(rows, 16, shuffle=True, collate_fn=lambda pairs: kind(*map(torch.stack, zip(*pairs, strict=True))))
    watch = Diagnostics(verbose=False)
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[watch],
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Net(), loader)
    assert [finding.rule for finding in watch.findings if finding.severity != "note"] == []
    assert all(stats.finite for stats in watch.activations.latest.values())
