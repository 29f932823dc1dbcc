"""Tensor initialisers: closed forms, the distributions of torch, Keras and timm, and what the papers promise."""

import math

import pytest
import torch
from torch import Tensor, nn

from lit_training.fans import Fans
from lit_training.initializers import (
    glorot_normal_,
    glorot_uniform_,
    he_normal_,
    he_uniform_,
    orthogonal_,
    random_walk_,
    random_walk_gain,
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values(fill_, *shape: int, **kwargs) -> Tensor:
    return fill_(torch.empty(*shape), generator=rng(), **kwargs)


def same_distribution(ours: Tensor, theirs: Tensor) -> bool:
    """Two-sample Kolmogorov-Smirnov test at the level .001."""
    a, b = (draws.flatten()[:20_000].sort().values for draws in (ours, theirs))
    points = torch.cat([a, b])
    below = [torch.searchsorted(sample, points, right=True) / len(sample) for sample in (a, b)]
    return (below[0] - below[1]).abs().max().item() < 1.95 * math.sqrt(1 / len(a) + 1 / len(b))


@pytest.mark.parametrize(
    ("fill_", "std"),
    [
        (he_normal_, math.sqrt(2 / 1000)),
        (he_uniform_, math.sqrt(2 / 1000)),
        (glorot_normal_, math.sqrt(2 / 3000)),
        (glorot_uniform_, math.sqrt(2 / 3000)),
        (random_walk_, math.sqrt(2 / 1000) * math.exp(1.2 / 1997.6)),
    ],
)
def test_std_is_the_closed_form(fill_, std: float) -> None:
    assert values(fill_, 2000, 1000).std().item() == pytest.approx(std, rel=0.01)


@pytest.mark.parametrize("shape", [(200, 100), (40, 20, 3, 3), (30, 20, 5)])
@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        (he_normal_, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu", generator=rng(1))),
        (he_uniform_, lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu", generator=rng(1))),
        (glorot_normal_, lambda w: nn.init.xavier_normal_(w, generator=rng(1))),
        (glorot_uniform_, lambda w: nn.init.xavier_uniform_(w, generator=rng(1))),
    ],
    ids=["he_normal", "he_uniform", "glorot_normal", "glorot_uniform"],
)
def test_distribution_is_torchs_where_torch_is_right(ours, torchs, shape: tuple[int, ...]) -> None:
    assert same_distribution(values(ours, *shape), torchs(torch.empty(*shape)))


def test_keras_truncates_its_normals_and_has_the_same_variance() -> None:
    """Keras' HeNormal and GlorotNormal draw from a normal cut at 2 std, widened by 1 / .8796 to keep the variance."""
    std = math.sqrt(2 / 1000)
    keras = nn.init.trunc_normal_(torch.empty(1000, 1000), std=1, a=-2, b=2, generator=rng(1)) * std / 0.87962566103423978
    ours = values(he_normal_, 1000, 1000)
    assert keras.std().item() == pytest.approx(ours.std().item(), rel=0.01)
    assert not same_distribution(ours, keras)  # ours has tails, as the paper has
    limit = math.sqrt(6 / 2000)  # Keras' GlorotUniform
    uniform = torch.empty(1000, 1000).uniform_(-limit, limit, generator=rng(1))
    assert same_distribution(values(glorot_uniform_, 1000, 1000), uniform)


def test_timm_has_the_variance_of_the_fan_in() -> None:
    layers = pytest.importorskip("timm.layers")
    lecun = layers.lecun_normal_(torch.empty(1000, 1000))  # a truncated normal again
    assert lecun.std().item() == pytest.approx(values(he_normal_, 1000, 1000, nonlinearity="linear").std().item(), rel=0.01)


def test_fans_that_are_not_the_shapes_are_taken() -> None:
    assert values(he_normal_, 1000, 1000, fans=Fans(50, 70)).std().item() == pytest.approx(0.2, rel=0.01)
    assert values(glorot_normal_, 1000, 1000, fans=Fans(30, 20)).std().item() == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8), (4, 3, 2, 2), (40, 2, 3)])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_orthogonal_rows_or_columns(shape: tuple[int, ...], scale: float) -> None:
    weight = values(orthogonal_, *shape, gain=scale).flatten(1)
    short = weight if len(weight) <= weight.shape[1] else weight.t()
    torch.testing.assert_close(short @ short.t(), scale**2 * torch.eye(len(short)), rtol=0, atol=1e-5)


def test_orthogonal_is_uniform_over_rotations() -> None:
    """Entries of a Haar matrix have mean 0 and variance 1 / n; QR without the sign correction favours a negative diagonal."""
    generator = rng()
    draws = torch.stack([orthogonal_(torch.empty(4, 4), generator=generator) for _ in range(2000)])
    assert draws.mean(0).abs().max() < 5 * 0.5 / math.sqrt(2000)
    torch.testing.assert_close(draws.square().mean(0), torch.full((4, 4), 0.25), rtol=0, atol=0.03)


@pytest.mark.parametrize(("nonlinearity", "act"), [("relu", torch.relu), ("linear", lambda x: x)])
def test_random_walk_keeps_the_typical_norm_where_he_loses_it(nonlinearity: str, act) -> None:
    """The drift of the logarithm of the squared norm per layer, over 60 draws of 50 layers of 24 units."""

    def drift(fill_) -> float:
        generator, logs = rng(), []
        for _ in range(60):
            x = torch.randn(24, generator=generator).double()
            start = x.square().sum().log()
            for _ in range(50):
                x = act(fill_(torch.empty(24, 24), nonlinearity, generator=generator).double() @ x)
            logs.append(((x.square().sum() if nonlinearity == "linear" else 2 * x.square().sum()).log() - start).item() / 50)
        return sum(logs) / len(logs)

    assert abs(drift(random_walk_)) < 0.02
    assert drift(he_normal_) < -0.05


def test_random_walk_gains_are_the_papers() -> None:
    assert random_walk_gain("relu", 50) == pytest.approx(math.sqrt(2) * math.exp(1.2 / (50 - 2.4)))
    assert random_walk_gain("linear", 50) == random_walk_gain("tanh", 50) == pytest.approx(math.exp(1 / 100))


@pytest.mark.parametrize("fill_", [he_normal_, he_uniform_, glorot_normal_, glorot_uniform_, orthogonal_, random_walk_])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_views_seeds_and_in_place(fill_, dtype: torch.dtype) -> None:
    whole = torch.zeros(8, 12, dtype=dtype)
    view = whole[2:6, ::2]
    assert fill_(view, generator=rng()) is view
    assert torch.equal(view, fill_(torch.empty(4, 6, dtype=dtype), generator=rng()))
    assert view.isfinite().all()
    assert view.ne(0).any()
    assert whole[:2].eq(0).all()


@pytest.mark.parametrize("fill_", [he_normal_, glorot_uniform_, orthogonal_, random_walk_])
def test_a_vector_has_no_fans(fill_) -> None:
    with pytest.raises(ValueError, match=r"at least 2 dimensions, \[units, inputs, \*kernel\], got shape \[3\]"):
        fill_(torch.empty(3))
