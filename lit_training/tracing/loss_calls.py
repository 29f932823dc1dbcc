"""What the losses of a step compared: torch's own, and differences from the targets that a step writes out by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lit_training.tracing.graph import LOSSES, Graph, Node

__all__ = [
    "RESHAPED",
    "LossCall",
    "before_reshaping",
    "class_weights",
    "difference",
    "difference_loss",
    "from_loader",
    "labelled_blank",
    "loss_call",
    "rebuilds",
    "weights_differ",
]

_SUM = 2.0
_FEW_COLUMNS, _ENOUGH_ROWS = 8, 16
_MOST_CLASSES = 1000
_NEIGHBOURS = 3
_BOUNDS = (-1.0, 0.0, 1.0, 6.0)
_SPREAD_OF = {"mse_loss": 0, "l1_loss": 1, "huber_loss": 2, "smooth_l1_loss": 2}
RESHAPED = frozenset(
    "view _unsafe_view reshape alias squeeze unsqueeze transpose permute t select slice expand _to_copy clone detach".split()
)


@dataclass(frozen=True)
class LossCall:
    """One of torch's losses as it was called, or a difference from the targets: what it compared, and what came out.

    `prediction` and `target` are graph nodes; `prediction_range` and `target_range` the extremes of each; `scale` the mean over
    the batch of `log(sum(exp(prediction)))` along the classes for `nll_loss` and CTC, which is 0 for log-probabilities; `value`
    its output, if a scalar; `node` its node; `summed` whether it was reduced by a sum; `spread` the mean square, mean size and
    mean Huber loss (or smooth L1) of the targets' deviations from their mean: what that mean would have cost; `off_simplex` how
    far the sums of the targets' rows are from 1 on average, `None` where they are not rows of numbers; `background` the share
    of the commonest class among the pixels of a picture's labels, `None` for other targets; `unequal` the largest standard
    deviation of the targets' columns over the smallest, `None` where they are not a few columns of numbers; `ahead` how many
    places ahead of the token that a language model gets the one lies that it is to predict there (`shift.places_ahead`), and
    `open_way` whether it is the next one and nothing that the trace knows keeps the network from seeing it;
    `blank` the number of CTC's blank where that is a label; `weighted` whether weights tell classes or elements apart;
    `class_weights` those of `nll_loss`, for a thousand classes at most, or the one that BCE gives positives; `outside` the mean
    square of what targets lie below and above each of some bounds, those of activations; pixels are averaged with their neighbours.
    """

    op: str
    prediction: int
    target: int
    prediction_range: tuple[float, float]
    target_range: tuple[float, float]
    scale: float
    value: float | None
    node: int = -1
    summed: bool = False
    spread: tuple[float, float, float] | None = None
    off_simplex: float | None = None
    background: float | None = None
    unequal: float | None = None
    ahead: int | None = None
    open_way: bool = False
    blank: int | None = None
    weighted: bool = False
    class_weights: tuple[float, ...] = ()
    outside: Mapping[float, tuple[float, float]] = field(default_factory=dict)

    @property
    def constant(self) -> float | None:
        """What the targets' mean would have cost instead of the prediction, `None` where that is not known."""
        return None if self.spread is None or self.op not in _SPREAD_OF else self.spread[_SPREAD_OF[self.op]]


def loss_call(node: Node, value: Tensor, prediction: Tensor, target: Tensor) -> LossCall:
    """Describe a call of one of torch's losses, which are the operations in `graph.LOSSES`."""
    return LossCall(
        node.op,
        node.parents[0],
        node.parents[1],
        _range(prediction),
        _range(target),
        _log_sum(node.op, prediction),
        float(value) if value.ndim == 0 else None,
        node.index,
        node.scalars[:1] == (_SUM,) and node.op != "multi_margin_loss",
        spread(target, node),
        _off_simplex(target),
        _background(node.op, target),
        _unequal(target),
        outside=_outside(target),
    )


