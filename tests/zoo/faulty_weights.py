"""Faulty, second set: the start - weights, biases, gains - and what the layers do with it: activations dead, flat or missing."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.case import Case, faulty
from tests.zoo.nets import Lambda, init_weights, normal, sgd, weighted


def swap(model: nn.Module, old: type[nn.Module], new: object) -> None:
    """Replaces each module of type `old` by what `new()` makes."""
    for name, child in model.named_children():
        if isinstance(child, old):
            setattr(model, name, new())  # type: ignore[operator]
        else:
            swap(child, old, new)


# ------------------------------------------------------------------------------------------ symmetry, vanishing
@faulty(
    "init_symmetry",
    "init_vanishing",
    twin="h_ratings",
    source="both factors of a product at zero: neither ever moves",
    margin=0.2,
)
def f_factors_at_zero(case: Case) -> None:
    for table in (case.model.user, case.model.item):
        nn.init.zeros_(table.weight)  # type: ignore[union-attr, arg-type]


@faulty("init_symmetry", "bad_gain", "init_exploding", twin="h_point_net", source="DeepCrime: all weights 0.1", margin=0.15)
def f_tenths(case: Case) -> None:
    init_weights(case.model, lambda w: nn.init.constant_(w, 0.1))


@faulty("init_symmetry", "init_vanishing", twin="h_functional", source="parameters made by torch.zeros, layers by hand")
def f_zero_parameters(case: Case) -> None:
    for p in case.model.parameters():
        nn.init.zeros_(p)


@faulty(
    "init_symmetry",
    "init_vanishing",
    "bad_gain",
    twin="h_fixup_conv",
    source="both convolutions of a branch and the stem at zero",
    margin=0.15,
)
def f_stem_at_zero(case: Case) -> None:
    for layer in weighted(case.model):
        nn.init.zeros_(layer.weight)


@faulty(
    "init_vanishing", "bad_gain", twin="h_eight_accumulated", source="N(0, 0.001) in each layer, as old Caffe files have it"
)
def f_caffe_gaussian(case: Case) -> None:
    init_weights(case.model, normal(1e-3))


@faulty(
    "bad_gain", "init_vanishing", twin="h_deep_leaky", source="the slope of 0.2 taken for the gain: fourteen layers at a fifth"
)
def f_slope_for_gain(case: Case) -> None:
    init_weights(case.model, lambda w: nn.init.normal_(w, std=0.2 / w.shape[1] ** 0.5))


@faulty("init_exploding", "bad_gain", twin="h_deep_leaky", source="fan_out of the head for fan_in: std 1/sqrt(3) everywhere")
def f_fan_of_the_head(case: Case) -> None:
    init_weights(case.model, lambda w: nn.init.normal_(w, std=3**-0.5))


@faulty(
    "init_exploding", "bad_gain", twin="h_shapes_sgd", source="nn.init.normal_ with its default std of 1, convolutions of 5 x 5"
)
def f_default_normal(case: Case) -> None:
    init_weights(case.model, lambda w: nn.init.normal_(w))


@faulty("init_exploding", "bad_gain", twin="h_functional", source="torch.rand for parameters: all positive, mean a half")
def f_rand_parameters(case: Case) -> None:
    for p in case.model.parameters():
        nn.init.uniform_(p)


@faulty(
    "bad_gain", "saturation", "init_exploding", twin="h_unrolled_cell", source="recurrent weights orthogonal with a gain of 6"
)
def f_recurrent_gain(case: Case) -> None:
    nn.init.orthogonal_(case.model.cell.weight_hh, 6.0)  # type: ignore[union-attr, arg-type]


# ------------------------------------------------------------------------------------------ biases
@faulty("bad_bias_init", "dead_relu", twin="h_shapes_sgd", source="biases of -4 in convolutions and hidden layers")
def f_minus_four(case: Case) -> None:
    for layer in weighted(case.model)[:-1]:
        nn.init.constant_(layer.bias, -4.0)


@faulty("bad_bias_init", twin="h_customers_tidy", source="the head's bias set to the count of buyers, not to their log odds")
def f_count_for_log_odds(case: Case) -> None:
    nn.init.constant_(weighted(case.model)[-1].bias, 600.0)


@faulty(
    "bad_bias_init",
    "init_exploding",
    "nan_loss",
    twin="h_gamma_deviance",
    source="the head's bias at the mean, under a log link",
)
def f_mean_under_log_link(case: Case) -> None:
    nn.init.constant_(case.model[-1].bias, 14.0)  # type: ignore[index, arg-type]


# ------------------------------------------------------------------------------------------ dead, flat
@faulty(
    "dead_relu",
    "wrong_hidden_activation",
    "init_vanishing",
    twin="h_unit_uniform_sgd",
    source="ReLU of minus a square: always zero",
)
def f_relu_of_minus_square(case: Case) -> None:
    case.model.insert(3, Lambda(lambda x: -x.square()))  # type: ignore[operator]


@faulty(
    "dead_relu",
    "wrong_hidden_activation",
    "init_vanishing",
    twin="h_shapes_sgd",
    source="a threshold of 12 copied from a spiking net in place of ReLU",
)
def f_high_threshold(case: Case) -> None:
    swap(case.model, nn.ReLU, lambda: nn.Threshold(12.0, 0.0))


@faulty("saturation", twin="h_soft_tree", source="a temperature multiplied instead of divided: gates at 0 or 1")
def f_steep_tree(case: Case) -> None:
    case.model.steep = 2000.0  # type: ignore[assignment]


@faulty("saturation", "init_exploding", "bad_gain", twin="h_packed", source="a GRU's weights uniform in [-6, 6]")
def f_uniform_gru(case: Case) -> None:
    for p in case.model.gru.parameters():  # type: ignore[union-attr]
        nn.init.uniform_(p, -6, 6)


@faulty(
    "saturation",
    "bad_gain",
    "init_exploding",
    twin="h_double_backpropagation",
    source="tanh units from N(0, 15) weights",
    margin=0.08,
)
def f_tanh_wide(case: Case) -> None:
    init_weights(case.model, normal(15.0))


# ------------------------------------------------------------------------------------------ missing or wrong
@faulty("missing_activation", twin="h_shapes_unit", source="batch norm after each convolution and nothing else", margin=0.15)
def f_norms_without_relu(case: Case) -> None:
    swap(case.model, nn.ReLU, nn.Identity)


@faulty("missing_activation", twin="h_functional", source="functions for layers, none for activations", margin=0.04)
def f_functional_linear(case: Case) -> None:
    case.model.act = lambda x: x  # type: ignore[assignment]


@faulty("missing_activation", twin="h_cipher_conv", source="the activation between two convolutions forgotten in forward")
def f_cipher_linear(case: Case) -> None:
    case.model.act = lambda x: x  # type: ignore[assignment]


@faulty("missing_activation", twin="h_customers", source="fastai: layers of a table's net in a row", margin=0.05)
def f_table_linear(case: Case) -> None:
    swap(case.model, nn.ReLU, nn.Identity)


@faulty(
    "wrong_hidden_activation",
    "init_vanishing",
    "bad_gain",
    twin="h_deep_leaky",
    source="tanhshrink, flat at zero, for leaky ReLU",
)
def f_tanhshrink(case: Case) -> None:
    swap(case.model, nn.LeakyReLU, nn.Tanhshrink)


@faulty(
    "wrong_hidden_activation",
    "saturation",
    "init_vanishing",
    twin="h_deep_leaky",
    source="DeepCrime: hard sigmoid in each layer",
)
def f_hard_sigmoid(case: Case) -> None:
    swap(case.model, nn.LeakyReLU, nn.Hardsigmoid)


@faulty(
    "wrong_hidden_activation",
    "init_vanishing",
    twin="h_pulses_plain",
    source="softmax over time in place of an activation",
    margin=0.15,
)
def f_softmax_over_time(case: Case) -> None:
    swap(case.model, nn.LeakyReLU, lambda: nn.Softmax(2))


# ------------------------------------------------------------------------------------------ not a number
@faulty("nan_loss", "wrong_hidden_activation", twin="h_squares", source="x ** 1.5 of what may be negative")
def f_fractional_power(case: Case) -> None:
    case.model[1] = Lambda(lambda x: x**1.5)  # type: ignore[operator]


@faulty(
    "nan_loss", "bad_data", twin="h_graph_attention", source="nodes without neighbours: a softmax of nothing but minus infinity"
)
def f_isolated_nodes(case: Case) -> None:
    lonely = torch.arange(160) % 40 == 7
    case.data = tuple(  # type: ignore[assignment]
        torch.utils.data.TensorDataset(p.tensors[0], p.tensors[1] * ~(lonely[:, None] | lonely), p.tensors[2])  # type: ignore[attr-defined]
        for p in case.data
    )


def by_hand(output: Tensor, target: Tensor) -> Tensor:
    share = (30 * output).sigmoid()
    return -(target * share.log() + (1 - target) * (1 - share).log()).mean()


@faulty("nan_loss", "wrong_loss", twin="h_customers_tidy", source="BCE by hand: log of a sigmoid that has reached 1")
def f_log_of_saturated_sigmoid(case: Case) -> None:
    case.loss = by_hand


class UnitLength(nn.Module):
    """Divides each row by its length."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True)


