"""Faulty, what only the losses of a whole run tell, or two targets beside each other."""

import math

import torch
from torch import Tensor

from tests.zoo import data
from tests.zoo.case import Case, faulty
from tests.zoo.healthy_steps import Returning
from tests.zoo.nets import adam, adamw, sgd


@faulty(
    "unnormalised_target",
    "loss_reduction",
    twin="h_length_and_mass",
    source="metres beside grams around 0 under one squared error",
)
def f_metres_beside_grams(case: Case) -> None:
    case.data = data.replace(case.data, 1, lambda y: y * torch.tensor([1.0, 90.0]))


@faulty("unnormalised_target", "lr_too_low", twin="h_ages", source="masses, 400 +- 50 grams, at a rate for standard units")
def f_masses_from_zero(case: Case) -> None:
    case.data = data.replace(case.data, 1, lambda y: 400 + 50 * (y - 40) / 12)
    case.optimizer = adam(2e-3)


@faulty("lr_too_high", twin="h_trained_on", source="trained on at SGD's rate for training from scratch: it forgets")
def f_trained_on_at_full_rate(case: Case) -> None:
    case.optimizer = sgd(0.3)


@faulty("lr_too_high", twin="h_words_post_norm", source="AdamW at 1e-3 times the batch size of 64, the rule for SGD misread")
def f_rate_by_batch_size(case: Case) -> None:
    case.optimizer = adamw(0.064)


class ReturningToWorst(Returning):
    """Compares the wrong way round, from the first epoch on."""

    def is_best(self, loss: float) -> bool:
        return not math.isfinite(self.lowest) or loss > self.lowest


@faulty(
    "no_update", twin="h_returns_to_best", source="a loop that goes back to the best epoch takes the worst for it", margin=0.05
)
def f_returns_to_worst(case: Case) -> None:
    case.module = ReturningToWorst


@faulty("lr_too_high", twin="h_words_post_norm", source="a post-norm transformer at Adam's 0.04, without a warm-up")
def f_words_read_hot(case: Case) -> None:
    case.optimizer = adam(0.04)


@faulty(
    "lr_too_high", "dead_relu", twin="h_narrow_waist", source="Adam at 0.3: within some steps all six units of a layer are dead"
)
def f_waist_thrown_over(case: Case) -> None:
    case.optimizer = adam(0.3)


@faulty("labels_broken", twin="h_unet", source="the augmentation flips every second picture, and not its mask", margin=0.1)
def f_pictures_flipped_alone(case: Case) -> None:
    def flip(x: Tensor) -> Tensor:
        return torch.where((torch.arange(len(x)) % 2 == 0)[:, None, None, None], x.flip(-1), x)

    case.data = data.replace(case.data, 0, flip, val=False)
