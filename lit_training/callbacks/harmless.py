"""Diagnosis must not cost a training run: what fails inside it becomes one warning."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from lightning.pytorch.utilities import rank_zero_warn

from lit_training.diagnosis.finding import Finding

__all__ = ["DiagnosisError", "harmless", "stop_if_asked"]

P = ParamSpec("P")
R = TypeVar("R")
_FAILED: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()


class DiagnosisError(RuntimeError):
    """Raised on all ranks when a finding is as severe as the user's `stop_on`; nothing else of diagnosis is raised."""


def harmless(function: Callable[P, R]) -> Callable[P, R | None]:
    """Make a function return `None` where it would raise, after a warning: of a method, one for each object.

    >>> @harmless
    ... def broken():
    ...     raise ZeroDivisionError("by zero")
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     broken()
    >>> print(caught[0].message)
    broken failed, training goes on: ZeroDivisionError: by zero
    """

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            name = function.__qualname__.rpartition("<locals>.")[2]
            if _is_first(args, function.__name__):
                rank_zero_warn(f"{name} failed, training goes on: {type(error).__name__}: {error}")
            return None

    return guarded


def stop_if_asked(stop_on: str | None, findings: Sequence[Finding]) -> None:
    """Raise for the first finding that is as severe as `stop_on` says.

    >>> stop_if_asked("error", [Finding("dead_relu", "warning")])
    >>> stop_if_asked("warning", [Finding("dead_relu", "warning", "conv1")])
    Traceback (most recent call last):
    lit_training.callbacks.harmless.DiagnosisError: stopped by stop_on='warning': ...
    """
    stopping = {"error": ("error",), "warning": ("error", "warning")}.get(stop_on or "", ())
    reason = next((finding for finding in findings if finding.severity in stopping), None)
    if reason is not None:
        raise DiagnosisError(f"stopped by stop_on={stop_on!r}: {reason}")


def _is_first(arguments: Sequence[Any], name: str) -> bool:
    """Tell whether the object that a method belongs to fails in it for the first time."""
    if not arguments or not hasattr(type(arguments[0]), name):
        return True
    failed = _FAILED.setdefault(arguments[0], set())
    first = name not in failed
    failed.add(name)
    return first
