"""Fans: how many products each output really sums, counted by running the layer, and where torch counts others."""

import pytest
import torch
from torch import Tensor, nn

from lit_training import fans
from lit_training.fans import matrices, weight_names

CONVOLUTIONS = {
    "conv1d": (nn.Conv1d(4, 6, 5), (17,)),
    "conv2d": (nn.Conv2d(4, 6, 3), (9, 9)),
    "conv3d": (nn.Conv3d(2, 3, 3), (7, 7, 7)),
    "strided": (nn.Conv2d(4, 6, 4, stride=2), (16, 16)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2), (13, 13)),
    "grouped": (nn.Conv2d(8, 12, 3, groups=4), (9, 9)),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), (9, 9)),
    "transposed": (nn.ConvTranspose2d(4, 6, 4, stride=2), (9, 9)),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 4, stride=4), (9,)),
    "transposed3d": (nn.ConvTranspose3d(2, 3, 2, stride=2), (6, 6, 6)),
    "grouped transposed": (nn.ConvTranspose2d(8, 4, 4, stride=2, groups=4), (9, 9)),
}


def middle(values: Tensor, width: int) -> Tensor:
    """Return what is away from the edges, and whole periods of any stride used here."""
    for dim in range(2, values.ndim):
        start = (values.shape[dim] - width) // 2
        values = values.narrow(dim, start, width)
    return values


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_fans_are_the_products_that_meet_in_an_output_and_leave_an_input(name: str) -> None:
    layer, size = CONVOLUTIONS[name]
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    x = torch.ones(1, layer.in_channels, *size, requires_grad=True)
    output = layer(x)
    output.sum().backward()
    strides = layer.stride[0]
    terms = middle(output.detach(), strides if layer.transposed else 1).mean().item()
    reached = middle(x.grad, 1 if layer.transposed else strides).mean().item()
    assert fans(layer) == pytest.approx((terms, reached))


def test_linear_bilinear_and_lookups() -> None:
    assert fans(nn.Linear(3, 7)) == (3, 7)
    assert fans(nn.Bilinear(3, 4, 5)) == (12, 20)
    assert fans(nn.Embedding(100, 8)) == (1, 8)
    assert fans(nn.EmbeddingBag(100, 8)) == (1, 8)


@pytest.mark.parametrize(
    ("layer", "gates"),
    [(nn.LSTM(3, 4, 2), 4), (nn.GRU(3, 4), 3), (nn.RNN(3, 4), 1), (nn.LSTMCell(3, 4), 4), (nn.GRUCell(3, 4), 3)],
)
def test_recurrent_layers_gate_by_gate(layer: nn.Module, gates: int) -> None:
    for name in weight_names(layer):
        parts = list(matrices(layer, name))
        inputs = 3 if "ih" in name and not name.endswith("l1") else 4
        assert [part.fans for part in parts] == [(inputs, 4)] * gates
        assert torch.equal(torch.cat([part.view for part in parts]), getattr(layer, name))


def test_lstm_with_a_projection() -> None:
    layer = nn.LSTM(3, 4, proj_size=2)
    assert [fans(layer, name) for name in weight_names(layer)] == [(3, 4), (2, 4), (4, 2)]


@pytest.mark.parametrize("dims", [{}, {"kdim": 6, "vdim": 10}])
def test_attention_is_three_matrices(dims: dict[str, int]) -> None:
    layer = nn.MultiheadAttention(8, 2, **dims)
    parts = [part.fans for name in weight_names(layer) for part in matrices(layer, name)]
    assert parts == [(8, 8), (dims.get("kdim", 8), 8), (dims.get("vdim", 8), 8)]


@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 7), nn.Conv1d(3, 4, 5), nn.Conv2d(3, 4, 5), nn.Conv3d(3, 4, 5), nn.RNN(3, 4)], ids=str
)
def test_equal_torch_where_torch_is_right(layer: nn.Module) -> None:
    weight = getattr(layer, weight_names(layer)[0])
    assert fans(layer) == nn.init._calculate_fan_in_and_fan_out(weight)


@pytest.mark.parametrize(
    ("layer", "torchs", "ours"),
    [
        (nn.Conv2d(32, 64, 3, groups=32), (9, 576), (9, 18)),  # fan_out is g times too large
        (nn.ConvTranspose2d(32, 16, 3), (144, 288), (288, 144)),  # swapped
        (nn.ConvTranspose2d(32, 16, 4, stride=2), (256, 512), (128, 256)),  # and a stride leaves fewer terms
        (nn.MultiheadAttention(8, 1), (8, 24), (8, 8)),  # q, k and v as one matrix
        (nn.LSTM(3, 4), (3, 16), (3, 4)),  # gates as one matrix
        (nn.Embedding(100, 8), (8, 100), (1, 8)),  # a product with a one-hot row
    ],
    ids=["grouped", "transposed", "strided transposed", "attention", "lstm", "embedding"],
)
def test_where_torch_differs_and_why(layer: nn.Module, torchs: tuple[int, int], ours: tuple[int, int]) -> None:
    weight = getattr(layer, weight_names(layer)[0])
    assert nn.init._calculate_fan_in_and_fan_out(weight) == torchs
    assert fans(layer) == ours


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.ReLU(),), TypeError, "ReLU is not a layer with fans"),
        ((nn.LSTM(2, 2), "weight_ih"), ValueError, "has no weight 'weight_ih'; it has"),
    ],
)
def test_bad_input_names_what_there_is(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fans(*arguments)
