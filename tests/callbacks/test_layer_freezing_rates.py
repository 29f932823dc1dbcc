"""`LayerFreezing` and the course of a run: rates follow their schedule, and a phase may wait for a plateau."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader

from lit_training import parameter_groups
from lit_training.callbacks import LayerFreezing, Phase
from tests.callbacks.freezing import Each, Net, fit

pytestmark = pytest.mark.filterwarnings("ignore")


# ---- rates ----


def sequential(optimizer: Any, rates: list[float]) -> Any:
    parts = [schedulers.LinearLR(optimizer, 0.1, total_iters=4), schedulers.CosineAnnealingLR(optimizer, 11)]
    return schedulers.SequentialLR(optimizer, parts, milestones=[4])


SCHEDULERS: dict[str, Callable[[Any, list[float]], Any]] = {
    "StepLR": lambda o, _: schedulers.StepLR(o, 4, 0.5),
    "MultiStepLR": lambda o, _: schedulers.MultiStepLR(o, [3, 9], 0.3),
    "LambdaLR": lambda o, _: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o, _: schedulers.MultiplicativeLR(o, lambda step: 0.9 if step % 2 else 1.05),
    "ExponentialLR": lambda o, _: schedulers.ExponentialLR(o, 0.9),
    "LinearLR": lambda o, _: schedulers.LinearLR(o, 0.1, total_iters=12),
    "ConstantLR": lambda o, _: schedulers.ConstantLR(o, 0.3, total_iters=8),
    "PolynomialLR": lambda o, _: schedulers.PolynomialLR(o, 15, power=2.0),
    "CosineAnnealingLR": lambda o, _: schedulers.CosineAnnealingLR(o, 15),
    "CosineAnnealingWarmRestarts": lambda o, _: schedulers.CosineAnnealingWarmRestarts(o, 4, 2),
    "OneCycleLR": lambda o, rates: schedulers.OneCycleLR(o, rates, total_steps=16),
    "CyclicLR": lambda o, rates: schedulers.CyclicLR(o, [r / 10 for r in rates], rates, step_size_up=3),
    "SequentialLR": sequential,
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_groups_rate_is_a_constant_multiple_of_the_schedule(name: str) -> None:
    """Through two phase changes, against the scheduler alone on a single group, at every step."""

    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            groups = parameter_groups(self, lr=0.2, weight_decay=0.01, layer_decay=0.25)
            optimizer = torch.optim.SGD(groups, momentum=0.9)
            scheduler = SCHEDULERS[name](optimizer, [group["lr"] for group in groups])
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    rates = Each(lambda trainer, _: {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})
    freezing = LayerFreezing([Phase("head"), Phase(["mid", "head"], epoch=1), Phase("*", step=9)])
    fit(Scheduled(), freezing, rates)
    assert [change.step for change in freezing.changes] == [0, 5, 9]

    alone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.9)
    schedule = SCHEDULERS[name](alone, [0.2])
    for step in range(15):
        alone.step()
        schedule.step()
        expected = alone.param_groups[0]["lr"]
        for group, multiple in [("decay/2.head", 1.0), ("decay/1.mid.0", 0.25), ("no_decay/0.body.0", 0.0625)]:
            assert rates.kept[step][group] == pytest.approx(multiple * expected, rel=1e-6, abs=1e-12), (group, step)


def test_reduce_on_plateau_keeps_the_multiples_too() -> None:
    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(parameter_groups(self, lr=0.2, weight_decay=0.0, layer_decay=0.25))
            scheduler = schedulers.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("loss", float(self.trainer.current_epoch))
            return super().training_step(batch, batch_idx)

    rates = Each(lambda trainer, _: [group["lr"] for group in trainer.optimizers[0].param_groups])
    fit(Scheduled(), LayerFreezing([Phase("head"), Phase("mid", epoch=2), Phase("*", epoch=3)]), rates, max_epochs=5)
    assert rates.kept[-1] == [rate / 8 for rate in rates.kept[0]]


# ---- plateaus ----


class Logged(Net):
    """Logs the given values of `metric`, one a validation, or one an epoch of training."""

    def __init__(self, values: list[float], *, in_validation: bool = True) -> None:
        super().__init__()
        self.values, self.in_validation = iter(values), in_validation

    def on_validation_epoch_end(self) -> None:
        if self.in_validation and not self.trainer.sanity_checking:
            self.log("metric", next(self.values))

    def on_train_epoch_end(self) -> None:
        if not self.in_validation:
            self.log("metric", next(self.values))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.loss(0)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(1))


def steps_of_changes(net: Net, phases: list[Phase], **options: Any) -> list[int]:
    freezing = LayerFreezing(phases)
    fit(net, freezing, **options)
    return [change.step for change in freezing.changes]


def test_a_plateau_is_counted_once_a_validation() -> None:
    phases = [Phase("head"), Phase("mid", plateau="metric", patience=2), Phase("*", plateau="metric", patience=1)]
    assert steps_of_changes(Logged([3, 2, 2, 2, 5, 5, 1, 1]), phases, max_epochs=8) == [0, 20, 30]


def test_several_validations_an_epoch_are_several_checks() -> None:
    """The change comes with the next batch, not with the next epoch."""
    phases = [Phase("head"), Phase("*", plateau="metric", patience=1)]
    assert steps_of_changes(Logged([1, 2, 3, 4]), phases, batches=6, max_epochs=2, val_check_interval=3) == [0, 6]
    assert steps_of_changes(Logged([2, 1, 3, 4]), phases, batches=6, max_epochs=2, val_check_interval=3) == [0, 9]


def test_a_metric_that_the_end_of_an_epoch_logs_is_too_late_for_callbacks_of_lightning_and_says_so() -> None:
    net = Logged([1, 1, 1, 1], in_validation=False)
    with pytest.raises(ValueError, match="waits for plateau='metric', which is not logged; logged are"):
        fit(net, LayerFreezing([Phase("head"), Phase("*", plateau="metric", patience=1)]))


def test_a_later_time_does_not_wait_for_the_plateau() -> None:
    phases = [Phase("head"), Phase("mid", plateau="metric"), Phase("*", epoch=2)]
    assert steps_of_changes(Logged([5, 4, 3, 2]), phases, max_epochs=4) == [0, 10]


def test_a_metric_that_is_never_logged_is_an_error_after_the_first_epoch() -> None:
    with pytest.raises(ValueError, match=r"waits for plateau='val_acc', which is not logged; logged are \['metric'\]"):
        fit(Logged([1, 2, 3]), LayerFreezing([Phase("head"), Phase("mid", epoch=2), Phase("*", plateau="val_acc")]))
