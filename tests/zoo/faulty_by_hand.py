"""Faulty: steps that a loop takes by hand, tables that also read out, and codes for what is missing."""

import torch.nn.functional as F

from tests.zoo.case import Case, faulty


@faulty(
    "loss_reduction",
    "lr_too_low",
    twin="h_manual_mean_of_four",
    source="four batches to a step: the mean divided by their samples, as a sum would be",
)
def f_manual_mean_of_mean(case: Case) -> None:
    case.loss = lambda output, target: F.cross_entropy(output, target) / len(target)
