"""The network of the tests of `LayerFreezing`, and how they fit it."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_training import parameter_groups

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
Make = Callable[[list[dict[str, Any]]], Any]


class Net(LightningModule):
    """Batches come from the step alone, so that a resumed run sees the rows that it would have seen."""

    def __init__(self, optimizer: Make | None = None, *, train_calls: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.mid = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.0))
        self.head = nn.Linear(8, 3)
        self.optimizer, self.train_calls = optimizer, train_calls

    def loss(self, seed: int) -> Tensor:
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) + 1
        return nn.functional.cross_entropy(self.head(self.mid(self.body(x))), x[:, :3].argmax(dim=1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.train_calls:
            self.train()
        return self.loss(self.trainer.fit_loop.epoch_loop.total_batch_idx)

    def configure_optimizers(self) -> Any:
        if self.optimizer is not None:
            return self.optimizer(parameter_groups(self, lr=0.05, weight_decay=0.01))
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


class Each(Callback):
    """Call a function after each training batch, and keep what it returns."""

    def __init__(self, function: Callable[[Trainer, LightningModule], Any]) -> None:
        self.function, self.kept = function, []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.kept.append(self.function(trainer, pl_module))


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(before: dict[str, Tensor], after: dict[str, Tensor], prefix: str = "") -> bool:
    return all(torch.equal(tensor, after[name]) for name, tensor in before.items() if name.startswith(prefix))


def trained(_: Trainer, module: LightningModule) -> set[str]:
    return {name.partition(".")[0] for name, p in module.named_parameters() if p.requires_grad}


def fit(net: LightningModule, *callbacks: Callback, batches: int = 5, **options: Any) -> Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    settings = {"max_epochs": 3, "enable_checkpointing": False, **QUIET, **options}
    trainer = Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(net, DataLoader(torch.zeros(batches), batch_size=1), ckpt_path=ckpt_path)
    return trainer
