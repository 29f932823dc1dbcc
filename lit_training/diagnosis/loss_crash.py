"""Why a loss raised: what it was given as prediction and target, against what it takes."""

from collections.abc import Callable
from types import FrameType

from torch import Tensor

from lit_training.diagnosis.finding import Finding

__all__ = ["explain_loss_crash", "explain_loss_shape"]

_Told = tuple[str, str, str] | None
"""Rule, message and advice."""


def explain_loss_crash(error: BaseException, step: int = 0) -> list[Finding]:
    """Return why one of torch's losses raised: unknown labels, another type or shape, values that are no probabilities.

    Looked at are the frames of the traceback that are functions of `torch.nn.functional` with an `input` and a `target`.

    >>> import torch
    >>> try:
    ...     torch.nn.functional.cross_entropy(torch.zeros(2, 3), torch.tensor([1, 3]))
    ... except IndexError as error:
    ...     print(explain_loss_crash(error)[0])
    ERROR labels_broken: The labels go from 1 to 3, cross_entropy of 3 classes takes 0 to 2. Count classes from 0, ...
    """
    for frame in _frames(error):
        name = frame.f_code.co_name
        prediction, target = frame.f_locals.get("input"), frame.f_locals.get("target")
        if name in _EXPLAINED and isinstance(prediction, Tensor) and isinstance(target, Tensor):
            told = _EXPLAINED[name](name, prediction, target, frame)
            return [Finding(told[0], "error", "", step, told[1], told[2])] if told else []
    return []


def explain_loss_shape(loss: Tensor, step: int = 0) -> list[Finding]:
    """Return a `loss_reduction` finding if a loss is not a single number.

    >>> import torch
    >>> explain_loss_shape(torch.zeros(4))[0].message
    'The loss has shape (4,); to differentiate it takes one number.'
    """
    if loss.numel() == 1:
        return []
    message = f"The loss has shape {tuple(loss.shape)}; to differentiate it takes one number."
    return [Finding("loss_reduction", "error", "", step, message, "Take the mean: reduction='mean', or loss.mean().")]


def _frames(error: BaseException) -> list[FrameType]:
    frames, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == "torch.nn.functional":
            frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames


def _labels(name: str, prediction: Tensor, target: Tensor, frame: FrameType) -> _Told:
    classes = prediction.shape[1] if prediction.ndim > 1 else prediction.shape[0]
    if target.is_floating_point():
        message = f"{name} was given labels of type {target.dtype} and shape {tuple(target.shape)}; it takes integers."
        return "labels_broken", message, "Convert them in the data set: y.long()."
    if target.shape == prediction.shape:
        message = f"{name} was given {target.dtype} of the outputs' own shape {tuple(target.shape)}, as one-hot labels have."
        return "labels_broken", message, "Give it the labels themselves, y.argmax(1), or probabilities, y.float()."
    if target.ndim == prediction.ndim and target.shape[1:2] == (1,):
        message = f"{name} was given labels of shape {tuple(target.shape)}; it takes {(target.shape[0], *target.shape[2:])}."
        return "labels_broken", message, "Drop the dimension: y.squeeze(1)."
    if prediction.ndim > 1 and target.shape != (prediction.shape[0], *prediction.shape[2:]):
        last = prediction.ndim > 2 and target.shape == prediction.shape[:-1]
        message = f"{name} compares outputs of shape {tuple(prediction.shape)} with labels of shape {tuple(target.shape)}."
        advice = (
            "Bring the classes to dimension 1: output.movedim(-1, 1)."
            if last
            else "Outputs are (N, classes, ...), labels (N, ...)."
        )
        return "shape_broadcast", message, advice
    known = target[target != frame.f_locals.get("ignore_index", -100)]
    low, high = (int(known.min()), int(known.max())) if known.numel() else (0, 0)
    if low >= 0 and high < classes:
        return None
    message = f"The labels go from {low} to {high}, {name} of {classes} classes takes 0 to {classes - 1}."
    return "labels_broken", message, f"Count classes from 0, or give the last layer {high + 1} outputs."


def _probabilities(name: str, prediction: Tensor, target: Tensor, frame: FrameType) -> _Told:
    if target.shape != prediction.shape:
        message = f"{name} compares outputs of shape {tuple(prediction.shape)} with targets of shape {tuple(target.shape)}."
        return "shape_broadcast", message, "Give both one shape: y[:, None], or output.squeeze(1)."
    if not target.is_floating_point():
        return "labels_broken", f"{name} was given targets of type {target.dtype}.", "Convert them in the data set: y.float()."
    low, high = float(prediction.min()), float(prediction.max())
    if name == "binary_cross_entropy" and not 0 <= low <= high <= 1:
        message = f"binary_cross_entropy was given values from {low:.3g} to {high:.3g}; it takes probabilities, 0 to 1."
        return "wrong_loss", message, "Use binary_cross_entropy_with_logits, or end the network in a sigmoid."
    return None


_EXPLAINED: dict[str, Callable[[str, Tensor, Tensor, FrameType], _Told]] = {
    "cross_entropy": _labels,
    "nll_loss": _labels,
    "binary_cross_entropy": _probabilities,
    "binary_cross_entropy_with_logits": _probabilities,
}
