"""How much of a gradient is left from the last call of a weight to its first: over the steps of a recurrence, it may vanish."""

from dataclasses import dataclass, field

from torch import Tensor

from lit_training.tracing.graph import Node

__all__ = ["Fading"]

MANY = 8


@dataclass
class Fading:
    """Keep of each weight that is called eight times or more the size of the gradient at its first and its last call."""

    _calls: dict[str, list[int]] = field(default_factory=dict)
    _ends: dict[int, Tensor] = field(default_factory=dict)

    def note(self, node: Node) -> None:
        """Take a layer's call, as the forward comes to it."""
        self._calls.setdefault(node.weight, []).append(node.index)

    def on_gradient(self, node: Node, gradient: Tensor) -> None:
        """Take the gradient with respect to a node's values."""
        calls = self._calls.get(node.weight, [])
        if len(calls) >= MANY and node.index in (calls[0], calls[-1]) and gradient.numel():
            self._ends[node.index] = gradient.detach().abs().amax()

    def left(self) -> dict[str, float]:
        """Return for each such weight what the way back from one call to the one before leaves of a gradient, as geometric mean.

        >>> import torch
        >>> fading, grows = Fading(), lambda i: Node(i, "mm", (), "", (1,), torch.float32, "data", weight="turn")
        >>> for i in range(9):
        ...     fading.note(grows(i))
        >>> for i in reversed(range(9)):
        ...     fading.on_gradient(grows(i), torch.tensor([0.5 ** (8 - i)]))
        >>> fading.left()
        {'turn': 0.5}
        """
        left = {}
        for weight, calls in self._calls.items():
            first, last = self._ends.get(calls[0]), self._ends.get(calls[-1])
            if first is not None and last is not None and bool(last > 0):
                left[weight] = float(first / last) ** (1 / (len(calls) - 1))
        return left
