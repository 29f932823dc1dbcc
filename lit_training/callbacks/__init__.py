"""The callbacks, one file each: `from lit_training.callbacks import Diagnostics`."""

if __name__ != "lit_training.callbacks":
    raise ImportError(
        f"this folder was imported as {__name__!r}, under which every class would exist twice; "
        "write `from lit_training.callbacks import ...` instead"
    )

from lit_training.callbacks.activation_monitor import ActivationMonitor
from lit_training.callbacks.diagnostics import Diagnostics, diagnostics
from lit_training.callbacks.harmless import DiagnosisError
from lit_training.callbacks.init_auditor import InitAuditor

__all__ = ["ActivationMonitor", "DiagnosisError", "Diagnostics", "InitAuditor", "diagnostics"]
