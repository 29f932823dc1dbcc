"""Fingerprints: any bit counts, at its place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_training.fingerprints import diverged, fingerprint, shared_tensors

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.bool, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_bits_have_equal_fingerprints_whatever_the_strides(dtype: torch.dtype) -> None:
    tensor = (torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    assert fingerprint(tensor) == fingerprint(tensor.t().contiguous().t())
    assert fingerprint(tensor) == fingerprint(torch.cat([tensor[:1], tensor])[1:])


@settings(max_examples=50, deadline=None)
@given(index=st.integers(0, 2**20 + 9), bit=st.integers(0, 31))
def test_one_flipped_bit_changes_it_also_beyond_the_first_chunk(index: int, bit: int) -> None:
    before = torch.zeros(2**20 + 10, dtype=torch.int32)
    after = before.clone()
    after[index] = -(2**31) if bit == 31 else 2**bit
    assert fingerprint(before) != fingerprint(after)
    assert fingerprint(before.view(torch.float32)) != fingerprint(after.view(torch.float32))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=20, unique=True))
def test_order_counts(values: list[float]) -> None:
    tensor = torch.tensor(values)
    assert fingerprint(tensor) != fingerprint(tensor.roll(1))


def test_empty_and_scalar_tensors_have_one_too() -> None:
    assert fingerprint(torch.zeros(0)) == fingerprint(torch.zeros(0))
    assert fingerprint(torch.tensor(1.0)) != fingerprint(torch.tensor(-1.0))


def test_statistics_of_batch_norm_in_train_mode_are_not_shared() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.SyncBatchNorm(2), nn.LazyLinear(2))
    net.register_buffer("mean", torch.zeros(3))
    assert "0.running_mean" not in shared_tensors(net)
    assert {"1.running_mean", "mean", "0.weight"} <= set(shared_tensors(net))
    assert "2.weight" not in shared_tensors(net)
    assert "0.running_mean" in shared_tensors(net.eval())
    assert "mean" not in shared_tensors(net, ignored={"mean"})


def test_only_copies_of_the_same_shard_are_compared() -> None:
    same, other = [7, 0], [8, 0]
    assert diverged(torch.tensor([[same], [same], [same]])) == []
    assert diverged(torch.tensor([[same], [same], [other]])) == [0]
    assert diverged(torch.tensor([[[1, 0]], [[2, 1]]])) == []  # two shards
    assert diverged(torch.tensor([[[1, 0]], [[2, 1]], [[1, 0]], [[3, 1]]])) == [0]  # replicas of shard 1 differ
