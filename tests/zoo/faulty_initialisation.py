"""Faulty: weights and biases at the start."""

import math

import torch
from torch import Tensor, nn

from tests.zoo.case import Case, faulty
from tests.zoo.nets import he, init_weights, normal, scale_recurrent, weighted


# ------------------------------------------------------------------------------------------ symmetry
@faulty("init_symmetry", "init_vanishing", twin="h_brisk_sgd", source="DeepCrime: weights initialised to zeros")
def f_all_zero(case: Case) -> None:
    init_weights(case.model, nn.init.zeros_)


@faulty("init_symmetry", twin="h_brisk_sgd", source="TheDeepChecker: constant weights, every unit computes the same")
def f_constant_weights(case: Case) -> None:
    init_weights(case.model, lambda w: nn.init.constant_(w, 0.1))


@faulty("init_symmetry", "init_vanishing", twin="h_conv", source="DeepCrime: kernels initialised to one constant")
def f_constant_kernels(case: Case) -> None:
    init_weights(case.model, lambda w: nn.init.constant_(w, 1 / w[0].numel()))


@faulty("init_symmetry", "init_vanishing", twin="h_gru", source="recurrent cell filled with a constant")
def f_constant_recurrent(case: Case) -> None:
    for p in case.model.parameters():
        nn.init.constant_(p, 0.05)


@faulty(
    "init_symmetry",
    "init_vanishing",
    twin="h_deep_bn_conv",
    source="a custom init that handles only Linear leaves ones in the convolutions",
    margin=0.08,
)
def f_ones_kernels_bn(case: Case) -> None:
    for layer in weighted(case.model)[:-1]:
        nn.init.ones_(layer.weight)


# ------------------------------------------------------------------------------------------ vanishing
@faulty("init_vanishing", "bad_gain", twin="h_deep_he", source="He et al. 2015: N(0, 0.01) in a deep ReLU net")
def f_deep_small_normal(case: Case) -> None:
    init_weights(case.model, normal(0.01))


@faulty(
    "init_vanishing", "bad_gain", twin="h_deep_tanh_glorot", source="Glorot and Bengio 2010: small weights in a deep tanh net"
)
def f_deep_tanh_small(case: Case) -> None:
    init_weights(case.model, normal(0.02))


@faulty(
    "init_vanishing", "bad_gain", twin="h_deep_he_twenty", source="torch's default init (gain 1/sqrt 3) in twenty ReLU layers"
)
def f_deep_default_init(case: Case) -> None:
    for layer in weighted(case.model):
        layer.reset_parameters()


@faulty("init_vanishing", "bad_gain", twin="h_deep_plain_conv", source="small normal kernels in a plain deep conv net")
def f_deep_conv_small(case: Case) -> None:
    init_weights(case.model, normal(0.01))


@faulty(
    "init_vanishing",
    "bad_gain",
    twin="h_regression_sgd",
    source="tiny weights in every layer of a regression net: a saddle at zero",
)
def f_regression_tiny_weights(case: Case) -> None:
    init_weights(case.model, normal(1e-4))


# ------------------------------------------------------------------------------------------ exploding
@faulty("init_exploding", "bad_gain", twin="h_deep_he", source="AUTOTRAINER: weights of unit variance in a deep net")
def f_deep_unit_normal(case: Case) -> None:
    init_weights(case.model, normal(1.0))


@faulty("init_exploding", "bad_gain", twin="h_mlp_sgd", source="torch.rand weights: positive, not centred")
def f_uniform_positive(case: Case) -> None:
    init_weights(case.model, nn.init.uniform_)


@faulty(
    "init_exploding",
    "bad_gain",
    twin="h_residual_scaled",
    source="Zhang et al. 2019: twenty residual branches without norm or scaling",
)
def f_residual_unscaled(case: Case) -> None:
    for scale in case.model.scales:  # type: ignore[union-attr]
        nn.init.ones_(scale)  # type: ignore[arg-type]
    for branch in case.model.branches:  # type: ignore[union-attr]
        init_weights(branch, he)  # type: ignore[arg-type]


