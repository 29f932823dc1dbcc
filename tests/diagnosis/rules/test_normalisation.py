"""Batch norm over too few values, and over enough of them."""

import pytest
import torch
from torch import Tensor, nn

from tests.diagnosis.rules.looking import alarms


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
