"""Fingerprints of tensors: one number that changes with any bit, cheap enough to compare a model across processes."""

from collections.abc import Collection
from functools import reduce

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.parameter import is_lazy

from lit_training.selection import classify, clean_names

__all__ = ["diverged", "fingerprint", "fingerprint_all", "fingerprints", "shared_tensors"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 2**20


@torch.no_grad()
def fingerprint(tensor: Tensor) -> Tensor:
    """Return a 64-bit hash of a tensor's bits as a tensor on its device, without waiting for it.

    The sum of the elements' bit patterns, each times its own odd number, modulo 2^64. A change of one element always changes
    it (an odd factor is invertible), any other change does but for about one chance in 2^64; order counts, as does the sign of 0.

    Args:
        tensor: any shape and dtype.

    Returns:
        A scalar, int64.

    >>> a = torch.arange(6.0)
    >>> bool(fingerprint(a) == fingerprint(a.clone())), bool(fingerprint(a) == fingerprint(a.flip(0)))
    (True, False)
    """
    bits = _bits(tensor.detach())
    return _hash(bits, _odd(min(_CHUNK, len(bits)), tensor.device))


@torch.no_grad()
def fingerprint_all(tensors: Collection[Tensor], device: torch.device, *, quick: bool = False) -> Tensor:
    """Return the `fingerprint` of each tensor on one device, `[tensors]`, with one set of odd numbers for all.

    Args:
        tensors: any shapes and dtypes.
        device: where to put the result.
        quick: compute modulo 2^32 where elements have no more than 32 bits: a quarter of the time, and one chance in 2^32 to miss
            a change of several elements.

    >>> a = torch.arange(3.0)
    >>> (fingerprint_all([a, a], a.device) == fingerprint(a)).tolist()
    [True, True]
    """
    if not tensors:
        return torch.zeros(0, dtype=torch.int64, device=device)
    bits = [_bits(tensor.detach()) for tensor in tensors]
    longest = min(_CHUNK, max(b.numel() for b in bits))
    kinds = [(b.device, torch.int32 if quick and b.element_size() <= 4 else torch.int64) for b in bits]
    odd = {kind: _odd(longest, *kind) for kind in set(kinds)}
    return torch.stack([_hash(b, odd[kind]).to(device, torch.int64) for b, kind in zip(bits, kinds, strict=True)])


def _bits(tensor: Tensor) -> Tensor:
    """Return the bits of a tensor's elements as integers, `[elements]`."""
    flat = tensor.contiguous().flatten()
    flat = torch.view_as_real(flat).flatten() if flat.is_complex() else flat
    return flat.view(_INTEGERS[flat.element_size()])


def _odd(count: int, device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.arange(1, 2 * max(count, 1), 2, device=device, dtype=dtype)


def _hash(bits: Tensor, odd: Tensor) -> Tensor:
    chunks = bits.split(_CHUNK) if bits.numel() > _CHUNK else (bits,)
    first, *others = (_dot(chunk.to(odd.dtype), odd[: chunk.numel()]) for chunk in chunks)
    return reduce(lambda total, part: total * 1664525 + part, others, first)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of products of integers; on a CPU without memory for the products, which torch has not elsewhere."""
    return torch.dot(a, b) if a.device.type == "cpu" else (a * b).sum(dtype=a.dtype)


def shared_tensors(module: nn.Module, ignored: Collection[str] = ()) -> dict[str, Tensor]:
    """Return what should be the same on all processes of data-parallel training, by name.

    That is all parameters and buffers but the running statistics of norms in train mode, which each process takes from its own
    batches (DDP hands out those of rank 0 at the next forward pass; SyncBatchNorm's are joint and are returned), what is in
    `ignored`, and what has no shape yet. Of a sharded tensor (DTensor) the local part is returned.

    >>> list(shared_tensors(nn.BatchNorm1d(2))), list(shared_tensors(nn.BatchNorm1d(2).eval()))
    (['weight', 'bias'], ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'])
    """
    tensors: dict[str, Tensor] = {info.name: info.parameter for info in classify(module)}
    for path, part in clean_names(module):
        running = getattr(part, "running_mean", None) is not None and part.training
        if running and not isinstance(part, nn.SyncBatchNorm):
            continue
        for leaf, buffer in part.named_buffers(recurse=False):
            tensors[f"{path}.{leaf}" if path else leaf] = buffer
    return {name: tensor for name, tensor in tensors.items() if name not in ignored and not is_lazy(tensor)}


def fingerprints(tensors: Collection[Tensor], device: torch.device) -> Tensor:
    """Return the fingerprint of each tensor and which shard of it this process holds: `[tensors, 2]`, int64.

    >>> fingerprints([torch.zeros(3)], torch.device("cpu"))
    tensor([[0, 0]])
    """
    shards = torch.tensor([_shard(tensor) for tensor in tensors], dtype=torch.int64, device=device)
    return torch.stack([fingerprint_all([_local(tensor) for tensor in tensors], device), shards], 1)


def diverged(gathered: Tensor) -> list[int]:
    """Return the indices of the tensors of which two processes hold different versions of the same shard.

    Args:
        gathered: `[processes, tensors, 2]`, the `fingerprints` of all processes.

    >>> diverged(torch.tensor([[[7, 0], [1, 0], [3, 0]], [[7, 0], [2, 0], [4, 1]]]))
    [1]
    """
    suspects = (gathered[..., 0] != gathered[:1, :, 0]).any(dim=0).nonzero().flatten().tolist()
    return [i for i in suspects if len(torch.unique(gathered[:, i], dim=0)) > len(torch.unique(gathered[:, i, 1]))]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _shard(tensor: Tensor) -> int:
    """Number the shard that this process holds; replicas have the same number."""
    number = 0
    if isinstance(tensor, DTensor):
        mesh = tensor.device_mesh
        for place, size, placement in zip(mesh.get_coordinate() or (), mesh.shape, tensor.placements, strict=False):
            number = number * size + (0 if isinstance(placement, Replicate) else place)
    return number
