"""What a step compares by hand: outputs with targets, whose difference it squares, or which pick them; samples, by products.

The direction of such a comparison shows in its gradient, whatever the loss: a step against it makes errors smaller, and partners
more alike than strangers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lit_training.tracing.choices import are_distances, meant_to_rise, overlaps
from lit_training.tracing.graph import Graph, Node
from lit_training.tracing.loss_calls import LossCall, difference, difference_loss

__all__ = ["Comparisons", "Direction", "joins_alike", "parts_partners", "widens"]

_LEAST = 8
_NEARLY_ALL = 0.99
_BALANCED = 0.05  # further candidates, outside of the product, take a part


@dataclass(frozen=True)
class Direction:
    """Whether a step against the gradient takes a comparison the way that it is meant to go, 1, or the other way, -1.

    0 where that is not clear; `node` is where the comparison was made.
    """

    kind: Literal["difference", "similarity", "choice"]
    node: int
    towards: int


@dataclass
class Comparisons:
    """Follow differences and similarities of one forward, and look at the gradients that arrive at them.

    Args:
        labels: of the samples, `[samples]`, where the batch holds one such tensor.
    """

    labels: Tensor | None = None
    directions: list[Direction] = field(default_factory=list)
    _differences: dict[int, tuple[LossCall, Tensor]] = field(default_factory=dict)
    _similarities: dict[int, bool] = field(default_factory=dict)
    _choices: dict[int, int] = field(default_factory=dict)
    _distances: set[int] = field(default_factory=set)

    def note(self, graph: Graph, node: Node, tensor: Tensor, operands: Sequence[Tensor]) -> LossCall | None:
        """Look at an operation's result: is it a comparison? If it squares one or takes its size, return that as a loss."""
        if node.op == "sub" and len(operands) == 2:
            compared = difference(graph, node, (operands[0].detach(), operands[1].detach()))
            if compared is not None:
                self._differences[node.index] = compared, tensor.detach()
        elif rises := meant_to_rise(graph, node) or int(overlaps(graph, node)):
            self._choices[node.index] = rises
        elif self.labels is not None and are_distances(graph, node, len(self.labels)):
            self._distances.add(node.index)
        elif node.op in ("mm", "bmm") and _compares_samples(graph, node):
            self._similarities[node.index] = len({_rows(graph, parent) for parent in node.parents}) == 1
        elif len(set(node.parents)) == 1 and node.parents[0] in self._differences:
            return difference_loss(node, tensor, self._differences[node.parents[0]][0])
        return None

    def differences(self) -> tuple[LossCall, ...]:
        """Return the differences between outputs and targets, whatever became of them."""
        return tuple(compared for compared, _ in self._differences.values())

    def wants(self, node: Node) -> bool:
        """Tell whether the gradient at a node shows a direction."""
        return any(node.index in kind for kind in (self._differences, self._similarities, self._choices, self._distances))

    def on_gradient(self, graph: Graph, node: Node, gradient: Tensor) -> None:
        """Judge the gradient that arrived at a comparison, unless some layer reads it."""
        if graph.reaches_layer(node.index):
            return
        if node.index in self._differences:
            away = self._differences[node.index][1]
            towards = widens(-gradient, away) - widens(gradient, away)
            self.directions.append(Direction("difference", node.index, towards))
        elif node.index in self._similarities:
            itself, rows = self._similarities[node.index], gradient.flatten(0, -2)
            towards = parts_partners(-rows, with_itself=itself) - parts_partners(rows, with_itself=itself)
            self.directions.append(Direction("similarity", node.index, towards))
        elif node.index in self._choices:
            self.directions.append(Direction("choice", node.index, self._choices[node.index] * _raises(gradient)))
        elif self.labels is not None:
            self.directions.append(Direction("choice", node.index, joins_alike(gradient, self.labels)))


@torch.no_grad()
def joins_alike(gradient: Tensor, labels: Tensor) -> int:
    """Tell whether a step brings samples of one label nearer, and parts others (1), or the other way round (-1); 0 if neither.

    Args:
        gradient: with respect to the distances between all samples, `[samples, samples]`.
        labels: `[samples]`.

    >>> y = torch.arange(12) % 3
    >>> apart = 1.0 - 2.0 * (y[:, None] != y)
    >>> joins_alike(apart, y), joins_alike(-apart, y)
    (1, -1)
    """
    same = labels[:, None] == labels
    others = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    nearer, parted = -_raises(gradient[same & others]), _raises(gradient[~same])
    return nearer if nearer == parted else 0


def _raises(gradient: Tensor) -> int:
    """Tell whether a step makes eight or more numbers larger (1) or smaller (-1), wherever it does anything; 0 if neither."""
    up, down = int((gradient < 0).sum()), int((gradient > 0).sum())
    agreed = max(up, down) >= max(_LEAST, _NEARLY_ALL * (up + down))
    return (1 if up > down else -1) if agreed else 0


@torch.no_grad()
def widens(gradient: Tensor, difference: Tensor) -> bool:
    """Tell whether a step against the gradient makes eight or more differences larger, wherever it does anything.

    The gradient of every error that grows with the size of the difference has the difference's sign.

    >>> away = torch.linspace(-1, 1, 9)
    >>> widens(2 * away, away), widens(-away.sign(), away)
    (False, True)
    """
    heard = (gradient != 0) & (difference != 0)
    count = int(heard.sum())
    opposite = int((heard & ((gradient > 0) != (difference > 0))).sum())
    return count >= _LEAST and opposite >= _NEARLY_ALL * count


@torch.no_grad()
def parts_partners(gradient: Tensor, *, with_itself: bool = False) -> bool:
    """Tell whether a step makes each sample less like one other, and more like all of the rest: a contrastive loss, climbed.

    The gradient of a cross-entropy over similarities is p - y: negative at one partner a row, positive elsewhere, zero in total.

    Args:
        gradient: with respect to similarities, `[samples, others]`.
        with_itself: the others are the samples themselves; a row's own entry may be masked, and is no partner.

    >>> y = torch.eye(9)
    >>> parts_partners(1 / 9 - y), parts_partners(y - 1 / 9)
    (False, True)
    """
    if gradient.ndim != 2 or min(gradient.shape) < _LEAST or not bool(torch.isfinite(gradient).all()):
        return False
    away, closer = gradient > 0, gradient < 0
    lone = bool((away.sum(1) == 1).all() and (closer.sum(1) >= gradient.shape[1] - 2).all())
    balanced = abs(float(gradient.double().sum())) < _BALANCED * float(gradient.double().abs().sum())
    return lone and balanced and not (with_itself and bool(away.diagonal().any()))


def _compares_samples(graph: Graph, node: Node) -> bool:
    """Tell whether a product's rows and columns are samples that layers encoded, eight or more of each."""
    if node.weight or node.shape[:-2] not in ((), (1,)) or min(node.shape[-2:]) < _LEAST:
        return False
    return all(any(graph.nodes[i].weight for i in graph.ancestors(parent)) for parent in node.parents)


def _rows(graph: Graph, index: int) -> int:
    """Return the node that the operand of a product is, or is the transpose of."""
    node = graph.nodes[index]
    while node.op in ("t", "transpose", "permute", "view", "unsqueeze", "alias") and len(node.parents) == 1:
        node = graph.nodes[node.parents[0]]
    return node.index
