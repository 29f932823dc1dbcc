"""Faulty: activations that are missing, or wrong, inside and at the end."""

import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, faulty
from tests.zoo.nets import init_weights


def swap(model: nn.Module, old: type[nn.Module] | tuple[type[nn.Module], ...], new: nn.Module) -> None:
    """Put `new` wherever the model has an `old`."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, old):
                setattr(module, name, new)


# ------------------------------------------------------------------------------------------ missing
@faulty("missing_activation", twin="h_mlp_sgd", source="DeepCrime: remove the activation functions")
def f_no_activation(case: Case) -> None:
    case.model = nn.Sequential(*(layer for layer in case.model if isinstance(layer, nn.Linear)))  # type: ignore[union-attr]


@faulty("missing_activation", twin="h_spirals_tanh", source="UMLAUT: activations left at 'linear'")
def f_identity_activation(case: Case) -> None:
    swap(case.model, nn.Tanh, nn.Identity())


@faulty("missing_activation", twin="h_conv_average", source="conv layers in a row with nothing but linear pooling between")
def f_conv_no_activation(case: Case) -> None:
    case.model = nn.Sequential(*(layer for layer in case.model if not isinstance(layer, nn.ReLU)))  # type: ignore[union-attr]


@faulty("missing_activation", twin="h_regression", source="Stack Overflow: regression net of Dense layers without activation")
def f_regression_no_activation(case: Case) -> None:
    swap(case.model, nn.ReLU, nn.Identity())


@faulty("missing_activation", twin="h_batch_norm_mlp", source="batch norm mistaken for a nonlinearity")
def f_batch_norm_no_activation(case: Case) -> None:
    swap(case.model, nn.ReLU, nn.Identity())


# ------------------------------------------------------------------------------------------ hidden
@faulty("wrong_hidden_activation", "init_vanishing", twin="h_mlp_sgd", source="DeepFD: softmax between hidden layers")
def f_softmax_hidden(case: Case) -> None:
    swap(case.model, nn.ReLU, nn.Softmax(dim=1))


@faulty(
    "wrong_hidden_activation", "init_vanishing", "saturation", twin="h_deep_he", source="AUTOTRAINER: sigmoid in a deep net"
)
def f_deep_sigmoid(case: Case) -> None:
    swap(case.model, nn.ReLU, nn.Sigmoid())
    init_weights(case.model, nn.init.xavier_normal_)


@faulty(
    "wrong_hidden_activation",
    "detached_subgraph",
    twin="h_deep_tanh_glorot",
    source="a step function as activation has no gradient",
)
def f_sign_hidden(case: Case) -> None:
    class Sign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sign()

    swap(case.model, nn.Tanh, Sign())


@faulty(
    "wrong_hidden_activation",
    "saturation",
    "init_vanishing",
    twin="h_conv",
    source="NeuraLint: sigmoid after each convolution, SGD",
)
def f_conv_sigmoid(case: Case) -> None:
    swap(case.model, nn.ReLU, nn.Sigmoid())


@faulty(
    "wrong_hidden_activation",
    "init_vanishing",
    "saturation",
    twin="h_deep_plain_conv",
    source="softmax over the channels inside a conv net",
)
def f_conv_softmax_hidden(case: Case) -> None:
    swap(case.model, nn.ReLU, nn.Softmax(dim=1))


# ------------------------------------------------------------------------------------------ last
@faulty(
    "wrong_last_activation",
    "wrong_loss",
    twin="h_digits_sgd",
    source="TheDeepChecker: softmax in front of cross-entropy",
    margin=0.08,
)
def f_softmax_before_ce(case: Case) -> None:
    case.model.append(nn.Softmax(dim=1))  # type: ignore[operator]


@faulty(
    "wrong_last_activation",
    "wrong_loss",
    twin="h_lenet_tanh",
    source="UMLAUT: softmax in the model and again in the loss, conv net",
)
def f_conv_softmax_before_ce(case: Case) -> None:
    case.model.append(nn.Softmax(dim=-1))  # type: ignore[operator]


class Sharp(nn.Module):
    """The network, its probabilities computed in `forward` as a function."""

    def __init__(self, model: nn.Module, function: object) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.model(*inputs))  # type: ignore[operator]


@faulty(
    "wrong_last_activation",
    "wrong_loss",
    twin="h_many_classes",
    source="probabilities returned from forward with forty classes",
    margin=0.04,
)
def f_functional_softmax(case: Case) -> None:
    case.model = Sharp(case.model, lambda z: F.softmax(z, dim=-1))


@faulty("wrong_last_activation", "wrong_loss", twin="h_digits_sgd", source="sigmoid in front of cross-entropy", margin=0.04)
def f_sigmoid_before_ce(case: Case) -> None:
    case.model.append(nn.Sigmoid())  # type: ignore[operator]


@faulty("wrong_last_activation", "dead_relu", twin="h_mlp_sgd", source="NeuraLint: ReLU on the logits")
def f_relu_logits(case: Case) -> None:
    case.model.append(nn.ReLU())  # type: ignore[operator]


@faulty(
    "wrong_last_activation",
    "unnormalised_target",
    "saturation",
    twin="h_degrees",
    source="tanh on a regression output, targets around 20",
)
def f_tanh_on_degrees(case: Case) -> None:
    case.model.append(nn.Tanh())  # type: ignore[operator]


@faulty(
    "wrong_last_activation",
    "dead_relu",
    twin="h_regression",
    source="Stack Overflow: ReLU on a regression output whose targets are negative half the time",
)
def f_relu_on_regression(case: Case) -> None:
    case.model.append(nn.ReLU())  # type: ignore[operator]


@faulty("wrong_last_activation", twin="h_regression_sgd", source="sigmoid on a standardised target")
def f_sigmoid_on_regression(case: Case) -> None:
    case.model.append(nn.Sigmoid())  # type: ignore[operator]


@faulty(
    "wrong_last_activation",
    "wrong_loss",
    twin="h_multi_label",
    source="sigmoid in front of BCE with logits: nothing is ever below 0.5",
    margin=0.15,
)
def f_sigmoid_before_bce_logits(case: Case) -> None:
    case.model.append(nn.Sigmoid())  # type: ignore[operator]


@faulty(
    "wrong_last_activation",
    "wrong_loss",
    twin="h_binary_sigmoid",
    source="Stack Overflow classic: softmax over a single unit is always 1",
)
def f_softmax_single_unit(case: Case) -> None:
    case.model[-1] = nn.Softmax(dim=1)  # type: ignore[operator]


@faulty("wrong_last_activation", twin="h_autoencoder", source="sigmoid at the end of an autoencoder of standardised data")
def f_autoencoder_sigmoid(case: Case) -> None:
    case.model.append(nn.Sigmoid())  # type: ignore[operator]
