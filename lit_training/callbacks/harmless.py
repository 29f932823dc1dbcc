"""Diagnosis must not cost a training run: what fails inside it becomes one warning."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from lightning.pytorch.utilities import rank_zero_warn

__all__ = ["DiagnosisError", "harmless"]

F = TypeVar("F", bound=Callable[..., Any])


class DiagnosisError(RuntimeError):
    """Raised on all ranks when a finding is as severe as the user's `stop_on`; nothing else of diagnosis is raised."""


def harmless(hook: F) -> F:
    """Turn an exception inside a callback's hook into one warning, after which the callback is `disabled` and cleaned up.

    The callback has a `disabled` flag and a `release()` that undoes whatever is attached. `DiagnosisError` passes: the user asked.
    """

    @wraps(hook)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.disabled:
            return None
        try:
            return hook(self, *args, **kwargs)
        except DiagnosisError:
            raise
        except Exception as error:
            self.disabled = True
            name = type(self).__name__
            rank_zero_warn(f"{name} stopped watching, training goes on: {type(error).__name__} in {hook.__name__}: {error}")
            try:
                self.release()
            except Exception as also:
                rank_zero_warn(f"{name} could not clean up: {type(also).__name__}: {also}")
            return None

    return cast(F, guarded)
