"""Faulty, second set: what is minimised - the loss itself, its sign, its size, its shapes, what the last layer hands to it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, faulty
from tests.zoo.data import replace
from tests.zoo.healthy_classes import poly
from tests.zoo.healthy_objectives import CosineHead, log_cosh
from tests.zoo.healthy_routes import Bandit
from tests.zoo.healthy_sentences import FieldModule
from tests.zoo.nets import adam, mlp


# ------------------------------------------------------------------------------------------ wrong
@faulty(
    "wrong_loss",
    "labels_broken",
    twin="h_customers_tidy",
    source="a hinge loss wants -1 and 1 and is given 0 and 1: the negatives have no gradient",
)
def f_hinge_of_zero_and_one(case: Case) -> None:
    case.loss = lambda output, target: F.relu(1 - target * output).mean()


def error_rate(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) != target).float().mean().requires_grad_()


@faulty(
    "no_update",
    "detached_subgraph",
    "wrong_loss",
    twin="h_shapes_gelu",
    source="PyTorch forum: the error rate as a loss, and requires_grad_() because autograd complained",
)
def f_error_rate_as_loss(case: Case) -> None:
    case.loss = error_rate


@faulty(
    "wrong_loss",
    "wrong_last_activation",
    "lr_too_high",
    "nan_loss",
    twin="h_arcs_nesterov",
    source="a sum of two losses: nll_loss on the raw logits beside cross-entropy, unbounded below",
    margin=0.05,
)
def f_second_loss_unbounded(case: Case) -> None:
    case.loss = lambda output, target: 0.2 * F.cross_entropy(output, target) + F.nll_loss(output, target)


@faulty(
    "wrong_loss",
    twin="h_functional",
    source="Stack Overflow: the largest logit is regressed on the number of the class",
)
def f_largest_logit_regressed(case: Case) -> None:
    case.loss = lambda output, target: F.mse_loss(output.amax(1), target.float())


class Numbered(nn.Module):
    """One output, read as the nearest of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp([64, 64, 64, 1])

    def forward(self, x: Tensor) -> Tensor:
        number = self.inner(x)
        return number if self.training else -(number - torch.arange(10)).abs()


@faulty("wrong_loss", twin="h_digits_sgd", source="Stack Overflow: the number of the class regressed by one output", margin=0.1)
def f_number_of_the_class(case: Case) -> None:
    case.model, case.loss, case.optimizer = Numbered(), regressed_when_trained, adam(3e-3)


def regressed_when_trained(output: Tensor, target: Tensor) -> Tensor:
    """A squared error of one output; of ten, as validation has them, cross-entropy."""
    return F.mse_loss(output[:, 0], target.float()) if output.shape[1] == 1 else F.cross_entropy(output, target)


@faulty(
    "wrong_loss",
    "loss_reduction",
    "batch_mixing",
    twin="h_spectra_plain_sgd",
    source="averaged over the batch too early: the mean prediction is compared with the mean target",
)
def f_means_compared(case: Case) -> None:
    case.loss = lambda output, target: F.mse_loss(output.mean(0), target.mean(0))


@faulty(
    "wrong_loss",
    "wrong_last_activation",
    twin="h_counts_normed_inside",
    source="only the right class is rewarded: nothing holds the other logits down",
)
def f_right_logit_only(case: Case) -> None:
    case.loss = lambda output, target: F.softplus(-output.gather(1, target[:, None])).mean()


# ------------------------------------------------------------------------------------------ sign
class Unrewarded(Bandit):
    """The minus in front of the expected reward forgotten."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return -super().training_step(batch, batch_idx)


@faulty("loss_sign", twin="h_reinforce", source="REINFORCE without its minus: the reward is minimised")
def f_reward_minimised(case: Case) -> None:
    case.module = Unrewarded


class Likelihood(FieldModule):
    """Returns the log-likelihood."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return -super().training_step(batch, batch_idx)


@faulty("loss_sign", twin="h_random_field", source="torchcrf classic: the layer returns a log-likelihood, returned as a loss")
def f_field_likelihood(case: Case) -> None:
    case.module = Likelihood


@faulty("loss_sign", twin="h_shapes_gelu", source="a gain made of a loss: 1 - cross-entropy")
def f_one_minus_loss(case: Case) -> None:
    case.loss = lambda output, target: 1 - F.cross_entropy(output, target)


# ------------------------------------------------------------------------------------------ reduction
@faulty(
    "loss_reduction", "lr_too_high", "nan_loss", twin="h_poly_loss", source="a loss of one's own: sum() where mean() was meant"
)
def f_poly_summed(case: Case) -> None:
    case.loss = lambda output, target: len(target) * poly(output, target)


