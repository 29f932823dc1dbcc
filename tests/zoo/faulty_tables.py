"""Faulty, second set: the data - scales, labels, holes, order, shares of classes, and what validation gets instead."""

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from tests.zoo import more_data as data
from tests.zoo.case import Case, faulty
from tests.zoo.data import reorder, replace
from tests.zoo.nets import BCE


def train_only(case: Case, index: int, change: object) -> None:
    """Passes one tensor of the training part through `change`."""
    case.data = replace(case.data, index, change, val=False)  # type: ignore[arg-type]


def both(case: Case, index: int, change: object) -> None:
    """Passes one tensor of both parts through `change`."""
    case.data = replace(case.data, index, change)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ inputs
@faulty(
    "unnormalised_input",
    twin="h_customers_tidy",
    source="one of two branches: age, income and visits in their units beside embedded codes",
)
def f_income_in_units(case: Case) -> None:
    case.data = data.customers(case.seed)


@faulty(
    "unnormalised_input",
    "init_exploding",
    twin="h_shapes_sgd",
    source="PyTorch forum: 16-bit pictures divided by 255: up to 257",
)
def f_sixteen_bit(case: Case) -> None:
    case.data = replace(data.shapes(case.seed), 0, lambda x: (65535 * x).round() / 255)


@faulty(
    "unnormalised_input", twin="h_log_counts", source="counts with a long tail given as they are: log1p forgotten", margin=0.03
)
def f_raw_counts(case: Case) -> None:
    case.data = data.baskets(case.seed)


@faulty(
    "unnormalised_input", "init_vanishing", twin="h_pulses_plain", source="a recording in volts where the net wants microvolts"
)
def f_recorded_in_volts(case: Case) -> None:
    both(case, 0, lambda x: 1e-6 * x)


@faulty("unnormalised_input", twin="h_pulses_plain", source="the offset of an amplifier not removed: 1500 +- 1")
def f_offset_not_removed(case: Case) -> None:
    both(case, 0, lambda x: x + 1500)


@faulty(
    "unnormalised_input",
    "init_exploding",
    "saturation",
    twin="h_forecast",
    source="a price series around 20000 as it is into an LSTM",
)
def f_price_series(case: Case) -> None:
    both(case, 0, lambda x: 20_000 + 3_000 * x)


# ------------------------------------------------------------------------------------------ targets
@faulty(
    "unnormalised_target", "lr_too_low", twin="h_unit_uniform", source="a yield in grams: 14400 +- 4900, Adam creeps towards it"
)
def f_yield_in_grams(case: Case) -> None:
    case.data = replace(data.friedman(case.seed), 1, lambda y: 1000 * y)


@faulty(
    "unnormalised_target",
    "lr_too_high",
    "nan_loss",
    "init_exploding",
    twin="h_spectra_plain_sgd",
    source="one target of two in hertz, the other in megahertz",
)
def f_one_target_in_hertz(case: Case) -> None:
    both(case, 1, lambda y: y * torch.tensor([1.0, 3000.0]))


@faulty(
    "unnormalised_target", "lr_too_low", twin="h_coordinates", source="coordinates in pixels of a large photograph, 0 to 4000"
)
def f_coordinates_in_pixels(case: Case) -> None:
    both(case, 1, lambda y: 2000 + 2000 * y)


# ------------------------------------------------------------------------------------------ labels
@faulty("labels_broken", twin="h_pulses", source="an index off by one: each recording gets its neighbour's label")
def f_label_of_the_neighbour(case: Case) -> None:
    train_only(case, -1, lambda y: y.roll(1))


@faulty("labels_broken", twin="h_customers", source="labels compared with >= 0: everybody bought")
def f_everybody_bought(case: Case) -> None:
    train_only(case, -1, lambda y: (y >= 0).float())


