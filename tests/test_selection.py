"""Which parameters are weights: against timm's choice, and where that is wrong; patterns; ties; wrappers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lit_training import parameter_groups, select
from lit_training.selection import classify


class Gate(nn.Module):
    """LayerScale, as timm and torchvision write it."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))


class ViTLike(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.patch_embed = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm((4, 8, 8))
        self.attention = nn.MultiheadAttention(8, 2)
        self.scale = Gate(8)
        self.words = nn.Embedding(10, 8)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))


def test_what_decays_in_a_transformer():
    assert set(select(ViTLike())) == {
        "patch_embed.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "head.parametrizations.weight.original1",  # the direction; original0 is weight_norm's g
    }


def timm_decays(model):
    optim = pytest.importorskip("timm.optim")
    groups = optim.param_groups_weight_decay(model, weight_decay=0.1)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in decayed}


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "convnext_atto"])
def test_as_timm_on_convolutional_nets(name):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name)
    assert set(select(model)) == timm_decays(model)


def test_as_timm_on_a_vit_except_for_its_tokens():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224")
    differing = set(select(model)) ^ timm_decays(model)
    assert differing == {"cls_token", "pos_embed"}  # tables are looked up, they multiply no input: decay only shrinks them


def test_where_timm_is_wrong():
    pytest.importorskip("timm")
    model = nn.ModuleDict({"norm": nn.LayerNorm((4, 8, 8)), "layer": nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))})
    wrong = timm_decays(model) - set(select(model))
    assert wrong == {
        "norm.weight",  # a norm's scale with more than one dimension
        "layer.parametrizations.weight.original0",  # weight_norm's g is [out, 1]: decay would shrink the whole function
    }


def test_kinds_are_opened_by_arguments_and_patterns_narrow_them():
    net = nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "head": nn.Linear(4, 2)})
    assert list(select(net, include="head", biases=True)) == ["head.weight", "head.bias"]
    assert list(select(net, exclude="body", norms=True)) == ["head.weight"]
    assert list(select(net, include=["body.1"], norms=True)) == ["body.1.weight", "body.1.bias"]
    assert list(select(net, include="*.0.*")) == ["body.0.weight"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": "haed"}, "'haed' matches no parameter.*head"),
        ({"exclude": ["body.9"]}, "'body.9' matches no parameter"),
        ({"include": "head.bias"}, "bias"),
    ],
)
def test_a_pattern_that_selects_nothing_is_an_error(arguments, message):
    net = nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 4)), "head": nn.Linear(4, 2)})
    with pytest.raises(ValueError, match=message):
        select(net, **arguments)


def test_a_tied_weight_comes_once_and_answers_to_each_name():
    net = nn.ModuleDict({"encoder": nn.Linear(4, 4, bias=False), "decoder": nn.Linear(4, 4, bias=False)})
    net["decoder"].weight = net["encoder"].weight
    assert list(select(net)) == list(select(net, include="decoder")) == ["encoder.weight"]
    assert list(select(net, exclude="decoder")) == []


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda net: nn.ModuleDict({"net": torch.compile(net)}),
    ],
)
def test_names_are_free_of_wrappers(wrap):
    net = nn.Sequential(nn.Linear(2, 2))
    wrapped = wrap(net)
    names = {name.removeprefix("net.") for name in select(wrapped)}
    assert names == {"0.weight"}
    spelt = next(name for name, _ in wrapped.named_parameters())
    assert list(select(wrapped, include=spelt)) == list(select(wrapped))


parts = st.sampled_from(
    [
        lambda: nn.Linear(3, 3),
        lambda: nn.Conv1d(3, 3, 1),
        lambda: nn.LayerNorm(3),
        lambda: nn.GRU(3, 3),
        lambda: nn.Embedding(4, 3),
    ]
)


@given(st.lists(parts, min_size=1, max_size=6), st.floats(1e-4, 1), st.floats(0, 1))
def test_groups_hold_every_parameter_once_and_only_weights_decay(makers, lr, weight_decay):
    net = nn.Sequential(*[make() for make in makers])
    groups = parameter_groups(net, lr=lr, weight_decay=weight_decay)
    held = [p for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(net.parameters()))
    kinds = {info.parameter: info.kind for info in classify(net)}
    for group in groups:
        expected = weight_decay if group["name"] == "decay" else 0
        assert group["weight_decay"] == expected
        assert all((kinds[p] == "weight") == (group["name"] == "decay") for p in group["params"])
