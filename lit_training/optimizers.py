"""Optimisers from a callable: parameter groups in which only weights decay, and one answer to who sets lr and decay."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lit_training.groups import parameter_groups

__all__ = ["OptimizerFactory", "build_optimizer", "settled_setting"]

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]


def build_optimizer(
    module: nn.Module, factory: OptimizerFactory, *, lr: float, weight_decay: float, layer_decay: float | None = None
) -> Optimizer:
    """Build an optimiser over the groups of `parameter_groups`: decay on weights only.

    Args:
        module: whose parameters are trained.
        factory: an optimiser class, or a callable that takes parameter groups and returns an optimiser.
        lr: learning rate of all groups.
        weight_decay: of the group `"decay"`. With 0, groups that differ in nothing else are one group, `"all"`, for an optimiser
            that knows no decay.
        layer_decay: see `parameter_groups`.

    Raises:
        ValueError: for an optimiser without `weight_decay` while one is asked for, and for a module without parameters.
        TypeError: if the factory returns something else than an optimiser.

    >>> optimizer = build_optimizer(nn.Linear(3, 2), torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    >>> [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
    [('decay', 0.1), ('no_decay', 0.0)]
    """
    groups = parameter_groups(module, lr=lr, weight_decay=weight_decay, layer_decay=layer_decay)
    if not groups:
        raise ValueError(f"{type(module).__name__} has no parameters to train")
    trial = _trial(factory)
    if "weight_decay" in trial.defaults:
        return factory(groups)
    if weight_decay != 0:
        raise ValueError(
            f"{type(trial).__name__} has no weight decay of its own; pass weight_decay=0 to LitModule, and for decay add the "
            f"callback lit_training.callbacks.WeightDecay({weight_decay}) to the Trainer"
        )
    if layer_decay is not None:
        return factory([{name: value for name, value in group.items() if name != "weight_decay"} for group in groups])
    return factory([{"name": "all", "params": [p for group in groups for p in group["params"]], "lr": lr}])


def settled_setting(factory: OptimizerFactory, name: str, given: float, default: float) -> float:
    """Say which `lr` or `weight_decay` holds when both the module and its optimiser callable can set it.

    The one that somebody set: the module's if it differs from the module's default, else the callable's if it differs from
    the optimiser class's default. A callable that is more than a class or a `partial` without `lr` is taken to have chosen
    its learning rate. If nobody set it, the module's default holds.

    Args:
        factory: as in `build_optimizer`.
        name: `"lr"` or `"weight_decay"`.
        given: the module's value.
        default: the module's default.

    Raises:
        ValueError: if both set it, to different values.

    >>> settled_setting(lambda groups: torch.optim.Adam(groups, lr=3e-4), "lr", given=0.01, default=0.01)
    0.0003
    >>> settled_setting(torch.optim.Adam, "lr", given=0.01, default=0.01)
    0.01
    """
    trial = _trial(factory)
    if name not in trial.defaults:
        return given
    own = float(trial.defaults[name])
    usual = inspect.signature(type(trial)).parameters.get(name)
    own_is_set = usual is None or own != usual.default
    if given != default:
        if own_is_set and own != given:
            raise ValueError(
                f"{name} is given twice: {given:g} to LitModule and {own:g} to {type(trial).__name__}; give it once, to LitModule"
            )
        return given
    return own if own_is_set or (name == "lr" and not _leaves_lr_open(factory)) else given


def _trial(factory: OptimizerFactory) -> Optimizer:
    """Build the optimiser on a parameter of no importance, to read its defaults."""
    optimizer = factory([nn.Parameter(torch.zeros(1, 1))])
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must return a torch.optim.Optimizer, got a {type(optimizer).__name__}")
    return optimizer


def _leaves_lr_open(factory: OptimizerFactory) -> bool:
    if isinstance(factory, functools.partial):
        return isinstance(factory.func, type) and "lr" not in factory.keywords
    return isinstance(factory, type)
