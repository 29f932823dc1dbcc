"""Layers by depth, and optimiser groups on them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_training import parameter_groups
from lit_training.groups import layers


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Residual(4), Residual(4))
        self.layer2 = nn.Sequential(Residual(4))
        self.fc = nn.Linear(4, 2)


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(3))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)


class Experts(nn.Module):
    """One transformer layer whose experts stand side by side, not one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(4))


def names(module: nn.Module) -> list[str]:
    return [layer.name for layer in layers(module)]


def wrapped(network: nn.Module) -> nn.Module:
    model = nn.Module()
    model.network = network
    return model


def headless(network: nn.Module) -> nn.Module:
    model = nn.Module()
    network.head = nn.Identity()
    model.backbone, model.classifier = network, nn.Linear(8, 2)
    return model


def test_residual_blocks_are_layers_between_a_stem_and_a_head() -> None:
    assert names(ResNet()) == ["stem", "layer1.0", "layer1.1", "layer2.0", "fc"]
    assert [info.name for info in layers(ResNet())[0].parameters] == ["conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias"]


def test_transformer_layers_are_layers_and_the_last_norm_belongs_to_the_last() -> None:
    depth = layers(ViT())
    assert [layer.name for layer in depth] == ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert [info.name for info in depth[0].parameters] == ["cls_token", "embed.weight", "embed.bias"]
    assert depth[3].parameters[-1].name == "norm.bias"


def test_a_wrapper_is_seen_through_and_a_headless_backbone_keeps_its_norm() -> None:
    assert names(wrapped(ResNet())) == ["stem", "network.layer1.0", "network.layer1.1", "network.layer2.0", "network.fc"]
    depth = layers(headless(ViT()))
    assert depth[-1].name == "classifier"
    assert depth[-2].parameters[-1].name == "backbone.norm.bias"


def test_compiled_parts_have_the_names_of_what_they_compile() -> None:
    assert names(wrapped(torch.compile(ResNet()))) == names(wrapped(ResNet()))


def test_experts_side_by_side_are_one_layer() -> None:
    model = nn.Sequential(nn.ModuleList([Experts(), Experts()]), nn.Linear(8, 2))
    assert names(model) == ["0.0", "0.1", "1"]


def test_siblings_of_one_class_are_blocks_without_a_container() -> None:
    model = nn.Module()
    model.stem, model.block1, model.block2, model.fc = nn.Conv2d(3, 4, 3), Residual(4), Residual(4), nn.Linear(4, 2)
    assert names(model) == ["stem", "block1", "block2", "fc"]


def test_without_blocks_each_weight_layer_is_one_with_its_norm() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    assert names(net) == ["0", "1", "3.1"]


def test_a_parametrised_layer_stays_one_layer() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    assert names(net) == ["0", "1", "2"]


def test_rates_fall_by_the_same_factor_from_the_head_down() -> None:
    groups = parameter_groups(ViT(), lr=1.0, weight_decay=0.1, layer_decay=0.5)
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["decay/4.head"] == 1.0
    assert rates["no_decay/3.blocks.2"] == 0.5
    assert rates["decay/0.stem"] == 0.5**4
    assert {group["weight_decay"] for group in groups if group["name"].startswith("no_decay")} == {0.0}


@settings(max_examples=20, deadline=None)
@given(decay=st.floats(0.1, 1.0), model=st.sampled_from([ResNet, ViT, Experts]))
def test_every_parameter_is_in_exactly_one_group(decay: float, model: type[nn.Module]) -> None:
    net = model()
    groups = parameter_groups(net, lr=0.1, weight_decay=0.1, layer_decay=decay)
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(net.parameters())
    assert len({group["name"] for group in groups}) == len(groups)


def test_frozen_parameters_are_in_the_groups_too() -> None:
    net = ResNet().requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(net, lr=0.1, weight_decay=0.1)) == len(list(net.parameters()))


def test_a_tied_weight_is_in_the_first_layer_that_uses_it() -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False))
    net[2].weight = net[0].weight
    assert names(net) == ["0", "1"]


@pytest.mark.parametrize("decay", [0.0, 1.5, -1.0])
def test_a_factor_outside_0_to_1_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"layer_decay must lie in \(0, 1\]"):
        parameter_groups(nn.Linear(2, 2), lr=0.1, weight_decay=0.0, layer_decay=decay)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "resnet18", "resnet50", "convnext_atto", "swin_tiny_patch4_window7_224", "mixer_s32_224"]
)
def test_groups_equal_those_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    net = timm.create_model(name)
    named = {parameter: name for name, parameter in net.named_parameters()}
    exempt = getattr(net, "no_weight_decay", set)()
    theirs = param_groups_layer_decay(net, weight_decay=0.05, no_weight_decay_list=exempt, layer_decay=0.75)
    ours = parameter_groups(net, lr=1.0, weight_decay=0.05, layer_decay=0.75)

    def content(groups: list[dict], rate: str) -> set:
        return {(round(g[rate], 12), g["weight_decay"], frozenset(named[p] for p in g["params"])) for g in groups}

    assert content(ours, "lr") == content(theirs, "lr_scale")
