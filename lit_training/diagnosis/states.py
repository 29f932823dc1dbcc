"""Are samples that are empty, or hold a number far from all others, a state of their own: night, drought, standstill?"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_training.columns import leaves_of
from lit_training.diagnosis.parts import Part, singled_out

__all__ = ["own_states", "tells_target"]

CLEARER, SIGNIFICANT = 4.0, 2.5
LEAST = 3


@torch.no_grad()
def own_states(batch: Any, parts: Sequence[Part | None], target: int | None) -> frozenset[int]:
    """Return at which places of a batch the samples that are empty, or coded, have targets of their own."""
    leaves = leaves_of(batch)
    told = None if target is None else leaves[target]
    if not isinstance(told, Tensor) or told.layout != torch.strided or told.ndim == 0:
        return frozenset()
    suspects = ((i, part) for i, part in enumerate(parts) if part is not None and (part.blank or part.gap) and i != target)
    return frozenset(
        i for i, part in suspects if part.samples == len(told) and tells_target(singled_out(leaves[i], part), told)
    )


def tells_target(marked: Tensor, target: Tensor) -> bool:
    """Tell whether targets of marked samples are far more alike than those of others, which chance marks alike.

    Their variance, of labels that of one-hot rows, is a quarter of the others' at most, 2.5 standard errors beyond chance.

    >>> x = torch.arange(64) % 4
    >>> tells_target(x == 0, x), tells_target(torch.arange(64) < 16, x)
    (True, False)
    """
    values = target.detach().reshape(len(target), -1)
    if not target.is_floating_point() and values.shape[1] == 1:
        values = torch.nn.functional.one_hot(values.unique(return_inverse=True)[1]).flatten(1)
    values, marked = values.float(), marked.to(values.device)
    few, others = values[marked], values[~marked]
    if min(len(few), len(others)) < LEAST:
        return False
    rest, own = float(others.var(0).sum()), float(few.var(0).sum())
    if len(values.unique(dim=0)) <= len(values) / 2:
        own = ((len(few) - 1) * own + rest) / len(few)  # a few of two labels are alike by chance
    error = math.sqrt(2 / (len(few) - 1) + 2 / (len(others) - 1))
    return rest > own * max(CLEARER, math.exp(SIGNIFICANT * error))
