"""Faulty, fourth set: likelihoods, divergences and similarities that get the wrong thing, point the wrong way or weigh too much."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, faulty
from tests.zoo.data import replace
from tests.zoo.healthy_likelihoods import with_log_variance
from tests.zoo.healthy_objectives import Ranking, info_nce


# ------------------------------------------------------------------------------------------ what a likelihood gets
@faulty(
    "wrong_last_activation", "wrong_loss", twin="h_own_cross_entropy", source="the sigmoid in front of one's own BCE forgotten"
)
def f_own_cross_entropy_raw(case: Case) -> None:
    case.model = case.model[:-1]  # type: ignore[index]


@faulty("wrong_last_activation", "wrong_loss", twin="h_rare_events", source="ReLU on the log rate, as counts are not negative")
def f_log_rate_rectified(case: Case) -> None:
    case.model.append(nn.ReLU())  # type: ignore[operator]


@faulty("wrong_last_activation", twin="h_multi_label", source="softmax over labels that may hold together")
def f_softmax_of_attributes(case: Case) -> None:
    case.model.append(nn.Softmax(1))  # type: ignore[operator]
    case.loss = F.binary_cross_entropy
    case.metric = "probability_accuracy"


@faulty("wrong_loss", "wrong_last_activation", twin="h_ctc", source="PyTorch forum: probabilities given to ctc_loss")
def f_ctc_of_probabilities(case: Case) -> None:
    plain = case.loss
    case.loss = lambda output, target: plain(output.exp(), target)


@faulty("labels_broken", twin="h_ctc", source="CTC with letters numbered from 0, which is the blank")
def f_ctc_from_zero(case: Case) -> None:
    case.data = replace(case.data, 1, lambda y: y - 1)  # type: ignore[arg-type]


class Bounded(nn.Module):
    """Keeps mean and log variance within -1 and 1."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = torch.cat(self.inner(x), 1).tanh().chunk(2, 1)
        return mean, log_variance


@faulty("wrong_last_activation", twin="h_log_variance", source="tanh at the end of mean and variance")
def f_mean_bounded(case: Case) -> None:
    case.model = Bounded(case.model)


# ------------------------------------------------------------------------------------------ sign
@faulty("loss_sign", twin="h_log_variance", source="the log-likelihood written out, and returned as the loss")
def f_log_likelihood_returned(case: Case) -> None:
    case.loss = lambda output, target: -with_log_variance(output, target)


def log_share(anchor: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    return -info_nce(anchor, right, wrong) + 3


@faulty("loss_sign", twin="h_info_nce", source="the log share of the right candidate, without its minus")
def f_contrast_climbed(case: Case) -> None:
    case.loss = log_share


def bound(sign: float, weight: float, output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    made, mean, log_variance = output
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return F.mse_loss(made, target) + sign * weight * divergence.sum()


@faulty("loss_sign", twin="h_variational", source="the minus of the divergence lost")
def f_divergence_negated(case: Case) -> None:
    case.loss = partial(bound, -1.0, 1e-3)


@faulty("wrong_loss", "loss_sign", twin="h_autoencoder", source="a cosine similarity taken for a distance")
def f_cosine_as_distance(case: Case) -> None:
    case.loss = lambda output, target: F.cosine_similarity(output, target, dim=1).mean() + 0.01 * F.mse_loss(output, target)


# ------------------------------------------------------------------------------------------ weight
@faulty("loss_reduction", twin="h_variational", source="posterior collapse: the divergence summed, the error averaged")
def f_divergence_summed(case: Case) -> None:
    case.loss = partial(bound, 1.0, 1.0)


def bound_of_a_code(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    made, mean, log_variance = output
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return F.mse_loss(made, target) + divergence.sum(1).mean()


@faulty(
    "loss_reduction", twin="h_variational", source="F.mse_loss, a mean over pixels, beside a divergence summed over the code"
)
def f_divergence_of_a_code(case: Case) -> None:
    case.loss = bound_of_a_code


def drowned(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output[:, :10], target[:, 0].long()) + 0.5 * F.mse_loss(
        output[:, 10:], target[:, 1:], reduction="sum"
    )


@faulty("loss_reduction", twin="h_digit_and_picture", source="a picture summed beside a label averaged; only clipping holds it")
def f_digit_and_picture_sum(case: Case) -> None:
    case.loss = drowned


@faulty("class_imbalance", twin="h_specks", source="specks of 1.6 % of the pixels under plain BCE", margin=0.05)
def f_specks_unweighted(case: Case) -> None:
    case.loss = F.binary_cross_entropy_with_logits


class SinkingRanking(Ranking):
    """The log-odds themselves."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return -super().training_step(batch, batch_idx)


@faulty("loss_sign", twin="h_pairwise_ranking", source="BPR's log-likelihood of the right order returned as the loss")
def f_ranking_minus_lost(case: Case) -> None:
    case.module = SinkingRanking


def sinking(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    mean, log_variance = output
    return 0.5 * ((target - mean).square() * (-log_variance).exp() - log_variance).mean()


@faulty("loss_sign", "wrong_loss", twin="h_gaussian_nll", source="a Gaussian likelihood by hand, minus the log-variance")
def f_log_variance_sign(case: Case) -> None:
    case.loss = sinking


# ------------------------------------------------------------------------------------------ unit of the targets
@faulty("labels_broken", twin="h_specks", source="a mask of 0 and 1 read as a picture, and divided by 255", margin=0.05)
def f_faint_masks(case: Case) -> None:
    case.data = replace(case.data, -1, lambda y: y / 255, val=False)


@faulty("unnormalised_target", twin="h_digit_and_ink", source="the second task's number in its own unit, hundreds", margin=0.05)
def f_ink_in_hundreds(case: Case) -> None:
    case.data = replace(case.data, -1, lambda y: torch.stack([y[:, 0], 312 + 43 * y[:, 1]], 1))


@faulty("unnormalised_target", twin="h_centimetres", source="offsets of micrometres in metres", margin=0.05)
def f_micrometres(case: Case) -> None:
    case.data = replace(case.data, -1, lambda y: 1e-4 * y)


@faulty("unnormalised_target", "lr_too_low", twin="h_centimetres", source="offsets in micrometres", margin=0.05)
def f_thousands(case: Case) -> None:
    case.data = replace(case.data, -1, lambda y: 1e4 * y)
