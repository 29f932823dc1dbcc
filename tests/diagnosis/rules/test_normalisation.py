"""Batch norm over too few values, and over enough of them."""

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics
from lit_training.diagnosis.later import FirstSteps
from tests.diagnosis.rules.looking import alarms, mlp, vectors


@pytest.mark.parametrize(("rows", "told"), [(2, ["bn_stats"]), (3, ["bn_stats"]), (4, [])])
def test_two_or_three_values_are_no_statistic(rows: int, told: list[str]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    assert alarms(net, (torch.randn(rows, 8), torch.arange(rows))) == told


def test_the_positions_of_two_pictures_are_values_too() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    assert alarms(net, (torch.randn(2, 1, 8, 8), torch.arange(2))) == []


def test_one_norm_behind_global_pooling_among_others_is_silent() -> None:
    torch.manual_seed(0)
    block = [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)]
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *block, *pooled)
    assert alarms(net, (torch.randn(3, 1, 8, 8), torch.arange(3))) == []


class Looking(LitModule):
    """Looks at a few predictions in the first step, in eval mode, and goes back to training or forgets to."""

    back = True

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        if batch_idx == 0:
            self.network.eval()
            with torch.no_grad():
                self.network(batch[0][:4])
            self.network.train(self.back)
        return loss


@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize("batches", [2, 8])
def test_a_net_that_stays_in_eval_mode_after_the_first_step_is_found(back: bool, batches: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    module, watch = Looking(net, lr=0.01), Diagnostics(verbose=False, select=["bn_eval_in_train"])
    module.back = back
    data = DataLoader(TensorDataset(torch.randn(16 * batches, 8), torch.randint(4, (16 * batches,))), 16)
    pl.Trainer(max_steps=8, barebones=True, accelerator="cpu", callbacks=[watch]).fit(module, data)
    assert [finding.where for finding in watch.findings] == ([] if back or batches == 2 else ["network.1"])


class TwoPasses(nn.Module):
    """Clean and shifted samples, one pass after the other or in one batch."""

    def __init__(self, shift: float, joined: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
        self.shift, self.joined = shift, joined

    def forward(self, x: Tensor) -> Tensor:
        if self.joined:
            return self.net(torch.cat([x, x + self.shift])).unflatten(0, (2, -1)).mean(0)
        return (self.net(x) + self.net(x + self.shift)) / 2


@pytest.mark.parametrize(("shift", "joined", "told"), [(4.0, False, True), (4.0, True, False), (0.3, False, False)])
def test_two_kinds_of_data_in_passes_of_their_own_fit_no_statistics(shift: float, joined: bool, told: bool) -> None:
    assert ("bn_stats" in alarms(TwoPasses(shift, joined))) == told


@pytest.mark.parametrize(("training", "resting"), [(True, ()), (False, ("1",))])
def test_a_norm_that_is_only_not_called_does_not_rest(training: bool, resting: tuple[str, ...]) -> None:
    net = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    first = FirstSteps(net, [torch.optim.SGD(net.parameters(), lr=0.1)])
    net[1].train(training)
    assert first.conclude().resting == resting


@pytest.mark.parametrize(
    ("bias", "momentum", "updates", "told"),
    [
        (2.0, 0.02, 65, True),
        (2.0, 0.1, 65, False),
        (2.0, 0.02, 400, False),
        (2.0, 0.02, 20, False),
        (0.0, 0.02, 65, False),
    ],
)
def test_a_running_mean_has_to_arrive_within_the_planned_updates(
    bias: float, momentum: float, updates: int, told: bool
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16, momentum=momentum), nn.ReLU(), nn.Linear(16, 4))
    nn.init.constant_(net[0].bias, bias)
    watch = Diagnostics(verbose=False, select=["bn_stats"])

    class Stops(LitModule):
        def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
            self.trainer.should_stop = self.global_step > 1

    data = DataLoader(TensorDataset(torch.randn(512, 8), torch.randint(4, (512,))), 32)
    trainer = pl.Trainer(max_steps=updates, min_steps=1, barebones=True, accelerator="cpu", callbacks=[watch])
    trainer.fit(Stops(net, lr=0.01), data)
    assert [finding.where for finding in watch.findings] == (["network.1"] if told else [])


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_that_rests_is_why_inputs_are_raw(training: bool) -> None:
    model, (x, y) = nn.Sequential(nn.BatchNorm1d(16), mlp(16, 32, 4)), vectors()
    model[0].train(training)
    said = alarms(model, (300 + 200 * x, y), optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=1e-3))
    assert said[:1] == ([] if training else ["bn_eval_in_train"])
    assert "unnormalised_input" not in said


@pytest.mark.parametrize("affine", [False, True])
def test_a_norm_of_the_inputs_in_eval_mode_is_found(affine: bool) -> None:
    net = nn.Sequential(nn.BatchNorm1d(16, affine=affine), *mlp(16, 32, 4))
    assert "bn_eval_in_train" not in alarms(net)
    net = nn.Sequential(nn.BatchNorm1d(16, affine=affine).eval(), *mlp(16, 32, 4))
    assert alarms(net) == ["bn_eval_in_train"]
