"""Copies of weights on the CPU."""

import torch
from torch import nn

from lit_training.snapshots import restore_snapshot, take_snapshot


def test_a_snapshot_restores_the_named_parameters_and_all_buffers_to_the_bit() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    snapshot = take_snapshot(net, ["2.weight"])
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor += 1
    restore_snapshot(net, snapshot)
    restored = {name for name, tensor in net.state_dict().items() if torch.equal(tensor, before[name])}
    assert restored == {"2.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_a_snapshot_is_a_copy_without_what_a_checkpoint_leaves_out() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("mask", torch.ones(2), persistent=False)
    snapshot = take_snapshot(net, ["weight"])
    assert list(snapshot) == ["weight"]
    assert snapshot["weight"].data_ptr() != net.weight.data_ptr()
    assert not snapshot["weight"].requires_grad
