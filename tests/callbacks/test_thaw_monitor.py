"""A network pretrained on digits 0-4 and thawed on 5-9: too high a rate is named, a right one is not."""

import copy
import functools

import lightning.pytorch as pl
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lit_training import LitModule, replace_head
from lit_training.callbacks import DiagnosisError, Diagnostics, LayerFreezing


@functools.lru_cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None]
    return (images - images.mean()) / images.std(), torch.tensor(bunch.target)


def loader(lowest: int) -> torch.utils.data.DataLoader:
    images, labels = digits()
    chosen = (labels >= lowest) & (labels < lowest + 5)
    data = torch.utils.data.TensorDataset(images[chosen], labels[chosen] - lowest)
    return torch.utils.data.DataLoader(data, 32, shuffle=True, generator=torch.Generator().manual_seed(0))


def trainer(**options) -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, **options)  # fmt: skip


@functools.lru_cache
def pretrained(batch_norm: bool) -> nn.Module:
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(16), nn.BatchNorm2d(32)] if batch_norm else [nn.Identity(), nn.Identity()]
    body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), norms[0], nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(16, 32, 3, padding=1), norms[1], nn.ReLU(), nn.Flatten())  # fmt: skip
    net = nn.Sequential(body, nn.Linear(32 * 16, 5))
    trainer(max_steps=150).fit(LitModule(net, lr=0.02), loader(0))
    return net


def finetune(lr: float, *, batch_norm: bool = False, optimizer=torch.optim.SGD, **options) -> Diagnostics:
    torch.manual_seed(1)
    net = copy.deepcopy(pretrained(batch_norm))
    head = replace_head(net, 5)

    class Finetuned(LitModule):
        def configure_optimizers(self):
            body, last = net[0].parameters(), net[1].parameters()
            momentum = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
            return optimizer([{"params": body, "lr": lr}, {"params": last, "lr": 0.005}], **momentum)

    watch = Diagnostics(verbose=False, **options)
    phases = LayerFreezing([{"train": f"network.{head}"}, {"train": "*", "step": 40}])
    trainer(max_steps=80, callbacks=[watch, phases]).fit(Finetuned(net), loader(5))
    return watch


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("optimizer", "lr"), [(torch.optim.SGD, 0.01), (torch.optim.SGD, 0.03), (torch.optim.Adam, 1e-3)])
def test_a_rate_that_suits_is_silent(batch_norm: bool, optimizer, lr: float) -> None:
    watch = finetune(lr, batch_norm=batch_norm, optimizer=optimizer)
    assert [finding for finding in watch.findings if finding.severity != "note"] == []


@pytest.mark.parametrize(("optimizer", "lr"), [(torch.optim.SGD, 3.0), (torch.optim.Adam, 0.05)])
def test_a_rate_that_destroys_the_body_is_named(optimizer, lr: float) -> None:
    watch = finetune(lr, optimizer=optimizer, select=["pretrained_lr_too_high"])
    (finding,) = watch.findings
    assert finding.where.startswith("network.0.")
    assert finding.step == 60
    assert finding.evidence["moved"] > 0.3
    assert finding.evidence["loss_after"] > 2 * finding.evidence["loss_before"]


def test_it_can_be_ignored_and_can_stop_the_run() -> None:
    assert finetune(3.0, ignore=["*"]).findings == []
    with pytest.raises(DiagnosisError, match="pretrained_lr_too_high"):
        finetune(3.0, select=["pretrained_lr_too_high"], stop_on="warning")
