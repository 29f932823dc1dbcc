"""`Initialize` with two processes: the same weights on both, from the data of both."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lit_training import LitModule
from lit_training.callbacks import Initialize


class Recorder(Initialize):
    """Writes what each rank has after the first step of rate zero."""

    def __init__(self, folder, **kwargs):
        super().__init__(**kwargs)
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        stds = [row.std for row in self.report]
        torch.save(
            (stds, {name: p.detach() for name, p in pl_module.named_parameters()}), self.folder / f"{trainer.global_rank}.pt"
        )


@pytest.mark.parametrize("scheme", ["he", "lsuv", "data_dependent"])
def test_both_ranks_have_the_same_weights_normalised_over_the_joint_batch(scheme, tmp_path):
    data = torch.utils.data.TensorDataset(torch.randn(64, 8) * torch.linspace(0.1, 4, 64)[:, None], torch.randint(3, (64,)))
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    callback = Recorder(tmp_path, scheme=scheme, seed=1, verbose=False)
    trainer = Trainer(max_steps=1, accelerator="cpu", devices=2, strategy="ddp_fork", callbacks=[callback], barebones=True)
    trainer.fit(LitModule(net, lr=0.0, weight_decay=0.0), torch.utils.data.DataLoader(data, batch_size=32))
    (stds, first), (others, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert stds == others
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    if scheme == "lsuv":
        x = data.tensors[0]
        output = nn.functional.linear(x, first["network.0.weight"], first["network.0.bias"])
        assert output.var(correction=0).item() == pytest.approx(1, abs=0.04)
