"""The plain names of `aten` operations, one for each meaning, and what they take and give."""

from collections.abc import Sequence
from functools import cache
from typing import Any

__all__ = ["RANDOM", "SHAPE_ONLY", "flat", "operation"]

_RENAMED = {
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "_prelu_kernel": "prelu",
    "log_sigmoid_forward": "log_sigmoid",
    "rrelu_with_noise": "rrelu",
    "_safe_softmax": "softmax",
}
RANDOM = frozenset("rand randn randint normal rand_like randn_like randint_like uniform".split())
SHAPE_ONLY = frozenset(
    "empty_like zeros_like ones_like full_like rand_like randn_like randint_like new_empty new_zeros new_ones new_full".split()
)
_SELU = (1.6732632423543772, 1.0507009873554805)


def operation(func: Any, scalars: Sequence[float]) -> tuple[str, bool]:
    """Return the plain name of an operation and whether it writes into its first argument."""
    name, in_place = _name(func)
    if name == "elu" and scalars[:2] == _SELU:
        return "selu", in_place
    if name == "hardtanh" and scalars == (0.0, 6.0):
        return "relu6", in_place
    if name in ("clamp", "clamp_min") and scalars == (0.0,):
        return "relu", in_place
    return name, in_place


@cache
def _name(func: Any) -> tuple[str, bool]:
    name: str = func._overloadpacket.__name__
    in_place = name.endswith("_") and not name.endswith("__")
    name = name.rstrip("_") if in_place else name
    return _RENAMED.get(name, name), in_place


def flat(value: Any) -> list[Any]:
    """Return the leaves of what an operation takes or gives: lists, tuples and mappings of plain values."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return [value]
    leaves: list[Any] = []
    for item in value:
        if isinstance(item, (list, tuple, dict)):
            leaves += flat(item)
        else:
            leaves.append(item)
    return leaves
