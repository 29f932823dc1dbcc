"""`max_norm_` and `MaxNormProjection`: the formula, what stays as it is, and other libraries' forms of it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_training import max_norm_
from lit_training.constraints import MaxNormProjection
from lit_training.units import unit_weights

SHAPES = [
    pytest.param((5, 7), 0, id="linear"),
    pytest.param((3, 2, 7, 5), 0, id="conv"),
    pytest.param((6, 3, 4), 1, id="transposed"),
    pytest.param((2, 3, 4, 5), (0, 2), id="grouped transposed"),
    pytest.param((4, 6), (), id="whole tensor"),
    pytest.param((4, 6), (0, 1), id="each weight its own unit"),
    pytest.param((3, 1536), 0, id="norms in two levels"),
    pytest.param((3, 1031), -2, id="a prime number of inputs"),
]


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def unit_norms(weight: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Return the norms in float64, with the summed dimensions kept."""
    kept = [d % weight.ndim for d in ((dim,) if isinstance(dim, int) else dim)]
    summed = tuple(d for d in range(weight.ndim) if d not in kept)
    squares = weight.double().square()
    return (squares.sum(summed, keepdim=True) if summed else squares).sqrt()


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_the_formula(shape: tuple[int, ...], dim: int | tuple[int, ...], dtype: torch.dtype) -> None:
    weight = rand(*shape, dtype=dtype)
    norms = unit_norms(weight, dim)
    bound = norms.median().item() * 0.999
    expected = weight.double() * (bound / norms).clamp(max=1.0)
    count = max_norm_(weight, bound, dim)
    torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=0.0)
    assert count == (norms > bound).sum()
    assert unit_norms(weight, dim).max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_layout_does_not_matter(memory_format: torch.memory_format) -> None:
    plain = rand(8, 6, 3, 3)
    weight = plain.clone(memory_format=memory_format)
    max_norm_(plain, 2.0)
    max_norm_(weight, 2.0)
    torch.testing.assert_close(weight, plain, rtol=1e-6, atol=0.0)
    assert weight.is_contiguous(memory_format=memory_format)
    max_norm_(strided := rand(6, 8).t(), 1.0)
    torch.testing.assert_close(unit_norms(strided, 0).squeeze(), torch.ones(8, dtype=torch.float64), rtol=1e-6, atol=0.0)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    log_scale=st.floats(-2, 2),
    bound=st.floats(1e-2, 1e2),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_rows_inside_stay_bit_identical_and_the_others_land_on_the_ball(
    seed: int, log_scale: float, bound: float, dtype: torch.dtype
) -> None:
    before = rand(12, 9, seed=seed, scale=10.0**log_scale)
    before = (before * torch.linspace(0.0, 2.0, 12)[:, None]).to(dtype)
    after = before.clone()
    max_norm_(after, bound)
    norms = unit_norms(before, 0)[:, 0]
    tolerance = 1e-6 if dtype.itemsize >= 4 else torch.finfo(dtype).eps
    inside, outside = norms <= bound, norms > bound * (1 + tolerance)
    assert torch.equal(after[inside], before[inside])
    assert (after[0] == 0).all()
    assert (unit_norms(after, 0) <= bound * (1 + tolerance)).all()
    direction = before.double() * (bound / norms)[:, None]
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    torch.testing.assert_close(after.double()[outside], direction[outside], rtol=2 * tolerance, atol=1e-6 * bound + smallest)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), bound=st.floats(1e-3, 1e3), inputs=st.sampled_from([1, 3, 64, 577, 2048]))
def test_projecting_twice_is_projecting_once(seed: int, bound: float, inputs: int) -> None:
    weight = rand(6, inputs, seed=seed, scale=bound)
    max_norm_(weight, bound)
    once = weight.clone()
    assert max_norm_(weight, bound) == 0
    assert torch.equal(weight, once)


def test_units_inside_stay_bit_identical_for_every_bound() -> None:
    """Also where c times the rounded 1 / c is not 1."""
    weight = rand(8, 5, scale=0.1)
    weight[-1] *= 1e4
    for bound in range(1, 200):
        after = weight.clone()
        assert max_norm_(after, float(bound)) == 1
        assert torch.equal(after[:-1], weight[:-1])


