"""The operations of one forward as a graph, and what can be read off it: layers, what follows them, where values come from.

`lit_training.tracing.trace` records it, `lit_training.tracing.symbolic` makes it without data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import torch

__all__ = ["ACTIVATIONS", "LINEAR", "LOSSES", "NORMALISATIONS", "Graph", "Node", "Origin", "first_operand"]

Origin = Literal["constant", "parameter", "data"]
P = ParamSpec("P")
R = TypeVar("R")

LINEAR = frozenset(
    "mm addmm bmm baddbmm mv addmv dot linear _sparse_addmm convolution _convolution embedding _embedding_bag "
    "_embedding_bag_forward_only mkldnn_rnn_layer _cudnn_rnn".split()
)
ACTIVATIONS = frozenset(
    "relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid tanh softplus hardtanh hardswish hardsigmoid prelu "
    "log_sigmoid softmax log_softmax threshold glu rrelu softshrink hardshrink sin cos exp log abs sqrt square pow "
    "clamp clamp_min clamp_max maximum minimum erf sign sgn round".split()
)
NORMALISATIONS = frozenset(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm "
    "batch_norm_with_update _batch_norm_with_update native_layer_norm native_group_norm _fused_rms_norm".split()
)
LOSSES = frozenset(
    "nll_loss_forward nll_loss2d_forward binary_cross_entropy binary_cross_entropy_with_logits mse_loss l1_loss "
    "smooth_l1_loss huber_loss soft_margin_loss multi_margin_loss multilabel_margin_loss_forward _ctc_loss _cudnn_ctc_loss".split()
)
_TRANSPARENT = NORMALISATIONS | frozenset(
    "view _unsafe_view _reshape_alias t transpose permute expand squeeze unsqueeze clone contiguous alias _to_copy detach "
    "native_dropout _fused_dropout feature_dropout add sub mul div neg select slice split unsafe_split split_with_sizes "
    "unbind cat stack constant_pad_nd reflection_pad2d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d mean sum amax max "
    "upsample_nearest2d upsample_bilinear2d pixel_shuffle roll flip index index_select gather masked_fill".split()
)
_CHOOSING = frozenset("gather index index_select take_along_dim".split())


@dataclass(eq=False)
class Node:
    """One tensor of the graph: what an operation made, or a leaf.

    The `op` of a leaf is `"parameter"`, `"buffer"`, `"unregistered"` (it asks for a gradient, but no module owns it) or
    `"input"`. `scope` is the innermost module that was running, `origin` what the tensor derives from, `weight` the name of the
    parameter that a linear operation multiplied data by (else `""`), `requires_grad` is known once the tensor was used.
    """

    index: int
    op: str
    parents: tuple[int, ...]
    scope: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    origin: Origin
    name: str = ""
    weight: str = ""
    scalars: tuple[float, ...] = ()
    grad_mode: bool = True
    requires_grad: bool | None = None


def _kept(method: Callable[Concatenate["Graph", P], R]) -> Callable[Concatenate["Graph", P], R]:
    """Keep what a method of a graph returns, as long as no node is added: many rules ask the same."""

    @wraps(method)
    def known(graph: "Graph", /, *args: P.args, **kwargs: P.kwargs) -> R:
        key = (method.__name__, len(graph.nodes), args, *kwargs.items())
        if key not in graph._known:
            graph._known[key] = method(graph, *args, **kwargs)
        return graph._known[key]  # type: ignore[no-any-return]

    return known


@dataclass
class Graph:
    """The operations of one forward in the order of execution."""

    nodes: list[Node] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    _known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def layers(self) -> list[Node]:
        """Return the operations that multiply data by a parameter, in forward order, one for each call.

        >>> from torch import nn
        >>> from lit_training.tracing.trace import trace
        >>> graph, _ = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), torch.zeros(2, 3))
        >>> [node.weight for node in graph.layers()]
        ['0.weight', '2.weight']
        """
        return [node for node in self.nodes if node.weight]

    @_kept
    def consumers(self) -> list[list[int]]:
        """Return for each node the nodes that read it."""
        readers: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for parent in dict.fromkeys(node.parents):
                readers[parent].append(node.index)
        return readers

    def ancestors(self, index: int) -> set[int]:
        """Return the nodes that a node was computed from, itself included."""
        seen, stack = {index}, [index]
        while stack:
            new = [parent for parent in self.nodes[stack.pop()].parents if parent not in seen]
            seen.update(new)
            stack.extend(new)
        return seen

    def reads_batch(self, index: int) -> bool:
        """Tell whether a node was computed from a tensor of the batch."""
        return any(self.nodes[i].name == "batch" for i in self.ancestors(index))

    @_kept
    def made_by_layers(self, *, chosen: bool = True) -> set[int]:
        """Return the nodes that some layer's output went into, or only chose from, as a sampled action chooses its reward."""
        made: set[int] = set()
        for node in self.nodes:
            values = node.parents if chosen or node.op not in _CHOOSING else node.parents[:1]
            if node.weight or not made.isdisjoint(values):
                made.add(node.index)
        return made

    def reaches_layer(self, index: int) -> bool:
        """Tell whether some layer reads what a node's values became."""
        return index in self._before_layers()

    @_kept
    def _before_layers(self) -> set[int]:
        before: set[int] = set()
        for node in reversed(self.nodes):
            if node.weight or node.index in before:
                before.update(node.parents)
        return before

    @_kept
    def follows(self, index: int, *, through_normalisation: bool = True) -> tuple[str, ...]:
        """Return what acts next on a node's values: an activation's name, `"linear"`, `"product"`, `"loss"`, another operation.

        Reshaping, padding, pooling, dropout and addition are looked through, and normalisation unless told otherwise. Empty if
        nothing reads the node.

        >>> from torch import nn
        >>> from lit_training.tracing.trace import trace
        >>> graph, _ = trace(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)), torch.randn(2, 3))
        >>> [graph.follows(node.index) for node in graph.layers()]
        [('relu',), ()]
        """
        readers = self.consumers()
        found: dict[str, None] = {}
        seen, stack = {index}, [index]
        while stack:
            for reader in readers[stack.pop()]:
                if reader in seen:
                    continue
                seen.add(reader)
                verdict = self.acts(self.nodes[reader])
                if verdict == "pow" and self._measures_scale(reader, readers):
                    verdict = "linear" if through_normalisation else "normalisation"
                if not through_normalisation and (
                    self.nodes[reader].op in NORMALISATIONS or self._gives_unit_length(self.nodes[reader], readers)
                ):
                    verdict = "normalisation"
                if verdict is None:
                    stack.append(reader)
                else:
                    found[verdict] = None
        return tuple(found)

    def drops(self, node: Node) -> bool:
        """Tell whether a product multiplies by a random mask of zeros, as dropout does on a CPU."""
        drawn = [parent for parent in node.parents if self.nodes[parent].origin == "constant"]
        return any(self.nodes[i].op == "bernoulli" for parent in drawn for i in self.ancestors(parent))

    def _measures_scale(self, index: int, readers: Sequence[Sequence[int]]) -> bool:
        """Tell whether a square is only averaged and its root taken, as RMS norm does where it is written out."""
        ends, stack = [], [index]
        while stack:
            for reader in readers[stack.pop()]:
                op = self.nodes[reader].op
                stack.append(reader) if op in _TRANSPARENT else ends.append(op)
        return bool(ends) and set(ends) <= {"rsqrt", "sqrt"}

    def _gives_unit_length(self, norm: Node, readers: Sequence[Sequence[int]]) -> bool:
        """Tell whether a length is measured to divide by it what has it, as `F.normalize` does."""
        stack = [norm.index] if norm.op == "linalg_vector_norm" else []
        while stack:
            for reader in (self.nodes[r] for r in readers[stack.pop()]):
                if reader.op == "div" and reader.parents[0] == norm.parents[0]:
                    return True
                stack += [reader.index] if reader.op in ("clamp_min", "expand", "add") else []
        return False

    def acts(self, node: Node) -> str | None:
        """Name what an operation does to the values, or return None if it may be looked through."""
        if node.op in LINEAR:
            return "linear"
        if node.op in LOSSES:
            return "loss"
        if node.op in ("mul", "div") and sum(self.nodes[p].origin == "data" for p in node.parents) > 1:
            return "product"
        return None if node.op in _TRANSPARENT else node.op


def first_operand(op: str) -> int:
    """Return where the operands of a linear operation begin: `addmm` and its like take what is added first."""
    return 1 if op in ("addmm", "_sparse_addmm", "baddbmm", "addmv") else 0
