"""lit-training: find what is wrong with a training run before the first weight update, and the classic medicine.

The callbacks are in `lit_training.callbacks`; what is here works without a Trainer, in a notebook or a plain torch loop.
"""

from importlib.metadata import version as _version

from lit_training.diagnosis import Finding
from lit_training.selection import parameter_groups, select

__all__ = ["Finding", "__version__", "parameter_groups", "select"]

__version__ = _version("lit-training")
