"""`freeze`, `thaw` and what holds a layer in eval mode."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lit_training import freeze, frozen_tree, thaw
from lit_training.freezing import release, train_only, trained_by


def network() -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 6))
    return nn.Sequential(body, nn.Linear(6, 2))


def bits(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_frozen_weights_have_no_gradient_not_even_an_old_one() -> None:
    net = network()
    net(torch.randn(5, 4)).sum().backward()
    freeze(net, "0")
    assert all(p.grad is None and not p.requires_grad for p in net[0].parameters())
    assert all(p.grad is not None and p.requires_grad for p in net[1].parameters())


@pytest.mark.parametrize("wake", [lambda net: net.train(), lambda net: net[0].train(), lambda net: net[0][1].train()])
def test_frozen_batch_norm_keeps_its_statistics_whoever_calls_train(wake) -> None:
    net = network()
    freeze(net, "0")
    before = bits(net)
    wake(net)
    for _ in range(3):
        net(torch.randn(5, 4) + 3)
    assert all(torch.equal(before[name], now) for name, now in bits(net).items())
    assert net[0][2].training  # dropout is left as it is


def test_thawed_batch_norm_follows_the_mode_around_it() -> None:
    net = network()
    freeze(net, "0")
    thaw(net, "0")
    assert net[0][1].training
    freeze(net, "0")
    net.eval()
    thaw(net, "0")
    assert not net[0][1].training
    assert net.train()[0][1].training


def test_batch_norm_without_parameters_is_frozen_by_its_name() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 2))
    train_only(net, "2")
    assert not net.train()[1].training
    train_only(net, ["1", "2"])
    assert net[1].training


def test_batch_norm_of_which_only_the_bias_trains_goes_on() -> None:
    net = network()
    train_only(net, "*.bias")
    assert net[0][1].training
    assert not net[0][1].weight.requires_grad


def test_train_bn_trains_batch_norm_in_the_frozen_part() -> None:
    net = network()
    assert train_only(net, "1", train_bn=True) == {"0.1.weight", "0.1.bias", "1.weight", "1.bias"}
    assert net[0][1].training
    net = network()
    assert freeze(net, "0", train_bn=True) == ["0.0.weight", "0.0.bias", "0.3.weight", "0.3.bias"]
    assert net.train()[0][1].training


def test_dropout_in_the_frozen_part_is_switched_off_on_demand() -> None:
    net = network()
    train_only(net, "1", train_dropout=False)
    assert not net.train()[0][2].training
    train_only(net, "1")
    assert net[0][2].training


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_frozen_spectral_norm_stops_its_power_iteration(norm) -> None:
    net = nn.Sequential(norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    net(torch.randn(3, 4))
    freeze(net, "0")
    before = bits(net)
    net.train()
    for _ in range(3):
        net(torch.randn(3, 4))
    assert all(torch.equal(before[name], now) for name, now in bits(net).items())
    thaw(net)
    net(torch.randn(3, 4))
    assert not all(torch.equal(before[name], now) for name, now in bits(net).items())


def test_a_held_layer_can_be_copied_and_pickled_and_the_copy_is_held_by_itself() -> None:
    net = network()
    freeze(net, "0")
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert not twin.train()[0][1].training
        thaw(twin)
        assert twin[0][1].training
        assert not net.train()[0][1].training


def test_a_train_method_of_the_users_own_is_left_alone() -> None:
    net = network()
    calls = []
    net[0][1].train = lambda mode=True: calls.append(mode)
    thaw(net)
    net.train()
    assert calls[-1] is True


def test_a_tied_weight_trains_if_any_of_its_names_is_asked_for() -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    net[1].weight = net[0].weight
    assert train_only(net, "1") == {"0.weight"}


def test_integer_weights_are_passed_over() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    assert thaw(net) == []
    assert "0.weight" not in train_only(net, "*")


def test_freeze_and_thaw_name_what_changed() -> None:
    net = network()
    assert freeze(net, "1") == ["1.weight", "1.bias"]
    assert freeze(net, "1") == []
    assert thaw(net) == ["1.weight", "1.bias"]


def test_trained_by_changes_nothing() -> None:
    net = network()
    trained_by(net, "1")
    assert all(p.requires_grad for p in net.parameters())


def test_release_gives_train_back_and_leaves_the_weights_frozen() -> None:
    net = network()
    freeze(net, "0")
    release(net)
    assert net.train()[0][1].training
    assert not net[0][1].weight.requires_grad


@pytest.mark.parametrize("function", [freeze, thaw, train_only])
def test_a_pattern_without_a_match_lists_the_nearest_names(function) -> None:
    with pytest.raises(ValueError, match=r"'0.4' matches no parameter; nearest: \['0.3'"):
        function(network(), "0.4")


def test_training_nothing_is_refused() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"'0' matches no parameter that can train"):
        train_only(net, "0")


def test_the_tree_opens_only_what_is_frozen_in_part() -> None:
    net = network()
    train_only(net, ["1", "0.3.bias"])
    lines = [line.split() for line in frozen_tree(net).splitlines()]
    assert [line[0] for line in lines] == ["Sequential", "0", "0", "1", "3", "weight", "bias", "1"]
    assert lines[3][1:3] == ["12", "frozen"]
    assert lines[-1][1:] == ["14", "trains"]
