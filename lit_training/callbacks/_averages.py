"""Keep weight averages of frozen tensors exact."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor

__all__ = ["keep_equal_values"]


def keep_equal_values(callbacks: list[Callback]) -> None:
    """Let the averages of `WeightAveraging` leave what equals the model as it is, to the bit.

    The moving average `decay * average + (1 - decay) * weight` of a frozen weight differs from it by rounding (and turns an
    integer buffer down), and takes the weight's place after training. Call it once the average models are built.
    """
    for callback in callbacks:
        average = callback._average_model if isinstance(callback, WeightAveraging) else None
        if average is not None and average.avg_fn is not None:
            average.avg_fn = partial(_average_unequal, average.avg_fn)


def _average_unequal(average_fn: Callable[..., Tensor], average: Tensor, current: Tensor, count: Any) -> Tensor:
    return torch.where(average == current, average, average_fn(average, current, count).to(average.dtype))
