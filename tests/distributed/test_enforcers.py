"""`WeightDecay` and `MaxNorm` with two processes: the weights of one process, and the norm of whole units."""

import os

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import MaxNorm, WeightDecay


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


class FSDP2(LitModule):
    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        for part in (self.network[0], self.network[2]):
            fully_shard(part, mesh=mesh)
        fully_shard(self.network, mesh=mesh)


class TensorParallel(LitModule):
    def configure_model(self):
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(self.network, self.device_mesh["tensor_parallel"], plan)


def data(rank=0, ranks=1):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 6, generator=g), torch.randint(3, (64,), generator=g)
    return DataLoader(TensorDataset(x[rank::ranks], y[rank::ranks]), batch_size=8 // ranks)


def train(kind, strategy, loader, callbacks, devices=2):
    module = kind(network(), optimizer=torch.optim.SGD, lr=0.3, weight_decay=0)
    options = {"barebones": True, "accelerator": "cpu", "max_epochs": 2, "devices": devices, "use_distributed_sampler": False}
    Trainer(strategy=strategy, callbacks=callbacks(), **options).fit(module, loader)
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in module.network.named_parameters()
    }


def constrained():
    return [MaxNorm(0.3)]


def decayed():
    return [WeightDecay(0.1, l1=0.01), MaxNorm(0.5)]


STRATEGIES = {
    "ddp": (LitModule, lambda: "ddp"),
    "fsdp2": (FSDP2, lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)),
}


@pytest.mark.parametrize("callbacks", [constrained, decayed])
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_end_with_the_weights_of_one(name, callbacks, on_two_ranks):
    kind, strategy = STRATEGIES[name]
    first, second = on_two_ranks(lambda: train(kind, strategy(), data(int(os.environ["LOCAL_RANK"]), 2), callbacks))
    alone = train(LitModule, "auto", data(), callbacks, devices=1)
    for key, value in first.items():
        assert torch.equal(value, second[key])
        assert torch.allclose(value, alone[key], rtol=0, atol=1e-6), key
    assert first["0.weight"].norm(dim=1).max() <= 0.5 * (1 + 1e-6)


def test_the_norm_of_a_unit_split_across_ranks_is_that_of_the_whole(on_two_ranks):
    def run():
        strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)
        return train(TensorParallel, strategy, data(), constrained)

    first, _ = on_two_ranks(run)
    alone = train(LitModule, "auto", data(), constrained, devices=1)
    for key in ("0.weight", "2.weight"):
        assert first[key].norm(dim=1).max() <= 0.3 * (1 + 1e-6)
        assert torch.allclose(first[key], alone[key], atol=1e-6)
