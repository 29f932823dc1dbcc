"""CTC's lengths while operations are recorded."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["lengths_at_hand"]


@contextmanager
def lengths_at_hand() -> Iterator[None]:
    """Bring the lengths that `torch.ctc_loss` is given to where its log-probabilities are.

    On a GPU it takes them from the CPU, but not while something watches it: then it keeps them as tensors, which its kernel wants
    on its own device. The values, and all that is computed of them, are the same.

    >>> before = torch.ctc_loss
    >>> with lengths_at_hand():
    ...     torch.ctc_loss is before
    False
    >>> torch.ctc_loss is before
    True
    """
    original: Any = torch.ctc_loss

    def ctc_loss(log_probs: Tensor, targets: Tensor, *lengths: Any, **settings: Any) -> Any:
        moved = [value.to(log_probs.device) if isinstance(value, Tensor) else value for value in lengths]
        settings = {
            name: value.to(log_probs.device) if isinstance(value, Tensor) else value for name, value in settings.items()
        }
        return original(log_probs, targets, *moved, **settings)

    torch.ctc_loss = ctc_loss
    try:
        yield
    finally:
        torch.ctc_loss = original
