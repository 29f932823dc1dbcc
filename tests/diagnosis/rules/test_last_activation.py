"""What the network ends in: logits, rates, probabilities, and outputs that can reach their targets."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.diagnosis.rules.looking import adam, alarms, mlp, numbers, vectors

Pair = tuple[Tensor, Tensor]


def counts(lowest: int = 0) -> Pair:
    x, _ = numbers(64)
    return x, torch.poisson((0.5 * x[:, :1]).exp(), generator=torch.Generator().manual_seed(7)) + lowest


def yes_or_no() -> Pair:
    x, y = numbers(64)
    return x, (y > 0).float()


def several_labels() -> Pair:
    x, _ = numbers(64)
    return x, (x[:, :5] > 0.3).float()


def written_out(p: Tensor, y: Tensor) -> Tensor:
    return -(y * p.clamp(min=1e-7).log() + (1 - y) * (1 - p).clamp(min=1e-7).log()).mean()


def ends_in(last: nn.Module, outputs: int = 1) -> nn.Sequential:
    return mlp(16, 32, outputs).append(last)


@pytest.mark.parametrize("last", [nn.ReLU(), nn.Softplus()])
def test_a_log_rate_that_cannot_be_negative_is_no_log_rate_unless_all_counts_are_above_zero(last: nn.Module) -> None:
    assert alarms(ends_in(last), counts(), F.poisson_nll_loss, optimizer=adam) == ["wrong_last_activation"]
    assert alarms(ends_in(last), counts(lowest=1), F.poisson_nll_loss, optimizer=adam) == []


def test_a_rate_from_a_softplus_and_a_raw_log_rate_are_no_alarm() -> None:
    assert alarms(ends_in(nn.Softplus()), counts(), nn.PoissonNLLLoss(log_input=False), optimizer=adam) == []
    assert alarms(mlp(16, 32, 1), counts(), F.poisson_nll_loss, optimizer=adam) == []


BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "written_out": written_out,
    "small_additions": lambda p, y: -(y * (p.relu() + 1e-6).log() + (1 - y) * (1 - p + 1e-6).clamp(min=1e-6).log()).mean(),
    "clamped": lambda p, y: F.binary_cross_entropy(p.clamp(1e-6, 1 - 1e-6), y),
}


@pytest.mark.parametrize("name", ["written_out", "clamped"])
def test_probabilities_that_are_raw_outputs(name: str) -> None:
    assert alarms(mlp(16, 32, 1), yes_or_no(), BINARY[name], optimizer=adam) == ["wrong_last_activation"]


@pytest.mark.parametrize("name", BINARY)
def test_probabilities_from_a_sigmoid_are_no_alarm(name: str) -> None:
    assert alarms(ends_in(nn.Sigmoid()), yes_or_no(), BINARY[name], optimizer=adam) == []


def test_a_softmax_cannot_say_that_labels_hold_together() -> None:
    model = ends_in(nn.Softmax(1), 5)
    assert alarms(model, several_labels(), F.binary_cross_entropy, optimizer=adam) == ["wrong_last_activation"]


def test_a_softmax_under_one_hot_or_soft_targets_is_no_alarm() -> None:
    x, y = vectors(64, classes=5)
    for target in (F.one_hot(y, 5).float(), (0.9 * F.one_hot(y, 5) + 0.02)):
        assert alarms(ends_in(nn.Softmax(1), 5), (x, target), F.binary_cross_entropy, optimizer=adam) == []


def gaussian(output: Tensor, y: Tensor) -> Tensor:
    mean, log_variance = output.chunk(2, 1)
    return 0.5 * (log_variance + (y - mean) ** 2 / log_variance.exp()).mean()


def test_the_mean_of_a_likelihood_has_to_reach_the_targets() -> None:
    assert alarms(ends_in(nn.Tanh(), 2), numbers(), gaussian, optimizer=adam) == ["wrong_last_activation"]
    x, y = numbers()
    assert alarms(ends_in(nn.Tanh(), 2), (x, y.tanh()), gaussian, optimizer=adam) == []


@pytest.mark.parametrize(("low", "high", "said"), [(0.2, 0.8, []), (-0.6, 0.8, ["wrong_last_activation"])])
def test_noise_of_pixels_may_leave_the_range_but_not_what_is_beneath_it(low: float, high: float, said: list[str]) -> None:
    g = torch.Generator().manual_seed(0)
    clean = torch.where(torch.arange(12)[None, None, :, None] < torch.randint(13, (32, 1, 1, 1), generator=g), low, high)
    first, second = (clean + 0.3 * torch.randn(32, 1, 12, 12, generator=g) for _ in range(2))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1), nn.Sigmoid())
    assert alarms(model, (first, second), F.mse_loss, optimizer=adam) == said


@pytest.mark.parametrize(("offset", "said"), [(1.0, []), (0.0, ["wrong_last_activation"])])
def test_amounts_may_be_negative_by_noise(offset: float, said: list[str]) -> None:
    x, y = numbers()
    assert alarms(ends_in(nn.Softplus()), (x, y + offset), F.mse_loss, optimizer=adam) == said


def test_the_bias_of_a_mean_that_leads_astray() -> None:
    model = mlp(16, 32, 2)
    nn.init.constant_(model[-1].bias, 12.0)  # type: ignore[arg-type]
    assert alarms(model, numbers(), gaussian, optimizer=adam) == ["bad_bias_init"]


def test_a_softmax_over_one_column_is_the_wrong_end() -> None:
    x, y = vectors(classes=2)
    model = nn.Sequential(*mlp(16, 32, 1), nn.Softmax(1))
    assert alarms(model, (x, y.float()[:, None]), F.binary_cross_entropy) == ["wrong_last_activation"]


def pinball(output: Tensor, target: Tensor) -> Tensor:
    away = target - output
    return torch.maximum(0.9 * away, -0.1 * away).mean()


@pytest.mark.parametrize(("end", "said"), [(nn.ReLU, ["wrong_last_activation"]), (nn.Identity, [])])
def test_quantiles_of_what_may_be_negative_are_not_rectified(end: type[nn.Module], said: list[str]) -> None:
    assert alarms(nn.Sequential(*mlp(16, 32, 1), end()), numbers(), pinball) == said


@pytest.mark.parametrize(("end", "said"), [(nn.Tanh, ["wrong_last_activation"]), (nn.Identity, [])])
def test_a_precision_that_the_network_gives_is_no_mask(end: type[nn.Module], said: list[str]) -> None:
    def likelihood(output: Tensor, target: Tensor) -> Tensor:
        mean, log_variance = output.chunk(2, 1)
        return (log_variance + (target - mean).square() * (-log_variance).exp()).mean()

    x, y = numbers()
    assert alarms(nn.Sequential(*mlp(16, 32, 2), end()), (x, 2 * y), likelihood, optimizer=adam) == said
