"""Running a network on a batch, to look at it, without leaving a trace."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["Runner", "call_arguments", "restored_on_error", "runner_for", "undisturbed"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Runner:
    """How to run a network on the batch at hand.

    `forward` runs it without gradients, `objective` with, returning a scalar to differentiate; both run it in the mode
    (training or not) that it is in. `reduce` sums a tensor over processes that see different data, or is None.
    """

    forward: Callable[[], Any]
    objective: Callable[[], Tensor]
    reduce: Callable[[Tensor], Tensor] | None = None


def runner_for(model: nn.Module, batch: Any, loss_fn: Callable[[Any, Any], Tensor] | None = None) -> Runner:
    """Return how to run a model on a batch as loaders give it.

    Args:
        model: any module; its `unpack(batch) -> (inputs, target)` is used if it has one.
        batch: the inputs; or a tuple of them, followed by targets or not (as many are used as `forward` requires); or a mapping
            with `forward`'s argument names.
        loss_fn: `loss_fn(output, target)` is the objective; by default a random linear function of the outputs, as in
            Kraehenbuehl et al. 2016, section 3.2.

    Raises:
        TypeError: if the batch has another type, or a mapping none of `forward`'s arguments.
        ValueError: if `loss_fn` is given and the batch has no target.
    """
    args, kwargs, target = call_arguments(model, batch)
    if loss_fn is not None and target is None:
        raise ValueError("loss_fn needs a target: pass batch=(inputs, target)")

    def forward() -> Any:
        with undisturbed(model), torch.no_grad():
            return model(*args, **kwargs)

    def objective() -> Tensor:
        with undisturbed(model), torch.enable_grad():
            output = model(*args, **kwargs)
            return random_projection(output) if loss_fn is None else loss_fn(output, target)

    return Runner(forward, objective)


def random_projection(output: Any) -> Tensor:
    """Return a fixed random linear function of all floating-point tensors in `output`."""
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    total = torch.zeros(())
    for leaf in leaves:
        direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0))
        total = total.to(leaf.device) + (leaf.float() * direction.to(leaf.device)).sum()
    return total


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run hooks and operations as written, and leave random generators and buffers as they were.

    Compiled code would skip hooks that are new; attention's fast path, those of its parts.
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=list(devices)), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for buffer, value in buffers:
            buffer.data.copy_(value)  # not as a change that a backward pass still to come would refuse


@contextmanager
def restored_on_error(model: nn.Module) -> Iterator[None]:
    """Put all parameters back if the body raises."""
    before = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)
        raise


def call_arguments(model: nn.Module, batch: Any) -> tuple[Sequence[Any], Mapping[str, Any], Any]:
    """Split a batch into positional and keyword arguments of the model, and the target or None."""
    unpack = getattr(model, "unpack", None)
    if callable(unpack):
        inputs, target = unpack(batch)
        return (inputs,), {}, target
    if isinstance(batch, Tensor):
        return (batch,), {}, None
    parameters = list(inspect.signature(model.forward).parameters.values())
    if isinstance(batch, Mapping):
        any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
        kwargs = {name: value for name, value in batch.items() if any_name or name in {p.name for p in parameters}}
        if not kwargs:
            names = [p.name for p in parameters]
            raise TypeError(
                f"batch has the keys {list(batch)}, none of which forward{tuple(names)} takes; pass the inputs themselves"
            )
        return (), kwargs, next((batch[key] for key in ("labels", "label", "target", "targets") if key in batch), None)
    if isinstance(batch, Sequence) and len(batch):
        required = sum(p.kind in _POSITIONAL and p.default is p.empty for p in parameters)
        open_ended = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        count = max(len(batch) - 1, 1) if open_ended else max(required, 1)
        return batch[:count], {}, batch[count] if len(batch) > count else None
    raise TypeError(f"batch must be a tensor, a tuple of tensors or a mapping of them, got {type(batch).__name__}")
