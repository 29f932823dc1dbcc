"""lit-training: find what is wrong with a training run before the first weight update, and the classic medicine.

The callbacks are in `lit_training.callbacks`; what is here works without a Trainer, in a notebook or a plain torch loop.
"""

from importlib.metadata import PackageNotFoundError as _NotInstalled
from importlib.metadata import version as _version

from lit_training.constraints import max_norm_
from lit_training.decay_audit import DecayAudit, decay_audit
from lit_training.diagnosis import Finding
from lit_training.fans import fans
from lit_training.freezing import freeze, frozen_tree, thaw
from lit_training.gains import gain
from lit_training.groups import parameter_groups
from lit_training.heads import replace_head
from lit_training.initialization import initialize_
from lit_training.module import LitModule
from lit_training.one_batch import OverfitResult, audit, overfit_one_batch
from lit_training.preprocessing import Standardize
from lit_training.selection import select

__all__ = [
    "DecayAudit",
    "Finding",
    "LitModule",
    "OverfitResult",
    "Standardize",
    "__version__",
    "audit",
    "decay_audit",
    "fans",
    "freeze",
    "frozen_tree",
    "gain",
    "initialize_",
    "max_norm_",
    "overfit_one_batch",
    "parameter_groups",
    "replace_head",
    "select",
    "thaw",
]


try:
    __version__ = _version("lit-training")
except _NotInstalled:  # a checkout on the path
    __version__ = "0+checkout"