@pytest.mark.parametrize("inputs", [64, 384, 512, 576, 577, 1152, 4096, 2**16])
def test_no_norm_exceeds_where_equal_weights_make_rounding_add_up(inputs: int) -> None:
    before = (1 + 3e-6 * torch.linspace(-1, 1, 200, dtype=torch.float64))[:, None].expand(-1, inputs) / math.sqrt(inputs)
    for bound in (0.37, 1.0, 3.1, 49.0):
        weight = (bound * before).float()
        max_norm_(weight, bound)
        assert unit_norms(weight, 0).max() <= bound * (1 + 1e-6)


def test_a_nan_stays_visible_and_touches_no_other_unit() -> None:
    weight = rand(4, 5)
    weight[2, 3] = math.nan
    before = weight.clone()
    max_norm_(weight, 100.0)
    assert weight[2].isnan().all()
    rest = [0, 1, 3]
    assert torch.equal(weight[rest], before[rest])


def test_half_precision_sums_in_float32() -> None:
    """Squares of 300 overflow in float16, and 4096 of them stall in bfloat16."""
    for dtype in (torch.float16, torch.bfloat16):
        weight = torch.full((2, 4096), 300.0, dtype=dtype)
        max_norm_(weight, 3.0)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(unit_norms(weight, 0), torch.full((2, 1), 3.0).double(), rtol=eps / 2, atol=0.0)


def test_a_projection_of_many_weights_equals_each_alone_and_tells_what_it_met() -> None:
    layouts = [((512, 600), (0,)), ((3, 4, 5), (1,)), ((7, 7), ()), ((600, 512), (0,)), ((4, 3), (0,))]
    weights = [
        (rand(*shape, seed=i, dtype=d), kept) for i, (shape, kept) in enumerate(layouts) for d in (torch.float32, torch.float64)
    ]
    alone = [weight.clone() for weight, _ in weights]
    norms = torch.cat([unit_norms(weight, kept).flatten() for weight, kept in weights])
    project = MaxNormProjection(weights, 3.0)
    project()
    assert (
        project.count()
        == (norms > 3.0).sum()
        == sum(max_norm_(w, 3.0, kept) for w, (_, kept) in zip(alone, weights, strict=True))
    )
    assert project.units == len(norms)
    assert project.largest().item() == pytest.approx(norms.max().item(), rel=1e-6)
    for (weight, _), expected in zip(weights, alone, strict=True):
        assert torch.equal(weight, expected)
    project()
    assert project.count() == 0


def test_no_weights_is_fine() -> None:
    project = MaxNormProjection([(torch.empty(0, 3), (0,))], 1.0)
    project()
    assert (project.units, project.count().item()) == (0, 0)


def keras_max_norm(kernel: Tensor, max_value: float, axis: int | tuple[int, ...]) -> Tensor:
    """`keras.constraints.MaxNorm.__call__`, written down from its documentation; `axis` are the summed dimensions."""
    norms = kernel.square().sum(axis, keepdim=True).sqrt()
    return kernel * norms.clamp(0, max_value) / (1e-7 + norms)


