"""Copies of weights on the CPU, also of sharded ones, and the way back."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_training.selection import classify

__all__ = ["restore_snapshot", "take_snapshot"]


@torch.no_grad()
def take_snapshot(module: nn.Module, parameters: Collection[str]) -> dict[str, Tensor]:
    """Copy the named parameters, and all buffers that a checkpoint holds, to the CPU.

    Sharded parameters (DTensor) are gathered, so that the copy is the same on all ranks: call it on all of them.

    >>> sorted(take_snapshot(nn.BatchNorm1d(2), ["weight"]))
    ['num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """
    return {name: _whole(tensor).detach().cpu().clone() for name, tensor in _tensors(module, parameters).items()}


@torch.no_grad()
def restore_snapshot(module: nn.Module, snapshot: Mapping[str, Tensor]) -> None:
    """Write a copy from `take_snapshot` back, to each tensor's own device and shards; call it on all ranks.

    >>> norm = nn.BatchNorm1d(2)
    >>> before = take_snapshot(norm, ["weight"])
    >>> _ = nn.init.zeros_(norm.weight)
    >>> restore_snapshot(norm, before)
    >>> norm.weight.tolist()
    [1.0, 1.0]
    """
    for name, tensor in _tensors(module, snapshot).items():
        saved = snapshot[name].to(tensor.device)
        if isinstance(tensor, DTensor):
            saved = distribute_tensor(saved, tensor.device_mesh, tensor.placements)
        tensor.copy_(saved)


def _tensors(module: nn.Module, parameters: Collection[str]) -> dict[str, Tensor]:
    kept = module.state_dict()
    chosen = {info.name: info.parameter for info in classify(module) if info.name in parameters}
    return chosen | {name: buffer for name, buffer in module.named_buffers() if name in kept}


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