@faulty("loss_reduction", "lr_too_low", twin="h_constant_divisor", source="each batch divided by the size of the data set")
def f_divided_by_data_set(case: Case) -> None:
    case.loss = lambda output, target: F.cross_entropy(output, target, reduction="sum") / 1024 / len(target)


@faulty(
    "loss_reduction",
    "lr_too_high",
    "nan_loss",
    twin="h_unit_uniform_sgd",
    source="squared errors summed by hand: .pow(2).sum()",
)
def f_squares_summed(case: Case) -> None:
    case.loss = lambda output, target: (output - target).pow(2).sum()


# ------------------------------------------------------------------------------------------ shapes
def weights_by_row(output: Tensor, target: Tensor) -> Tensor:
    weight = torch.where(target[:, 0] > 0.5, 9.0, 1.0)
    return (F.binary_cross_entropy_with_logits(output, target, reduction="none") * weight).mean() / weight.mean()


@faulty(
    "shape_broadcast",
    "class_imbalance",
    twin="h_rare_buyers",
    source="weights (N,) times losses (N, 1): every loss gets the mean weight",
    margin=0.04,
)
def f_weights_broadcast(case: Case) -> None:
    case.loss = weights_by_row


@faulty("shape_broadcast", twin="h_unit_uniform_sgd", source="targets (N, 1, 1) from a squeeze forgotten, outputs (N, 1)")
def f_extra_dimension(case: Case) -> None:
    case.data = replace(case.data, -1, lambda y: y[:, None])  # type: ignore[arg-type]


@faulty("shape_broadcast", twin="h_log_cosh", source="pandas: df['y'].values is (N,), the output (N, 1), the loss one's own")
def f_flat_targets_log_cosh(case: Case) -> None:
    case.loss = lambda output, target: log_cosh(output, target.flatten())


# ------------------------------------------------------------------------------------------ the last layer
@faulty("wrong_last_activation", twin="h_ratings", source="sigmoid on ratings of 1 to 5")
def f_sigmoid_on_ratings(case: Case) -> None:
    case.model = nn.Sequential(case.model, nn.Sigmoid())


@faulty("wrong_last_activation", twin="h_spectra", source="softmax at the end of a regression with two outputs")
def f_softmax_on_two_numbers(case: Case) -> None:
    case.model.append(nn.Softmax(1))  # type: ignore[operator]


@faulty(
    "wrong_last_activation",
    "wrong_loss",
    twin="h_cipher_conv",
    source="UMLAUT: probabilities per token given to cross-entropy",
    margin=0.04,
)
def f_softmax_per_token(case: Case) -> None:
    case.model = nn.Sequential(case.model, nn.Softmax(1))


class Clamped(nn.Module):
    """Keeps what leaves the network between 0 and 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1)


@faulty(
    "wrong_last_activation",
    twin="h_mixer",
    source="outputs clamped to [0, 1], to be probabilities, in front of cross-entropy",
)
def f_clamped_logits(case: Case) -> None:
    case.model = nn.Sequential(case.model, Clamped())


@faulty(
    "wrong_last_activation",
    "unnormalised_target",
    twin="h_conv_autoencoder",
    source="sigmoid at the end, pixels of 0 to 255 as targets",
)
def f_sigmoid_for_bytes(case: Case) -> None:
    case.data = replace(case.data, -1, lambda y: 255 * y)  # type: ignore[arg-type]


@faulty(
    "wrong_last_activation",
    "wrong_loss",
    "init_vanishing",
    twin="h_sigmoid_per_class",
    source="sigmoid in the model, and BCE with logits for each class",
    margin=0.04,
)
def f_sigmoid_twice(case: Case) -> None:
    case.model.append(nn.Sigmoid())  # type: ignore[operator]


class Rounded(nn.Module):
    """Whole numbers, as the targets are counts."""

    def forward(self, x: Tensor) -> Tensor:
        return x.round()


@faulty(
    "detached_subgraph",
    "wrong_last_activation",
    "no_update",
    twin="h_raw_fourteen",
    source="Stack Overflow: the output rounded inside the model; round() has no slope",
)
def f_rounded_output(case: Case) -> None:
    case.model.append(Rounded())  # type: ignore[operator]


class ColdCosines(CosineHead):
    """Multiplies by the temperature that it was to divide by."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 16**2


@faulty("wrong_loss", twin="h_cosine_classes", source="cosines times their temperature, not divided by it", margin=0.05)
def f_cosines_scaled_down(case: Case) -> None:
    case.model[1] = ColdCosines(32, 10)  # type: ignore[index, operator]
