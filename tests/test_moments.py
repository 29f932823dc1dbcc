"""Tests of `moments`, `merge` and `all_reduce`: against float64 two-pass statistics."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_training.moments import Moments, all_reduce, merge, moments


def draw(shape: tuple[int, ...], *, offset: float = 0.0, std: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (values * std + offset).to(dtype)


def check(found: Moments, values: Tensor, dim: tuple[int, ...], rtol: float) -> None:
    std, mean = torch.std_mean(values.double(), dim=dim, correction=0)
    torch.testing.assert_close(found.std, std, rtol=rtol, atol=0.0)
    torch.testing.assert_close((found.mean - mean) / std, torch.zeros_like(std), rtol=0.0, atol=rtol)


@pytest.mark.parametrize("dim", [(0,), (0, 2, 3), (-1,), (0, 1, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_equals_float64_statistics_of_the_same_values(dim: tuple[int, ...], dtype: torch.dtype) -> None:
    values = draw((8, 3, 5, 7), offset=2.0, dtype=dtype)
    check(moments(values, dim), values, dim, rtol=1e-6)


def test_float32_values_a_million_stds_from_zero_keep_their_std() -> None:
    values = draw((20_000, 4), offset=1e4, std=1e-2)
    check(moments(values, 0), values, (0,), rtol=1e-6)


def test_half_precision_sums_do_not_saturate() -> None:
    """100 000 ones: a float16 sum overflows, a bfloat16 sum stops at 256."""
    for dtype in (torch.float16, torch.bfloat16):
        found = moments(torch.ones(100_000, dtype=dtype))
        assert (found.count.item(), found.mean.item(), found.std.item()) == (100_000, 1.0, 0.0)


def test_an_outlier_in_front_does_not_spoil_the_rest() -> None:
    values = draw((4096, 1), std=1e-2)
    values[0] = 50.0
    check(moments(values, 0), values, (0,), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64])
def test_integers_are_summarised_without_rounding(dtype: torch.dtype) -> None:
    values = torch.tensor([0, 1, 1, 0]).to(dtype)
    if dtype is torch.int64:
        values += 1_700_000_000  # seconds since 1970: float32 knows them to 128 s only
    assert moments(values).std.item() == 0.5


@settings(max_examples=100, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=4), offset=st.floats(-1e4, 1e4), log_std=st.floats(-2, 2))
def test_any_split_into_parts_merges_to_the_whole(cuts: list[int], offset: float, log_std: float) -> None:
    """Parts may be empty, and come in any order."""
    values = draw((60, 3), offset=offset, std=10.0**log_std)
    parts = values.tensor_split(sorted(cuts))
    for order in (parts, parts[::-1]):
        merged = moments(order[0], 0)
        for part in order[1:]:
            merged = merge(merged, moments(part, 0))
        assert merged.count.item() == 60
        check(merged, values, (0,), rtol=1e-5)


def test_many_small_parts_far_from_zero_lose_nothing() -> None:
    values = draw((4000, 2), offset=1e4, std=1e-2)
    parts = [moments(part, 0) for part in values.split(8)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merge(merged, part)
    check(merged, values, (0,), rtol=1e-6)


def test_constant_values_have_a_variance_of_exactly_zero() -> None:
    assert moments(torch.full((1000,), 0.1)).variance.item() == 0.0


def test_nan_and_infinity_are_passed_on() -> None:
    values = torch.tensor([[1.0, 1.0, 1.0], [2.0, torch.nan, torch.inf]])
    assert moments(values, 0).variance.isfinite().tolist() == [True, False, False]


def test_no_values_give_a_count_of_zero_and_an_undefined_variance() -> None:
    empty = moments(torch.empty(0, 3), 0)
    assert empty.count.item() == 0
    assert empty.mean.shape == (3,)
    assert empty.std.isnan().all()


def test_reducing_no_dimension_returns_the_values() -> None:
    found = moments(torch.tensor([1.0, 5.0]), dim=())
    assert (found.count.item(), found.mean.tolist(), found.std.tolist()) == (1.0, [1.0, 5.0], [0.0, 0.0])


def test_the_input_and_the_graph_are_left_alone() -> None:
    values = draw((6, 2)).requires_grad_()
    before = values.detach().clone()
    assert not moments(values, 0).mean.requires_grad
    assert torch.equal(values, before)
    double = draw((6, 2), dtype=torch.float64)
    before = double.clone()
    moments(double)
    assert torch.equal(double, before)


def test_complex_values_are_refused() -> None:
    with pytest.raises(TypeError, match=r"complex values are not defined; pass values.abs\(\) or values.real"):
        moments(torch.zeros(2, dtype=torch.complex64))


def test_a_dimension_that_is_not_there_is_refused() -> None:
    with pytest.raises(IndexError, match="dim 2 is out of range for a tensor of 2 dimensions"):
        moments(torch.zeros(2, 2), dim=(0, 2))


def test_without_a_process_group_the_parts_come_back_as_they_are() -> None:
    parts = [moments(draw((5,)))]
    assert all_reduce(parts) == parts
    assert all_reduce([]) == []
