"""Faulty, second set: decay, dropout, norms and too little data."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo.case import Case, Supervised, faulty
from tests.zoo.healthy_hardly import tables_penalised
from tests.zoo.healthy_schedules import penalised
from tests.zoo.nets import adam, adamw, mlp, sgd


# ------------------------------------------------------------------------------------------ decay
@faulty("weight_decay_too_strong", twin="h_spectra_plain_sgd", source="weight decay of 0.5, the rate's place in the call")
def f_decay_half_plain_sgd(case: Case) -> None:
    case.optimizer = sgd(0.1, 0.0, weight_decay=0.5)


@faulty("weight_decay_too_strong", twin="h_llama_block", source="AdamW with a decay of 30")
def f_llama_decay(case: Case) -> None:
    case.optimizer = adamw(6e-3, weight_decay=30.0)


@faulty(
    "weight_decay_too_strong",
    "loss_reduction",
    twin="h_ratings",
    source="an L2 penalty summed over all factors with a weight of 1",
    margin=0.2,
)
def f_factors_penalised(case: Case) -> None:
    right, model = case.loss, case.model
    case.loss = lambda output, target: right(output, target) + sum(p.square().sum() for p in model.parameters())


@faulty(
    "weight_decay_too_strong", twin="h_wide_penalty", source="0.2 times the sum of all squares: a factor copied from a mean"
)
def f_wide_penalty_times_two_hundred(case: Case) -> None:
    case.module = penalised(0.2)


@faulty(
    "weight_decay_too_strong",
    twin="h_tables_penalised",
    source="the penalty of all tables at a fifth of the loss: no factor can grow",
)
def f_factors_shrunk_away(case: Case) -> None:
    case.module = tables_penalised(2e-2)
    for table in (case.model.user, case.model.item):
        nn.init.normal_(table.weight, std=0.15)  # type: ignore[union-attr, arg-type]


# ------------------------------------------------------------------------------------------ dropout
@faulty("dropout_too_high", twin="h_word_convolutions", source="dropout of 0.98 in front of the head", margin=0.06)
def f_words_dropped(case: Case) -> None:
    case.model.dropout = nn.Dropout(0.98)


@faulty("dropout_too_high", twin="h_spectra", source="nine tenths of a spectrum dropped at the input")
def f_spectrum_dropped(case: Case) -> None:
    case.model.insert(0, nn.Dropout(0.9))  # type: ignore[operator]


class Always(nn.Module):
    """Functional dropout, on in evaluation as well."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p)


@faulty(
    "dropout_active_in_eval", twin="h_spectra", source="F.dropout without training=self.training, on a spectrum", margin=0.05
)
def f_spectrum_always_dropped(case: Case) -> None:
    case.model.insert(2, Always(0.6))  # type: ignore[operator]


class TrainedWhileValidating(Supervised):
    """Calls train() at the start of validation, as its progress bar did."""

    def on_validation_start(self) -> None:
        self.train()


@faulty("dropout_active_in_eval", twin="h_spectra_dropout", source="train() called at the start of validation", margin=0.03)
def f_validated_in_training_mode(case: Case) -> None:
    case.module = TrainedWhileValidating


# ------------------------------------------------------------------------------------------ norms
class Evaluating(Supervised):
    """Puts the network into evaluation mode at the start of training, after loading it."""

    def on_train_batch_start(self, *_: Any) -> None:
        self.model.eval()


@faulty(
    "bn_eval_in_train", "unnormalised_input", twin="h_customers", source="model.eval() before each batch: raw numbers stay raw"
)
def f_table_evaluated(case: Case) -> None:
    case.module = Evaluating


@faulty(
    "bn_eval_in_train",
    "init_vanishing",
    "bad_gain",
    twin="h_shapes_unit",
    source="eval() copied from the prediction script",
    margin=0.04,
)
def f_shapes_evaluated(case: Case) -> None:
    case.module = Evaluating


def momentum(model: nn.Module, value: float) -> None:
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = value


@faulty("bn_stats", "train_val_mismatch", twin="h_dense_net", source="momentum=0: running statistics never move", margin=0.05)
def f_momentum_zero(case: Case) -> None:
    momentum(case.model, 0.0)


@faulty(
    "bn_stats", "train_val_mismatch", twin="h_customers", source="momentum of 1e-4 on raw numbers: statistics arrive in years"
)
def f_table_momentum(case: Case) -> None:
    momentum(case.model, 1e-4)


@faulty(
    "bn_stats",
    "train_val_mismatch",
    twin="h_shapes_unit",
    source="TensorFlow's momentum of 0.999 taken for its opposite: 0.001",
    margin=0.08,
)
def f_shapes_momentum(case: Case) -> None:
    momentum(case.model, 0.001)


@faulty("bias_before_bn", twin="h_pulses", source="1-D convolutions with a bias in front of batch norm", note=True)
def f_pulses_bias(case: Case) -> None:
    for layer in case.model.modules():
        if isinstance(layer, nn.Conv1d):
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))


@faulty("bias_before_bn", twin="h_shapes_unit", source="strided convolutions with a bias in front of batch norm", note=True)
def f_shapes_bias(case: Case) -> None:
    for layer in case.model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))


# ------------------------------------------------------------------------------------------ too little data
def few(case: Case, n: int, wrong: float, classes: int) -> None:
    """Keeps `n` training samples, a share of them with random labels."""
    train, g = case.data[0], torch.Generator().manual_seed(case.seed)
    *x, y = (t[:n] for t in train.tensors)  # type: ignore[attr-defined]
    drawn = torch.randint(classes, y.shape, generator=g).to(y.dtype)
    case.data = TensorDataset(*x, torch.where(torch.rand(y.shape, generator=g) < wrong, drawn, y)), case.data[1]


@faulty("overfit_no_regularisation", twin="h_arcs_nesterov", source="sixty samples, a third of them mislabelled, a wide net")
def f_sixty_samples(case: Case) -> None:
    few(case, 60, 0.4, 3)
    case.model, case.optimizer, case.max_steps = mlp([5, 512, 512, 3]), adam(3e-3), 300


@faulty("overfit_no_regularisation", twin="h_packed", source="eighty reviews and a recurrent net that learns them by heart")
def f_eighty_reviews(case: Case) -> None:
    few(case, 80, 0.2, 2)


@faulty(
    "overfit_no_regularisation",
    twin="h_customers_tidy",
    source="fifty customers, a fifth of them mislabelled, three hundred steps",
)
def f_fifty_customers(case: Case) -> None:
    few(case, 50, 0.2, 2)