@faulty("labels_broken", twin="h_tagging", source="integer division where the remainder was meant: every step is of class 0")
def f_integer_division(case: Case) -> None:
    train_only(case, -1, lambda y: y // 3)


@faulty("labels_broken", twin="h_point_net", source="inputs sorted, labels not: np.sort on one of two arrays")
def f_one_array_sorted(case: Case) -> None:
    train_only(case, 0, lambda x: x[x[:, 0, 0].argsort()])


@faulty("labels_broken", twin="h_spectra", source="two targets from two files: the rows of the second are shifted by one")
def f_second_target_misaligned(case: Case) -> None:
    train_only(case, -1, lambda y: torch.stack([y[:, 0], y[:, 1].roll(1)], 1))


@faulty(
    "labels_broken", "bad_data", twin="h_forecast", source="the window of another series: targets shifted by a hundred rows"
)
def f_targets_of_another_series(case: Case) -> None:
    train_only(case, -1, lambda y: y.roll(100, 0))


@faulty(
    "labels_broken",
    "wrong_loss",
    "wrong_last_activation",
    twin="h_customers_tidy",
    source="labels coded 1 and 2, as R writes factors, given to BCE",
)
def f_labels_one_and_two(case: Case) -> None:
    train_only(case, -1, lambda y: y + 1)


# ------------------------------------------------------------------------------------------ holes
def hole(x: Tensor) -> Tensor:
    return x.index_fill(0, torch.arange(5, len(x), 37), float("nan")).where(torch.arange(4) == 1, x)


@faulty("bad_data", "nan_loss", twin="h_customers_tidy", source="pandas: one column has a few missing values")
def f_missing_income(case: Case) -> None:
    train_only(case, 1, hole)


@faulty("bad_data", "nan_loss", twin="h_log_counts", source="log of a count that may be zero")
def f_log_of_zero_counts(case: Case) -> None:
    case.data = replace(data.baskets(case.seed), 0, torch.log)


def error_codes(x: Tensor) -> Tensor:
    hit = (torch.arange(x.numel()) % 211 == 0).view_as(x)
    return x.masked_fill(hit, 65535.0)


@faulty(
    "bad_data", "unnormalised_input", "nan_loss", "init_exploding", twin="h_spectra_plain_sgd",
    source="a sensor's error code of 65535 among values around 1",
)  # fmt: skip
def f_sensor_error_codes(case: Case) -> None:
    both(case, 0, error_codes)


@faulty("bad_data", twin="h_mixer", source="a sensor that was off: all but one in thirty training recordings are flat")
def f_flat_recordings(case: Case) -> None:
    train_only(case, 0, lambda x: x * (torch.arange(len(x)) % 30 == 0)[:, None, None])


@faulty("bad_data", "nan_loss", twin="h_gamma_deviance", source="a target of infinity from a division by zero")
def f_infinite_targets(case: Case) -> None:
    train_only(case, -1, lambda y: y.index_fill(0, torch.arange(3, len(y), 50), float("inf")))


@faulty(
    "bad_data", "labels_broken", twin="h_arcs_nesterov", source="a buffer overwritten: all inputs are views of the last row"
)
def f_views_of_one_row(case: Case) -> None:
    train_only(case, 0, lambda x: x[-1:].expand_as(x).clone())


# ------------------------------------------------------------------------------------------ validation
@faulty("train_val_mismatch", twin="h_shapes_unit", source="ToTensor forgotten for validation: bytes of 0 to 255")
def f_val_bytes(case: Case) -> None:
    case.data = replace(case.data, 0, lambda x: 255 * x, train=False)  # type: ignore[arg-type]


@faulty("train_val_mismatch", twin="h_customers_tidy", source="columns of the validation file in another order")
def f_val_columns_reordered(case: Case) -> None:
    case.data = replace(case.data, 1, lambda x: x[:, [3, 0, 1, 2]], train=False)  # type: ignore[arg-type]


@faulty("train_val_mismatch", twin="h_log_counts", source="the logarithm taken of training counts only")
def f_val_not_logged(case: Case) -> None:
    case.data = case.data[0], data.baskets(case.seed)[1]


@faulty("train_val_mismatch", twin="h_hashed_words", source="another tokenizer for validation: twenty numbers higher")
def f_val_other_tokens(case: Case) -> None:
    case.data = replace(case.data, 0, lambda x: torch.where(x == 0, 0, 20 + x), train=False)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ order
@faulty("data_not_shuffled", twin="h_pulses_plain", source="recordings of one class after the other, shuffle forgotten")
def f_pulses_class_by_class(case: Case) -> None:
    case.data, case.shuffle = reorder(case.data, lambda y: y), False  # type: ignore[arg-type]


@faulty("data_not_shuffled", twin="h_unit_uniform_sgd", source="a table sorted by yield, read from top to bottom")
def f_sorted_by_yield(case: Case) -> None:
    case.data, case.shuffle = reorder(case.data, lambda y: y), False  # type: ignore[arg-type]


@faulty("data_not_shuffled", twin="h_customers", source="buyers first, then the others, as two files were concatenated")
def f_buyers_first(case: Case) -> None:
    case.data, case.shuffle = reorder(case.data, lambda y: -y), False  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ shares
@faulty("class_imbalance", twin="h_rare_buyers", source="one buyer in ten, plain BCE", margin=0.04)
def f_rare_buyers_plain(case: Case) -> None:
    case.loss = BCE["loss"]


@faulty("class_imbalance", twin="h_shapes_gelu", source="three pictures in a hundred are no discs", margin=0.15)
def f_mostly_discs(case: Case) -> None:
    train, val = case.data
    x, y = train.tensors  # type: ignore[attr-defined]
    keep = (y == 0) | (torch.arange(len(y)) % 50 == 0)
    case.data = TensorDataset(x[keep], y[keep]), val


@faulty("nan_loss", "bad_data", twin="h_shares_of_a_row", source="a few empty rows, divided by their sum in the network: 0 / 0")
def f_shares_of_nothing(case: Case) -> None:
    train_only(case, 0, lambda x: x * (torch.arange(len(x)) % 97 != 5)[:, None])
