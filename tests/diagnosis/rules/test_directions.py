"""Which way losses go that are written out by hand: differences, similarities between samples, divergences, autoencoders."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.diagnosis.rules.looking import adam, alarms, mlp, numbers

Loss = Callable[[Tensor, Tensor], Tensor]


def up(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, maximize=True)


def log_likelihood(output: Tensor, target: Tensor) -> Tensor:
    mean, raw = output.chunk(2, 1)
    return torch.distributions.Normal(mean, F.softplus(raw) + 0.1).log_prob(target).mean()


def cauchy(output: Tensor, target: Tensor) -> Tensor:
    mean, log_scale = output.chunk(2, 1)
    return (log_scale + torch.log1p(((target - mean) / log_scale.exp()) ** 2)).mean()


def pinballs(output: Tensor, target: Tensor) -> Tensor:
    away = target - output
    return torch.maximum(0.9 * away, -0.1 * away).mean()


LIKELIHOODS: dict[str, Loss] = {
    "gaussian": lambda z, y: -log_likelihood(z, y),
    "cauchy": cauchy,
    "pinball": pinballs,
    "log_cosh": lambda z, y: torch.log(torch.cosh(z - y)).mean(),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_differences_from_targets_shrink_or_the_loss_has_the_wrong_sign(name: str) -> None:
    loss = LIKELIHOODS[name]
    assert alarms(mlp(16, 32, 2), numbers(), loss, optimizer=adam) == []
    assert alarms(mlp(16, 32, 2), numbers(), lambda z, y: -loss(z, y), optimizer=adam) == ["loss_sign"]
    assert "loss_sign" in alarms(mlp(16, 32, 2), numbers(), loss, optimizer=up, steps=1)
    assert alarms(mlp(16, 32, 2), numbers(), lambda z, y: -loss(z, y), optimizer=up, steps=1) == []


def test_an_adversary_whose_error_is_raised_while_another_falls_is_no_alarm() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        told, leaked = output.chunk(2, 1)
        return ((told - target) ** 2).mean() - 0.1 * ((leaked - target) ** 2).mean()

    assert alarms(mlp(16, 32, 2), numbers(), loss, optimizer=adam) == []


def similarities(output: Tensor) -> Tensor:
    one, other = (F.normalize(part, dim=1) for part in output.chunk(2, 1))
    return one @ other.T / 0.2


def contrast(output: Tensor, _: Tensor) -> Tensor:
    rows = similarities(output)
    partner = torch.arange(len(rows))
    return (F.cross_entropy(rows, partner) + F.cross_entropy(rows.T, partner)) / 2


def by_hand(output: Tensor, _: Tensor) -> Tensor:
    rows = similarities(output)
    return (rows.logsumexp(1) - rows.diagonal()).mean()


def both_views(output: Tensor, _: Tensor) -> Tensor:
    both = F.normalize(torch.cat(output.chunk(2, 1)), dim=1)
    rows = (both @ both.T / 0.2).masked_fill(torch.eye(len(both), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(rows, torch.arange(len(both)).roll(len(output)))


@pytest.mark.parametrize("loss", [contrast, by_hand, both_views])
def test_partners_come_together_or_the_loss_has_the_wrong_sign(loss: Loss) -> None:
    assert alarms(mlp(16, 32, 16), numbers(), loss, optimizer=adam) == []
    assert alarms(mlp(16, 32, 16), numbers(), lambda z, y: -loss(z, y), optimizer=adam) == ["loss_sign"]


def distances(output: Tensor) -> Tensor:
    products = output @ output.T
    squares = products.diagonal()
    return squares[:, None] + squares[None] - 2 * products


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: distances(z).mean() + F.mse_loss(z[:, :1], y),
        lambda z, y: distances(z).mean(),
        lambda z, y: (z @ z.T - torch.eye(len(z))).square().mean(),
        lambda z, y: (distances(z).amax(1) - distances(z + 0.01).amin(1)).relu().mean(),
    ],
)
def test_products_of_samples_for_other_ends_are_no_alarm(loss: Loss) -> None:
    assert "loss_sign" not in alarms(mlp(16, 32, 16), numbers(), loss, optimizer=adam)


def divergence(output: Tensor, _: Tensor) -> Tensor:
    mean, log_variance = output.chunk(2, 1)
    return -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum(1).mean()


def of_distributions(output: Tensor, _: Tensor) -> Tensor:
    mean, raw = output.chunk(2, 1)
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return torch.distributions.kl_divergence(torch.distributions.Normal(mean, F.softplus(raw)), standard).sum(1).mean()


class Variational(nn.Module):
    """An autoencoder that keeps what its encoder made."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = mlp(16, 32, 8), mlp(4, 32, 16)
        self.code = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        self.code = self.encode(x)
        mean, log_variance = self.code.chunk(2, 1)
        made: Tensor = self.decode(mean + torch.randn_like(mean) * (0.5 * log_variance).exp())
        return made


@pytest.mark.parametrize("part", [divergence, of_distributions])
@pytest.mark.parametrize("weight", [0.01, 0.5])
def test_a_divergence_falls_or_it_has_the_wrong_sign(part: Loss, weight: float) -> None:
    x, _ = numbers()
    for sign in (1, -1):
        model = Variational()
        total = partial(bound, model, part, sign * weight)
        assert alarms(model, (x, x.clone()), total, optimizer=adam) == ([] if sign > 0 else ["loss_sign"])


