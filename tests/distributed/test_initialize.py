"""`Initialize` with two processes: the same weights on both, from the data of both."""

import os

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

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


class FSDP2(LitModule):
    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        for part in self.network:
            if any(True for _ in part.parameters()):
                fully_shard(part, mesh=mesh)
        fully_shard(self.network, mesh=mesh)


STRATEGIES = {
    "ddp": (LitModule, lambda: "ddp"),
    "fsdp2": (FSDP2, lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)),
}


class Sequence(nn.Module):
    """A layer of each kind whose weights are not one matrix: packed projections, gates, and a convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.attention = nn.Conv1d(1, 8, 3, padding=1), nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm = nn.LSTM(8, 6, batch_first=True)

    def forward(self, x):
        x = self.conv(x[:, None]).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.lstm(x)[0][:, -1]


def initialised(kind, strategy, scheme, options=None, rank=0, ranks=1, seed=1):
    """Return the callback's report and the network's whole weights, from this rank's share of one batch."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 8, generator=g) * torch.linspace(0.1, 4, 32)[:, None], torch.randint(3, (32,), generator=g)
    torch.manual_seed(rank)  # what each rank starts from must not matter
    network = nn.Sequential(Sequence(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    callback = Initialize(scheme, options=options, seed=seed, verbose=False)
    settings = {"barebones": True, "accelerator": "cpu", "max_steps": 1, "use_distributed_sampler": False}
    trainer = Trainer(strategy=strategy, devices=ranks, callbacks=[callback], **settings)
    module = kind(network, optimizer=torch.optim.SGD, lr=0.0, weight_decay=0.0)
    trainer.fit(module, DataLoader(TensorDataset(x[rank::ranks], y[rank::ranks]), batch_size=32 // ranks))
    whole = {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in module.network.named_parameters()
    }
    return [(row.name, row.std) for row in callback.report], whole


@pytest.mark.parametrize(
    ("scheme", "options"), [("he", {}), ("orthogonal", {}), ("lsuv", {}), ("data_dependent", {"between_layers": False})]
)
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_have_the_weights_of_one(name, scheme, options, on_two_ranks):
    kind, strategy = STRATEGIES[name]
    (report, first), (other, second) = on_two_ranks(
        lambda: initialised(kind, strategy(), scheme, options, int(os.environ["LOCAL_RANK"]), 2)
    )
    expected, alone = initialised(LitModule, "auto", scheme, options)
    assert report == other
    assert [row for row, _ in report] == [row for row, _ in expected]
    for key, value in first.items():
        assert torch.equal(value, second[key])
        torch.testing.assert_close(value, alone[key], rtol=1e-4, atol=1e-5)


def test_sharded_weights_follow_the_seed(on_two_ranks):
    def weights(seed):
        kind, strategy = STRATEGIES["fsdp2"]
        return initialised(kind, strategy(), "he", {}, int(os.environ["LOCAL_RANK"]), 2, seed)[1]["1.weight"]

    same, other = on_two_ranks(weights, 1)[0], on_two_ranks(weights, 2)[0]
    assert torch.equal(same, on_two_ranks(weights, 1)[1])
    assert not torch.equal(same, other)


@pytest.mark.parametrize("options", [{}, {"weights": "kmeans"}, {"weights": "pca", "between_layers": False}])
@pytest.mark.parametrize("name", STRATEGIES)
def test_what_depends_on_a_ranks_samples_is_the_same_on_both(name, options, on_two_ranks):
    kind, strategy = STRATEGIES[name]
    (report, first), (other, second) = on_two_ranks(
        lambda: initialised(kind, strategy(), "data_dependent", options, int(os.environ["LOCAL_RANK"]), 2)
    )
    assert report == other
    assert all(torch.equal(value, second[key]) for key, value in first.items())
