"""What one real forward did: a graph of tensor operations with their data flow, recorded below autograd.

Operations are seen as `aten` sees them, so `F.relu(x)`, `x.relu()`, `nn.ReLU()` and `x.relu_()` are all one `relu`, whoever
called them and however the network is written. Nothing is computed, changed or kept alive that would not be otherwise.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode,
    _get_current_dispatch_mode_stack,
    _pop_mode,
    _push_mode,
)
from torch.utils.weak import WeakTensorKeyDictionary

from lit_training.columns import leaves_of
from lit_training.selection import clean_names
from lit_training.tracing.ctc import lengths_at_hand
from lit_training.tracing.device_asserts import ASSERTING, refuse_bad_index
from lit_training.tracing.graph import LINEAR, Graph, Node, Origin, first_operand
from lit_training.tracing.operations import RANDOM, SHAPE_ONLY, flat, operation

__all__ = ["Tracer", "trace", "unseen"]

_LEAF_ORIGIN: dict[str, Origin] = {"parameter": "parameter", "unregistered": "parameter", "buffer": "constant", "input": "data"}


class Tracer(TorchDispatchMode):
    """Record a `Graph` while active as a context manager.

    Args:
        module: names the parameters, buffers and scopes.
        on_output: called outside autograd with each new node of origin `data`, its tensor, and the operation's tensor operands.
        on_input: called with each input leaf of the graph.
        on_module: called with the qualified name, the module, its inputs and its output whenever a named submodule has run.
        on_gradient: called with a node and the gradient with respect to its tensor, in the backward pass, for nodes for which
            `wants_gradient` is true.
        wants_gradient: which nodes `on_gradient` is for.
        batch: tensors that are known to be data; their nodes are named `"batch"`.

    An exception while recording ends the recording, not the forward; it is then in `.failure`.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        on_output: Callable[[Node, Tensor, Sequence[Tensor]], None] | None = None,
        on_input: Callable[[Node, Tensor], None] | None = None,
        on_module: Callable[[str, nn.Module, Any, Any], None] | None = None,
        on_gradient: Callable[[Node, Tensor], None] | None = None,
        wants_gradient: Callable[[Node], bool] = lambda node: bool(node.weight),
        batch: Any = (),
    ) -> None:
        super().__init__()
        self.graph = Graph()
        self.failure: Exception | None = None
        self.paused = False
        self._module, self._on_output, self._on_input, self._on_module = module, on_output, on_input, on_module
        self._on_gradient, self._wants_gradient = on_gradient, wants_gradient
        self._names = {id(m): name for name, m in clean_names(module)}
        self._scopes: list[tuple[str, nn.Module]] = [("", module)]
        self._node_of: dict[int, tuple[ref[Tensor], Node]] = {}
        self._unregistered: Any = WeakTensorKeyDictionary()
        self.batch = [leaf for leaf in leaves_of(batch) if isinstance(leaf, Tensor)]
        self._leaves: dict[int, tuple[str, str]] = {id(tensor): ("input", "batch") for tensor in self.batch}
        self._writes: dict[int, tuple[int, object]] = {}
        self._numbers: dict[float, int] = {}
        self._stack = ExitStack()
        self._find_leaves(module)

    def __enter__(self) -> "Tracer":
        self._stack.callback(register_module_forward_pre_hook(self._enter_module).remove)
        self._stack.callback(register_module_forward_hook(self._leave_module, always_call=True).remove)
        self._stack.enter_context(lengths_at_hand())
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()
        self.paused = False
        self._leave(*error)

    def pause(self) -> None:
        """See no operations until `resume`: in a backward pass each of them would be waited for in vain."""
        if self in _get_current_dispatch_mode_stack():
            self._leave(None, None, None)
            self.paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        if self.paused:
            self.paused = False
            super().__enter__()

    def _leave(self, *error: Any) -> None:
        if self not in _get_current_dispatch_mode_stack():
            return
        above = []
        while _get_current_dispatch_mode() is not self:  # entered after this one, and not to be left with it
            above.append(_pop_mode())
        super().__exit__(*error)
        for mode in reversed(above):
            _push_mode(mode)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation as it is, then record it unless a backward pass is running."""
        if func in ASSERTING and args[0].is_cuda and self._recording():
            refuse_bad_index(func, args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        if self._recording():
            try:
                self._record(func, flat((args, kwargs)) if kwargs else flat(args), out)
            except Exception as error:
                self.failure = error
        return out

    def node(self, tensor: Tensor) -> Node | None:
        """Return the node of a tensor that the forward made or read, if it is known."""
        known, node = self._node_of.get(id(tensor), (None, None))
        return node if known is not None and known() is tensor else None  # another tensor may have had the id before

    def read(self, tensor: Tensor) -> Node:
        """Return the node of a tensor, which becomes a leaf if no recorded operation made it."""
        return self.graph.nodes[self._read(tensor)]

    def unregistered(self) -> list[tuple[Node, Tensor]]:
        """Return the leaves that ask for a gradient and that no module owns, while alive, in the order in which they were read."""
        return sorted(((node, tensor) for tensor, node in self._unregistered.items()), key=lambda pair: pair[0].index)

    def _record(self, func: Any, arguments: Sequence[Any], out: Any) -> None:
        outputs = [leaf for leaf in flat(out) if isinstance(leaf, Tensor)]
        if not outputs:
            self._note_number(arguments, out)
            return
        inputs = [leaf for leaf in arguments if isinstance(leaf, Tensor)]
        scalars = tuple(float(v) for v in arguments if isinstance(v, (int, float)))
        op, in_place = operation(func, scalars)
        parents = () if op in SHAPE_ONLY else tuple(self._read(t) for t in inputs)
        if len(parents) == 1:
            parents += tuple(self._numbers[v] for v in scalars if v in self._numbers)
        weight = self._weight(op, parents)
        origin: Origin = "data" if weight or op in RANDOM else _join([self.graph.nodes[p].origin for p in parents])
        for i, tensor in enumerate(outputs):
            node = self._add(tensor, op, parents, origin, weight="" if i else weight, scalars=scalars)
            if in_place:
                storage = tensor.untyped_storage()
                self._writes[storage._cdata] = (node.index, storage)
            if self._on_output is not None and origin == "data":
                self._on_output(node, tensor, inputs)

    def _note_number(self, arguments: Sequence[Any], out: Any) -> None:
        """Remember a number that was read off a tensor with a gradient, unless it is round and so might be met by chance."""
        source = self.node(arguments[0]) if isinstance(out, float) and isinstance(arguments[0], Tensor) else None
        if source is None or out == round(out, 3):
            return
        if source.op == "detach":
            source = self.graph.nodes[source.parents[0]]
        if source.origin == "data" and (source.requires_grad or arguments[0].requires_grad):
            node = Node(
                len(self.graph.nodes), "item", (source.index,), source.scope, (), source.dtype, "data", requires_grad=False
            )
            self.graph.nodes.append(node)
            self._numbers[out] = node.index

    def _read(self, tensor: Tensor) -> int:
        """Return the index of an operand's node, after noting whether gradients flow into it."""
        node = self.node(tensor)
        if node is None:
            kind, name = self._leaf(tensor)
            node = self._add(tensor, kind, (), _LEAF_ORIGIN[kind], name=name)
            if kind == "input" and self._on_input is not None:
                self._on_input(node, tensor)
            if kind == "unregistered":
                self._unregistered[tensor] = node
        written, _ = self._writes.get(_storage_key(tensor), (-1, None)) if self._writes else (-1, None)
        if written > node.index:  # through another view of the same memory
            node = self._add(tensor, "alias", (node.index, written), _join([node.origin, self.graph.nodes[written].origin]))
        if node.requires_grad is None:
            node.requires_grad = tensor.requires_grad
            if tensor.requires_grad and self._on_gradient is not None and self._wants_gradient(node):
                self._watch_gradient(node, tensor)
        return node.index

    def _watch_gradient(self, node: Node, tensor: Tensor) -> None:
        if self._on_gradient is not None:
            self.on_gradient_of(tensor, partial(self._on_gradient, node))

    def on_gradient_of(self, tensor: Tensor, call: Callable[[Tensor], None]) -> None:
        """Call with the gradient of a tensor in the backward pass; not for one that a fused kernel leaves undefined."""

        def hook(gradient: Tensor | None) -> None:
            if self.failure is None and gradient is not None:
                with self._guard(), torch.no_grad(), unseen():
                    call(gradient)

        tensor.register_hook(hook)

    def _recording(self) -> bool:
        in_backward = torch._C._current_graph_task_id() != -1
        return not self.paused and self.failure is None and not in_backward

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = error

    def _add(self, tensor: Tensor, op: str, parents: tuple[int, ...], origin: Origin, **fields: Any) -> Node:
        shape = tuple(tensor.shape)
        scope, grad_mode = self._scopes[-1][0], torch.is_grad_enabled()
        node = Node(len(self.graph.nodes), op, parents, scope, shape, tensor.dtype, origin, grad_mode=grad_mode, **fields)
        self.graph.nodes.append(node)
        self._node_of[id(tensor)] = ref(tensor), node
        return node

    def _leaf(self, tensor: Tensor) -> tuple[str, str]:
        """Tell what a tensor is that no recorded operation made."""
        if id(tensor) not in self._leaves and isinstance(tensor, nn.Parameter):
            self._find_leaves(self._module)  # sharded strategies swap parameters in when a module runs
        if id(tensor) in self._leaves:
            return self._leaves[id(tensor)]
        if tensor.is_leaf and tensor.requires_grad:
            return "unregistered", ""
        return "input", ""

    def _find_leaves(self, module: nn.Module) -> None:
        for prefix, part in clean_names(module):
            dot = f"{prefix}." if prefix else ""
            self._leaves |= {id(b): ("buffer", dot + name) for name, b in part.named_buffers(recurse=False)}
            for name, parameter in part.named_parameters(recurse=False):
                self._leaves.setdefault(id(parameter), ("parameter", dot + name))

    def _weight(self, op: str, parents: Sequence[int]) -> str:
        """Return the parameter that a linear operation multiplies data by, or `""`."""
        if op not in LINEAR:
            return ""
        operands = [self.graph.nodes[p] for p in parents[first_operand(op) :]]
        weights = [node for node in operands if node.origin == "parameter"]
        if not weights or not any(node.origin == "data" for node in operands):
            return ""
        leaves = [self.graph.nodes[i] for i in sorted(self.graph.ancestors(weights[0].index))]
        named = [leaf for leaf in leaves if leaf.op in ("parameter", "unregistered")]
        return max(named, key=lambda leaf: math.prod(leaf.shape)).name or "<unregistered>" if named else ""

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        name = self._names.get(id(module), self._scopes[-1][0])
        self._scopes.append((name, module))
        self.graph.calls[name] = self.graph.calls.get(name, 0) + 1

    def _leave_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if len(self._scopes) > 1 and self._scopes[-1][1] is module:
            self._scopes.pop()
        name = self._names.get(id(module))
        if self._recording() and name is not None and self._on_module is not None:
            with self._guard(), torch.no_grad(), unseen():
                self._on_module(name, module, inputs, output)


