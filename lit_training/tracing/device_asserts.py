"""What ends a process's use of a GPU, without saying where: an index that is out of range inside a kernel."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["ASSERTING", "Refusing", "refuse_bad_index"]

_IGNORED = -100
_TABLES, _LOSSES = (
    frozenset(getattr(packet, name) for packet in packets for name in packet.overloads())
    for packets in (
        [getattr(torch.ops.aten, op) for op in ("embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")],
        [getattr(torch.ops.aten, op) for op in ("nll_loss_forward", "nll_loss2d_forward", "nll_loss_nd", "cross_entropy_loss")],
    )
)
ASSERTING = _TABLES | _LOSSES
"""Operations whose kernels assert that indices are in range."""


class Refusing(TorchDispatchMode):
    """Refuse indices that are out of range, of operations on a GPU, while active."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ASSERTING and args[0].is_cuda:
            refuse_bad_index(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def refuse_bad_index(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise on a GPU, where the mistake was made, what the CPU raises; there the assertion comes later and names no line.

    Args:
        func: one of `ASSERTING`.
        args: its arguments: a table and indices, or predictions and labels, and more.
        kwargs: those with a keyword.

    Raises:
        IndexError: for an index outside of a table, or a label that is no class and not ignored.

    >>> refuse_bad_index(torch.ops.aten.embedding.default, (torch.zeros(10, 2), torch.tensor([3, 10])), {})
    Traceback (most recent call last):
    IndexError: index 10 is out of range: the table has 10 rows
    """
    values, indices = args[:2]
    if func in _TABLES:
        bad = indices[(indices < 0) | (indices >= len(values))]
        if bad.numel():
            raise IndexError(f"index {int(bad[0])} is out of range: the table has {len(values)} rows")
    elif not indices.is_floating_point():
        classes = values.shape[1 if values.ndim > 1 else 0]
        ignored = args[4] if len(args) > 4 else kwargs.get("ignore_index", _IGNORED)
        bad = indices[((indices < 0) | (indices >= classes)) & (indices != ignored)]
        if bad.numel():
            raise IndexError(f"Target {int(bad[0])} is out of bounds: there are {classes} classes")
