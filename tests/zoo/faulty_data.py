"""Faulty: inputs, targets, their order, and validation data that is not like the training data."""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo import data
from tests.zoo.case import Case, faulty

INPUT, TARGET = 0, -1


# ------------------------------------------------------------------------------------------ scale of inputs
@faulty(
    "unnormalised_input", "init_exploding", "dead_relu", twin="h_conv", source="Stack Overflow 55328966: pixels of 0 to 255"
)
def f_pixels_255(case: Case) -> None:
    case.data = data.replace(case.data, INPUT, lambda x: (127 + 50 * x).clamp(0, 255))


@faulty("unnormalised_input", twin="h_mlp_sgd", source="Karpathy: features in their physical units, from 0.1 to 10000")
def f_raw_units(case: Case) -> None:
    case.data = data.replace(case.data, INPUT, lambda x: 300 + x * torch.logspace(-1, 4, 8))


@faulty("unnormalised_input", twin="h_regression_sgd", source="a year as a feature: mean 2000, spread 10, SGD")
def f_years(case: Case) -> None:
    case.data = data.replace(case.data, INPUT, lambda x: 2000 + 10 * x)


@faulty("unnormalised_input", "saturation", twin="h_gru", source="kelvin into a GRU: its gates saturate")
def f_kelvin(case: Case) -> None:
    case.data = data.replace(case.data, INPUT, lambda x: 290 + 15 * x)


@faulty("unnormalised_input", twin="h_digits_sgd", source="divided by 255 twice: inputs of a thousandth", margin=0.15)
def f_tiny_inputs(case: Case) -> None:
    case.data = data.replace(case.data, INPUT, lambda x: x / 255)


@faulty("unnormalised_input", "saturation", twin="h_spirals_tanh", source="tanh units on coordinates in metres: all saturated")
def f_metres_into_tanh(case: Case) -> None:
    case.data = data.replace(case.data, INPUT, lambda x: 400 * x)


# ------------------------------------------------------------------------------------------ scale of targets
@faulty(
    "unnormalised_target",
    "nan_loss",
    "lr_too_high",
    twin="h_regression_sgd",
    source="prices as targets: SGD overflows within steps",
)
def f_prices_sgd(case: Case) -> None:
    case.data = data.replace(case.data, TARGET, lambda y: 250_000 + 80_000 * y)


@faulty("unnormalised_target", "lr_too_low", twin="h_regression", source="prices as targets: Adam would need a million steps")
def f_prices_adam(case: Case) -> None:
    case.data = data.replace(case.data, TARGET, lambda y: 250_000 + 80_000 * y)


@faulty(
    "unnormalised_target",
    "nan_loss",
    "lr_too_high",
    "init_exploding",
    twin="h_several_outputs_sgd",
    source="one of three targets a thousand times larger than the others",
    margin=0.15,
)
def f_unequal_targets(case: Case) -> None:
    case.data = data.replace(case.data, TARGET, lambda y: y * torch.tensor([1.0, 1.0, 1000.0]))


@faulty(
    "unnormalised_target",
    "lr_too_low",
    twin="h_absolute_error",
    source="targets around 10000 under an absolute error: steps too small to get there",
)
def f_large_targets_l1(case: Case) -> None:
    case.data = data.replace(case.data, TARGET, lambda y: 10_000 + 500 * y)


# ------------------------------------------------------------------------------------------ labels
@faulty("labels_broken", twin="h_mlp_sgd", source="label column read from the wrong place: all training labels 0")
def f_all_labels_zero(case: Case) -> None:
    case.data = data.replace(case.data, TARGET, torch.zeros_like, val=False)


@faulty("labels_broken", "wrong_loss", twin="h_binary_logit", source="labels -1 and 1 given to BCE, which wants 0 and 1")
def f_signed_labels_bce(case: Case) -> None:
    case.data = data.replace(case.data, TARGET, lambda y: 2 * y - 1)


@faulty("labels_broken", "wrong_loss", "lr_too_high", twin="h_unet", source="masks of 0 and 255 given to BCE")
def f_masks_255(case: Case) -> None:
    case.data = data.replace(case.data, TARGET, lambda y: 255 * y)


@faulty("labels_broken", twin="h_digits_sgd", source="inputs shuffled, labels not: every label belongs to another sample")
def f_labels_misaligned(case: Case) -> None:
    case.data = data.replace(case.data, TARGET, lambda y: y.roll(1), val=False)


@faulty("labels_broken", twin="h_regression", source="targets cast to integers before scaling: nearly all are 0")
def f_truncated_targets(case: Case) -> None:
    case.data = data.replace(case.data, TARGET, lambda y: (0.3 * y).trunc() / 0.3, val=False)


@faulty("labels_broken", twin="h_conv", source="nearly every label is ignore_index")
def f_nearly_all_ignored(case: Case) -> None:
    def ignore(y: Tensor) -> Tensor:
        return torch.where(torch.arange(len(y)) % 16 == 0, y, -100)

    case.data = data.replace(case.data, TARGET, ignore, val=False)


# ------------------------------------------------------------------------------------------ bad values
@faulty("bad_data", "nan_loss", twin="h_mlp_sgd", source="TheDeepChecker: a few missing values are NaN")
def f_nan_values(case: Case) -> None:
    case.data = data.replace(case.data, INPUT, lambda x: x.masked_fill(torch.rand(x.shape) < 0.01, float("nan")), val=False)


@faulty("bad_data", "nan_loss", twin="h_regression", source="log of zero: minus infinity among the inputs")
def f_minus_infinity(case: Case) -> None:
    case.data = data.replace(case.data, INPUT, lambda x: x.masked_fill(torch.rand(x.shape) < 0.02, float("-inf")), val=False)


