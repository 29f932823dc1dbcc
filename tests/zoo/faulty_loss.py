"""Faulty: the loss, its sign, its reduction, its shapes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, Supervised, faulty


# ------------------------------------------------------------------------------------------ wrong
@faulty(
    "wrong_loss",
    "wrong_last_activation",
    twin="h_brisk_sgd",
    source="PyTorch forum classic: nll_loss on raw logits runs off to minus infinity",
)
def f_nll_of_logits(case: Case) -> None:
    case.loss = F.nll_loss


@faulty(
    "wrong_loss",
    "wrong_last_activation",
    twin="h_log_softmax_nll",
    source="nll_loss on probabilities: the log forgotten",
    margin=0.05,
)
def f_nll_of_probabilities(case: Case) -> None:
    case.model[-1] = nn.Softmax(dim=1)  # type: ignore[operator]


@faulty("wrong_loss", twin="h_multi_label", source="cross-entropy for labels that do not exclude each other", margin=0.04)
def f_ce_for_multi_label(case: Case) -> None:
    case.loss = F.cross_entropy


@faulty(
    "wrong_loss",
    "wrong_last_activation",
    twin="h_binary_logit",
    source="Stack Overflow classic: cross-entropy on one output unit is always 0",
)
def f_ce_single_output(case: Case) -> None:
    case.loss = F.cross_entropy


def kl_of_probabilities(output: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(output.softmax(1), F.one_hot(target, output.shape[1]).float(), reduction="batchmean")


@faulty(
    "wrong_loss",
    "wrong_last_activation",
    twin="h_digits_sgd",
    source="kl_div wants log-probabilities and gets probabilities",
    margin=0.05,
)
def f_kl_without_log(case: Case) -> None:
    case.loss = kl_of_probabilities


class SoftDot(nn.Module):
    """A criterion that compares the predicted class number with the target's: the wrong notion of distance."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        numbers = torch.arange(output.shape[1], dtype=output.dtype)
        return F.mse_loss(output.softmax(1) @ numbers, target.float())


@faulty("wrong_loss", twin="h_digits_sgd", source="DeepFD: squared error of class numbers", margin=0.15)
def f_mse_of_class_numbers(case: Case) -> None:
    case.loss = SoftDot()


# ------------------------------------------------------------------------------------------ sign
@faulty("loss_sign", twin="h_patient_sgd", source="the minus of the log-likelihood twice: -cross_entropy")
def f_negated_cross_entropy(case: Case) -> None:
    case.loss = lambda output, target: -F.cross_entropy(output, target)


@faulty("loss_sign", twin="h_regression", source="maximize=True copied from another script")
def f_maximised(case: Case) -> None:
    case.optimizer = lambda model: torch.optim.Adam(model.parameters(), lr=5e-3, maximize=True)


@faulty("loss_sign", twin="h_gaussian_nll", source="the log-likelihood returned as a loss")
def f_log_likelihood_as_loss(case: Case) -> None:
    right = case.loss
    case.loss = lambda output, target: -right(output, target)


@faulty("loss_sign", twin="h_cosine", source="cosine similarity minimised")
def f_similarity_minimised(case: Case) -> None:
    case.loss = lambda output, target: F.cosine_similarity(output, target, dim=1).mean()


@faulty("loss_sign", twin="h_log_softmax_nll", source="mean of the log-probabilities of the targets, minus forgotten")
def f_mean_log_probability(case: Case) -> None:
    case.loss = lambda output, target: output.gather(1, target[:, None]).mean()


# ------------------------------------------------------------------------------------------ reduction
@faulty(
    "loss_reduction", "lr_too_high", "nan_loss", twin="h_regression_sgd", source="reduction='sum' with a rate made for the mean"
)
def f_sum_of_squares(case: Case) -> None:
    case.loss = lambda output, target: F.mse_loss(output, target, reduction="sum")


