"""`replace_head` on plain networks and, where torchvision and timm are installed, on theirs."""

import pytest
import torch
from torch import nn

from lit_training import replace_head


class Tagger(nn.Module):
    def __init__(self, tie: bool = False) -> None:
        super().__init__()
        self.num_classes = 50
        self.embedding = nn.Embedding(50, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 50, bias=False)
        if tie:
            self.head.weight = self.embedding.weight


def test_the_new_head_is_small_fresh_and_counted() -> None:
    torch.manual_seed(0)
    net = Tagger().double().eval()
    assert replace_head(net, 3) == "head"
    assert net.head.weight.shape == (3, 8)
    assert net.head.bias is None
    assert net.head.weight.dtype == torch.float64
    assert not net.head.training
    assert net.num_classes == 3
    assert 0.003 < net.head.weight.std() < 0.03


def test_a_convolution_keeps_its_geometry() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 7, (1, 3), stride=2, padding=(0, 1), padding_mode="circular"))
    replace_head(net, 5)
    assert net(torch.randn(2, 3, 9, 9)).shape == (2, 5, 4, 4)
    assert net[1].padding_mode == "circular"


def test_attention_that_is_registered_last_is_not_taken_for_the_head() -> None:
    net = Tagger()
    net.late = nn.MultiheadAttention(8, 2)
    with pytest.raises(ValueError, match=r"the last layer, late, is a MultiheadAttention.*name=.*'head'"):
        replace_head(net, 3)
    assert replace_head(net, 3, name="head") == "head"


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Tagger, {"num_outputs": 0}, "at least 1, got 0"),
        (Tagger, {"num_outputs": 2, "name": "hed"}, r"no layer is called 'hed'; nearest: \['head'"),
        (lambda: Tagger(tie=True), {"num_outputs": 2}, "the weight of head is tied to embedding"),
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), {"num_outputs": 2}, r"1, is a BatchNorm1d.*\['0'\]"),
        (nn.ReLU, {"num_outputs": 2}, "no layer with parameters"),
    ],
)
def test_bad_input(make, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace_head(make(), **options)


@pytest.mark.parametrize(
    "name", ["resnet18", "vgg11", "densenet121", "mobilenet_v3_small", "squeezenet1_1", "vit_b_32", "swin_t", "convnext_tiny",
             "efficientnet_b0", "shufflenet_v2_x0_5", "mnasnet0_5", "googlenet", "inception_v3"]
)  # fmt: skip
def test_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        net = models.get_model(name, **options)
        replace_head(net, 7)
        size = 299 if name == "inception_v3" else 224
        assert net.eval()(torch.empty(1, 3, size, size)).shape == (1, 7)


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224"]
)
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(name)
    assert replace_head(net, 7) == net.pretrained_cfg["classifier"]
    assert net.eval()(torch.randn(1, 3, 224, 224)).shape == (1, 7)
