"""What a network does in eval mode, found by running copies of it: does it mix samples, does chance decide, does it look ahead?"""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from lit_training.diagnosis.parts import Fed, Part, summary
from lit_training.diagnosis.watching import Attending, Dropping, Summarising
from lit_training.running import undisturbed
from lit_training.selection import clean_names

__all__ = ["SEVERAL", "Call", "Calls", "InEval", "fed", "try_in_eval"]

_MOST_CALLS = 3
_FEW = 19  # samples show what a batch shows; hardly anything else has as many: 13 are a class token and twelve words
_CHANGED = 1e-3  # of the output's spread: far above rounding, far below what a sample's own change does
_FORESEEN = 1e-5  # likewise: a small token among many, which a masked one leaves at rounding of 1e-7
SEVERAL = 3  # passes in one, to average over masks on purpose


@dataclass(frozen=True)
class Call:
    """One call of a network by a training step: its name (`""` for the whole module) and its arguments."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class InEval:
    """What a called network does in eval mode.

    Args:
        name: of the network, `""` for the whole module.
        mixed: by what fraction of the outputs' spread the other samples' outputs changed when the first and the last sample (of
            three or less, the first) were replaced; `None` where that could not be asked (one sample, inputs or outputs without a
            batch dimension, or statistics of the batch).
        dropped: whether two passes differ because something was dropped at random; not if one averages several masks on purpose.
        attending: the first `nn.MultiheadAttention` that takes the samples for positions, `""` if none does.
        foresees: whether what it gives for a token changes with the tokens behind it; False if that was not asked.
    """

    name: str
    mixed: float | None
    dropped: bool
    attending: str = ""
    foresees: bool = False


@dataclass
class Calls:
    """Note the outermost calls of networks with parameters, in train mode or not, while active; arguments are kept as they were.

    `most` is how often the network that was called most was called.

    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> with Calls(net) as calls:
    ...     _ = net(torch.zeros(3, 2))
    >>> [(call.name, call.args[0].shape) for call in calls.seen]
    [('', torch.Size([3, 2]))]
    """

    module: nn.Module
    training: bool = True
    seen: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.most = 0
        self._times: Counter[str] = Counter()
        self._depth = 0
        self._names: dict[int, str] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Calls":
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if id(module) in self._names and not _stands_in(module):
                self._enter_call(module, args, kwargs)

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if id(module) in self._names and not _stands_in(module):
                self._depth = max(self._depth - 1, 0)

        for name, part in clean_names(self.module):
            if next(part.parameters(), None) is not None:
                self._names[id(part)] = name  # copies of modules have the same hooks
                self._handles.append(part.register_forward_pre_hook(before, with_kwargs=True))
                self._handles.append(part.register_forward_hook(after, always_call=True))
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = self._names[id(module)]
        self._depth += 1
        self._times[name] += self._depth == 1
        self.most = max(self.most, self._times[name])
        new = self._depth == 1 and module.training == self.training and len(self.seen) < _MOST_CALLS
        if new and all(call.module is not module for call in self.seen):
            self.seen.append(Call(name, module, *tree_map(_kept, (args, kwargs))))


def _stands_in(module: nn.Module) -> bool:
    """Tell whether a step of Lightning's stands in for `forward`: DDP calls the module with a batch then."""
    return getattr(module.forward, "__name__", "") == "wrapped_forward"


def fed(calls: Sequence[Call], known: Sequence[tuple[Any, Part | None]] = ()) -> Fed:
    """Return the name of the first called network, and the scale of what it was given, part of which may be `known`."""
    return (calls[0].name, summary((calls[0].args, calls[0].kwargs), known)) if calls else ("", ())


