"""`max_norm_`: the ball, to the bit where it changes nothing, against torch and Keras' formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lit_training import max_norm_
from lit_training.units import unit_weights

shapes = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])


def drawn(shape, seed, dtype=torch.float32):
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


@given(shapes, st.integers(0, 999), st.floats(0.1, 10), dtypes, st.data())
def test_units_outside_reach_the_ball_and_others_keep_their_bits(shape, seed, bound, dtype, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    before = drawn(shape, seed, dtype)
    after = before.clone()
    count = max_norm_(after, bound, dim)
    summed = [d for d in range(len(shape)) if d != dim % len(shape)]
    norms = [torch.linalg.vector_norm(w.double(), dim=summed) for w in (before, after)]
    tolerance = 1e-6 if dtype.itemsize >= 4 else torch.finfo(dtype).eps / 2
    assert (norms[1] <= bound * (1 + 1.01 * tolerance)).all()
    inside = norms[0] <= bound * (1 - 1e-6)
    assert torch.equal(after.movedim(dim, 0)[inside], before.movedim(dim, 0)[inside])
    outside = norms[0] > bound * (1 + 4 * tolerance + 1e-6)
    assert outside.sum() <= count <= (~inside).sum()
    again = after.clone()
    max_norm_(again, bound, dim)
    assert torch.equal(again, after)


@given(shapes, st.integers(0, 99), st.floats(0.1, 10))
def test_as_torch_renorm_and_as_keras_with_its_axis(shape, seed, bound):
    weight = drawn(shape, seed)
    ours = weight.clone()
    max_norm_(ours, bound, 0)
    assert torch.allclose(ours, torch.renorm(weight, 2, 0, bound), rtol=1e-5, atol=1e-6)
    kernel = weight.movedim(0, -1)  # Keras' layout: outputs last, and `axis` names what is summed
    norms = kernel.square().sum(tuple(range(kernel.ndim - 1)), keepdim=True).sqrt()
    keras = kernel * (norms.clamp(0, bound) / (1e-7 + norms))
    assert torch.allclose(ours, keras.movedim(-1, 0), rtol=1e-5, atol=1e-6)


def test_zero_rows_stay_zero_and_nan_stays_visible():
    weight = torch.tensor([[0.0, 0.0], [torch.nan, 9.0], [30.0, 40.0]])
    max_norm_(weight, 1.0)
    assert torch.equal(weight[0], torch.zeros(2))
    assert weight[1].isnan().any()
    assert torch.allclose(weight[2], torch.tensor([0.6, 0.8]))


def test_channels_last_and_slices_of_a_tensor():
    weight = drawn((6, 5, 3, 3), 0).to(memory_format=torch.channels_last)
    plain = weight.clone(memory_format=torch.contiguous_format)
    max_norm_(weight, 2.0)
    max_norm_(plain, 2.0)
    assert torch.allclose(weight, plain, rtol=1e-6)
    whole = drawn((6, 6), 1)
    rest = whole[3:].clone()
    max_norm_(whole[:3], 1.0)
    assert torch.equal(whole[3:], rest)
    assert (whole[:3].norm(dim=1) <= 1 + 1e-6).all()


def test_long_rows_are_summed_exactly():
    weight = torch.full((2, 2**20), 1.0)
    max_norm_(weight, 5.0)
    assert weight.double().norm(dim=1).sub(5).abs().max() < 5e-6


LAYERS = [
    (nn.Linear(4, 3), lambda w: w.flatten(1)),
    (nn.Conv1d(4, 6, 3), lambda w: w.flatten(1)),
    (nn.Conv2d(4, 6, 3, groups=2), lambda w: w.flatten(1)),
    (nn.Conv3d(2, 3, 2), lambda w: w.flatten(1)),
    (nn.ConvTranspose2d(4, 6, 3), lambda w: w.transpose(0, 1).flatten(1)),
    (nn.ConvTranspose1d(4, 6, 3, groups=2), lambda w: w.view(2, 2, 3, 3).transpose(1, 2).reshape(6, -1)),
    (nn.Embedding(7, 4), lambda w: w),
]


@pytest.mark.parametrize(("layer", "rows"), LAYERS, ids=lambda value: type(value).__name__)
def test_a_unit_is_what_one_output_multiplies(layer, rows):
    with torch.no_grad():
        layer.weight.mul_(20)
    before = rows(layer.weight.detach().clone())
    for unit in unit_weights(layer):
        weight, kept = unit.view()
        max_norm_(weight.detach(), 0.5, kept)
    expected = torch.renorm(before, 2, 0, 0.5)
    assert torch.allclose(rows(layer.weight.detach()), expected, rtol=1e-5, atol=1e-7)


def test_recurrent_layers_per_gate_and_packed_attention_per_projection():
    for layer, name in ((nn.LSTM(3, 2), "weight_ih_l0"), (nn.MultiheadAttention(4, 2), "in_proj_weight")):
        weight = getattr(layer, name)
        with torch.no_grad():
            weight.mul_(50)
        for unit in unit_weights(layer, include=name):
            view, kept = unit.view()
            max_norm_(view.detach(), 1.0, kept)
        assert torch.allclose(weight.norm(dim=1), torch.ones(len(weight)), atol=1e-5)


def test_embedding_rows_as_torch_renormalises_them():
    table = nn.Embedding(6, 4)
    with torch.no_grad():
        table.weight.mul_(10)
    own = nn.Embedding(6, 4, max_norm=1.0, _weight=table.weight.detach().clone())
    own(torch.arange(6))
    max_norm_(table.weight.detach(), 1.0)
    assert torch.allclose(table.weight, own.weight, atol=1e-5)


@pytest.mark.parametrize("bound", [0, -1, float("nan"), float("inf")])
def test_a_bound_that_is_none_is_refused(bound):
    with pytest.raises(ValueError, match="positive finite number"):
        max_norm_(torch.ones(2, 2), bound)


def test_a_dimension_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="dim=2"):
        max_norm_(torch.ones(2, 2), 1.0, 2)
