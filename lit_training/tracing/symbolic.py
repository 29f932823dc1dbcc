"""The graph of a forward without running it: `torch.fx`'s, in the terms of `lit_training.tracing.trace`."""

import re
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from lit_training.fans import weight_names
from lit_training.selection import clean_names
from lit_training.tracing.graph import ACTIVATIONS, LINEAR, Graph, Node, Origin

__all__ = ["symbolic_graph"]

_NORM = re.compile(r"norm\d?d?$")
_OPERATIONS = {
    "leakyrelu": "leaky_relu",
    "logsigmoid": "log_sigmoid",
    "logsoftmax": "log_softmax",
    "softmax2d": "softmax",
    "swish": "silu",
    "scaled_dot_product_attention": "linear",
    "matmul": "mm",
    "einsum": "mm",
    "iadd": "add",
    "imul": "mul",
    "truediv": "div",
    "sum": "sum",
    "multiply": "mul",
}
_ARITHMETIC = frozenset("add sub mul div cat".split())


def symbolic_graph(model: nn.Module) -> Graph | None:
    """Return the graph of a module's forward, or None if `torch.fx` cannot trace it (control flow that depends on data).

    torch's own modules are single operations here, and what is not an activation, a layer, a norm or arithmetic counts as
    reshaping. So it serves to find what follows a layer, where there is no batch to run.

    >>> [node.op for node in symbolic_graph(nn.Sequential(nn.Linear(3, 4), nn.ReLU())).nodes]
    ['input', 'parameter', 'linear', 'relu']
    """
    was_training = {module: module.training for module in model.modules()}
    try:
        traced = fx.Tracer().trace(model)
    except Exception:  # whatever the forward does with a proxy
        return None
    finally:
        for module, training in was_training.items():
            module.training = training
    return _Converter(model).convert(traced)


class _Converter:
    """Turns fx nodes into ours, one or a few each."""

    def __init__(self, model: nn.Module) -> None:
        self.graph = Graph()
        self.modules = dict(model.named_modules())
        self.names = {id(module): name for name, module in clean_names(model)}
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.made: dict[fx.Node, int] = {}

    def convert(self, traced: fx.Graph) -> Graph:
        for node in traced.nodes:
            parents = tuple(self.made[leaf] for leaf in tree_leaves((node.args, node.kwargs)) if isinstance(leaf, fx.Node))
            if node.op == "call_module":
                self.made[node] = self._module(self.modules[str(node.target)], parents)
            elif node.op in ("call_function", "call_method"):
                self.made[node] = self._call(node, parents)
            elif node.op == "placeholder":
                self.made[node] = self._add("input", (), "data")
            elif node.op == "get_attr":
                kind, origin = ("parameter", "parameter") if node.target in self.parameters else ("buffer", "constant")
                self.made[node] = self._add(kind, (), origin, name=str(node.target))  # type: ignore[arg-type]
        return self.graph

    def _module(self, module: nn.Module, parents: tuple[int, ...]) -> int:
        prefix = self.names[id(module)] + "." if self.names[id(module)] else ""
        names = weight_names(module)
        if names:
            index = self._add("linear", (*parents, self._parameter(prefix + names[0])), "data", weight=prefix + names[0])
            if isinstance(module, nn.MultiheadAttention):
                out = prefix + "out_proj.weight"
                index = self._add("linear", (index, self._parameter(out)), "data", weight=out)
            return index
        kind = type(module).__name__.lower()
        if _NORM.search(kind):
            scale = [self._parameter(prefix + "weight")] if getattr(module, "weight", None) is not None else []
            return self._add("native_batch_norm", (*parents, *scale), "data")
        if isinstance(module, nn.PReLU):
            return self._add("prelu", (*parents, self._parameter(prefix + "weight")), "data")
        return self._add(self._operation(kind), parents, "data", scalars=_scalars_of(module))

    def _call(self, node: fx.Node, parents: tuple[int, ...]) -> int:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        op = self._operation(name.strip("_").lower())
        scalars = tuple(float(leaf) for leaf in tree_leaves((node.args, node.kwargs)) if isinstance(leaf, (int, float)))
        nodes = [self.graph.nodes[p] for p in parents]
        origin: Origin = "data" if any(n.origin == "data" for n in nodes) else nodes[0].origin if nodes else "constant"
        weight = next((n.name for n in nodes if n.op == "parameter"), "") if op in LINEAR and origin == "data" else ""
        return self._add(op, parents, origin, weight=weight, scalars=scalars)

    @staticmethod
    def _operation(name: str) -> str:
        name = _OPERATIONS.get(name, name)
        if name.startswith("conv"):
            return "convolution"
        return name if name in ACTIVATIONS | LINEAR | _ARITHMETIC else "view"

    def _parameter(self, name: str) -> int:
        return self._add("parameter", (), "parameter", name=name)

    def _add(self, op: str, parents: tuple[int, ...], origin: Origin, **fields: Any) -> int:
        node = Node(len(self.graph.nodes), op, parents, "", (), torch.float32, origin, **fields)
        self.graph.nodes.append(node)
        return node.index


def _scalars_of(module: nn.Module) -> tuple[float, ...]:
    """Return an activation module's parameters in the order in which the operation takes them."""
    names = ("negative_slope", "alpha", "beta", "lambd", "min_val", "max_val", "lower", "upper", "threshold", "value")
    return tuple(float(getattr(module, name)) for name in names if isinstance(getattr(module, name, None), (int, float)))
