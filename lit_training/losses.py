"""Losses by name, and what their targets must look like: a wrong target gets a message instead of a broadcast or a crash."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LossFunction", "LossSpec", "check_target", "check_values", "loss_function", "loss_spec"]

LossFunction = Callable[[Any, Any], Tensor]
Kind = Literal["classes", "binary", "values"]

_KINDS: dict[str, Kind] = {
    "cross_entropy": "classes",
    "nll_loss": "classes",
    "binary_cross_entropy": "binary",
    "binary_cross_entropy_with_logits": "binary",
    "mse_loss": "values",
    "l1_loss": "values",
    "smooth_l1_loss": "values",
    "huber_loss": "values",
}
_CLASSES: dict[type[nn.Module], str] = {
    nn.CrossEntropyLoss: "cross_entropy",
    nn.NLLLoss: "nll_loss",
    nn.BCELoss: "binary_cross_entropy",
    nn.BCEWithLogitsLoss: "binary_cross_entropy_with_logits",
    nn.MSELoss: "mse_loss",
    nn.L1Loss: "l1_loss",
    nn.SmoothL1Loss: "smooth_l1_loss",
    nn.HuberLoss: "huber_loss",
}


@dataclass(frozen=True)
class LossSpec:
    """What is known of one of torch's losses.

    Args:
        name: its name in `torch.nn.functional`.
        kind: what it compares: class scores with a class, logits or probabilities with 0 and 1, or values with values.
        ignore_index: the class index that does not count.
    """

    name: str
    kind: Kind
    ignore_index: int = -100


def loss_function(loss: str | LossFunction) -> LossFunction:
    """Return the loss of that name, or the callable as it is.

    Args:
        loss: a name from `torch.nn.functional`, with or without `_loss` (`"cross_entropy"`, `"mse"`), or a callable of outputs
            and target, such as `torch.nn.CrossEntropyLoss(label_smoothing=0.1)`.

    Raises:
        ValueError: for an unknown name; the nearest are listed.
        TypeError: for what is neither a name nor callable, and for a class in place of its instance.

    >>> loss_function("mse")(torch.tensor([1.0]), torch.tensor([3.0]))
    tensor(4.)
    """
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        raise TypeError(f"loss must be an instance, got the class {loss.__name__}; write loss=nn.{loss.__name__}()")
    if isinstance(loss, str):
        for name in (loss, f"{loss}_loss"):
            if name in _KINDS:
                function: LossFunction = getattr(F, name)
                return function
        known = [name.removesuffix("_loss") for name in _KINDS]
        near = get_close_matches(loss.lower(), known, n=2, cutoff=0.0)
        raise ValueError(f"unknown loss {loss!r}; nearest: {near}; known: {known}; any callable of (outputs, target) works too")
    if not callable(loss):
        raise TypeError(f"loss must be a name such as 'cross_entropy' or a callable of (outputs, target), got {loss!r}")
    return cast(LossFunction, loss)


def loss_spec(loss: LossFunction) -> LossSpec | None:
    """Recognise torch's own losses, as function, `functools.partial` of one, or module; `None` for any other callable.

    >>> loss_spec(nn.CrossEntropyLoss(ignore_index=255))
    LossSpec(name='cross_entropy', kind='classes', ignore_index=255)
    """
    ignore_index = getattr(loss, "ignore_index", -100)
    if isinstance(loss, functools.partial):
        ignore_index = loss.keywords.get("ignore_index", -100)
        loss = loss.func
    name = _CLASSES.get(type(loss)) if isinstance(loss, nn.Module) else getattr(loss, "__name__", None)
    if name in _KINDS and (isinstance(loss, nn.Module) or loss is getattr(F, name)):
        return LossSpec(name, _KINDS[name], ignore_index)
    return None


def check_target(spec: LossSpec, outputs: Any, target: Any) -> None:
    """Raise if target and outputs do not fit the loss, by type, dtype and shape alone (nothing waits for the device).

    Args:
        spec: the loss.
        outputs: `[N, classes, ...]` for kind `classes`, else any shape.
        target: for kind `classes` int64 `[N, ...]`, or probabilities of the outputs' shape; else floating point of exactly the
            outputs' shape: torch would broadcast `[N]` against `[N, 1]` to `[N, N]`.

    Raises:
        TypeError: for outputs or a target that are no tensors, and for a wrong dtype.
        ValueError: for a wrong shape.

    >>> check_target(LossSpec("mse_loss", "values"), torch.zeros(8, 1), torch.zeros(8))
    Traceback (most recent call last):
    ValueError: mse_loss needs outputs and target of one shape, got outputs [8, 1] and target [8]; use target.unsqueeze(1) ...
    """
    for name, value in (("outputs", outputs), ("target", target)):
        if not isinstance(value, Tensor):
            way_out = "override compute_loss" if value is not None else "return one from unpack, or override compute_loss"
            raise TypeError(f"{spec.name} needs tensors, but {name} is {_type_of(value)}; {way_out}")
    if spec.kind == "classes":
        _check_classes(spec, outputs, target)
    else:
        _check_elementwise(spec, outputs, target)


def check_values(spec: LossSpec, outputs: Tensor, target: Tensor) -> None:
    """Raise if the target's values are out of range. Reads them from the device, so it is for a first batch, or after an error.

    Raises:
        ValueError: for a class index outside of `0 ... classes - 1` (and not `ignore_index`), and for binary targets outside of
            0 ... 1.

    >>> check_values(LossSpec("cross_entropy", "classes"), torch.zeros(2, 3), torch.tensor([0, 3]))
    Traceback (most recent call last):
    ValueError: target[1] is class 3, but the outputs have 3 classes, 0 to 2
    """
    if spec.kind == "classes" and not target.is_floating_point():
        classes = outputs.shape[1 if outputs.ndim > 1 else 0]
        wrong = ((target < 0) | (target >= classes)) & (target != spec.ignore_index)
        found = f"class {{}}, but the outputs have {classes} class{'es' if classes > 1 else ''}, 0 to {classes - 1}"
        if classes == 1:
            found += "; with one logit use loss='binary_cross_entropy_with_logits'"
    elif spec.kind == "binary":
        wrong = ~((target >= 0) & (target <= 1))
        found = f"{{}}, but {spec.name} needs targets from 0 to 1"
    else:
        return
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        raise ValueError(f"target{place if place else ''} is {found.format(target[tuple(place)].item())}")


def _check_classes(spec: LossSpec, outputs: Tensor, target: Tensor) -> None:
    scores, found = list(outputs.shape), list(target.shape)
    indices = scores[:1] + scores[2:] if outputs.ndim > 1 else []
    if target.is_floating_point() and found == scores and spec.name == "cross_entropy":
        return
    if found != indices:
        raise ValueError(
            f"{spec.name} needs a target of class indices of shape {indices} for outputs {scores}, got shape {found}"
            f"{_classes_way_out(scores, found)}"
        )
    if target.dtype != torch.int64:
        way_out = "target.long()"
        if target.is_floating_point():
            way_out += ", or loss='mse' if the target is a value and not a class"
        raise TypeError(f"{spec.name} needs class indices of dtype int64, got {_dtype(target)}; use {way_out}")


def _classes_way_out(scores: list[int], found: list[int]) -> str:
    if len(scores) > 1 and found == [scores[0], 1, *scores[2:]]:
        return "; use target.squeeze(1)"
    if found == scores:
        return "; for one-hot targets use target.argmax(1), or target.float() as probabilities"
    return ""


def _check_elementwise(spec: LossSpec, outputs: Tensor, target: Tensor) -> None:
    if outputs.shape != target.shape:
        raise ValueError(
            f"{spec.name} needs outputs and target of one shape, got outputs {list(outputs.shape)} and target "
            f"{list(target.shape)}{_shape_way_out(outputs, target)}"
        )
    if not target.is_floating_point():
        raise TypeError(f"{spec.name} needs a target of floating point, got {_dtype(target)}; use target.float()")
    if target.dtype == torch.float64 and outputs.dtype != torch.float64:
        raise TypeError(f"{spec.name} got a target of float64 for outputs of {_dtype(outputs)}; use target.float()")


def _shape_way_out(outputs: Tensor, target: Tensor) -> str:
    if outputs.shape == (*target.shape, 1):
        axis = target.ndim
        return f"; use target.unsqueeze({axis}) in unpack or outputs.squeeze({axis}) in forward"
    if target.shape == (*outputs.shape, 1):
        return f"; use target.squeeze({outputs.ndim}) in unpack"
    return ""


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _type_of(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
