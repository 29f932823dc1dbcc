"""At what scale the first layers read the inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.diagnosis.rules.looking import adam, alarms, mlp, sgd, vectors


@pytest.mark.parametrize(
    ("scale", "rules"), [(1.0, []), (0.1, []), (1 / 255, ["unnormalised_input"]), (50.0, ["unnormalised_input"])]
)
def test_inputs_of_another_scale_are_seen(scale: float, rules: list[str]) -> None:
    x, y = vectors()
    assert alarms(mlp(16, 32, 4), (scale * x / x.abs().max() * 2, y)) == rules


def test_small_inputs_that_a_normalisation_takes_are_silent() -> None:
    x, y = vectors()
    net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    assert alarms(net, (x / 255, y)) == []
    assert alarms(nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), (x / 255, y)) == []


@pytest.mark.parametrize(("offset", "rules"), [(2.0, []), (40.0, ["unnormalised_input"])])
def test_inputs_far_from_zero_are_seen(offset: float, rules: list[str]) -> None:
    x, y = vectors()
    assert alarms(mlp(16, 32, 4), (x + offset, y)) == rules


class Customers(nn.Module):
    """A number in its own unit beside an embedded code."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.top = nn.Embedding(5, 8), mlp(24, 32, 4)

    def forward(self, x):
        return self.top(torch.cat([x, self.code((x[:, 0] > 0).long())], 1))


@pytest.mark.parametrize(("unit", "rules"), [(1.0, []), (1e4, ["unnormalised_input"])])
def test_raw_numbers_beside_an_embedding_are_seen(unit: float, rules: list[str]) -> None:
    x, y = vectors()
    scale = torch.ones(16)
    scale[3] = unit
    assert alarms(Customers(), (x * scale, y)) == rules


@pytest.mark.parametrize(
    ("act", "optimizer", "unit", "silent"),
    [(nn.ReLU, adam, 1.0, True), (nn.ReLU, adam, 0.01, False), (nn.ReLU, sgd, 1.0, False), (nn.Tanh, adam, 1.0, False)],
)
def test_large_inputs_are_silent_where_all_grows_with_them(act, optimizer, unit: float, silent: bool) -> None:
    x = 80 * vectors()[0]
    said = alarms(mlp(16, 32, 16, act=act), (x, unit * x.roll(1, 1)), F.mse_loss, optimizer=optimizer)
    assert ("unnormalised_input" not in said) == silent


class Stream(nn.Module):
    """A residual stream that a branch adds to, normalised in front of the branch and of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = mlp(16, 32), mlp(32, 32, 32, seed=1), mlp(32, 4, seed=2)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.branch(F.layer_norm(x, x.shape[1:]))
        return self.head(F.layer_norm(x, x.shape[1:]))


def test_a_normalisation_straight_behind_takes_the_scale_but_not_the_offset() -> None:
    x, y = vectors()
    net = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4))
    assert alarms(net, (80 * x, y)) == []
    assert alarms(net, (80 * x + 800, y)) == ["unnormalised_input"]
    assert alarms(Stream(), (80 * x, y)) == ["unnormalised_input"]


def test_sparse_one_hot_inputs_are_silent() -> None:
    _, y = vectors()
    x = torch.nn.functional.one_hot(torch.arange(32) * 7 % 200, 200).float()
    assert alarms(mlp(200, 32, 4), (x, y)) == []


class Patches(nn.Module):
    """Patches, tokens with places, a layer norm, as vision transformers begin (Dosovitskiy et al. 2021)."""

    def __init__(self, norm: nn.Module, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.head = nn.Linear(16, 32, bias=bias), norm, nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.norm(self.embed(x)).relu())
        return out


@pytest.mark.parametrize(
    ("net", "scale", "rules"),
    [
        (Patches(nn.LayerNorm(32)), 1 / 255, ["unnormalised_input"]),
        (Patches(nn.LayerNorm(32)), 1.0, []),
        (Patches(nn.BatchNorm1d(32)), 1 / 255, []),
    ],
)
def test_inputs_that_hardly_vary_about_an_offset_are_seen(net: nn.Module, scale: float, rules: list[str]) -> None:
    """Pixels that were divided by 255 twice, before .5 was subtracted and all divided by .5."""
    x, y = vectors()
    assert alarms(net, ((x.sigmoid() * scale - 0.5) / 0.5, y), optimizer=adam) == rules


@pytest.mark.parametrize(
    ("net", "rules"),
    [
        (Patches(nn.LayerNorm(32)), ["unnormalised_input"]),
        (Patches(nn.LayerNorm(32), bias=False), []),
        (Patches(nn.BatchNorm1d(32)), []),
    ],
)
def test_small_inputs_are_seen_if_a_bias_drowns_them_before_a_normalisation(net: nn.Module, rules: list[str]) -> None:
    """Pixels that were divided by 255 twice."""
    x, y = vectors()
    assert alarms(net, (x.sigmoid() / 255, y), optimizer=adam) == rules


@pytest.mark.parametrize(("made_for", "silent"), [(60.0, True), (1.0, False)])
def test_a_first_layer_whose_weights_are_made_for_such_numbers_may_read_them(made_for: float, silent: bool) -> None:
    x, y = vectors()
    net = mlp(16, 32, 4)
    with torch.no_grad():
        net[0].weight.div_(made_for)
    assert ("unnormalised_input" not in alarms(net, (60 * x, y), optimizer=adam)) == silent


class Seasons(nn.Module):
    """A linear layer of the time, and waves of it."""

    def __init__(self, *, waves: bool) -> None:
        super().__init__()
        self.frequencies, self.head, self.waves = nn.Linear(1, 12), mlp(24, 32, 4), waves
        with torch.no_grad():
            self.frequencies.weight.copy_(6.28 / torch.linspace(6, 168, 12)[:, None])

    def forward(self, x):
        phase = self.frequencies(x)
        return self.head(torch.cat([phase.sin(), phase.cos()] if self.waves else [phase, -phase], 1))


@pytest.mark.parametrize("waves", [True, False])
def test_frequencies_may_read_hours(waves: bool) -> None:
    hours = 720 * torch.rand(32, 1, generator=torch.Generator().manual_seed(1))
    assert ("unnormalised_input" not in alarms(Seasons(waves=waves), (hours, vectors()[1]), optimizer=adam)) == waves