@faulty("loss_reduction", "lr_too_high", "nan_loss", twin="h_conv", source="cross-entropy summed over the batch")
def f_sum_cross_entropy(case: Case) -> None:
    case.loss = nn.CrossEntropyLoss(reduction="sum")


@faulty("loss_reduction", "lr_too_low", twin="h_patient_sgd", source="the mean divided by the batch size once more")
def f_mean_of_mean(case: Case) -> None:
    case.loss = lambda output, target: F.cross_entropy(output, target) / len(target)


@faulty(
    "loss_reduction",
    "lr_too_high",
    "nan_loss",
    twin="h_autoencoder_sgd",
    source="autoencoder: squared error summed over features and samples",
)
def f_autoencoder_sum(case: Case) -> None:
    case.loss = lambda output, target: (output - target).square().sum()


# ------------------------------------------------------------------------------------------ shapes
@faulty(
    "shape_broadcast", twin="h_regression_squeezed", source="PyTorch forum classic: (N, 1) against (N,) broadcasts to (N, N)"
)
def f_broadcast_mse(case: Case) -> None:
    case.model = case.model[0]  # type: ignore[index]


@faulty("shape_broadcast", twin="h_absolute_error", source="a loss of one's own: no warning about sizes")
def f_broadcast_custom(case: Case) -> None:
    case.data = data.replace(case.data, 1, lambda y: y[:, 0])
    case.loss = lambda output, target: (output - target).abs().mean()


@faulty("shape_broadcast", twin="h_quantile", source="pinball loss on (N, 1) and (N,)")
def f_broadcast_quantile(case: Case) -> None:
    case.data = data.replace(case.data, 1, lambda y: y[:, 0])


class Inline(Supervised):
    """The loss is computed in `training_step`, by hand."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return ((self(x) - y.view(-1)) ** 2).mean()


@faulty("shape_broadcast", twin="h_regression_sgd", source="the target flattened in training_step, the output not")
def f_broadcast_inline(case: Case) -> None:
    case.module = Inline


@faulty("shape_broadcast", twin="h_huber_outliers", source="Huber loss of (N, 1) and (N,)")
def f_huber_all_against_all(case: Case) -> None:
    case.data = data.replace(case.data, 1, lambda y: y[:, 0])


@faulty("shape_broadcast", twin="h_picture_regression", source="a map of 1 x 1 against a column: (N, 1, 1, 1) and (N, 1)")
def f_broadcast_conv(case: Case) -> None:
    case.model = case.model[:-1]  # type: ignore[index]
    case.loss = lambda output, target: (output - target).square().mean()


# ------------------------------------------------------------------------------------------ values
@faulty(
    "nan_loss",
    "wrong_loss",
    "wrong_last_activation",
    twin="h_counts_softplus",
    source="Poisson NLL of a raw output that may be negative: log of a negative number",
)
def f_poisson_negative_rate(case: Case) -> None:
    case.model = case.model[0]  # type: ignore[index]
    case.loss = lambda output, target: (output - target * output.log()).mean()


@faulty("nan_loss", twin="h_rmse", source="sqrt has an infinite slope at 0: per-sample root of a squared error that can vanish")
def f_sqrt_at_zero(case: Case) -> None:
    case.loss = lambda output, target: (output - target).mul((target > 0).float()).square().sqrt().mean()


@faulty("nan_loss", twin="h_autoencoder_bce", source="cross-entropy by hand: log(0) times 0")
def f_log_of_zero(case: Case) -> None:
    case.model.append(nn.Hardsigmoid())  # type: ignore[operator]
    case.loss = lambda p, target: -(target * p.log() + (1 - target) * (1 - p).log()).mean()


@faulty("nan_loss", twin="h_brisk_sgd", source="softmax at a low temperature by hand: exp overflows", margin=0.2)
def f_exp_overflow(case: Case) -> None:
    case.loss = lambda z, y: -((40 * z).exp() / (40 * z).exp().sum(1, keepdim=True)).log().gather(1, y[:, None]).mean()
