"""All rules in causal order: of two alarms, the one whose rule stands first here is the cause to fix first."""

from lit_training.diagnosis.rule import Rule
from lit_training.diagnosis.rules.data import bad_data, unnormalised_input
from lit_training.diagnosis.rules.initialisation import init_exploding, init_symmetry, init_vanishing
from lit_training.diagnosis.rules.learning import (
    detached_subgraph,
    frozen_by_accident,
    gradients_not_zeroed,
    no_update,
    not_in_optimizer,
)
from lit_training.diagnosis.rules.loss import wrong_last_activation, wrong_loss
from lit_training.diagnosis.rules.loss_form import loss_reduction, loss_sign, shape_broadcast
from lit_training.diagnosis.rules.structure import bn_eval_in_train, missing_activation

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    bad_data,
    unnormalised_input,
    shape_broadcast,
    wrong_loss,
    wrong_last_activation,
    loss_sign,
    loss_reduction,
    not_in_optimizer,
    frozen_by_accident,
    detached_subgraph,
    no_update,
    gradients_not_zeroed,
    bn_eval_in_train,
    missing_activation,
    init_symmetry,
    init_exploding,
    init_vanishing,
)