@faulty("init_exploding", "bad_gain", twin="h_conv", source="kernels of unit variance in a plain conv net")
def f_conv_unit_normal(case: Case) -> None:
    init_weights(case.model, normal(1.0))


@faulty("init_exploding", "bad_gain", twin="h_deep_he", source="orthogonal weights with a gain of 6 per layer")
def f_oversized_orthogonal(case: Case) -> None:
    init_weights(case.model, lambda w: nn.init.orthogonal_(w, gain=6.0))


@faulty("init_exploding", "bad_gain", twin="h_autoencoder_sgd", source="an autoencoder's weights twelve times too large")
def f_exploding_autoencoder(case: Case) -> None:
    init_weights(case.model, lambda w: nn.init.xavier_normal_(w, gain=12.0))


@faulty(
    "init_exploding",
    "bad_gain",
    twin="h_digits_sgd",
    source="a head drawn 100 times too large: cross-entropy starts in the hundreds",
)
def f_huge_head(case: Case) -> None:
    with torch.no_grad():
        weighted(case.model)[-1].weight.mul_(100)


# ------------------------------------------------------------------------------------------ gain
@faulty(
    "bad_gain",
    "init_vanishing",
    twin="h_deep_he_twenty",
    source="Glorot init under ReLU: half the variance is lost in each layer",
)
def f_glorot_under_relu(case: Case) -> None:
    init_weights(case.model, nn.init.xavier_normal_)


@faulty("bad_gain", "init_vanishing", twin="h_deep_he", source="the square root forgotten: std = 2 / fan_in")
def f_forgotten_square_root(case: Case) -> None:
    init_weights(case.model, lambda w: nn.init.normal_(w, std=2 / w.shape[1]))


@faulty(
    "bad_gain",
    "init_exploding",
    twin="h_deep_plain_conv",
    source="fan_in of a kernel counted as its channels: sqrt(9) too large in each layer",
)
def f_fan_without_kernel(case: Case) -> None:
    init_weights(case.model, lambda w: nn.init.normal_(w, std=math.sqrt(2 / w.shape[1])))


@faulty("bad_gain", "saturation", "init_exploding", twin="h_deep_tanh_glorot", source="a gain of 5 where tanh wants 5/3")
def f_tanh_gain_five(case: Case) -> None:
    init_weights(case.model, lambda w: nn.init.xavier_normal_(w, gain=5.0))


@faulty(
    "bad_gain",
    "init_vanishing",
    twin="h_deep_selu_sgd",
    source="Klambauer et al. 2017: SELU needs LeCun's init; torch's default has a third of its variance",
)
def f_selu_default_init(case: Case) -> None:
    for layer in weighted(case.model):
        layer.reset_parameters()


# ------------------------------------------------------------------------------------------ biases
@faulty(
    "bad_bias_init", "dead_relu", twin="h_digits_sgd", source="TheDeepChecker: hidden biases far below zero switch ReLU off"
)
def f_negative_hidden_bias(case: Case) -> None:
    for layer in weighted(case.model)[:-1]:
        nn.init.constant_(layer.bias, -4.0)


@faulty("bad_bias_init", "init_exploding", twin="h_transformer", source="a head whose biases are drawn with std 30")
def f_random_head_bias(case: Case) -> None:
    nn.init.normal_(weighted(case.model)[-1].bias, std=30.0)


@faulty(
    "bad_bias_init", "saturation", twin="h_lstm_long", source="Jozefowicz et al. 2015 upside down: forget gates start closed"
)
def f_closed_forget_gates(case: Case) -> None:
    rnn, hidden = case.model.rnn, case.model.rnn.hidden_size  # type: ignore[union-attr]
    for bias in (rnn.bias_ih_l0, rnn.bias_hh_l0):  # type: ignore[union-attr]
        nn.init.constant_(bias.detach()[hidden : 2 * hidden], -6.0)  # type: ignore[index, operator]