def try_in_eval(
    calls: Sequence[Call], samples: int | None = None, *, ahead: bool = False, in_order: bool = False
) -> list[InEval]:
    """Run a copy of each called network in eval mode, on a few samples as they are and with the first and last replaced.

    Where these passes differ it runs once more, to tell whether chance decides. The originals are not run, and random generators
    stay as they were. A network that cannot be copied, or does not run in eval mode, is left out.

    Args:
        calls: of networks.
        samples: how many the loader puts into a batch. Where a call has more rows, they are parts of samples, which may be mixed.
        ahead: whether to ask if it looks ahead, at one more pass.
        in_order: whether the loader gives them in the order of its data set, so that they may be one stretch of a series.
    """
    found = [(call, result) for call in calls if (result := _try(call, ahead, in_order)) is not None]
    parts = [samples is not None and _samples(_inputs(call)) > samples for call, _ in found]
    return [replace(r, mixed=None, attending="") if of_parts else r for (_, r), of_parts in zip(found, parts, strict=True)]


def _try(call: Call, ahead: bool, in_order: bool) -> InEval | None:
    few = _few(call)
    with undisturbed(call.module), torch.no_grad():
        for attempt in (few,) if few is call else (few, call):
            try:  # FSDP2, cached tensors, anything that refuses to be copied; a batch size that is written into the network
                return _look(copy.deepcopy(call.module).eval(), attempt, ahead, in_order)
            except Exception:
                continue
    return None


def _look(net: nn.Module, call: Call, ahead: bool, in_order: bool) -> InEval:
    size = _samples(_inputs(call))
    with Dropping() as dropping, Attending(net, size) as attending:
        first = _outputs(net(*call.args, **call.kwargs))
    if dropping.masks and _change(first, _outputs(net(*call.args, **call.kwargs))) > 0:
        return InEval(call.name, None, dropped=dropping.masks < SEVERAL * max(_masks_in_training(net, call), 1))
    each = first and all(y.shape[:1] == (size,) for y in first)
    found = attending.found if each else ""
    meant = attending.as_set or (in_order and attending.as_series) or _holds_graph(net, size)
    mixed = None if meant else _mixing(net, call, first)
    return InEval(call.name, mixed, dropped=False, attending=found, foresees=ahead and _foresees(net, call, first))


def _foresees(net: nn.Module, call: Call, first: Sequence[Tensor]) -> bool:
    """Tell whether outputs for all tokens but the last change with the last one, which is swapped between the samples.

    Where there are as many classes as places, either dimension may be the places: outputs have to change along both.
    """
    tokens = [leaf for leaf in _inputs(call) if not leaf.is_floating_point() and leaf.ndim == 2 and leaf.shape[1] > 1]
    if not tokens or all(bool((leaf[:, -1] == leaf[0, -1]).all()) for leaf in tokens):
        return False
    rows, places = tokens[0].shape

    def swap(leaf: Any) -> Any:
        if not any(leaf is one for one in tokens):
            return leaf
        return torch.cat([leaf[:, :-1], leaf[:, -1:].roll(1, 0)], 1)

    def before(outputs: Sequence[Tensor], dim: int) -> list[Tensor]:
        by_place = (y.unflatten(0, (rows, places)) if y.shape[:1] == (rows * places,) else y for y in outputs)
        fit = [y for y in by_place if y.shape[:1] == (rows,) and y.shape[dim : dim + 1] == (places,)]
        return [y.narrow(dim, 0, places - 1) for y in fit]

    again = _outputs(net(*tree_map(swap, call.args), **tree_map(swap, call.kwargs)))
    changes = [_change(before(first, dim), before(again, dim)) for dim in (1, 2) if before(first, dim)]
    return min(changes, default=0.0) > _FORESEEN


def _masks_in_training(net: nn.Module, call: Call) -> int:
    dropping = Dropping()
    with dropping:
        net.train()(*call.args, **call.kwargs)
    return dropping.masks


