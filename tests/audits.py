"""Networks drawn by a scheme, and what the audit says of them."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lit_training.callbacks import InitAuditor
from tests.nets import NETS, batch_for, loss_for


class Task(LightningModule):
    def __init__(self, net, lr=0.01):
        super().__init__()
        self.net, self.lr, self.losses = net, lr, []

    def training_step(self, batch, batch_idx):
        loss = loss_for(self.net)(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def audited(net, steps=1, lr=0.01):
    auditor, task = InitAuditor(verbose=False), Task(net, lr)
    Trainer(callbacks=[auditor], max_steps=steps, max_epochs=-1, barebones=True, accelerator="cpu").fit(
        task, DataLoader([batch_for(net)], batch_size=None)
    )
    return [finding for finding in auditor.findings if finding.severity != "note"], task.losses


def made(name):
    torch.manual_seed(0)
    return NETS[name]()


def relu_stack(depth=30, width=128):
    parts = [nn.Linear(64, width), nn.ReLU()]
    for _ in range(depth - 1):
        parts += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*parts)


def digits():
    from sklearn.datasets import load_digits

    x = torch.tensor(load_digits().data[:256], dtype=torch.float32)
    return (x - x.mean()) / x.std()
