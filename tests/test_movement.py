"""How far weights moved, from a sample of each."""

import pytest
import torch
from torch import nn

from lit_training.movement import FIRST_UPDATES, Lasting, Movement, Rewinds


@pytest.mark.parametrize("size", [3, 40, 300])
def test_a_scaled_weight_has_moved_by_the_factor_less_one(size: int) -> None:
    layer = nn.Linear(size, size)
    movement = Movement(layer)
    with torch.no_grad():
        layer.weight.mul_(1.25)
    assert movement.median() == pytest.approx(0.25, rel=1e-4)


def test_frozen_weights_biases_and_weights_that_started_at_zero_do_not_count() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4))
    nn.init.zeros_(net[2].weight)
    movement = Movement(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
        net[0].weight.sub_(1.0)
    assert movement.median() == pytest.approx(0.0, abs=1e-6)
    assert Movement(nn.Linear(2, 2).requires_grad_(False)).median() is None


def test_a_stride_that_divides_the_shape_would_miss_most_inputs() -> None:
    layer = nn.Linear(256, 256)
    movement = Movement(layer)
    with torch.no_grad():
        layer.weight[:, torch.arange(256) % 64 != 0] *= 2
    assert movement.median() == pytest.approx(1.0, abs=0.1)


def test_a_weight_that_started_near_zero_moved_by_its_way_over_the_size_that_torch_draws() -> None:
    table = nn.Embedding(100, 12)
    nn.init.normal_(table.weight, std=1e-4)
    movement = Movement(table)
    with torch.no_grad():
        table.weight.add_(0.3)
    assert movement.median() == pytest.approx(0.3 * 6, rel=1e-3)  # sqrt(3 * 12)


@torch.no_grad()
def test_what_is_kept_of_the_weights_is_the_most_of_any_with_several_columns() -> None:
    net = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 2), nn.Embedding(8, 1))
    movement = Movement(net)
    net[0].weight.mul_(0.05)
    net[1].weight.mul_(0.02)
    assert movement.kept() == pytest.approx(0.05)
    net[1].weight.mul_(100)
    assert movement.kept() == pytest.approx(2)


@torch.no_grad()
def test_a_weight_that_left_zero_was_kept() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    net[1].weight.zero_()
    movement = Movement(net)
    net[0].weight.mul_(0.01)
    assert movement.kept() == pytest.approx(0.01)
    net[1].weight.add_(0.1)
    assert movement.kept() == float("inf")


@pytest.mark.parametrize(
    ("starts", "losses", "moves", "count"),
    [
        ([0, 1, 1, 1], [1.0, 0.9, 0.8, 0.7], True, 2),
        ([0, 1, 1, 1], [1.0, 0.9, 0.8, 0.7], False, 0),
        ([0, 1, 1, 1], [1.0, 0.9, 0.95, 0.9], True, 0),
        ([0, 1, 2, 1], [1.0, 0.9, 0.8, 0.7], True, 0),
        ([0, 0, 0, 0], [None, 0.9, 0.8, 0.7], True, 0),
    ],
)
def test_a_better_epoch_that_is_thrown_away_counts(
    starts: list[float], losses: list[float | None], moves: bool, count: int
) -> None:
    rewinds = Rewinds()
    for start, loss in zip(starts, losses, strict=True):
        rewinds.begin([torch.full((4,), start)], loss)
        rewinds.end([torch.full((4,), start + moves)])
    assert rewinds.count == count


@pytest.mark.parametrize("left", [0.1, 1.0])
def test_what_is_left_of_the_first_updates_is_told(left: float) -> None:
    lasting, weights = Lasting(), torch.zeros(4)
    assert lasting.share() is None
    for _ in range(FIRST_UPDATES + 1):
        lasting.begin([weights])
        lasting.end([weights])  # accumulation: a step without an update tells nothing
        lasting.begin([weights])
        lasting.end([weights + 1])
        weights = weights + left
    assert lasting.enough
    assert lasting.share() == pytest.approx(left)