def weights_differ(node: Node, weights: Sequence[Tensor]) -> bool:
    """Tell whether the weights that a loss was given make a difference: of `nll_loss` all may be the same, of others 1."""
    if "nll" in node.op:
        return any(bool((weight != weight.flatten()[:1]).any()) for weight in weights)
    return any(bool((weight != 1).any()) for weight in weights)


def class_weights(node: Node, operands: Sequence[Tensor]) -> tuple[float, ...]:
    """Return the weights of classes that `nll_loss` was given, or the one of BCE's positives; nothing where there are none.

    Of more than a thousand classes none are returned either.

    Args:
        node: of the loss.
        operands: log-probabilities, labels, and the weights.
    """
    if node.op == "binary_cross_entropy_with_logits":
        return tuple(weight.item() for weight in operands[2:3] if weight.numel() == 1)
    given = operands[2] if "nll" in node.op and len(operands) > 2 else None
    return () if given is None or given.ndim != 1 or len(given) > _MOST_CLASSES else tuple(given.tolist())


def labelled_blank(node: Node, operands: Sequence[Tensor]) -> int | None:
    """Return the number of CTC's blank if it is among the labels, which may be any other number, `None` if not.

    Args:
        node: of the loss. Lengths that are no tensors are among its scalars.
        operands: log-probabilities `[time, batch, classes]` or `[time, classes]`, labels `[batch, labels]` or in a row, lengths.
    """
    probabilities, labels, *lengths = operands
    batch = probabilities.shape[1] if probabilities.ndim == 3 else 1
    known = lengths[1].flatten().tolist() if lengths else list(node.scalars[batch : 2 * batch])
    blank = int(next(iter(node.scalars if lengths else node.scalars[2 * batch :]), 0))
    if labels.ndim == 1:
        counted = labels[: int(sum(known))]
    else:
        places = torch.arange(labels.shape[1], device=labels.device)
        counted = labels[places < torch.tensor(known, device=labels.device)[:, None]]
    return blank if bool((counted == blank).any()) else None


def difference(graph: Graph, node: Node, operands: tuple[Tensor, Tensor]) -> LossCall | None:
    """Describe `prediction - target`, of what layers made and what the loader gave, as a loss that is still to be finished."""
    pairs = [(node.parents, operands), (node.parents[::-1], operands[::-1])]
    for (made, given), (prediction, target) in pairs:
        if from_loader(graph, graph.nodes[given]) and any(graph.nodes[i].weight for i in graph.ancestors(made)):
            return LossCall(
                op="",
                prediction=made,
                target=given,
                prediction_range=_range(prediction),
                target_range=_range(target),
                scale=0.0,
                value=None,
                spread=spread(target),
                off_simplex=_off_simplex(target),
                unequal=_unequal(target),
                outside=_outside(target),
            )
    return None


def difference_loss(node: Node, value: Tensor, compared: LossCall) -> LossCall | None:
    """Finish a difference if `node` squares it or takes its size: what `mse_loss` and `l1_loss` would be, averaged."""
    square = node.op == "square" or (node.op == "pow" and node.scalars == (2.0,)) or node.op == "mul"
    if not square and node.op != "abs":
        return None
    return replace(compared, op="mse_loss" if square else "l1_loss", value=float(value.mean()), node=node.index)


def from_loader(graph: Graph, node: Node) -> bool:
    """Tell whether a node is a tensor of the batch, at most reshaped, cast or cut."""
    return before_reshaping(graph, node).name == "batch"


def before_reshaping(graph: Graph, node: Node) -> Node:
    """Return the node that was reshaped, cast or cut into this one, itself if it was none of these."""
    while node.op in RESHAPED and node.parents:
        node = graph.nodes[node.parents[0]]
    return node


