"""How far apart the passes of one step are that go through the same batch norm."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_training.tracing.norm_passes import FEWEST_SAMPLES
from lit_training.tracing.probe import Probe

Step = Callable[[nn.Module, Tensor, Tensor], object]


def norm_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))


def apart(step: Step, net: nn.Module | None = None, rows: int = 64) -> dict[str, float]:
    net = norm_net() if net is None else net
    batch = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1)), torch.randn(rows, 4)
    with Probe(net, rows, batch) as probe:
        step(net, *batch)
    return probe.norm_passes.apart(probe.graph)


def two_kinds(net: nn.Module, x: Tensor, y: Tensor) -> None:
    net(x)
    net(x + 4)


def test_the_distance_is_that_of_normal_distributions_in_running_deviations() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4, affine=False))
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    means, variances = torch.stack([x.mean(0), 3 * x.mean(0) + 1]), x.var(0, correction=0) * torch.tensor([[1.0], [9.0]])
    kept = variances.mean(0)
    expected = ((means - means.mean(0)).square() / kept + ((variances / kept).sqrt() - 1).square()).sqrt().mean(1).max()
    assert apart(lambda net, x, _: (net(x), net(3 * x + 1)), net) == {"0": pytest.approx(float(expected), rel=1e-3)}


def test_passes_of_two_kinds_of_data_are_far_apart_and_augmentations_near() -> None:
    assert apart(two_kinds)["1"] > 0.5
    assert apart(lambda net, x, _: (net(x), net(1.2 * x + 0.1)))["1"] < 0.2
    assert apart(lambda net, x, y: (net(x), net(y)))["1"] < 0.2


def without_gradient(net: nn.Module, x: Tensor, _: Tensor) -> None:
    net(x)
    with torch.no_grad():
        net(5 * torch.randn(64, 4))


def test_noise_counts_where_nothing_learns_from_it() -> None:
    assert apart(without_gradient)["1"] > 0.5
    assert apart(lambda net, x, _: (net(x), net(5 * torch.randn(64, 4)))) == {}


def evaluated(net: nn.Module, x: Tensor, _: Tensor) -> None:
    net(x)
    net.eval()
    net(x + 4)


@pytest.mark.parametrize(
    "step",
    [
        lambda net, x, _: (net(x), net(net(x) + 4)),
        lambda net, x, _: net(x),
        lambda net, x, _: [net(x + i) for i in range(5)],
        evaluated,
    ],
    ids=["generated", "once", "many", "eval"],
)
def test_passes_that_cannot_be_compared_are_not(step: Step) -> None:
    assert apart(step) == {}


def test_a_norm_without_running_statistics_and_few_samples_say_nothing() -> None:
    alone = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False))
    assert apart(two_kinds, alone) == {}
    assert apart(two_kinds, rows=FEWEST_SAMPLES - 1) == {}


def test_passes_through_a_norm_one_behind_the_other_are_depth() -> None:
    norm = nn.Sequential(nn.BatchNorm1d(4))
    assert apart(lambda net, x, _: net(4 * net(x) + 4), norm) == {}