@faulty("bad_data", "nan_loss", twin="h_regression_sgd", source="missing targets are NaN")
def f_nan_targets(case: Case) -> None:
    case.data = data.replace(case.data, TARGET, lambda y: y.masked_fill(torch.rand(y.shape) < 0.03, float("nan")), val=False)


@faulty("bad_data", twin="h_conv", source="pictures that failed to load are black: nearly all")
def f_black_pictures(case: Case) -> None:
    case.data = data.replace(case.data, INPUT, lambda x: x * (torch.rand(len(x), 1, 1, 1) < 0.02), val=False)


@faulty("bad_data", twin="h_conv", source="try/except around the reader returns zeros: two files in five")
def f_two_in_five_unread(case: Case) -> None:
    case.data = data.replace(case.data, INPUT, lambda x: x * (torch.rand(len(x), 1, 1, 1) < 0.6))


@faulty("bad_data", twin="h_digits_sgd", source="a dataset whose __getitem__ ignores the index: one picture, all labels")
def f_same_sample(case: Case) -> None:
    case.data = data.replace(case.data, INPUT, lambda x: x[:1].expand_as(x).clone(), val=False)


@faulty("bad_data", "unnormalised_input", twin="h_regression_sgd", source="missing values coded as -999")
def f_sentinel_values(case: Case) -> None:
    case.data = data.replace(case.data, INPUT, lambda x: x.masked_fill(torch.rand(x.shape) < 0.08, -999.0))


# ------------------------------------------------------------------------------------------ validation
@faulty("train_val_mismatch", twin="h_conv_bn", source="validation pictures not normalised")
def f_val_not_normalised(case: Case) -> None:
    case.data = data.replace(case.data, INPUT, lambda x: 127 + 50 * x, train=False)


@faulty("train_val_mismatch", twin="h_digits_sgd", source="labels encoded anew for the validation part: another numbering")
def f_val_labels_renumbered(case: Case) -> None:
    case.data = data.replace(case.data, TARGET, lambda y: (y + 3) % 10, train=False)


@faulty(
    "train_val_mismatch",
    twin="h_regression",
    source="validation features standardised by the maximum, training by the deviation",
)
def f_val_other_scaling(case: Case) -> None:
    case.data = data.replace(case.data, INPUT, lambda x: x / x.abs().amax(0) + 1.5, train=False)


@faulty("train_val_mismatch", twin="h_degrees", source="training targets in Celsius, validation in Fahrenheit")
def f_val_other_units(case: Case) -> None:
    case.data = data.replace(case.data, TARGET, lambda y: 1.8 * y + 32, train=False)


# ------------------------------------------------------------------------------------------ order, balance
@faulty("data_not_shuffled", twin="h_mlp_sgd", source="Karpathy: data sorted by class, shuffle=False")
def f_sorted_by_class(case: Case) -> None:
    case.data, case.shuffle = data.reorder(case.data, lambda y: y), False


@faulty("data_not_shuffled", twin="h_regression_sgd", source="regression data sorted by its target")
def f_sorted_by_target(case: Case) -> None:
    case.data, case.shuffle = data.reorder(case.data, lambda y: y), False


@faulty("data_not_shuffled", twin="h_conv", source="an image folder read class by class")
def f_folder_order(case: Case) -> None:
    case.data, case.shuffle = data.reorder(case.data, lambda y: -y), False


@faulty("data_not_shuffled", twin="h_conv1d", source="recordings stored one class after the other", margin=0.15)
def f_waves_by_class(case: Case) -> None:
    case.data, case.shuffle = data.reorder(case.data, lambda y: y), False


@faulty("class_imbalance", twin="h_weighted_ce", source="six positives in a hundred, plain cross-entropy", margin=0.1)
def f_rare_class(case: Case) -> None:
    case.loss = nn.CrossEntropyLoss()


@faulty("class_imbalance", twin="h_pos_weight", source="rare positives, plain BCE", margin=0.08)
def f_rare_positives(case: Case) -> None:
    case.loss = nn.BCEWithLogitsLoss()


@faulty(
    "class_imbalance",
    twin="h_balanced_digits",
    source="training set with 1 % of each class but two, validation balanced",
    margin=0.15,
)
def f_two_classes_dominate(case: Case) -> None:
    x, y = case.data[0].tensors  # type: ignore[attr-defined]
    keep = (y < 2) | (torch.rand(len(y)) < 0.04)
    case.data = (type(case.data[0])(x[keep], y[keep]), case.data[1])  # type: ignore[call-arg]


@faulty("class_imbalance", twin="h_mlp_sgd", source="of three classes one sample in thirty was kept", margin=0.1)
def f_ninety_percent_one_class(case: Case) -> None:
    x, y = case.data[0].tensors  # type: ignore[attr-defined]
    keep = (y == 0) | (torch.rand(len(y)) < 1 / 30)
    case.data = (type(case.data[0])(x[keep], y[keep]), case.data[1])  # type: ignore[call-arg]


# ------------------------------------------------------------------------------------------ the next token
def _its_own(data_set: TensorDataset) -> TensorDataset:
    x, _ = data_set.tensors
    return TensorDataset(x, x.clone())


@faulty("labels_broken", twin="h_language_model", source="forum: labels are the inputs, the shift by one forgotten", margin=0.2)
def f_next_token_forgotten(case: Case) -> None:
    case.data = _its_own(case.data[0]), case.data[1]  # type: ignore[arg-type]


@faulty("labels_broken", twin="h_tied_embedding", source="a GRU that is shown the token it is to predict", margin=0.2)
def f_tied_not_shifted(case: Case) -> None:
    case.data = _its_own(case.data[0]), case.data[1]  # type: ignore[arg-type]