def bound(model: Variational, part: Loss, weight: float, output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target) + weight * part(model.code, target)


def test_a_generator_that_raises_a_critics_exponential_is_no_alarm() -> None:
    model = Variational()
    x, _ = numbers()
    assert "loss_sign" not in alarms(model, (x, x), lambda z, y: -(z.mean(1) - 1).exp().mean(), optimizer=adam, steps=1)


class Rebuilt(nn.Module):
    """Rebuilds the pictures that it gets, as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp(16, 24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(1)).view_as(x)  # type: ignore[no-any-return]


REBUILDING: dict[str, Loss] = {
    "cosine": lambda z, x: 1 - F.cosine_similarity(z.flatten(1), x.flatten(1)).mean(),
    "both": lambda z, x: F.l1_loss(z, x) * 0.1 - F.cosine_similarity(z.flatten(1), x.flatten(1)).mean(),
    "mse": F.mse_loss,
}


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("name", REBUILDING)
def test_an_autoencoder_comes_closer_to_what_it_read_or_climbs(name: str, twice: bool) -> None:
    x = torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    loss, batch = REBUILDING[name], (x, x.clone() if twice else x)
    assert alarms(Rebuilt(), batch, loss, optimizer=adam) == []
    flipped = (lambda z, x: 2 * F.l1_loss(z, x) * 0.1 - loss(z, x)) if name == "both" else (lambda z, x: -loss(z, x))
    assert alarms(Rebuilt(), batch, flipped, optimizer=adam) == ["loss_sign"]


def test_velocities_of_a_diffusion_point_away_from_the_pictures_and_are_no_alarm() -> None:
    x = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    assert alarms(Rebuilt(), (x, x), lambda z, x: F.mse_loss(z, 0.3 * noise - 0.95 * x), optimizer=adam) == []


@pytest.mark.parametrize(
    ("weigh", "expected"),
    [
        (lambda kl: kl.sum(), ["loss_reduction"]),
        (lambda kl: 0.03 * kl.sum(), ["loss_reduction"]),
        (lambda kl: 0.001 * kl.sum(), []),
        (lambda kl: kl.sum() / 32, ["loss_reduction"]),  # a code of 4 numbers, an error averaged over 16
        (lambda kl: kl.sum(1).mean(), ["loss_reduction"]),
        (lambda kl: 0.4 * kl.sum(1).mean(), []),
        (lambda kl: kl.sum() / (32 * 16), []),
    ],
)
def test_a_divergence_summed_beside_a_mean_outweighs_it(weigh: Callable[[Tensor], Tensor], expected: list[str]) -> None:
    def total(output: Tensor, target: Tensor) -> Tensor:
        mean, log_variance = model.code.chunk(2, 1)
        return F.mse_loss(output, target) + weigh(-0.5 * (1 + log_variance - mean**2 - log_variance.exp()))

    model, (x, _) = Variational(), numbers()
    assert alarms(model, (x, x.clone()), total, optimizer=adam) == expected


def test_sums_of_both_parts_are_a_bound() -> None:
    def total(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target, reduction="sum") + 32 * divergence(model.code, target)

    model, (x, _) = Variational(), numbers()
    assert alarms(model, (x, x.clone()), total, optimizer=adam) == []


def ranking(output: Tensor, _: Tensor) -> Tensor:
    return -F.logsigmoid(output[:16] - output[16:]).mean()


def negative_sampling(output: Tensor, _: Tensor) -> Tensor:
    likely = F.logsigmoid(output[:16]).mean() + (1 - output[16:].sigmoid() + 1e-7).log().mean()
    return 0.01 * output.square().mean() - likely


def partners_in_a_row(output: Tensor, _: Tensor) -> Tensor:
    return -(output @ output.T).log_softmax(1).diagonal(3).mean()


def normalised_by_hand(output: Tensor, _: Tensor) -> Tensor:
    log_p = output - output.logsumexp(1, keepdim=True)
    return -log_p[torch.arange(len(output)), torch.arange(len(output)) % 4].mean()


@pytest.mark.parametrize("loss", [ranking, negative_sampling, partners_in_a_row, normalised_by_hand])
def test_log_probabilities_are_raised_or_the_loss_has_the_wrong_sign(loss: Loss) -> None:
    def sunk(z: Tensor, y: Tensor) -> Tensor:
        return 0.02 * z.square().mean() - loss(z, y)

    size = 4 if loss is normalised_by_hand else 1
    assert "loss_sign" not in alarms(mlp(16, 32, size), numbers(), loss, optimizer=adam, steps=1)
    assert alarms(mlp(16, 32, size), numbers(), sunk, optimizer=adam, steps=1) == ["loss_sign"]
    assert "loss_sign" in alarms(mlp(16, 32, size), numbers(), loss, optimizer=up, steps=1)


def test_log_probabilities_of_what_is_frozen_or_beside_other_parts_may_fall() -> None:
    def lowered(output: Tensor, _: Tensor) -> Tensor:
        return F.logsigmoid(output).mean()

    fooling = mlp(16, 32, 1)
    fooling[2].requires_grad_(False)
    assert "loss_sign" not in alarms(fooling, numbers(), lowered, optimizer=adam, expect_frozen=("2",))
    assert "loss_sign" not in alarms(
        mlp(16, 32, 2), numbers(), lambda z, y: lowered(z[:, :1], y) + F.mse_loss(z[:, 1:], y), optimizer=adam
    )
