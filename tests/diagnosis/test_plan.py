"""Running a schedule ahead of the training: right for torch's schedulers, and without a trace."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks._settings import plan_of
from lit_training.diagnosis.plan import MOST, future_rates


def sgd(lr: float = 0.5) -> torch.optim.SGD:
    return torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=lr, momentum=0.9)


SCHEDULES = {
    "step": lambda o: schedules.StepLR(o, 3),
    "exponential": lambda o: schedules.ExponentialLR(o, 0.7),
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 12),
    "restarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 4),
    "lambda": lambda o: schedules.LambdaLR(o, lambda step: min(1.0, step / 5)),
    "one cycle": lambda o: schedules.OneCycleLR(o, 1.0, total_steps=13),
    "cyclic": lambda o: schedules.CyclicLR(o, 0.1, 1.0, step_size_up=4),
    "sequence": lambda o: schedules.SequentialLR(o, [schedules.LinearLR(o), schedules.ExponentialLR(o, 0.5)], [4]),
    "chained": lambda o: schedules.ChainedScheduler([schedules.LinearLR(o), schedules.ExponentialLR(o, 0.5)], o),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_running_ahead_gives_the_rates_that_training_gets_and_changes_nothing(name: str) -> None:
    optimizer = sgd()
    scheduler = SCHEDULES[name](optimizer)
    before = copy.deepcopy(scheduler.state_dict()) if name != "one cycle" else None, optimizer.param_groups[0]["lr"]
    ahead = future_rates(scheduler, 12)
    assert optimizer.param_groups[0]["lr"] == before[1]
    made_with = optimizer.param_groups[0]["initial_lr"]
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"] / made_with)
        optimizer.step()
        scheduler.step()
    assert ahead == pytest.approx(rates)


def test_the_group_with_the_highest_rate_counts() -> None:
    groups = [{"params": [torch.zeros(1)], "lr": lr} for lr in (0.1, 0.5)]
    waits = schedules.LambdaLR(torch.optim.SGD(groups), [lambda step: 0.0, lambda step: 1.0])
    assert future_rates(waits, 3) == (1.0, 1.0, 1.0)


def test_a_schedule_that_waits_for_a_metric_cannot_be_told() -> None:
    assert future_rates(schedules.ReduceLROnPlateau(sgd()), 10) == ()
    assert future_rates(schedules.ExponentialLR(sgd(), 0.9), MOST + 1) == ()


def test_a_scheduler_that_fails_elsewhere_is_not_known_rather_than_an_error() -> None:
    class Bound(schedules.LRScheduler):
        def get_lr(self) -> list[float]:
            return [group["lr"] / (1 + len(self.optimizer.state)) for group in self.optimizer.param_groups]

    assert future_rates(Bound(sgd()), 10) == ()


@pytest.mark.parametrize(("interval", "accumulate", "rates"), [("step", 1, [1, 0.5, 0.25, 0.125]), ("epoch", 1, [1, 1, 0.5, 0.5]),
                                                              ("epoch", 2, [1, 0.5, 0.25, 0.125])])  # fmt: skip
def test_the_trainers_interval_and_accumulation_count(interval: str, accumulate: int, rates: list[float]) -> None:
    plans = []

    class Net(LitModule):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = {"scheduler": schedules.ExponentialLR(optimizer, 0.5), "interval": interval}
            return {"optimizer": optimizer, "lr_scheduler": schedule}

        def on_train_start(self) -> None:
            plans.append(plan_of(self.trainer))

    data = DataLoader(TensorDataset(torch.randn(8, 4), torch.randint(2, (8,))), 4)
    trainer = pl.Trainer(max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, accumulate_grad_batches=accumulate, gradient_clip_val=2.0)  # fmt: skip
    trainer.fit(Net(nn.Linear(4, 2)), data)
    assert plans[0].rates == pytest.approx(tuple(rates))
    assert (plans[0].updates, plans[0].clip, plans[0].scheduled, plans[0].loss_scaled) == (4, 2.0, True, False)
