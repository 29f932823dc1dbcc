"""A tensor as samples times columns: what statistics over the batch are taken of."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["MAX_COLUMNS", "as_columns", "batch_size_of", "leaves_of", "real", "some_elements"]

MAX_COLUMNS = 1024
_PRIMES = (
    2,
    3,
    5,
    7,
    11,
    13,
    17,
    19,
    23,
    29,
    31,
    37,
    41,
    43,
    47,
    53,
    59,
    61,
    67,
    71,
    73,
    79,
    83,
    89,
    97,
    101,
    103,
    107,
    109,
    113,
    127,
)


def as_columns(tensor: Tensor, batch_size: int) -> Tensor:
    """Return a tensor as `[samples, columns]` in float32 or wider, with at most about a thousand columns.

    Of more columns every p-th is taken, with a prime p that divides no dimension, so that no unit or position is favoured (a stride
    that divides the shape is off by 35-87 %, a prime one as good as random).

    Args:
        tensor: `[batch, ...]`, or `[batch * positions, ...]` as a linear layer flattens sequences.
        batch_size: number of samples; where it does not divide the tensor, the first dimension counts as the batch.

    >>> as_columns(torch.zeros(6, 5), batch_size=2).shape
    torch.Size([2, 15])
    """
    rows = batch_size if batch_size and tensor.shape[0] % batch_size == 0 else tensor.shape[0]
    columns = tensor.reshape(rows, -1)
    if columns.shape[1] > MAX_COLUMNS:
        columns = columns[:, :: _stride(columns.shape[1], tensor.shape)].contiguous()
    return columns if columns.dtype in (torch.float32, torch.float64) else columns.float()


def some_elements(tensor: Tensor) -> Tensor:
    """Return about a thousand elements of a tensor, `[elements]`, at a stride as in `as_columns`.

    >>> some_elements(torch.zeros(256, 256)).shape
    torch.Size([979])
    """
    flat = tensor.flatten()
    return flat[:: _stride(len(flat), tensor.shape)] if len(flat) > MAX_COLUMNS else flat


def real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as its real and imaginary parts, side by side, any other as it is.

    >>> real(torch.tensor([[1 + 2j], [3 + 4j]])).shape
    torch.Size([2, 2])
    """
    return torch.view_as_real(tensor).flatten(-2) if tensor.is_complex() and tensor.ndim else tensor


def leaves_of(batch: Any) -> list[Any]:
    """Return what a batch holds, in order: of containers their leaves, of dataclasses and plain objects those of their attributes.

    >>> from types import SimpleNamespace
    >>> len(leaves_of({"pair": (torch.zeros(2), 1), "more": SimpleNamespace(x=torch.ones(2), y=[torch.ones(1)])}))
    4
    """
    found: list[Any] = []
    for leaf in tree_leaves(batch):
        plain = hasattr(leaf, "__dict__") and not isinstance(leaf, (Tensor, nn.Module, type))
        found += leaves_of(dict(vars(leaf))) if plain else [leaf]
    return found


def batch_size_of(batch: Any) -> int:
    """Return the number of samples of any batch: the first dimension of its first tensor that has one, 0 without such a tensor.

    >>> batch_size_of({"image": torch.zeros(8, 3), "label": torch.zeros(8)})
    8
    """
    return next((leaf.shape[0] for leaf in leaves_of(batch) if isinstance(leaf, Tensor) and leaf.ndim > 0), 0)


def _stride(columns: int, shape: Sequence[int]) -> int:
    """Return the least prime that leaves at most MAX_COLUMNS columns and divides no dimension; beyond the primes, an odd number."""
    least = math.ceil(columns / MAX_COLUMNS)
    return next((p for p in _PRIMES if p >= least and all(size % p for size in shape)), least | 1)
