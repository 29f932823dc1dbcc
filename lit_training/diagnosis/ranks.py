"""Evidence of the joint batch of all processes: statistics are merged, so that all see what one process would have seen."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lit_training.diagnosis.evidence import Evidence
from lit_training.moments import all_reduce
from lit_training.tracing.probe import Layer
from lit_training.tracing.tensor_stats import TensorStats, read_together

__all__ = ["across_ranks", "gather_packed"]


def across_ranks(evidence: Evidence) -> Evidence:
    """Return evidence about the joint batch; must be called on all ranks, and does nothing in a single process.

    The ranks' batches may differ in size. Where their forwards differ in structure (other layers, other sequence lengths), nothing
    can be merged and each rank keeps its own evidence.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return evidence
    device = next((stats.low.device for stats in _stats(evidence.layers)), torch.device("cpu"))
    loss = float("nan") if evidence.loss is None else evidence.loss
    totals = torch.tensor([loss, evidence.batch_size], dtype=torch.float64, device=device)
    dist.all_reduce(totals)
    evidence = replace(
        evidence,
        loss=None if evidence.loss is None else float(totals[0]) / dist.get_world_size(),
        batch_size=int(totals[1]),
    )
    if not _same_everywhere(_signature(evidence.layers), device):
        return evidence
    merged = iter(_merge(_stats(evidence.layers)))
    return replace(evidence, layers=tuple(_rebuild(layer, merged) for layer in evidence.layers))


def gather_packed(tensors: Sequence[Tensor], rows: int) -> list[tuple[list[Tensor], int]]:
    """Move small tensors to the host in one transfer, those of all processes after one collective.

    Returns:
        For each rank its tensors, shaped as this rank's, and its number of rows. Ranks whose tensors differ in structure from each
        other keep their own only.
    """
    packed = torch.cat([tensor.flatten() for tensor in tensors])
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return [(_unpacked(packed.cpu(), tensors), rows)]
    if not _same_everywhere(zlib.crc32(repr([tensor.shape for tensor in tensors]).encode()), packed.device):
        return [(_unpacked(packed.cpu(), tensors), rows)]
    packed = torch.cat([packed, packed.new_tensor([rows])])
    ranks = [torch.empty_like(packed) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, packed)
    return [(_unpacked(rank[:-1], tensors), int(rank[-1])) for rank in torch.stack(ranks).cpu()]


def _unpacked(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = packed.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


_FIELDS = ("output", "source", "activation", "gradient", "gates")


def _stats(layers: Sequence[Layer]) -> list[TensorStats]:
    return [stats for layer in layers for name in _FIELDS if (stats := getattr(layer, name)) is not None]


def _rebuild(layer: Layer, merged: Iterator[TensorStats]) -> Layer:
    fields: dict[str, Any] = {name: next(merged) for name in _FIELDS if getattr(layer, name) is not None}
    return replace(layer, **fields)


def _signature(layers: Sequence[Layer]) -> int:
    shapes = [
        (layer.name, name, stats.columns.mean.shape) for layer in layers for name in _FIELDS if (stats := getattr(layer, name))
    ]
    return zlib.crc32(repr(shapes).encode())


def _same_everywhere(value: int, device: torch.device) -> bool:
    mine = torch.tensor([value, -value], dtype=torch.int64, device=device)
    dist.all_reduce(mine, op=dist.ReduceOp.MAX)
    return int(mine[0]) == value and int(mine[1]) == -value


def _merge(parts: Sequence[TensorStats]) -> list[TensorStats]:
    if not parts:
        return []
    columns = all_reduce([part.columns for part in parts])
    lows = _packed([part.low for part in parts], dist.ReduceOp.MIN)
    highs = _packed([part.high for part in parts], dist.ReduceOp.MAX)
    saturated = _packed([part.saturated.reshape(1) * part.rows for part in parts], dist.ReduceOp.SUM)
    merged = [
        TensorStats(moments, low, high, total.reshape(()) / moments.count)
        for moments, low, high, total in zip(columns, lows, highs, saturated, strict=True)
    ]
    read_together(merged)
    return merged


def _packed(tensors: Sequence[Tensor], op: dist.ReduceOp.RedOpType) -> list[Tensor]:
    packed = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(packed, op=op)
    return list(packed.split([tensor.numel() for tensor in tensors]))
