"""Fit a small network for some steps, and return what the rules about data and targets say."""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics

RULES = ["labels_broken", "data_not_shuffled", "class_imbalance", "unnormalised_target", "train_val_mismatch", "bad_data"]


def found(x: Tensor, y: Tensor, *, loss="cross_entropy", outputs: int = 4, val=None, steps: int = 12, lr: float = 0.01,
          optimizer=None, **loading) -> list[str]:  # fmt: skip
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, outputs), *([nn.Flatten(0)] if outputs == 1 else [])
    )
    watch = Diagnostics(verbose=False, select=RULES)
    options = {} if optimizer is None else {"optimizer": optimizer}
    trainer = pl.Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[watch])  # fmt: skip
    loading = {"shuffle": True} | loading if "sampler" not in loading else loading
    val_loader = None if val is None else DataLoader(TensorDataset(*val), 32)
    module = LitModule(net, loss=loss, lr=lr, metrics=[], **options)
    trainer.fit(module, DataLoader(TensorDataset(x, y), 32, **loading), val_loader)
    return [finding.rule for finding in watch.findings if finding.severity != "note"]