@pytest.mark.parametrize(
    ("layer", "to_keras", "axis"),
    [
        pytest.param(nn.Linear(6, 5), (1, 0), 0, id="Dense [in, out]"),
        pytest.param(nn.Conv2d(3, 5, 2), (2, 3, 1, 0), (0, 1, 2), id="Conv2D [h, w, in, out]"),
        pytest.param(nn.Conv1d(4, 6, 3, groups=2), (2, 1, 0), (0, 1), id="grouped Conv1D [k, in / groups, out]"),
        pytest.param(nn.ConvTranspose2d(3, 5, 2), (2, 3, 1, 0), (0, 1, 3), id="Conv2DTranspose [h, w, out, in]"),
        pytest.param(nn.Embedding(7, 4), (0, 1), 1, id="Embedding [tokens, features]"),
    ],
)
def test_equals_keras_on_its_transposed_layouts(
    layer: nn.Module, to_keras: tuple[int, ...], axis: int | tuple[int, ...]
) -> None:
    weight = rand(*layer.weight.shape)
    bound = 0.7 * unit_norms(weight, 0).max().item()
    expected = keras_max_norm(weight.permute(to_keras), bound, axis)
    layer.weight.data.copy_(weight)
    project_layer(layer, bound)
    torch.testing.assert_close(layer.weight.detach().permute(to_keras), expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(layer.weight, weight)


def project_layer(layer: nn.Module, bound: float) -> None:
    MaxNormProjection([unit.view() for unit in unit_weights(layer)], bound)()


def test_equals_the_embedding_of_torch_on_the_rows_it_touches() -> None:
    theirs = nn.Embedding(9, 5, max_norm=1.5)
    weight = rand(9, 5)
    theirs.weight.data.copy_(weight)
    theirs(torch.arange(9))
    max_norm_(weight, 1.5)
    torch.testing.assert_close(weight, theirs.weight.detach(), rtol=1e-6, atol=1e-6)


def test_equals_renorm_whose_dim_is_the_kept_one_too() -> None:
    for dim in (0, 1, 2):
        weight = rand(4, 5, 6)
        expected = torch.renorm(weight, 2, dim, 3.0)
        max_norm_(weight, 3.0, dim)
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "name", "units"),
    [
        pytest.param(nn.Bilinear(3, 4, 5), "weight", lambda w: [w[i] for i in range(5)], id="bilinear"),
        pytest.param(nn.LSTM(3, 4), "weight_ih_l0", lambda w: [row for gate in w.chunk(4) for row in gate], id="lstm"),
        pytest.param(nn.GRU(3, 4), "weight_hh_l0", lambda w: [row for gate in w.chunk(3) for row in gate], id="gru"),
        pytest.param(
            nn.MultiheadAttention(4, 2), "in_proj_weight", lambda w: [row for qkv in w.chunk(3) for row in qkv], id="attention"
        ),
        pytest.param(nn.Conv3d(4, 6, 2, groups=2), "weight", lambda w: [w[i] for i in range(6)], id="grouped conv"),
        pytest.param(
            nn.ConvTranspose1d(4, 6, 3, groups=2),
            "weight",
            lambda w: [w[2 * group : 2 * group + 2, i] for group in range(2) for i in range(3)],
            id="grouped transposed conv",
        ),
    ],
)
def test_bounds_the_incoming_weights_of_each_unit(layer: nn.Module, name: str, units: object) -> None:
    weight = dict(layer.named_parameters())[name].data
    weight.copy_(rand(*weight.shape))
    expected = weight.clone()
    bound = sorted(unit.norm().item() for unit in units(expected))[1] * 1.0001  # two units stay
    for unit in units(expected):
        unit.mul_(min(1.0, bound / unit.norm().item()))
    project_layer(layer, bound)
    torch.testing.assert_close(weight, expected, rtol=1e-5, atol=0.0)


def test_weights_tied_across_unlike_layouts_and_parametrised_ones_are_refused() -> None:
    tied = nn.Sequential(nn.Conv1d(3, 3, 1), nn.ConvTranspose1d(3, 3, 1))
    tied[1].weight = tied[0].weight
    with pytest.raises(
        ValueError, match=r"0.weight is tied .* \(Conv1d, ConvTranspose1d\); leave it out with exclude='0.weight'"
    ):
        unit_weights(tied)
    assert [u.kept for u in unit_weights(tied, per="tensor")] == [()]
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="is not a weight itself"):
        unit_weights(normed)
    head = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    head[1].weight = head[0].weight
    assert [u.name for u in unit_weights(head)] == ["0.weight"]


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_that_is_none_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="max_norm must be a positive finite number, got"):
        max_norm_(torch.ones(2, 2), bound)


def test_a_dimension_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dim=2 is not a dimension of a weight of shape \[3, 4\]"):
        max_norm_(torch.ones(3, 4), 1.0, dim=2)
