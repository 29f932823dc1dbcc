"""What only the first few steps show: does anything move, do gradients arrive after all, are they set back in between?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_training.diagnosis.figures import norms, to_host
from lit_training.diagnosis.modules import tracked
from lit_training.fingerprints import fingerprint_all
from lit_training.selection import classify, clean_names

__all__ = ["FirstSteps", "Later"]

_MOST_LOSSES = 64


@dataclass(frozen=True)
class Later:
    """The first few steps, up to the gradients of the last one.

    `steps` updates were done before; `moved` tells of each parameter that an optimiser may move whether it has changed since the
    start; `gradients` is the norm of its first gradient that is not zero (`None` if it never had one); `carried` counts the steps
    of an optimiser whose gradients were added to those of the step before, where they were never set back (the most of all
    optimisers); `resting` are the batch-norm layers in eval mode that took in no batch since; `rate` is the largest learning rate
    so far; `losses` are those that were differentiated after the first update; `kept` is the part of the gradient that was left
    after the first step, so that clipping by the user's own code shows, `None` where that is not known; `unheld` are the
    parameters that no optimiser holds and that have a gradient.
    """

    steps: int
    batches: int
    moved: Mapping[str, bool]
    gradients: Mapping[str, float | None]
    carried: int = 0
    resting: tuple[str, ...] = ()
    rate: float = 0.0
    losses: tuple[float, ...] = ()
    kept: float | None = None
    unheld: tuple[str, ...] = ()


class FirstSteps:
    """Follow the first updates of a training; call its methods as their names say, then `conclude()`.

    It reads gradients and hashes weights, and changes nothing.

    >>> layer = nn.Linear(2, 1)
    >>> sgd = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> first = FirstSteps(layer, [sgd])
    >>> for _ in range(3):
    ...     loss = layer(torch.ones(4, 2)).sum()
    ...     first.before_backward(loss); loss.backward(); first.before_step(sgd); sgd.step()
    >>> later = first.conclude()
    >>> later.carried, later.moved["weight"]
    (2, True)
    """

    def __init__(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = list(optimizers)
        held = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
        self._parameters = {
            info.name: info.parameter
            for info in classify(module)
            if id(info.parameter) in held and not nn.parameter.is_lazy(info.parameter)
        }
        self._start = self._hashes()
        self._gradients: dict[str, float | None] = dict.fromkeys(self._parameters)
        self._module, self._tracked = module, tracked(clean_names(module))
        self._pending: dict[int, bool | None] = {}
        self._counts: dict[int, int] = {}
        self._set_back: dict[int, list[bool]] = {}
        self._rate = 0.0
        self._losses: list[Tensor] = []
        self._before = 0.0
        self._kept: float | None = None

    @property
    def steps(self) -> int:
        """Updates that some optimiser was about to do."""
        return max(self._counts.values(), default=0)

    def before_backward(self, loss: Tensor) -> None:
        """Keep the loss; note of optimisers that have stepped whether their gradients were set back."""
        if self._counts and len(self._losses) < _MOST_LOSSES:
            self._losses.append(loss.detach().clone())
        for optimizer in self._optimizers:
            if self._pending.get(id(optimizer), True) is not True:
                self._pending[id(optimizer)] = _is_zeroed(optimizer)

    def before_step(self, optimizer: Optimizer) -> None:
        """Note the gradients that an optimiser is about to use."""
        zeroed = self._pending.get(id(optimizer))
        if zeroed is not None:
            self._set_back.setdefault(id(optimizer), []).append(zeroed)
        if not self._counts:
            arriving = self._norms(self._parameters)
            self._before = math.hypot(*arriving.values())
            self._gradients |= {name: self._gradients[name] or norm for name, norm in arriving.items()}
        self._counts[id(optimizer)] = self._counts.get(id(optimizer), 0) + 1
        self._rate = max([self._rate, *(float(group.get("lr", 1.0)) for group in optimizer.param_groups)])
        self.note_gradients()
        self._pending[id(optimizer)] = None

    def after_step(self) -> None:
        """Compare what is left of the gradients with what they were before the first step."""
        if self.steps == 1 and self._kept is None and len(self._optimizers) == 1:
            after = math.hypot(*self._norms(self._parameters).values())
            self._kept = after / self._before if 0 < self._before < math.inf else None

    def note_gradients(self) -> None:
        """Keep the first gradient of each parameter that is not zero."""
        self._gradients |= self._norms(name for name, norm in self._gradients.items() if not norm)

    def conclude(self, batches: int = 0) -> Later:
        """Compare the weights with those at the start."""
        moved = {name: now != self._start[name] for name, now in self._hashes().items()}
        steps = max(self.steps - 1, 0)
        carried = max((len(set_back) for set_back in self._set_back.values() if not any(set_back)), default=0)
        parts = clean_names(self._module)
        modes = dict(parts)
        resting = tuple(n for n, count in tracked(parts).items() if count == self._tracked.get(n) and not modes[n].training)
        losses = tuple(to_host(self._losses))
        unheld = tuple(
            i.name for i in classify(self._module) if i.name not in self._parameters and i.parameter.grad is not None
        )
        return Later(steps, batches, moved, self._gradients, carried, resting, self._rate, losses, self._kept, unheld)

    def _norms(self, names: Iterable[str]) -> dict[str, float]:
        gradients = {name: g for name in names if (g := self._parameters[name].grad) is not None}
        return dict(zip(gradients, to_host(norms(list(gradients.values()))), strict=True))

    def _hashes(self) -> dict[str, int]:
        local = [p.to_local() if hasattr(p, "to_local") else p for p in self._parameters.values()]
        device = local[0].device if local else torch.device("cpu")
        return dict(zip(self._parameters, fingerprint_all(local, device, quick=True).tolist(), strict=True))


@torch.no_grad()
def _is_zeroed(optimizer: Optimizer) -> bool:
    """Tell whether the gradients of an optimiser are gone."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return not any(to_host(norms(gradients)))