def _mixing(net: nn.Module, call: Call, first: Sequence[Tensor]) -> float | None:
    inputs = _inputs(call)
    size = _samples(inputs)
    if size < 2 or _own_statistics(net):
        return None
    outputs = [y for y in first if y.ndim and y.shape[0] == size and y.shape[1:2] != (size,)]
    other = next((i for i in range(1, size) if any(not torch.equal(x[0], x[i]) for x in inputs)), None)
    if len(outputs) < len([y for y in first if y.ndim]) or not outputs or other is None:
        return None

    last = size - 1 if size > 3 else size  # the last sample is replaced too: what a recurrent layer reads first, it may forget

    def replaced(dim: int) -> list[Tensor]:
        def swap(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.ndim <= dim:
                return leaf
            leaf = leaf.clone()
            leaf.select(dim, 0).copy_(leaf.select(dim, other if dim == 0 else -1))
            if dim == 0:
                leaf[last:] = leaf[last - 1]
            return leaf

        return _outputs(net(*tree_map(swap, call.args), **tree_map(swap, call.kwargs)))

    mixed = _change([y[1:last] for y in first], [y[1:last] for y in replaced(0)])
    if mixed <= _CHANGED:
        return mixed
    with Summarising(size) as summarising:
        again = _outputs(net(*call.args, **call.kwargs))
    if _change(first, again) > 0 or summarising.found:
        return None  # chance decides (a variational sample), or statistics of the batch do, by design
    if all(y.ndim > 1 and y.shape[:2] == inputs[0].shape[:2] for y in outputs):
        along = replaced(1)
        own, others = (_change([y[:, part] for y in first], [y[:, part] for y in along]) for part in (slice(1), slice(1, None)))
        if others <= _CHANGED < own:
            return None  # samples lie along the second dimension, as in `[time, batch]`
    return mixed


def _few(call: Call) -> Call:
    """Return the call with the first few samples, the same call where it is not known to have samples or has only a few."""
    if _samples(_inputs(call)) <= _FEW:
        return call

    def cut(leaf: Any) -> Any:
        return leaf[:_FEW] if isinstance(leaf, Tensor) and leaf.ndim and leaf.layout == torch.strided else leaf

    return replace(call, args=tree_map(cut, call.args), kwargs=tree_map(cut, call.kwargs))


def _inputs(call: Call) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]


def _samples(inputs: Sequence[Tensor]) -> int:
    """Return the number of samples, 0 where the inputs do not all have a batch dimension of one size."""
    size = inputs[0].shape[0] if inputs else 0
    return 0 if any(x.shape[0] != size or (x.shape[1:2] == (size,) and x.ndim == 2) for x in inputs) else size


def _own_statistics(net: nn.Module) -> bool:
    """Tell whether batch norm is built to take its statistics from the batch in eval mode too."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None for m in net.modules())


def _holds_graph(net: nn.Module, size: int) -> bool:
    """Tell whether a network keeps a graph whose nodes the samples are: an adjacency `[size, size]`, or edges `[2, any]`."""
    kept = [
        t for m in net.modules() for t in (*m._buffers.values(), *vars(m).values()) if isinstance(t, Tensor) and t.ndim == 2
    ]
    edges = (t for t in kept if t.shape[0] == 2 and t.dtype == torch.long and t.numel())
    return any(t.shape == (size, size) for t in kept) or any(size / 2 < int(t.max()) < size for t in edges)


def _outputs(output: Any) -> list[Tensor]:
    return [leaf.float() for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the largest change of an element, relative to the spread of its tensor."""
    changes = [
        float((a - b).abs().max() / (a - a.mean()).abs().max().clamp(min=1e-12))
        for a, b in zip(before, after, strict=True)
        if a.numel() and a.shape == b.shape
    ]
    return max(changes, default=0.0)


def _kept(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or leaf.layout != torch.strided:
        return leaf
    if torch._C._functorch.is_functorch_wrapped_tensor(leaf):  # a sample of vmap's, dead outside of it
        return None
    return leaf.detach().clone()