def rebuilds(graph: Graph, output: int, given: int) -> bool:
    """Tell whether a loss compares an output with a tensor of the batch: by a difference, a loss, or once scaled, by a product."""
    made, own, plain, scaled = {output}, {given}, {given}, set[int]()
    for node in graph.nodes:
        parents = [p for p in node.parents if graph.nodes[p].origin == "data"]
        likeness = plain | scaled if node.op == "sub" or node.op in LOSSES else scaled if node.op == "mul" else set[int]()
        if not made.isdisjoint(parents) and not likeness.isdisjoint(parents):
            return not graph.reaches_layer(node.index)
        if node.weight or not parents:
            continue
        if not made.isdisjoint(parents):
            made.add(node.index)
        if own.issuperset(parents):
            own.add(node.index)
            kind = plain if parents[0] in plain else scaled if parents[0] in scaled else None
            if kind is not None and node.op in RESHAPED:
                kind.add(node.index)
            elif kind is not None and node.op == "div" and len(parents) == 2:
                scaled.add(node.index)
    return False


def _log_sum(op: str, prediction: Tensor) -> float:
    """Return `log(sum(exp(prediction)))` over the classes: its mean, for CTC the tenth part, as padded steps may hold anything."""
    if "nll" in op and prediction.ndim > 1:
        return float(prediction.logsumexp(1).mean())
    if "ctc" in op:
        sums = prediction.logsumexp(-1).flatten().abs()
        return float(sums.kthvalue(1 + len(sums) // 10).values) if len(sums) else 0.0
    return 0.0


def _off_simplex(target: Tensor) -> float | None:
    if not target.is_floating_point() or target.ndim != 2 or target.shape[1] < 2 or not len(target):
        return None
    return float((target.float().sum(1) - 1).abs().mean())


def _background(op: str, target: Tensor) -> float | None:
    pixels = op == "nll_loss2d_forward" and target.ndim == 3 and target.shape[1] > 1
    mask = "binary_cross_entropy" in op and target.ndim == 4 and target.shape[1] == 1
    if not pixels and not mask:
        return None
    values, counts = torch.unique(target, return_counts=True)
    if (mask and not bool(((values == 0) | (values == 1)).all())) or not bool((values >= 0).any()):
        return None
    known = counts[values >= 0]
    return float(known.max()) / float(known.sum())


def _unequal(target: Tensor) -> float | None:
    """Return how many times the columns' standard deviations differ; labels, and numbers that seldom change, have none."""
    few = target.ndim == 2 and 2 <= target.shape[1] <= _FEW_COLUMNS and len(target) >= _ENOUGH_ROWS
    if not target.is_floating_point() or not few:
        return None
    if any(2 * len(torch.unique(column)) < len(target) for column in target.detach().T):
        return None
    deviations = target.detach().float().std(0)
    return float(deviations.max() / deviations.min())


def _range(values: Tensor) -> tuple[float, float]:
    return (float(values.amin()), float(values.amax())) if values.numel() else (0.0, 0.0)


def _outside(target: Tensor) -> dict[float, tuple[float, float]]:
    if not target.is_floating_point() or not target.numel():
        return {}
    values = target.detach().float()
    if target.ndim == 4 and min(target.shape[2:]) >= _NEIGHBOURS:
        values = torch.nn.functional.avg_pool2d(values, _NEIGHBOURS, 1)  # noise averages out
    beyond = {bound: values - bound for bound in _BOUNDS}
    return {b: (float(x.clamp(max=0).square().mean()), float(x.clamp(min=0).square().mean())) for b, x in beyond.items()}


def spread(target: Tensor, node: Node | None = None) -> tuple[float, float, float] | None:
    """Return what the targets' mean would have cost under a squared, an absolute and the node's bent loss, `None` for labels."""
    if not target.is_floating_point() or target.ndim == 0 or len(target) < 2:
        return None
    bend = (
        node.scalars[1] if node is not None and node.op in ("huber_loss", "smooth_l1_loss") and len(node.scalars) > 1 else 1.0
    )
    sizes = (target.float() - target.float().mean(0)).abs()
    inside = sizes.clamp(max=bend)
    huber = float((inside * (sizes - inside / 2)).mean())
    smooth = huber / bend if node is not None and node.op == "smooth_l1_loss" and bend > 0 else huber
    return float(sizes.square().mean()), float(sizes.mean()), smooth
