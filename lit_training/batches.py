"""Which part of a batch are the inputs and which the target."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["batch_size", "call", "split_batch"]

_TARGETS = ("target", "targets", "label", "labels", "y")
_WAY_OUT = "override unpack(batch) and return (inputs, target)"


def split_batch(batch: Any, forward: Callable[..., Any]) -> tuple[Any, Any]:
    """Split a batch into the inputs of `forward` and the target.

    - A tensor is the input; there is no target (`None`), as in prediction.
    - Of a tuple or list the first entries are the arguments of `forward`, as many as it needs, and the next is the target.
      Entries after the target (an index, a file name) are not used.
    - Of a mapping the target is called `target`, `targets`, `label`, `labels` or `y`. The inputs are the entries named as
      arguments of `forward` (as Hugging Face does), or the only one that is left.

    Args:
        batch: what the loader yields.
        forward: the function that takes the inputs; only its signature is read.

    Returns:
        Inputs and target. Several inputs are a tuple (of a sequence) or a dict (of a mapping).

    Raises:
        TypeError: for another kind of batch.
        ValueError: for a batch that can be read in two ways, or in none.

    >>> split_batch(("x", "y", "index"), lambda x: x)
    ('x', 'y')
    >>> split_batch({"image": "x", "label": "y"}, lambda image: image)
    ('x', 'y')
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping):
        return _split_mapping(batch, _arguments(forward))
    if isinstance(batch, (tuple, list)):
        return _split_sequence(batch, _arguments(forward))
    raise TypeError(f"a batch of type {type(batch).__name__} is neither a tensor, nor a sequence, nor a mapping; {_WAY_OUT}")


def call(function: Callable[..., Any], inputs: Any) -> Any:
    """Call with inputs as `split_batch` returns them: one argument, a tuple of them, or a mapping of named ones.

    >>> call(lambda a, b: a - b, {"b": 1, "a": 3})
    2
    """
    if isinstance(inputs, Mapping):
        return function(**inputs)
    if isinstance(inputs, (tuple, list)):
        return function(*inputs)
    return function(inputs)


def batch_size(inputs: Any) -> int:
    """Return the length of the first tensor with dimensions, found depth first; 1 without any.

    >>> import torch
    >>> batch_size({"x": (torch.zeros(5, 2), torch.zeros(5))})
    5
    """
    if isinstance(inputs, Tensor) and inputs.ndim > 0:
        return inputs.shape[0]
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (tuple, list)) else ()
    return next((size for part in parts if (size := batch_size(part)) != 1), 1)


def _split_sequence(batch: tuple[Any, ...] | list[Any], arguments: list[inspect.Parameter]) -> tuple[Any, Any]:
    required = sum(argument.default is argument.empty and argument.kind in _POSITIONAL for argument in arguments)
    flexible = any(argument.kind is argument.VAR_POSITIONAL for argument in arguments) or len(arguments) > required
    needed = max(required, 1)
    if len(batch) < needed:
        raise ValueError(f"a batch of {len(batch)} entries has too few for the {needed} inputs of forward; {_WAY_OUT}")
    if flexible and len(batch) > needed + 1:
        raise ValueError(
            f"a batch of {len(batch)} entries can be read in several ways, because forward takes a variable number of inputs; "
            f"{_WAY_OUT}"
        )
    inputs = batch[0] if needed == 1 else tuple(batch[:needed])
    return inputs, batch[needed] if len(batch) > needed else None


def _split_mapping(batch: Mapping[str, Any], arguments: list[inspect.Parameter]) -> tuple[Any, Any]:
    names = [argument.name for argument in arguments if argument.kind in _NAMED]
    targets = [name for name in _TARGETS if name in batch and name not in names]
    if len(targets) > 1:
        raise ValueError(f"a batch with the keys {list(batch)} has several targets, {targets}; {_WAY_OUT}")
    target = batch[targets[0]] if targets else None
    rest = {name: value for name, value in batch.items() if name not in targets}
    inputs = {name: rest[name] for name in names if name in rest}
    if len(inputs) == 1 and len(names) == 1:
        return inputs[names[0]], target
    missing = [a.name for a in arguments if a.default is a.empty and a.kind in _NAMED and a.name not in inputs]
    if not inputs and len(rest) == 1:
        return next(iter(rest.values())), target
    if not inputs or missing:
        raise ValueError(f"a batch with the keys {list(batch)} has no inputs for {names} of forward; {_WAY_OUT}")
    return inputs, target


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _arguments(forward: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(forward).parameters.values())
