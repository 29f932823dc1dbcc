"""What the tensors of a batch meet in a step: what their values are first compared or combined with."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_training.columns import leaves_of
from lit_training.tracing.operations import flat

__all__ = ["Meetings"]

_MOST = 2**20


class Meetings(TorchDispatchMode):
    """Note, while active, the first tensor of as many numbers that an operation takes beside one of a batch.

    Reshaped ones count as the tensor itself. An exception while recording ends the recording, not the step.

    >>> x, y = torch.randn(4, 1), torch.randn(4)
    >>> with Meetings((x, y)) as met:
    ...     loss = (3 * x[:, 0] - y).abs().mean()
    >>> torch.equal(met.partners[1], 3 * x[:, 0])
    True
    """

    def __init__(self, batch: Any) -> None:
        super().__init__()
        self.partners: dict[int, Tensor] = {}
        leaves = ((i, leaf) for i, leaf in enumerate(leaves_of(batch)) if isinstance(leaf, Tensor) and _is_of_numbers(leaf))
        self._places = {leaf.untyped_storage().data_ptr(): i for i, leaf in leaves}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation as it is, and note what meets a tensor of the batch in it."""
        if len(self.partners) < len(self._places):
            try:
                self._note([leaf for leaf in flat((args, kwargs or {})) if isinstance(leaf, Tensor)])
            except Exception:
                self._places = {}
        return func(*args, **(kwargs or {}))

    def _note(self, operands: list[Tensor]) -> None:
        if len(operands) < 2:
            return
        places = [self._places.get(x.untyped_storage().data_ptr()) if _is_of_numbers(x) else None for x in operands]
        for x, place in zip(operands, places, strict=True):
            if place is None or place in self.partners:
                continue
            others = (o for o, p in zip(operands, places, strict=True) if p is None and _is_of_numbers(o) and len(o) == len(x))
            partner = next((other for other in others if other.numel() == x.numel()), None)
            if partner is not None:
                self.partners[place] = partner.detach().clone()


def _is_of_numbers(tensor: Tensor) -> bool:
    plain = tensor.layout == torch.strided and tensor.is_floating_point() and tensor.ndim > 0
    return plain and 1 < tensor.numel() <= _MOST
