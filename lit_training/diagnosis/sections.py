"""Is a batch a section of the data, such as a folder of one class, rather than a sample of them?"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_training.columns import leaves_of
from lit_training.diagnosis.parts import marks

__all__ = ["holds_few_kinds", "kinds"]

WIDEST = 64
RARE = 1e-4
REPEATED = 0.5


@torch.no_grad()
def kinds(batch: Any) -> tuple[Tensor | None, ...]:
    """Return of each leaf of a batch a number for each sample that tells its kind, `None` of what holds more than a few numbers."""
    return tuple(marks(leaf.detach()).cpu() if _is_small(leaf) else None for leaf in leaves_of(batch))


def _is_small(leaf: Any) -> bool:
    plain = isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_complex() and leaf.ndim > 0
    return plain and leaf.numel() > 0 and leaf[0].numel() <= WIDEST


def holds_few_kinds(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None], place: int | None) -> bool:
    """Tell whether targets of a batch are of fewer kinds than a draw leaves to chance, given how often each comes in training.

    Numbers that hardly repeat have no kinds, but one for all samples.

    >>> labels, folder = torch.arange(32) % 4, torch.zeros(32, dtype=torch.long)
    >>> holds_few_kinds([labels], [folder], 0), holds_few_kinds([labels], [labels], 0), holds_few_kinds([folder], [folder], 0)
    (True, False, False)
    >>> holds_few_kinds([labels], [torch.arange(32) / 3], 0)
    False
    """
    if place is None or len(ours) != len(theirs):
        return False
    drawn, held = ours[place], theirs[place]
    if drawn is None or held is None:
        return False
    there, known = held.unique(), len(drawn.unique())
    if len(there) >= known or (len(there) > 1 and known > REPEATED * len(drawn)):
        return False
    share = (float(torch.isin(drawn, there).sum()) + 1) / (len(drawn) + 1)
    return len(held) * math.log(share) < math.log(RARE)