@faulty(
    "bad_bias_init", twin="h_lstm_long", source="a chrono initialisation with the sign of the gates turned round", margin=0.05
)
def f_chrono_upside_down(case: Case) -> None:
    rnn, hidden = case.model.rnn, case.model.rnn.hidden_size  # type: ignore[union-attr]
    gates = torch.empty(hidden).uniform_(1, 15).log()  # type: ignore[call-overload]
    with torch.no_grad():
        rnn.bias_hh_l0.zero_(), rnn.bias_ih_l0.zero_()  # type: ignore[union-attr, operator]
        rnn.bias_ih_l0[:hidden], rnn.bias_ih_l0[hidden : 2 * hidden] = gates, -gates  # type: ignore[index, operator, misc]


@faulty("saturation", twin="h_lstm", source="an LSTM's weights twenty times too large: its gates are stuck")
def f_lstm_stuck(case: Case) -> None:
    scale_recurrent(case.model, 20.0)


@faulty("saturation", twin="h_gru", source="a GRU drawn from N(0, 1)")
def f_gru_unit_normal(case: Case) -> None:
    for p in case.model.rnn.parameters():  # type: ignore[union-attr]
        if p.ndim > 1:
            nn.init.normal_(p)


@faulty("bad_bias_init", twin="h_binary_logit", source="a head bias of 40: the model is certain of one class")
def f_certain_head_bias(case: Case) -> None:
    nn.init.constant_(weighted(case.model)[-1].bias, 40.0)


# ------------------------------------------------------------------------------------------ dead, saturated
@faulty(
    "dead_relu",
    "bad_bias_init",
    twin="h_conv_bn",
    source="batch norm shifted below zero by its bias: the ReLU behind it is silent",
)
def f_batch_norm_shifted_down(case: Case) -> None:
    for module in case.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, -5.0)


@faulty(
    "dead_relu", "init_vanishing", twin="h_unit_pixels", source="AUTOTRAINER: positive inputs meet negative weights", margin=0.1
)
def f_negative_weights(case: Case) -> None:
    with torch.no_grad():
        for layer in weighted(case.model)[:-1]:
            layer.weight.copy_(-layer.weight.abs())
            layer.bias.zero_()


class Negated(nn.Module):
    """An activation with its sign wrong: `relu(-relu(x))` is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return (-x.relu()).relu()


@faulty(
    "dead_relu",
    "wrong_hidden_activation",
    "init_vanishing",
    twin="h_patient_sgd",
    source="a ReLU behind a negated ReLU is always zero",
)
def f_double_negation(case: Case) -> None:
    case.model[1] = Negated()  # type: ignore[operator]


@faulty(
    "dead_relu",
    "wrong_hidden_activation",
    "init_vanishing",
    twin="h_digits_sgd",
    source="log-sigmoid is never positive, and a ReLU follows",
)
def f_always_negative_into_relu(case: Case) -> None:
    case.model[1] = nn.Sequential(nn.LogSigmoid(), nn.ReLU())  # type: ignore[operator]


@faulty(
    "dead_relu",
    "bad_bias_init",
    twin="h_conv_average",
    source="biases of the convolutions loaded from another net, far below zero",
)
def f_conv_bias_far_below(case: Case) -> None:
    for layer in weighted(case.model)[:-1]:
        nn.init.constant_(layer.bias, -12.0)


@faulty(
    "saturation",
    "init_exploding",
    "bad_gain",
    twin="h_sigmoid_scaled",
    source="sigmoid units from N(0, 5) weights sit at 0 or 1",
)
def f_sigmoid_wide(case: Case) -> None:
    init_weights(case.model, normal(5.0))


@faulty(
    "saturation",
    "init_exploding",
    "bad_gain",
    twin="h_lenet_tanh",
    source="Glorot and Bengio 2010: tanh convolutions from oversized kernels",
)
def f_lenet_saturated(case: Case) -> None:
    init_weights(case.model, normal(3.0))


@faulty(
    "saturation",
    "bad_bias_init",
    twin="h_highway",
    source="highway gates biased by -15 stay shut, by a typo for -1.5",
    margin=0.06,
)
def f_shut_gates(case: Case) -> None:
    for gate in case.model.gates:  # type: ignore[union-attr]
        nn.init.constant_(gate.bias, -15.0)  # type: ignore[union-attr, arg-type]
