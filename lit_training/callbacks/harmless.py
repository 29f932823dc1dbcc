"""Diagnosis must not cost a training run: what fails inside it becomes one warning."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from lightning.pytorch.utilities import rank_zero_warn

__all__ = ["DiagnosisError", "harmless"]

P = ParamSpec("P")
R = TypeVar("R")


class DiagnosisError(RuntimeError):
    """Raised on all ranks when a finding is as severe as the user's `stop_on`; nothing else of diagnosis is raised."""


def harmless(function: Callable[P, R]) -> Callable[P, R | None]:
    """Make a function return `None`, after one warning, where it would raise.

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
            rank_zero_warn(f"{name} failed, training goes on: {type(error).__name__}: {error}")
            return None

    return guarded
