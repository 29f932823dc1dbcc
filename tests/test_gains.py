"""Gains keep the second moment: against closed forms, torch, and Monte Carlo."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lit_training import gain

FUNCTIONS = {
    "relu": F.relu, "leaky_relu": F.leaky_relu, "elu": F.elu, "gelu": F.gelu, "silu": F.silu, "mish": F.mish, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "softplus": F.softplus, "relu6": F.relu6, "hardswish": F.hardswish, "softsign": F.softsign,
}  # fmt: skip
MODULES = [
    nn.PReLU(), nn.PReLU(3), nn.LeakyReLU(0.3), nn.ELU(0.5), nn.GELU("tanh"), nn.CELU(2.0), nn.RReLU(), nn.Hardtanh(-2, 1),
    nn.Softplus(beta=2), nn.Threshold(0.5, 0.0),
]  # fmt: skip


def normals(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def moment(values: Tensor) -> float:
    return values.square().mean().item()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_moment_behind_a_named_nonlinearity_is_kept(name: str) -> None:
    assert gain(name) ** 2 * moment(FUNCTIONS[name](normals(10**6))) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("module", MODULES, ids=str)
@torch.no_grad()
def test_second_moment_behind_a_module_with_its_own_parameters_is_kept(module: nn.Module) -> None:
    assert gain(module) ** 2 * moment(module.double()(normals(10**6 // 3, 3))) == pytest.approx(1, abs=0.015)


@pytest.mark.parametrize(("name", "gate"), [("glu", torch.sigmoid), ("swiglu", F.silu), ("geglu", F.gelu), ("reglu", F.relu)])
def test_a_gated_unit_is_a_product_of_independent_halves(name: str, gate) -> None:
    a, b = normals(2, 10**6)
    assert gain(name) ** 2 * moment(a * gate(b)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("name", "param"), [("linear", None), ("conv2d", None), ("relu", None), ("leaky_relu", None), ("leaky_relu", 0.2)]
)
def test_equals_torch_where_torch_is_exact(name: str, param: float | None) -> None:
    assert gain(name, param) == pytest.approx(nn.init.calculate_gain(name, param))


def test_differs_from_torch_where_torch_has_rules_of_thumb() -> None:
    assert (nn.init.calculate_gain("selu"), gain("selu")) == (0.75, 1.0)  # SELU's fixed point needs variance 1 / fan_in
    assert nn.init.calculate_gain("tanh") == pytest.approx(5 / 3)
    assert gain("tanh") == pytest.approx(1.5925, abs=1e-4)
    assert nn.init.calculate_gain("sigmoid") == 1.0  # sigmoid halves the signal and more
    assert gain("sigmoid") == pytest.approx(1.8462, abs=1e-4)


def test_closed_forms_and_the_integral_agree() -> None:
    for name in ("relu", "elu", "gelu", "leaky_relu"):
        assert gain(FUNCTIONS[name]) == pytest.approx(gain(name), rel=1e-5)


def test_selu_keeps_its_fixed_point() -> None:
    assert moment(F.selu(normals(10**6))) == pytest.approx(1, abs=0.01)


@given(slope=st.floats(-3, 3))
def test_leaky_slopes(slope: float) -> None:
    assert gain("leaky_relu", slope) == pytest.approx(math.sqrt(2 / (1 + slope**2)))
    assert gain("leaky_relu", slope) == pytest.approx(gain(nn.LeakyReLU(slope)))


def test_a_number_is_a_gain_already() -> None:
    assert gain(1.7) == 1.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rleu",), "nearest: .*'relu'"),
        (("relu", 0.1), "'relu' has no parameter, got param=0.1"),
        ((nn.ReLU(), 0.1), "which has its own"),
        ((0.0,), "positive and finite, got 0.0"),
        ((torch.zeros_like,), "second moment 0.0"),
        ((lambda x: x[::2],), "not elementwise"),
        ((lambda x: x / 0,), "not a finite one"),
    ],
)
def test_bad_input_names_what_is_allowed(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gain(*arguments)
