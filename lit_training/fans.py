"""How many inputs a unit of a layer adds up, and how many units an input goes to: the fans, as each layer really has them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

__all__ = ["Fans", "Matrix", "fans", "matrices", "weight_names"]

_GATES = {"LSTM": ("input", "forget", "cell", "output"), "GRU": ("reset", "update", "new"), "RNN": ("",)}
_PACKED = ("query", "key", "value")


class Fans(NamedTuple):
    """`fan_in`: inputs a unit adds up; `fan_out`: units an input goes to. Averages where a stride makes them vary."""

    fan_in: float
    fan_out: float


@dataclass(frozen=True)
class Matrix:
    """One linear map inside a weight: a view `[units, inputs, *kernel]` of it, its fans, and its part's name or `""`.

    A grouped convolution is one matrix per group, a packed q/k/v projection three, an LSTM's weight one per gate.
    """

    view: Tensor
    fans: Fans
    part: str = ""


def fans(module: nn.Module, name: str | None = None) -> Fans:
    """Return how many inputs each unit of a layer adds up and to how many units each input goes.

    `n` is the number of kernel positions, `g` the groups, `s` the product of the strides:

    | layer | fan_in | fan_out |
    |---|---|---|
    | Linear | in | out |
    | Conv, also depthwise | in / g * n | out / g * n / s |
    | ConvTranspose | in / g * n / s | out / g * n |
    | Bilinear | in1 * in2 | out * in2 |
    | Embedding | 1: a lookup reads one row | dim |
    | MultiheadAttention, each of q, k, v | its input's dim | embed_dim |
    | LSTM, GRU, RNN and their cells, each gate | inputs, or hidden for `weight_hh` | hidden |

    `torch.nn.init` differs where it only sees a shape: `fan_out` of a grouped convolution is `g` times too large there, both
    fans of a transposed one are swapped, packed projections and gates count as one matrix, an embedding has its dimension as
    `fan_in`, and strides do not count (a transposed convolution with kernel 4 and stride 2 has 4 terms per channel in each
    output, not 16).

    Args:
        module: a layer.
        name: which of its weights, e.g. `"weight_hh_l0"`; by default the first one.

    Returns:
        `(fan_in, fan_out)`, whole numbers where a stride divides the kernel.

    Raises:
        TypeError: if the module is not a layer of this list.
        ValueError: if it has no weight of that name.

    >>> fans(nn.Conv2d(32, 64, 3, groups=32))
    Fans(fan_in=9, fan_out=18)
    >>> fans(nn.ConvTranspose2d(32, 16, 4, stride=2))
    Fans(fan_in=128, fan_out=256)
    >>> fans(nn.LSTM(10, 20), "weight_hh_l0")
    Fans(fan_in=20, fan_out=20)
    """
    names = weight_names(module)
    if not names:
        raise TypeError(f"{type(module).__name__} is not a layer with fans; give a layer such as Linear, Conv2d or LSTM")
    if name is not None and name not in names:
        raise ValueError(f"{type(module).__name__} has no weight {name!r}; it has {names}")
    return next(matrices(module, name or names[0])).fans


def weight_names(module: nn.Module) -> list[str]:
    """Return the names of what a layer multiplies its input by, in order; none for a module that is not a layer.

    >>> weight_names(nn.LSTM(3, 2)), weight_names(nn.ReLU())
    (['weight_ih_l0', 'weight_hh_l0'], [])
    """
    if isinstance(module, (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag)):
        return ["weight"]
    if isinstance(module, nn.MultiheadAttention):
        packed = module.in_proj_weight is not None
        return ["in_proj_weight"] if packed else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    if isinstance(module, nn.RNNBase):
        return [name for name in module._flat_weights_names if name.startswith("weight")]
    if isinstance(module, nn.RNNCellBase):
        return ["weight_ih", "weight_hh"]
    return []


def matrices(module: nn.Module, name: str, weight: Tensor | None = None) -> Iterator[Matrix]:
    """Yield the linear maps of a layer's weight as views, in the order of the units they feed.

    Args:
        module: a layer.
        name: which of its weights.
        weight: a tensor of that weight's shape to look at instead of the weight itself.

    >>> [(part.part, list(part.view.shape)) for part in matrices(nn.MultiheadAttention(4, 1), "in_proj_weight")]
    [('query', [4, 4]), ('key', [4, 4]), ('value', [4, 4])]
    """
    weight = getattr(module, name) if weight is None else weight
    if isinstance(module, nn.modules.conv._ConvNd):
        yield from _of_convolution(module, weight)
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        yield Matrix(weight.t(), Fans(1, weight.shape[1]))
    elif name == "in_proj_weight":
        for part, view in zip(_PACKED, weight.chunk(3), strict=True):
            yield Matrix(view, _of_shape(view), part)
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        gates = () if name.startswith("weight_hr") else _gates(module)
        for part, view in zip(gates or ("projection",), weight.chunk(len(gates) or 1), strict=True):
            yield Matrix(view, _of_shape(view), part)
    else:
        yield Matrix(weight, _of_shape(weight))


def _of_convolution(module: nn.modules.conv._ConvNd, weight: Tensor) -> Iterator[Matrix]:
    stride, kernel = math.prod(module.stride), math.prod(module.kernel_size)
    for group in weight.chunk(module.groups):
        if module.transposed:
            inputs, units = group.shape[:2]
            yield Matrix(group.transpose(0, 1), Fans(_ratio(inputs * kernel, stride), units * kernel))
        else:
            units, inputs = group.shape[:2]
            yield Matrix(group, Fans(inputs * kernel, _ratio(units * kernel, stride)))


def _gates(module: nn.Module) -> tuple[str, ...]:
    mode: str = getattr(module, "mode", type(module).__name__)
    return next(gates for kind, gates in _GATES.items() if mode.startswith(kind))


def _of_shape(weight: Tensor) -> Fans:
    """Read `[units, inputs, *kernel]`."""
    units, inputs = weight.shape[:2]
    kernel = math.prod(weight.shape[2:])
    return Fans(inputs * kernel, units * kernel)


def _ratio(a: int, b: int) -> float:
    return a // b if a % b == 0 else a / b
