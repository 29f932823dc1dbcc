"""All rules in causal order: of two alarms, the one whose rule stands first here is the cause to fix first."""

from lit_training.diagnosis.rule import Rule
from lit_training.diagnosis.rules.activation import wrong_hidden_activation
from lit_training.diagnosis.rules.biases import bad_bias_init
from lit_training.diagnosis.rules.course import overfit_no_regularisation
from lit_training.diagnosis.rules.data import bad_data
from lit_training.diagnosis.rules.decay import weight_decay_too_strong
from lit_training.diagnosis.rules.detached import detached_subgraph
from lit_training.diagnosis.rules.divergence import pretrained_lr_too_high, ranks_diverged
from lit_training.diagnosis.rules.evaluation import batch_mixing, dropout_active_in_eval, dropout_too_high
from lit_training.diagnosis.rules.exploding import init_exploding
from lit_training.diagnosis.rules.finite import nan_loss
from lit_training.diagnosis.rules.gain import bad_gain
from lit_training.diagnosis.rules.imbalance import class_imbalance
from lit_training.diagnosis.rules.inputs import unnormalised_input
from lit_training.diagnosis.rules.last_activation import wrong_last_activation
from lit_training.diagnosis.rules.learning import frozen_by_accident, gradients_not_zeroed, no_update, not_in_optimizer
from lit_training.diagnosis.rules.loss import wrong_loss
from lit_training.diagnosis.rules.loss_form import loss_reduction, loss_sign
from lit_training.diagnosis.rules.missing import missing_activation
from lit_training.diagnosis.rules.normalisation import bias_before_bn, bn_eval_in_train, bn_stats, small_batch_norm
from lit_training.diagnosis.rules.order import data_not_shuffled
from lit_training.diagnosis.rules.rate import clip_too_small, lr_too_high, lr_too_low
from lit_training.diagnosis.rules.scales import unnormalised_target
from lit_training.diagnosis.rules.schedule import lr_schedule
from lit_training.diagnosis.rules.shapes import shape_broadcast
from lit_training.diagnosis.rules.symmetry import init_symmetry
from lit_training.diagnosis.rules.symptoms import bad_initial_loss, exploding_gradient, vanishing_gradient
from lit_training.diagnosis.rules.targets import labels_broken
from lit_training.diagnosis.rules.units import dead_relu, saturation
from lit_training.diagnosis.rules.validation import train_val_mismatch
from lit_training.diagnosis.rules.vanishing import init_vanishing

__all__ = ["MONITORED", "RULES"]

RULES: tuple[Rule, ...] = (
    bad_data,
    unnormalised_input,
    shape_broadcast,
    labels_broken,
    data_not_shuffled,
    train_val_mismatch,
    unnormalised_target,
    batch_mixing,
    wrong_loss,
    wrong_last_activation,
    loss_sign,
    not_in_optimizer,
    frozen_by_accident,
    wrong_hidden_activation,
    detached_subgraph,
    no_update,
    gradients_not_zeroed,
    bn_eval_in_train,
    dropout_active_in_eval,
    missing_activation,
    init_symmetry,
    bad_bias_init,
    init_exploding,
    saturation,
    dead_relu,
    init_vanishing,
    bad_gain,
    loss_reduction,
    dropout_too_high,
    lr_schedule,
    lr_too_high,
    weight_decay_too_strong,
    clip_too_small,
    lr_too_low,
    bn_stats,
    nan_loss,
    class_imbalance,
    bias_before_bn,
    small_batch_norm,
    bad_initial_loss,
    vanishing_gradient,
    exploding_gradient,
)

MONITORED: tuple[Rule, ...] = (
    Rule(ranks_diverged, explains=("nan_loss",)),
    Rule(pretrained_lr_too_high, explains=("nan_loss",)),
    Rule(overfit_no_regularisation),
)
"""What monitors find while a run goes on; they measure it themselves."""
