"""The gain of a nonlinearity: by how much the weights in front of it must be larger than those of a linear layer."""

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RECTIFIERS", "gain"]

Nonlinearity = str | float | nn.Module | Callable[[Tensor], Tensor]

_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "celu": F.celu,
    "elu": F.elu,
    "gelu": F.gelu,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "log_sigmoid": F.logsigmoid,
    "mish": F.mish,
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanh": torch.tanh,
    "tanhshrink": F.tanhshrink,
}
RECTIFIERS = frozenset("relu relu6 leaky_relu prelu gelu silu elu mish hardswish".split())
_GATES = {"glu": "sigmoid", "geglu": "gelu", "reglu": "relu", "swiglu": "silu"}
_LINEAR = frozenset("linear identity bilinear softmax log_softmax conv1d conv2d conv3d".split())
_ALIASES = {
    "softmax2d": "softmax",
    "logsoftmax": "log_softmax",
    "swish": "silu",
    "logsigmoid": "log_sigmoid",
    "leakyrelu": "leaky_relu",
    "none": "linear",
}
_NAMES = sorted({*_FUNCTIONS, *_GATES, *_LINEAR, *_ALIASES, "leaky_relu", "prelu", "selu"})


def gain(nonlinearity: Nonlinearity, param: float | None = None) -> float:
    r"""Return the factor that makes up for what a nonlinearity takes from the signal.

    $g = 1 / \sqrt{E[f(z)^2]}$ with $z \sim N(0, 1)$: weights of standard deviation $g / \sqrt{fan}$ then keep the second
    moment of what a layer passes on at 1. He et al., "Delving Deep into Rectifiers", ICCV 2015, section 2.2, for any
    nonlinearity. In closed form for ReLU, leaky ReLU, PReLU, ELU, GELU and SELU, otherwise integrated numerically (error below
    1e-6).

    Differences from `torch.nn.init.calculate_gain`: SELU has 1, which its fixed point needs (Klambauer et al., NeurIPS 2017;
    torch: 3/4); tanh 1.593 and sigmoid 1.846 follow from the formula (torch: 5/3 and 1, rules of thumb). The output softmax is
    linear: 1.

    Args:
        nonlinearity: a name as in `torch.nn.functional` (`"relu"`, `"gelu"`, `"glu"`, `"swiglu"`, `"linear"`, ...), an
        activation
            module (its own parameters count, PReLU's learnt slopes too), any elementwise function of one tensor, or a number,
            which is a gain already.
        param: negative slope of `"leaky_relu"` (default .01) or `"prelu"` (default .25), alpha of `"elu"` (default 1).

    Returns:
        The gain, positive.

    Raises:
        ValueError: for an unknown name (the nearest are listed), a `param` where there is none, or a function that is not
            elementwise, not finite, or 0 everywhere, or a gain that is not positive.

    >>> round(gain("relu"), 4), gain("selu"), round(gain(nn.LeakyReLU(1.0)), 4), round(gain("tanh"), 4)
    (1.4142, 1.0, 1.0, 1.5925)
    >>> round(gain(lambda x: x.clamp(0, 1)), 4)
    1.9686
    """
    if isinstance(nonlinearity, str):
        return _named(nonlinearity, param)
    if param is not None:
        raise ValueError(f"param is for a nonlinearity given by name, not for {nonlinearity!r}, which has its own")
    if isinstance(nonlinearity, (int, float)):
        if not 0 < nonlinearity < math.inf:
            raise ValueError(f"a gain must be positive and finite, got {nonlinearity}")
        return float(nonlinearity)
    if isinstance(nonlinearity, nn.Module):
        return _of_module(nonlinearity)
    return _integrate(nonlinearity)


def _named(name: str, param: float | None) -> float:
    key = name.lower()
    key = _ALIASES.get(key, key)
    if key in ("leaky_relu", "prelu"):
        slope = param if param is not None else {"leaky_relu": 0.01, "prelu": 0.25}[key]
        return math.sqrt(2 / (1 + slope**2))
    if key == "elu":
        return _elu(1.0 if param is None else param)
    if param is not None:
        raise ValueError(f"{name!r} has no parameter, got param={param}")
    if key in _LINEAR or key == "selu":
        return 1.0
    if key in _GATES:  # a * f(b) with a and b independent: E[a²] = 1
        return _named(_GATES[key], None)
    if key == "relu":
        return math.sqrt(2)
    if key == "gelu":
        return 1 / math.sqrt(1 / 3 + 1 / (2 * math.sqrt(3) * math.pi))
    if key in _FUNCTIONS:
        return _integrated(key)
    raise ValueError(f"unknown nonlinearity {name!r}; nearest: {get_close_matches(key, _NAMES, n=3, cutoff=0.0)}")


def _of_module(module: nn.Module) -> float:
    if isinstance(module, nn.PReLU):
        return math.sqrt(2 / (1 + float(module.weight.detach().double().square().mean())))
    if isinstance(module, nn.LeakyReLU):
        return _named("leaky_relu", module.negative_slope)
    if isinstance(module, nn.RReLU):  # the slope is uniform in [a, b]: E[slope²] = (a² + ab + b²) / 3
        a, b = module.lower, module.upper
        return math.sqrt(2 / (1 + (a * a + a * b + b * b) / 3))
    if isinstance(module, nn.ELU):
        return _elu(module.alpha)
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return _integrate(partial(F.gelu, approximate=module.approximate))
    if isinstance(module, (nn.GLU, nn.SELU, nn.GELU, nn.Identity, nn.Softmax, nn.LogSoftmax, nn.Softmax2d)):
        return _named(
            {"Softmax2d": "softmax", "LogSoftmax": "log_softmax"}.get(type(module).__name__, type(module).__name__), None
        )
    return _integrate(module)


def _elu(alpha: float) -> float:
    r"""Use $E[(e^z - 1)^2; z < 0] = e^2 \Phi(-2) - 2 e^{1/2} \Phi(-1) + 1/2$."""
    negative = math.e**2 * _normal_cdf(-2) - 2 * math.exp(0.5) * _normal_cdf(-1) + 0.5
    return 1 / math.sqrt(0.5 + alpha**2 * negative)


def _normal_cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


@cache
def _integrated(name: str) -> float:
    return _integrate(_FUNCTIONS[name])


@torch.no_grad()
def _integrate(function: Callable[[Tensor], Any]) -> float:
    """Apply the trapezoidal rule on [-12, 12], where the rest of the normal density is below 1e-31."""
    z = torch.linspace(-12, 12, 2**17 + 1, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    value = function(z)
    if not isinstance(value, Tensor) or value.shape != z.shape:
        raise ValueError(f"{function!r} is not elementwise; name what it does instead, e.g. 'swiglu' or 'linear'")
    moment = float((value.double().square() * density).sum() * (z[1] - z[0]))
    if not math.isfinite(moment) or moment <= 0:
        raise ValueError(f"{function!r} has the second moment {moment} on a standard normal input, not a finite one above 0")
    return 1 / math.sqrt(moment)
