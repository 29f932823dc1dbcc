"""Healthy: steps that a loop takes by hand, tables that also read out, and columns in which numbers are missing."""

from typing import Any

import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.nets import CE, mlp, sgd


class FourToAStep(Supervised):
    """Gradients of four batches for each step, each divided by `divisor`."""

    automatic_optimization = False
    divisor = 4

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx) / self.divisor)
        if batch_idx % 4 == 3:
            optimizer = self.optimizers()
            assert isinstance(optimizer, LightningOptimizer)
            optimizer.step()
            optimizer.zero_grad()


@healthy("loss_reduction", "lr_too_low", source="a step for every fourth batch of 16, each mean divided by four")
def h_manual_mean_of_four(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([64, 64, 64, 10]), data=data.digits(seed), batch_size=16, optimizer=sgd(0.05), max_steps=150,
        module=FourToAStep, **CE,
    )  # fmt: skip


class SumOverTheStep(FourToAStep):
    """The divisor is the number of samples of a whole step."""

    divisor = 64


@healthy("loss_reduction", source="sums over four batches of 16, divided by the 64 samples of a step")
def h_sum_over_four_batches(seed: int) -> Case:
    case = h_manual_mean_of_four(seed)
    case.module = SumOverTheStep
    case.loss = lambda output, target: F.cross_entropy(output, target, reduction="sum")
    return case
