"""What goes on inside a network while an experiment runs a copy of it: masks, statistics of the batch, attention."""

import math
from contextlib import ExitStack
from functools import cache, partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Attending", "Dropping", "Summarising"]

_LEAST_MASK = 4
_MASKS = ("dropout", "bernoulli")
_DRAWS = ("aten.rand.", "aten.rand_like", "uniform")
_COMPARES = ("aten.lt.", "aten.le.", "aten.gt.", "aten.ge.", "aten.floor")
_KEEPS = ("aten.detach", "aten.add", "aten.sub", "aten.rsub", "aten.mul", "aten._to_copy", "view")
_RESHAPES = ("view", "unsqueeze", "expand", "aten.repeat", "aten._to_copy", "aten.clone", "aten.detach", "transpose", "permute")
_INVERTS = ("aten.rsub", "_not.")
_STATISTICS = frozenset("aten.mean aten.std aten.var aten.var_mean aten.amax aten.amin aten.max aten.min aten.aminmax".split())


class Attending:
    """See which attention takes the samples for positions: it is called with them along the first dimension, without `batch_first`.

    Where the second dimension could hold them, as in `[time, batch]` or `[rows, batch * columns]`, it is given the benefit of the
    doubt. `as_set` tells that one is openly given all samples as the positions of a single sequence, `[1, samples, features]` with
    `batch_first`, and `as_series` that a recurrent layer reads them as an unbatched sequence, `[samples, features]`.
    """

    def __init__(self, net: nn.Module, size: int) -> None:
        self.found, self.as_set, self.as_series = "", False, False
        self._net, self._size, self._hooks = net, size, ExitStack()

    def __enter__(self) -> "Attending":
        for name, part in self._net.named_modules():
            if isinstance(part, nn.MultiheadAttention | nn.RNNBase) and self._size > 1:
                self._hooks.callback(part.register_forward_pre_hook(partial(self._look, name), with_kwargs=True).remove)
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()

    def _look(self, name: str, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shape = tuple(getattr(args[0] if args else kwargs.get("query", kwargs.get("input")), "shape", ()))
        if isinstance(part, nn.RNNBase):
            self.as_series |= len(shape) == 2 and shape[0] == self._size
        elif part.batch_first:
            self.as_set |= shape[:-1] == (1, self._size)
        elif not self.found and len(shape) == 3 and shape[0] == self._size and shape[1] % self._size:
            self.found = name


class Dropping(TorchDispatchMode):
    """Count the masks that are drawn: coins, or uniform numbers once they are compared with a rate.

    Uniform noise that is added, or that puts positions in order, as in dequantisation or masked autoencoders, drops nothing. Nor
    do coins of different probabilities, which are samples of a distribution, or masks that put something in place of what they
    hide, as masked modelling puts a token that it learns.
    """

    def __init__(self) -> None:
        super().__init__()
        self._drawn: list[Tensor] = []
        self._masks = 0
        self._replacing: set[int] = set()
        self._made: list[tuple[Tensor, int, bool]] = []  # what became of a mask: the tensor, which mask, whether it is inverted
        self._products: set[tuple[int, bool]] = set()

    @property
    def masks(self) -> int:
        """How many masks dropped something."""
        return self._masks - len(self._replacing)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        out = outputs[0] if isinstance(outputs, tuple) and outputs else outputs  # a fused dropout gives its mask, too
        if isinstance(out, Tensor) and out.ndim > 1 and out[0].numel() >= _LEAST_MASK:  # not a coin a sample or a step
            self._follow(func, args, out)
            drawn = any(arg is seen for arg in args for seen in self._drawn)
            if _is(func, _MASKS) or (drawn and _is(func, _COMPARES)):
                self._count(func, args, out)
            if _is(func, _DRAWS) or (drawn and _is(func, _KEEPS)):
                self._drawn.append(out)
        return outputs

    def _count(self, func: Any, args: Any, out: Tensor) -> None:
        rates = [arg for arg in args if isinstance(arg, Tensor) and arg is not out and all(arg is not t for t in self._drawn)]
        if _is(func, ("dropout",)):
            self._masks += 1
        elif not any(rate.numel() > 1 and bool((rate != rate.flatten()[0]).any()) for rate in rates):
            self._made.append((out, self._masks, False))
            self._masks += 1

    def _follow(self, func: Any, args: Any, out: Tensor) -> None:
        leaves = tree_leaves(args)
        for mask, inverted in [(mask, side) for tensor, mask, side in self._made if any(arg is tensor for arg in leaves)]:
            if _is(func, _RESHAPES) or _is(func, _INVERTS):
                self._made.append((out, mask, inverted != _is(func, _INVERTS)))
            self._products |= {(mask, inverted)} if _is(func, ("aten.mul",)) else set()
            if _puts_in_place(func, args) or {(mask, True), (mask, False)} <= self._products:
                self._replacing.add(mask)


class Summarising(TorchDispatchMode):
    """See whether statistics over the whole batch are taken, as by a discriminator or by quantisation to its range."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.found, self._size = False, size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if str(func).rpartition(".")[0] in _STATISTICS and isinstance(args[0], Tensor) and args[0].shape[:1] == (self._size,):
            first = out if isinstance(out, Tensor) else out[0]
            kept = first.ndim == args[0].ndim and first.shape[0] == 1
            self.found |= kept or first.shape == args[0].shape[1:] or first.ndim == 0
        return out


def _puts_in_place(func: Any, args: Any) -> bool:
    """Tell whether an operation takes values from two sources, of which none is all zeros and none infinite, by a mask."""
    if _is(func, ("aten.where.",)) and len(args) == 3:
        return _something(args[1]) and _something(args[2])
    return _is(func, ("aten.masked_fill", "aten.index_put")) and _something(args[2])


def _something(value: Any) -> bool:
    if isinstance(value, nn.Parameter) or isinstance(getattr(value, "_base", None), nn.Parameter):
        return True  # it may begin at zero
    return bool(((value != 0) & (abs(value) < math.inf)).any()) if isinstance(value, Tensor) else 0 < abs(value) < math.inf


@cache
def _is(func: Any, words: tuple[str, ...]) -> bool:
    return any(word in str(func) for word in words)