@contextmanager
def unseen() -> Iterator[None]:
    """Keep what a monitor computes for itself out of whatever is being recorded.

    >>> with Tracer(nn.Linear(2, 2)) as tracer, unseen():
    ...     _ = torch.zeros(3) + 1
    >>> tracer.graph.nodes
    []
    """
    with _disable_current_modes():
        yield


def trace(module: nn.Module, *inputs: Any, **kwargs: Any) -> tuple[Graph, Any]:
    """Run `module(*inputs, **kwargs)` once and return the graph of what it did, and its output.

    The module is run as it stands: in training mode batch norm updates its statistics and dropout draws random numbers.

    Raises:
        RuntimeError: if an operation could not be recorded.

    >>> graph, output = trace(nn.Linear(3, 2), torch.zeros(4, 3))
    >>> output.shape, [node.op for node in graph.nodes]
    (torch.Size([4, 2]), ['parameter', 't', 'parameter', 'input', 'addmm'])
    """
    with Tracer(module) as tracer:
        output = module(*inputs, **kwargs)
    if tracer.failure is not None:
        raise RuntimeError(f"could not record the forward of {type(module).__name__}") from tracer.failure
    return tracer.graph, output


def _join(origins: Sequence[Origin]) -> Origin:
    return "data" if "data" in origins else "parameter" if "parameter" in origins else "constant"


def _storage_key(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # a tensor subclass without memory of its own
        return -1
