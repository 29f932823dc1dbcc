"""Checks of one batch without a Trainer, for notebooks, tests and plain torch loops: `audit`, `overfit_one_batch`."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from lit_training.columns import batch_size_of
from lit_training.diagnosis.evidence import collect
from lit_training.diagnosis.experiments import Calls
from lit_training.diagnosis.rule import diagnose
from lit_training.diagnosis.rules import RULES
from lit_training.diagnosis.samples import of_one_batch
from lit_training.running import call_arguments, undisturbed
from lit_training.showing.report import AuditReport, report
from lit_training.tracing.probe import Probe

__all__ = ["OverfitResult", "audit", "overfit_one_batch"]

LossFunction = Callable[[Any, Any], Tensor]


def audit(model: nn.Module, batch: Any, loss_fn: LossFunction, *, optimizer: Optimizer | None = None) -> AuditReport:
    """Find what is wrong with a network, a batch and a loss: one forward and backward, judged by all rules of one batch.

    The model is run in the mode it is in. Parameters, gradients, buffers and random generators are left as they were, to the bit.
    In a test suite: `assert not audit(model, batch, loss_fn).alarms`.

    Args:
        model: any module.
        batch: as a loader gives it: inputs and target in a tuple, or a mapping with `forward`'s argument names and the target
            under `"target"`, `"label"`, ...; a module with `unpack(batch) -> (inputs, target)` splits it itself.
        loss_fn: `loss_fn(output, target)`, a scalar.
        optimizer: the training's; with it, parameters that it does not hold and steps that change nothing are found too.

    Returns:
        A report: `.findings` in causal order, `.alarms` (errors and warnings), `.layers`; prints as a table.

    Raises:
        ValueError: if the loss is not a scalar, or has no gradient.
        TypeError: if the batch is neither a tensor, nor a sequence, nor a mapping.

    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> batch = torch.randn(32, 8), torch.randint(3, (32,))
    >>> audit(net, batch, nn.functional.cross_entropy).alarms
    []
    >>> net.append(nn.Softmax(1))
    Sequential(...)
    >>> [finding.rule for finding in audit(net, batch, nn.functional.cross_entropy).alarms]
    ['wrong_last_activation']
    """
    args, kwargs, target = call_arguments(model, batch)
    with undisturbed(model), _gradients_aside(model), torch.enable_grad():
        with Calls(model) as calls, Probe(model, batch_size_of(batch), batch) as probe:
            loss = loss_fn(model(*args, **kwargs), target)
            _check_loss(loss)
            probe.differentiate(loss)
            loss.backward()
        if probe.tracer.failure is not None:
            raise probe.tracer.failure
        held = None if optimizer is None else [optimizer]
        samples = of_one_batch(probe)
        evidence = collect(probe, optimizers=held, loss=loss, stepping=optimizer, samples=samples, calls=calls.seen)
    return report(evidence, diagnose(evidence, RULES))


@dataclass(frozen=True)
class OverfitResult:
    """What training on one batch came to.

    Args:
        passed: whether the loss fell to `threshold` times what it was.
        losses: at each step, the one before training first.
        threshold: see `overfit_one_batch`.
    """

    passed: bool
    losses: tuple[float, ...]
    threshold: float

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        came = f"the loss went from {self.losses[0]:.4g} to {self.losses[-1]:.4g} in {len(self.losses) - 1} steps"
        if self.passed:
            return f"one batch is memorised: {came}"
        return (
            f"one batch is not memorised: {came}, {self.threshold:g} x the first is expected. A network that cannot learn a few "
            "samples by heart has a mistake in its labels, loss or gradients rather than too little data: see `audit`"
        )


def overfit_one_batch(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    *,
    steps: int = 300,
    threshold: float = 0.1,
    optimizer: Callable[[Iterator[nn.Parameter]], Optimizer] = lambda parameters: Adam(parameters, lr=3e-3),
) -> OverfitResult:
    """Train a copy of a network on one batch, until it knows it by heart: the classic test of a whole set-up.

    Karpathy, "A Recipe for Training Neural Networks", 2019, step 2. Dropout is off in the copy; the model, its gradients and the
    random generators are left as they were. It takes `steps` training steps at most.

    Args:
        model: any module that can be copied.
        batch: as for `audit`; a few dozen samples are enough.
        loss_fn: `loss_fn(output, target)`, a scalar whose least value is near 0 (otherwise, as with label smoothing, raise
            `threshold`).
        steps: at most so many; a healthy net of any common kind needs fewer than 300 with the default optimiser.
        threshold: fraction of the first loss to get down to.
        optimizer: makes an optimiser of the copy's parameters.

    Returns:
        A result that is true if the batch was memorised, and says in words what happened.

    Raises:
        ValueError: for a loss that is not a scalar or not positive at first, or for settings out of range.

    >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    >>> bool(overfit_one_batch(net, (torch.randn(16, 8), torch.randint(3, (16,))), nn.functional.cross_entropy))
    True
    """
    if steps < 1 or not 0 < threshold < 1:
        raise ValueError(f"steps must be at least 1 and threshold between 0 and 1, got steps={steps}, threshold={threshold}")
    args, kwargs, target = call_arguments(model, batch)
    losses: list[float] = []
    with undisturbed(model), torch.enable_grad():
        pupil = copy.deepcopy(model).train()
        for part in pupil.modules():
            if isinstance(part, nn.modules.dropout._DropoutNd):
                part.eval()
        teacher = optimizer(p for p in pupil.parameters() if p.requires_grad)
        for step in range(steps + 1):
            loss = loss_fn(pupil(*args, **kwargs), target)
            _check_loss(loss)
            losses.append(float(loss.detach()))
            if step == 0 and not losses[0] > 0:
                raise ValueError(f"overfit_one_batch compares with the first loss, which must be positive, got {losses[0]:.4g}")
            if losses[-1] <= threshold * losses[0] or not math.isfinite(losses[-1]):
                break
            teacher.zero_grad()
            loss.backward()
            teacher.step()
    return OverfitResult(losses[-1] <= threshold * losses[0], tuple(losses), threshold)


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(f"loss_fn(output, target) must return a scalar tensor, got {what}; write loss.mean()")
    if not loss.requires_grad:
        raise ValueError(
            "the loss has no gradient: it does not depend on any parameter (detached, .item(), argmax, or all frozen)"
        )


@contextmanager
def _gradients_aside(model: nn.Module) -> Iterator[None]:
    """Let a backward pass find no gradients, and put back those there are."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
