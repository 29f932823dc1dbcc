"""Maps beside pictures: did a network learn mirror images of them, as if pictures were flipped without them; are they turned?"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lit_training.diagnosis.experiments import Call
from lit_training.running import undisturbed
from lit_training.tracing.loss_calls import before_reshaping
from lit_training.tracing.probe import Probe

__all__ = ["MappedSamples", "Mirror", "Turn", "mapped_samples", "mirror", "turn"]

_MOST, _LEAST = 64, 8
_ENOUGH_NUMBERS = 2**22  # of all inputs together, so that they stay below 16 MB; of large pictures the least number of samples
_SMALLEST = 8
_FLIPS = {"left and right": (-1,), "top and bottom": (-2,), "both ways": (-2, -1)}
_SYMMETRIC = 0.95
_QUARTERS = {"upside down": 2, "a quarter to the left": 1, "a quarter to the right": -1}


@dataclass(frozen=True)
class Mirror:
    """How much of the mirrored targets the outputs hold.

    Args:
        way: how they are mirrored.
        share: the part that mirrored targets have in the outputs, over that of the targets themselves.
        correlation: of the outputs with mirrored targets, where those themselves are accounted for.
    """

    way: str
    share: float
    correlation: float


@dataclass(frozen=True)
class Turn:
    """How pictures and targets fit: which way targets have to be turned to fit best, and the correlations then and as they are."""

    way: str
    turned: float
    straight: float


@dataclass(frozen=True)
class MappedSamples:
    """Some samples of the first batch, whose targets are maps as large as the pictures: the network's call, and the targets."""

    call: Call
    targets: Tensor

    def mirror(self) -> Mirror | None:
        """Run a copy of the network as it is now on them, in eval mode, and compare what it says with `mirror`.

        Returns:
            As `mirror`; `None`, too, for a network that cannot be copied, or whose output is no map like the targets.
        """
        with undisturbed(self.call.module), torch.no_grad():
            try:  # FSDP2, cached tensors
                copied = copy.deepcopy(self.call.module).eval()
            except Exception:
                return None
            output = copied(*self.call.args, **self.call.kwargs)
        maps = _alike(output, self.targets) if isinstance(output, Tensor) else None
        return None if maps is None else mirror(*maps)

    def turn(self) -> Turn | None:
        """Compare the pictures themselves with the targets, by `turn`; `None` where targets are no masks of one kind."""
        pictures = next(x for x in tree_leaves((self.call.args, self.call.kwargs)) if isinstance(x, Tensor))
        masks = self.targets[:, None] if self.targets.ndim == 3 else self.targets
        fits = pictures.ndim == masks.ndim == 4 and masks.shape[1] == 1 and pictures.is_floating_point()
        return turn(pictures, masks.to(pictures.dtype)) if fits else None


