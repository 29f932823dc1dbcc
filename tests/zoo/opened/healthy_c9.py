"""Held-out healthy cases: unusual starts, norms and parametrisations."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, healthy
from tests.zoo.data import blobs, digits, gratings, stamps, surface
from tests.zoo.nets import CE, MSE, adam, adamw, convnet, mlp, sgd, weighted
from tests.zoo.opened.healthy_c1 import warm_cosine


@healthy("init_vanishing", "saturation", "bad_gain", source="Saxe 2014, Pennington 2017: deep tanh network, orthogonal weights")
def h_orthogonal_depth_uc(seed: int) -> Case:
    model = mlp([64] * 13 + [10], act=nn.Tanh)
    for layer in weighted(model):
        nn.init.orthogonal_(layer.weight, 1.05)
        nn.init.zeros_(layer.bias)
    return Case(seed=seed, model=model, data=digits(seed), optimizer=sgd(0.02), max_steps=200, **CE)


class Both(nn.Module):
    """What is positive and what is negative, side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.cat([x, -x], 1))


@healthy(
    "init_symmetry", "missing_activation", source="Balduzzi 2017: concatenated ReLU, mirrored weights, linear at the start"
)
def h_looks_linear_uc(seed: int) -> Case:
    layers: list[nn.Module] = [nn.Linear(8, 32)]
    for b in (32, 32, 32, 4):
        linear = nn.Linear(64, b)
        half = nn.init.orthogonal_(torch.empty(b, 32))
        linear.weight.data = torch.cat([half, -half], 1)
        layers += [Both(), linear]
    return Case(seed=seed, model=nn.Sequential(*layers), data=blobs(seed), optimizer=adam(2e-3), max_steps=250, **CE)


class Unscaled(nn.Module):
    """Weights of unit variance; the scale is in the forward pass."""

    def __init__(self, a: int, b: int, gain: float = 1.4) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(b, a)), nn.Parameter(torch.zeros(b))
        self.scale = gain / a**0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.scale * self.weight, self.bias)


@healthy("init_exploding", "lr_too_high", "bad_gain", source="Karras 2018: equalised learning rate, weights of unit variance")
def h_unit_weights_uc(seed: int) -> Case:
    model = nn.Sequential(Unscaled(8, 64), nn.LeakyReLU(0.2), Unscaled(64, 64), nn.LeakyReLU(0.2), Unscaled(64, 4, 1.0))
    return Case(seed=seed, model=model, data=blobs(seed), optimizer=adam(2e-2, betas=(0.9, 0.99)), max_steps=220, **CE)


class Standardised(nn.Conv2d):
    """A convolution with weights of zero mean and unit variance for each output, times a gain."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) * w[0].numel() ** 0.5 + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


@healthy("bias_before_bn", "bad_gain", source="Qiao 2019: weight standardisation and group norm with batches of eight")
def h_standardised_kernels_uc(seed: int) -> Case:
    layers: list[nn.Module] = []
    for a, b in ((1, 16), (16, 24)):
        layers += [Standardised(a, b, 3, padding=1, bias=False), nn.GroupNorm(4, b), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(216, 4))
    return Case(seed=seed, model=model, data=gratings(seed, 1200), optimizer=sgd(0.02), batch_size=8, max_steps=300, **CE)


class Gated(nn.Module):
    """Pre-norm residual block: root mean squares, and a product of a gate and a value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.RMSNorm(width), nn.Linear(width, 4 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(self.norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * value)


@healthy(source="tables with a modern residual network: RMSNorm, SwiGLU, AdamW, warm-up and cosine")
def h_gated_residuals_uc(seed: int) -> Case:
    model = nn.Sequential(nn.Linear(8, 24), Gated(24), Gated(24), nn.RMSNorm(24), nn.Linear(24, 1))
    return Case(
        seed=seed, model=model, data=surface(seed, 2400), optimizer=adamw(4e-3), scheduler=warm_cosine(20, 300), max_steps=300,
        **MSE,
    )  # fmt: skip


@healthy(source="style transfer habits: instance norm with gains, leaky ReLU, an everyday classifier")
def h_instance_norms_uc(seed: int) -> Case:
    model = convnet(width=12, norm=lambda n: nn.InstanceNorm2d(n, affine=True), act=lambda: nn.LeakyReLU(0.1), bias=False)
    return Case(seed=seed, model=model, data=stamps(seed, 1200), optimizer=adam(3e-3), max_steps=200, **CE)
