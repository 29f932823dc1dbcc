"""What targets pick out of a network's output, or multiply it with, and outputs that are turned round before they meet targets."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_training.tracing.comparisons import joins_alike
from tests.diagnosis.rules.looking import adam, alarms, mlp, numbers, vectors

Loss = Callable[[Tensor, Tensor], Tensor]


def test_a_step_that_brings_all_nearer_joins_nothing() -> None:
    y = torch.arange(12) % 3
    assert joins_alike(torch.ones(12, 12), y) == 0


class Candidates(nn.Module):
    """Scores of two candidates beside an anchor: similarities of unit vectors, or distances."""

    def __init__(self, *, distances: bool = False) -> None:
        super().__init__()
        self.body, self.distances = mlp(16, 32, 8), distances

    def forward(self, x: Tensor) -> Tensor:
        anchor, one, other = (self.body(part) for part in (x, x + 1, x - 1))
        if self.distances:
            return torch.stack([_squared(anchor - z).sum(1) for z in (one, other)], 1)
        anchor, one, other = (F.normalize(z, dim=1) for z in (anchor, one, other))
        return 5 * torch.stack([(anchor * one).sum(1), (anchor * other).sum(1)], 1)


def _squared(z: Tensor) -> Tensor:
    return z * z


def hinge(scores: Tensor, y: Tensor) -> Tensor:
    right, wrong = scores.gather(1, y[:, None]), scores.gather(1, 1 - y[:, None])
    return F.relu(1 + wrong - right).mean()


def of_energies(energy: Tensor, y: Tensor) -> Tensor:
    return (energy.gather(1, y[:, None])[:, 0] + torch.logsumexp(-energy, 1)).mean()


@pytest.mark.parametrize("distances", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_positive_and_negative_that_are_swapped_are_found(distances: bool, swapped: bool) -> None:
    x, _ = vectors()
    y = torch.arange(len(x)) % 2
    sign = -1 if distances else 1
    said = alarms(
        Candidates(distances=distances), (x, y), lambda z, y: hinge(sign * z, 1 - y if swapped else y), optimizer=adam
    )
    assert said == (["loss_sign"] if swapped else [])


def test_energies_are_low_where_they_are_right() -> None:
    assert "loss_sign" not in alarms(mlp(16, 32, 4), vectors(), of_energies, optimizer=adam)


def overlap(z: Tensor, y: Tensor) -> Tensor:
    p = z.sigmoid()
    return ((2 * p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)


@pytest.mark.parametrize(("sign", "said"), [(1, ["loss_sign"]), (-1, [])])
def test_an_overlap_that_is_added_to_the_loss_is_found(sign: int, said: list[str]) -> None:
    x, _ = vectors()
    y = (x[:, :8] > 0).float()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(z, y) + sign * overlap(z, y).mean()

    assert alarms(mlp(16, 32, 8), (x, y), loss, optimizer=adam) == said


def logs_of_inverses(z: Tensor, y: Tensor) -> Tensor:
    return ((1 / (0.05 + z.sigmoid())).log() - (1.5 - y).log()).square().mean()


def margin_of_distances(z: Tensor, y: Tensor) -> Tensor:
    distance = 0.5 - (0.5 - F.softplus(z))
    return (y * distance.square() + (1 - y) * (1 - distance).clamp_min(0).square()).mean()


def waits(z: Tensor, y: Tensor) -> Tensor:
    return -torch.distributions.Exponential(F.softplus(z) + 1e-4).log_prob(y).mean()


@pytest.mark.parametrize("loss", [margin_of_distances, waits])
def test_outputs_that_are_turned_round_or_rates_may_fall_where_targets_rise(loss: Loss) -> None:
    x, y = numbers()
    assert "loss_sign" not in alarms(mlp(16, 32, 1), (x, (y > 0).float() + 0.01), loss, optimizer=adam)


def test_outputs_that_go_straight_to_their_targets_may_not() -> None:
    x, y = numbers()
    assert "loss_sign" in alarms(mlp(16, 32, 1), (x, y), lambda z, y: -(z * y).tanh().mean() * -1, optimizer=adam)


@pytest.mark.parametrize(("sign", "said"), [(1, ["wrong_loss"]), (-1, [])])
def test_a_log_variance_that_widens_errors_is_found(sign: int, said: list[str]) -> None:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        mean, log_variance = z.chunk(2, 1)
        return 0.5 * (log_variance + (y - mean).square() * (sign * log_variance).exp()).mean()

    assert alarms(mlp(16, 32, 2), numbers(), loss, optimizer=adam) == said


@pytest.mark.parametrize(("target", "said"), [(lambda y: y[:, 0], True), (lambda y: y.T, False)])
def test_a_column_that_was_transposed_is_to_meet_all_others(target: Callable[[Tensor], Tensor], said: bool) -> None:
    found = alarms(mlp(16, 32, 1), numbers(), lambda z, y: (z - target(y)).abs().mean(), steps=1)
    assert ("shape_broadcast" in found) == said


class Total(nn.Module):
    """The sum over the atoms of one structure."""

    def __init__(self) -> None:
        super().__init__()
        self.atom = mlp(16, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.atom(x).sum(0)


@pytest.mark.parametrize(("rows", "said"), [(1, False), (32, True)])
def test_one_target_for_all_rows_makes_them_parts_of_one_sample(rows: int, said: bool) -> None:
    x, y = numbers()
    found = alarms(Total(), (x, y[:rows]), lambda z, y: F.mse_loss(z, y.mean(0)), optimizer=adam, steps=1)
    assert ("wrong_loss" in found) == said


@pytest.mark.parametrize("distances", [torch.cdist, lambda a, b: ((a[:, None] - b).square().sum(2) + 1e-8).sqrt()])
@pytest.mark.parametrize(("sign", "said"), [(1, []), (-1, ["loss_sign"])])
def test_a_step_that_parts_what_has_one_label_is_found(
    distances: Callable[[Tensor, Tensor], Tensor], sign: int, said: list[str]
) -> None:
    def triplets(z: Tensor, y: Tensor) -> Tensor:
        apart, same = distances(z, z), y[:, None] == y
        far, near = apart.masked_fill(~same, 0).amax(1), apart.masked_fill(same, 9).amin(1)
        return F.relu(sign * (far - near) + 2).mean()

    assert alarms(mlp(16, 32, 8), vectors(), triplets, optimizer=adam) == said