def mapped_samples(probe: Probe, calls: Sequence[Call]) -> MappedSamples | None:
    """Keep a few samples of the first batch, `None` unless a loss takes maps as the loader gave them, and one network made them."""
    graph, rows = probe.graph, probe.batch_size
    given = {node.index: x for x in probe.tracer.batch if (node := probe.tracer.node(x)) is not None}
    for loss in probe.losses:
        target = given.get(before_reshaping(graph, graph.nodes[loss.target]).index)
        if target is None or len(calls) != 1 or not _are_maps(target, rows):
            continue
        pictures = [x for x in tree_leaves((calls[0].args, calls[0].kwargs)) if isinstance(x, Tensor)]
        if pictures and all(x.shape[:1] == (rows,) for x in pictures) and pictures[0].shape[-2:] == target.shape[-2:]:
            each = sum(x.numel() for x in pictures) // rows
            return _first(calls[0], target, max(_LEAST, min(_MOST, _ENOUGH_NUMBERS // each)))
    return None


def mirror(outputs: Tensor, targets: Tensor) -> Mirror | None:
    """Return which mirror image of the targets has most in the outputs, beside the targets themselves.

    Both are held against their means over samples, so that places where something usually is do not count. Targets that are
    symmetric tell nothing.

    Args:
        outputs: `[samples, channels, height, width]`, in any units.
        targets: likewise.

    Returns:
        `None` if outputs hold nothing of the targets.

    >>> targets = torch.rand(32, 1, 16, 16)
    >>> mirror((targets + targets.flip(-1)) / 2, targets).way
    'left and right'
    >>> abs(mirror(targets, targets).share) < 0.01
    True
    """
    said, meant = (x.double() - x.double().mean(0) for x in (outputs, targets))
    found = []
    for way, dims in _FLIPS.items():
        turned = meant.flip(dims)
        overlap, along = _along(turned, meant), _along(said, meant)
        if abs(overlap) > _SYMMETRIC:
            continue
        rest, left = turned - overlap * meant, said - along * meant
        share = _along(said, rest)
        own = along - overlap * share
        correlation = float((left * rest).sum() / (left.norm() * rest.norm()).clamp(min=1e-30))
        if own > 0:
            found.append(Mirror(way, share / own, correlation))
    return max(found, key=lambda each: each.share, default=None)


@torch.no_grad()
def turn(pictures: Tensor, targets: Tensor) -> Turn:
    """Return which of the other symmetries of a square brings targets nearest to what pictures show.

    Args:
        pictures: `[samples, channels, height, width]`, of which the channel counts that fits best.
        targets: `[samples, 1, height, width]`.

    >>> masks = torch.rand(32, 1, 16, 16)
    >>> turn(2 * masks.transpose(-1, -2) - 1, masks).way
    'rows for columns'
    """
    seen, meant = (x.double() - x.double().mean(0) for x in (pictures, targets))
    turned = {way: meant.flip(dims) for way, dims in _FLIPS.items()}
    if meant.shape[-1] == meant.shape[-2]:
        turned |= {way: meant.rot90(k, (-2, -1)) for way, k in _QUARTERS.items()} | {
            "rows for columns": meant.transpose(-1, -2)
        }
    fits = {way: _fit(seen, x) for way, x in turned.items()}
    way = max(fits, key=lambda each: fits[each])
    return Turn(way, fits[way], _fit(seen, meant))


def _fit(seen: Tensor, meant: Tensor) -> float:
    """Return the largest size of a correlation between a channel and a map."""
    lengths = seen.square().sum((0, 2, 3)) * meant.square().sum()
    return float(((seen * meant).sum((0, 2, 3)).abs() / lengths.sqrt().clamp(min=1e-30)).max())


def _along(x: Tensor, direction: Tensor) -> float:
    return float((x * direction).sum() / direction.square().sum().clamp(min=1e-30))


def _are_maps(target: Tensor, rows: int) -> bool:
    return target.ndim >= 3 and target.shape[0] == rows >= _LEAST and min(target.shape[-2:]) >= _SMALLEST


def _first(call: Call, targets: Tensor, samples: int) -> MappedSamples:
    def cut(leaf: Any) -> Any:
        return leaf[:samples].detach().clone() if isinstance(leaf, Tensor) else leaf

    few = replace(call, args=tree_map(cut, call.args), kwargs=tree_map(cut, call.kwargs))
    return MappedSamples(few, targets[:samples].detach().clone())


def _alike(output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor] | None:
    """Bring outputs and targets into one shape, labels as one map for each class; `None` if they do not fit."""
    places = output.shape[:1] + output.shape[2:]
    if not targets.is_floating_point() and places == targets.shape and output.shape[1] > 1:
        known = targets.clamp(0, output.shape[1] - 1)
        return output.softmax(1), F.one_hot(known, output.shape[1]).movedim(-1, 1).to(output.dtype)
    if output.shape == targets.shape:
        return output, targets.to(output.dtype)
    if output.ndim > 1 and output.squeeze(1).shape == targets.squeeze(1).shape:
        return output.squeeze(1), targets.squeeze(1).to(output.dtype)
    return None
