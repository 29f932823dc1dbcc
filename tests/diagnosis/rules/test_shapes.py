"""Outputs and targets that are broadcast against each other."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.diagnosis.rules.looking import alarms, mlp, numbers, sgd

Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.mark.parametrize(
    "loss",
    [F.mse_loss, F.l1_loss, F.huber_loss, lambda z, y: (z - y).abs().mean(), lambda z, y: ((z - y.view(-1)) ** 2).mean()],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_column_against_a_row_is_found(loss: Loss) -> None:
    x, y = numbers()
    assert alarms(mlp(16, 32, 1), (x, y[:, 0]), loss, steps=1) == ["shape_broadcast"]


def test_a_map_of_one_pixel_against_a_column_is_found() -> None:
    model = nn.Sequential(mlp(16, 32, 1), nn.Unflatten(1, (1, 1, 1)))
    assert alarms(model, numbers(), lambda z, y: (z - y).square().mean(), steps=1) == ["shape_broadcast"]


class Bandit(nn.Module):
    """What a sampled action earned, less what a critic expected."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = mlp(16, 32, 4), mlp(16, 32, 1, seed=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(x), self.critic(x)[:, 0]


@pytest.mark.parametrize(("squeezed", "said"), [(False, True), (True, False)])
def test_a_reward_that_was_picked_by_an_action_is_a_target(squeezed: bool, said: bool) -> None:
    def loss(output: tuple[Tensor, Tensor], rewards: Tensor) -> Tensor:
        logits, value = output
        action = torch.distributions.Categorical(logits=logits)
        taken = action.sample()
        earned = rewards.gather(1, taken[:, None])
        earned = earned.squeeze(1) if squeezed else earned
        return -(action.log_prob(taken) * (earned - value.detach())).mean() + (earned - value).pow(2).mean()

    x, _ = numbers()
    assert ("shape_broadcast" in alarms(Bandit(), (x, x[:, :4].sigmoid()), loss, steps=1)) == said  # type: ignore[arg-type]


def pairwise(output: Tensor, target: Tensor) -> Tensor:
    apart = (output - output.T).square()
    return ((apart - (target - target.T).square()) ** 2).mean()


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: F.mse_loss(z, y),
        lambda z, y: ((z - y) * torch.ones(1)).square().mean(),
        lambda z, y: ((z - y) * torch.rand(len(z), 1)).square().mean(),
        pairwise,
    ],
)
def test_shapes_that_fit_and_pairwise_distances_are_silent(loss: Loss) -> None:
    assert "shape_broadcast" not in alarms(mlp(16, 32, 1), numbers(), loss, optimizer=sgd)


class Biased(nn.Module):
    """The scores of two towers, and a bias of each sample beside them: one number each, as `[samples]` or `[samples, 1]`."""

    def __init__(self, keepdim: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.bias, self.keepdim = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 1), keepdim

    def forward(self, x: Tensor) -> Tensor:
        return (self.one(x) * self.other(x)).sum(1, keepdim=self.keepdim) + self.bias(x)


@pytest.mark.parametrize(("keepdim", "said"), [(False, ["shape_broadcast"]), (True, [])])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_columns_and_rows_that_meet_inside_the_network_are_found(keepdim: bool, said: list[str]) -> None:
    assert alarms(Biased(keepdim), numbers(), F.mse_loss, steps=1) == said


class Distances(nn.Module):
    """Squared distances between all embeddings of a batch, as the binomial formula has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = self.embed(x)
        return -((z * z).sum(1, keepdim=True) + (z * z).sum(1) - 2 * z @ z.T)


def test_distances_between_all_samples_are_meant() -> None:
    x, y = numbers()
    assert "shape_broadcast" not in alarms(Distances(), (x, torch.arange(len(y)).flip(0)), F.cross_entropy, steps=1)
