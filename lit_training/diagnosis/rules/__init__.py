"""All rules in causal order: of two alarms, the one whose rule stands first here is the cause to fix first."""

from lit_training.diagnosis.rule import Rule
from lit_training.diagnosis.rules.initialisation import init_exploding, init_symmetry, init_vanishing

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (init_symmetry, init_exploding, init_vanishing)
