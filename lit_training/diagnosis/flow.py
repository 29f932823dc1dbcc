"""Where gradients flow in a traced forward, and what cuts them off."""

from collections.abc import Iterable, Sequence

from lit_training.tracing.graph import ACTIVATIONS, LINEAR, LOSSES, Graph, Node

__all__ = ["cut_after", "reached_by_gradient", "samples_apart", "used_by"]

_NO_GRADIENT = frozenset(
    "argmax argmin sort topk gt ge lt le eq ne nonzero bucketize _to_copy one_hot bernoulli multinomial".split()
)
_DRAWS = frozenset("bernoulli native_dropout _fused_dropout feature_dropout uniform rand rand_like randint_like rrelu".split())
_POINTWISE = ACTIVATIONS - {"softmax", "log_softmax", "glu"} | set("add sub mul div neg detach alias clone _to_copy".split())
_ROWWISE = frozenset(
    "addmm mm convolution view _unsafe_view _reshape_alias native_batch_norm cudnn_batch_norm miopen_batch_norm "
    "_native_batch_norm_legit native_layer_norm max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d".split()
)


def reached_by_gradient(graph: Graph, losses: Iterable[int]) -> set[int]:
    """Return the nodes that the backward pass from some losses arrives at."""
    return _back(graph, losses, only_gradient=True)


def used_by(graph: Graph, losses: Iterable[int]) -> set[int]:
    """Return the nodes that some losses were computed from, with or without a gradient."""
    return _back(graph, losses, only_gradient=False)


def _back(graph: Graph, losses: Iterable[int], *, only_gradient: bool) -> set[int]:
    seen = {loss for loss in losses if not only_gradient or graph.nodes[loss].requires_grad is not False}
    stack = list(seen)
    while stack:
        for parent in graph.nodes[stack.pop()].parents:
            if parent not in seen and (graph.nodes[parent].requires_grad or not only_gradient):
                seen.add(parent)
                stack.append(parent)
    return seen


def cut_after(graph: Graph, index: int, used: set[int]) -> tuple[Node, str] | None:
    """Return the operation that ends the gradients' way between a node and the losses that use it, and what it is in words.

    >>> from lit_training.tracing.trace import trace
    >>> import torch
    >>> layer = torch.nn.Linear(3, 2)
    >>> graph, _ = trace(layer, torch.zeros(4, 3))
    >>> cut_after(graph, 4, {4}) is None
    True
    """
    node = graph.nodes[index]
    readers = graph.consumers()
    if index not in used:
        return _returned(graph, index, used, readers)
    if not node.grad_mode:
        return node, "runs under torch.no_grad()"
    seen, stack = {index}, [index]
    while stack:
        current = stack.pop(0)
        for reader in (graph.nodes[r] for r in readers[current]):
            if reader.index in seen or reader.index not in used:
                continue
            if reader.requires_grad is False or not reader.grad_mode:
                return reader, _words(reader)
            seen.add(reader.index)
            stack.append(reader.index)
    return None


def _returned(graph: Graph, index: int, used: set[int], readers: Sequence[Sequence[int]]) -> tuple[Node, str] | None:
    """Find the new tensor as which a node's values came back, if they left torch on the way.

    It has the shape of a dead end; or as many rows as a detached one, if nothing else tells the loss's layers of the batch.
    """
    seen, stack = {index}, [index]
    while stack:
        new = [reader for reader in readers[stack.pop()] if reader not in seen]
        seen.update(new)
        stack.extend(new)
    ends = [graph.nodes[i] for i in seen if not readers[i]]
    shapes, rows = {end.shape for end in ends}, {end.shape[:1] for end in ends if end.op == "detach"}
    alone = bool(rows) and not any(node.index in used and graph.reads_batch(node.index) for node in graph.layers())
    for leaf in (graph.nodes[i] for i in sorted(used) if i > index):
        back = leaf.shape in shapes or (alone and leaf.shape[:1] in rows)
        if leaf.op == "input" and not leaf.name and back and leaf.shape and leaf.dtype.is_floating_point:
            return leaf, "leaves torch and comes back as a new tensor (numpy, tolist, torch.tensor)"
    return None


def _words(node: Node) -> str:
    if not node.grad_mode:
        return "is read under torch.no_grad()"
    if node.op == "item":
        return "leaves torch as a number (item, float)"
    if node.op in _NO_GRADIENT:
        return f"goes through {node.op}, which has no gradient"
    return "is cut off by .detach()" if node.op in ("detach", "alias") else f"loses its gradient at {node.op}"


def samples_apart(graph: Graph, rows: int) -> bool:
    """Tell whether every operation visibly treats each of the samples for itself, whatever the losses do, and draws nothing.

    Batch norm in train mode counts as doing so, since its running statistics do. It may well be so where this says no.

    >>> from lit_training.tracing.trace import trace
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> samples_apart(trace(net, torch.zeros(8, 3))[0], 8)
    True
    >>> samples_apart(trace(net.append(torch.nn.Softmax(0)).append(torch.nn.Tanh()), torch.zeros(8, 3))[0], 8)
    False
    """
    readers = graph.consumers()
    reduced: set[int] = set()
    for node in graph.nodes:
        parents = [graph.nodes[p] for p in node.parents]
        if node.op in _DRAWS:
            return False
        if node.op in LOSSES or not reduced.isdisjoint(node.parents):
            reduced.add(node.index)
        elif node.origin == "data" and parents and readers[node.index] and not _each_alone(node, parents, rows):
            return False
    return rows > 1


def _each_alone(node: Node, parents: Sequence[Node], rows: int) -> bool:
    data = [parent for parent in parents if parent.origin == "data"]
    if any(shaped.shape[:1] != (rows,) for shaped in (node, *data)):
        return False
    if node.op in LINEAR:
        return bool(node.weight) and node.op in _ROWWISE and len(data) == 1
    if node.op in ("softmax", "log_softmax"):
        return node.scalars[:1] not in ((0.0,), (-float(len(node.shape)),))
    broadcast = any(len(parent.shape) != len(node.shape) for parent in data)
    return node.op in _ROWWISE or (node.op in _POINTWISE and not broadcast)