@faulty("nan_loss", "bad_data", twin="h_log_counts", source="rows scaled to unit length; a row of zeros has none")
def f_zero_length(case: Case) -> None:
    case.model = nn.Sequential(UnitLength(), case.model)
    train, val = case.data
    x = train.tensors[0].index_fill(0, torch.arange(0, len(train), 60), 0.0)  # type: ignore[attr-defined, arg-type]
    case.data = torch.utils.data.TensorDataset(x, train.tensors[1]), val  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------ sums over neighbours
@faulty(
    "init_exploding",
    "bad_gain",
    twin="h_mean_of_neighbours",
    source="PyG and DGL: A @ H, not divided by degrees",
)
def f_adjacency_summed(case: Case) -> None:
    case.model.adjacency = (case.model.adjacency > 0).float()  # type: ignore[operator, assignment]
    case.optimizer = sgd(0.1)


@faulty(
    "init_exploding",
    "bad_gain",
    twin="h_mean_of_neighbours",
    source="index_add of messages where a mean is meant",
)
def f_edges_added_up(case: Case) -> None:
    net: Any = case.model
    receiver, sender = net.adjacency.nonzero(as_tuple=True)

    def forward(nodes: Tensor) -> Tensor:
        def gathered(h: Tensor) -> Tensor:
            return torch.zeros_like(h).index_add(0, receiver, h[sender])

        return gathered(net.second(gathered(net.first(net.x)).relu()))[nodes]

    net.forward = forward
    case.optimizer = sgd(0.1)
