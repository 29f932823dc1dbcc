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
from lit_training.callbacks.initialize import Initialize
from lit_training.callbacks.layer_freezing import LayerFreezing, Phase, declared_frozen, gradual
from lit_training.callbacks.loss_monitor import LossMonitor
from lit_training.callbacks.max_norm import MaxNorm
from lit_training.callbacks.rank_consistency import RankConsistency
from lit_training.callbacks.weight_decay import WeightDecay

__all__ = [
    "ActivationMonitor",
    "DiagnosisError",
    "Diagnostics",
    "InitAuditor",
    "Initialize",
    "LayerFreezing",
    "LossMonitor",
    "MaxNorm",
    "Phase",
    "RankConsistency",
    "WeightDecay",
    "declared_frozen",
    "diagnostics",
    "gradual",
]
