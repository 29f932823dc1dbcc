"""Attention as a traced forward shows it: which layers its scores come from, and whether its softmax still weighs.

A softmax counts as attention if it acts on products of two tensors that layers made.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_training.tracing.graph import LINEAR, Graph, Node

__all__ = ["Attention", "attention", "one_hot_rows"]

_FUSED = "_scaled_dot_product_"
_CERTAIN = 0.99
_MASKED = -5e3  # masks add -1e4 or less; of scores that are larger than that by themselves, half are positive
_MASKED_TIMES, _USUAL = 10.0, 5.0  # masks of -100 or -1000 are told by being this much larger than any positive score
_ROWS = 1024
_POSITIONS = 256


@dataclass(frozen=True)
class Attention:
    """One attention: the weights that made its queries and keys, and the share of its rows that are one-hot, a scalar tensor."""

    weights: tuple[str, ...]
    one_hot: Tensor


@torch.no_grad()
def attention(graph: Graph, node: Node, output: Tensor, operands: Sequence[Tensor]) -> Attention | None:
    """Measure a node if it is an attention whose queries and keys come straight from layers, unnormalised.

    Args:
        graph: up to the node.
        node: a softmax, or torch's fused attention.
        output: its tensor.
        operands: the tensors that it read.
    """
    if node.op.startswith(_FUSED) and len(operands) > 2:
        weights = _weights(graph, node.parents[:2])
        return Attention(weights, _fused(operands[0], operands[1], node)) if weights else None
    along_last = node.scalars[:1] in ((-1.0,), (float(len(node.shape) - 1),))
    product = _product(graph, node) if node.op == "softmax" and along_last and output.numel() else None
    weights = () if product is None else _weights(graph, [parent.index for parent in _learnt(graph, product)])
    return Attention(weights, one_hot_rows(output, operands[0])) if weights else None


def one_hot_rows(weights: Tensor, scores: Tensor) -> Tensor:
    """Return the share of rows with one weight above 0.99, among up to a thousand rows with more than one place to look at.

    >>> scores = torch.tensor([[50.0, 0.0], [1.0, 0.0], [3.0, -1e9]])
    >>> one_hot_rows(scores.softmax(-1), scores)
    tensor(0.5000)
    """
    rows = weights.flatten(0, -2)
    step = math.ceil(len(rows) / _ROWS)
    some = scores.flatten(0, -2)[::step]
    open_rows = (some > (_MASKED_TIMES * some.amax().clamp(min=_USUAL)).neg().clamp(min=_MASKED)).sum(-1) > 1
    certain = rows[::step].amax(-1) > _CERTAIN
    return (certain & open_rows).sum() / open_rows.sum().clamp(min=1)


def _fused(queries: Tensor, keys: Tensor, node: Node) -> Tensor:
    """Compute the first sample's scores, unmasked.

    A scale that was given is the last of an operation's numbers: on a CPU beside two others or none, elsewhere a flag may stand
    there, so that it counts if it is smaller than the usual one.
    """
    scale, last = 1 / math.sqrt(queries.shape[-1]), next(iter(node.scalars[::-1]), 0.0)
    if (node.op.endswith("_for_cpu") and len(node.scalars) % 2) or 0 < last < scale:
        scale = last
    q, k = queries[:1, ..., :_POSITIONS, :].float(), keys[:1, ..., :_POSITIONS, :].float()
    if q.shape[1:-2] != k.shape[1:-2]:  # grouped queries
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = scale * q @ k.transpose(-1, -2)
    return one_hot_rows(scores.softmax(-1), scores)


def _product(graph: Graph, node: Node) -> Node | None:
    """Walk back from a softmax over scales and masks to the product that made its scores."""
    while True:
        learnt = _learnt(graph, node)
        if len(learnt) != 1:
            return None
        node = learnt[0]
        if node.op in LINEAR:
            return None if node.weight else node
        if graph.acts(node) is not None and node.op != "where":
            return None


def _weights(graph: Graph, operands: Sequence[int]) -> tuple[str, ...]:
    """Return the weights that made the operands, `()` unless nothing but shapes and rotations lies in between."""
    found: dict[str, None] = {}
    stack = [graph.nodes[index] for index in operands]
    while stack:
        node = stack.pop()
        learnt = _learnt(graph, node)
        if node.weight and "embedding" not in node.op:
            found[node.weight] = None
        elif node.weight or graph.acts(node) is not None or "norm" in node.op or not learnt:
            return ()
        else:
            stack += learnt
    return tuple(found)


def _learnt(graph: Graph, node: Node) -> list[Node]:
    """Return the operands that gradients flow into, but for parameters."""
    parents = [graph.nodes[p] for p in dict.fromkeys(node.parents)]
    return [parent for parent in parents if parent.origin == "data" and parent.requires_grad]
