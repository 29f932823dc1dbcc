"""Why the first step raised: what the layer that was running was given, against what it takes."""

import re
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from lit_training.diagnosis.finding import Finding
from lit_training.selection import clean_names

__all__ = ["explain_crash"]

_OF_TYPES = re.compile(r"dtype|scalar type|have the type|type \(|not implemented for")


def explain_crash(error: BaseException, module: nn.Module, step: int = 0) -> list[Finding]:
    """Return a `bad_data` finding if the innermost layer that was running got what it cannot take, else nothing.

    Looked at are the frames of the traceback: the layer is their innermost module with parameters, its input the tensor that its
    `forward` was called with. Explained are integers for a layer that computes with floating-point weights, and another
    floating-point type, where the error is about types; a wrong number of features or channels; and indices outside of an
    embedding's table. A module with layers of its own may well take what its own parameters could not.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    >>> try:
    ...     net(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    ... except RuntimeError as error:
    ...     print(explain_crash(error, net)[0])
    ERROR bad_data at 0: It was given torch.uint8 of shape (2, 1, 8, 8), its weights are torch.float32. ...
    """
    names = {part: name for name, part in clean_names(module)}
    for layer, given in _running(error):
        if layer in names and given is not None:
            told = _mismatch(layer, given, _OF_TYPES.search(str(error)) is not None)
            return [Finding("bad_data", "error", names[layer], step, *told)] if told else []
    return []


def _running(error: BaseException) -> Iterator[tuple[nn.Module, Tensor | None]]:
    """Yield the layers that were running, the innermost first, with what they were called with."""
    frames: list[FrameType] = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        layer = frame.f_locals.get("self")
        if isinstance(layer, nn.Module) and frame.f_code.co_name == "forward" and _weight(layer) is not None:
            arguments = frame.f_code.co_varnames[1 : frame.f_code.co_argcount]
            values: list[Any] = [frame.f_locals.get(name) for name in arguments]
            yield layer, next((value for value in values if isinstance(value, Tensor)), None)


def _weight(layer: nn.Module) -> Tensor | None:
    return next((p for p in layer.parameters(recurse=False) if p.ndim > 1 or not isinstance(layer, nn.RNNBase)), None)


def _mismatch(layer: nn.Module, given: Tensor, of_types: bool) -> tuple[str, str] | None:
    weight, shape = _weight(layer), tuple(given.shape)
    assert weight is not None
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return _bad_index(layer, given)
    if not of_types or any(_weight(part) is not None for part in layer.children()):
        return _bad_shape(layer, shape)
    if not given.is_floating_point() and not given.is_complex() and weight.is_floating_point():
        scale = " / 255" if given.dtype == torch.uint8 else ""
        return (
            f"It was given {given.dtype} of shape {shape}, its weights are {weight.dtype}.",
            f"Convert in the data set, or before the forward: x = x.float(){scale}.",
        )
    if given.dtype != weight.dtype:
        return (
            f"It was given {given.dtype} of shape {shape}, its weights are {weight.dtype}.",
            f"Convert the data, x = x.to({weight.dtype}), or let the Trainer do it: precision=.",
        )
    return _bad_shape(layer, shape)


def _bad_index(layer: nn.Embedding | nn.EmbeddingBag, given: Tensor) -> tuple[str, str] | None:
    if given.is_floating_point():
        return f"It was given {given.dtype}, it takes indices.", "Convert to indices: x = x.long()."
    low, high = int(given.min()), int(given.max())
    if low >= 0 and high < layer.num_embeddings:
        return None
    return (
        f"It was given indices from {low} to {high}, its table has {layer.num_embeddings} rows (0 to {layer.num_embeddings - 1}).",
        f"Make num_embeddings at least {high + 1}, or map unknown and padding tokens into the table.",
    )


def _bad_shape(layer: nn.Module, shape: tuple[int, ...]) -> tuple[str, str] | None:
    if isinstance(layer, nn.Linear) and shape and shape[-1] != layer.in_features:
        return (
            f"It was given shape {shape}, whose last dimension is {shape[-1]}; it takes {layer.in_features} features.",
            f"Use in_features={shape[-1]}, or flatten or transpose what enters: x.flatten(1).",
        )
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return None
    spatial = len(layer.kernel_size)
    channels = shape[-spatial - 1] if len(shape) > spatial else None
    if channels == layer.in_channels and len(shape) in (spatial + 1, spatial + 2):
        return None
    last = " The channels seem to come last: x.permute(0, 3, 1, 2)." if spatial == 2 and shape[-1] == layer.in_channels else ""
    sizes = ", ".join(["N", str(layer.in_channels), *"DHW"[3 - spatial :]])
    return f"It was given shape {shape}; it takes ({sizes}).", f"Bring the channels second: x[:, None] for grey pictures.{last}"
