"""Healthy: programs as published repositories have them, with the scales, starts and units that they keep."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import data, more_data
from tests.zoo.case import Case, healthy
from tests.zoo.data import Split, replace, rng, split
from tests.zoo.nets import BCE, CE, MSE, adam, init_weights, mlp, normal, sgd


class Fires(torch.autograd.Function):
    """A spike at a threshold of 0, with the slope of an arctangent (Fang et al. 2021)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / (1 + (torch.pi * ctx.saved_tensors[0]).square())


class Spiking(nn.Module):
    """Leaky units over ten steps; none has fired at the first one. Summed potentials are the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(64, 96), nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        potential, output, logits = torch.zeros(1), torch.zeros(1), torch.zeros(1)
        for _ in range(10):
            potential = 0.95 * potential + self.inner(x)
            spikes = Fires.apply(potential - 1)
            potential = potential - spikes.detach()
            output = 0.95 * output + self.outer(spikes)
            logits = logits + output / 10
        return logits


@healthy("init_vanishing", source="snntorch: leaky spiking units, silent at the first step")
def h_spiking(seed: int) -> Case:
    pixels = replace(data.digits(seed), 0, lambda x: (x - x.min()) / (x.max() - x.min()))
    return Case(seed=seed, model=Spiking(), data=pixels, optimizer=adam(2e-3), batch_size=64, **CE)


class WideAndSmall(nn.Module):
    """Guo et al. 2017 as DeepCTR-Torch starts it: tables and the deep part with a std of 1e-4, added to a linear part."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.ModuleList(nn.Embedding(k, 4) for k in (12, 7, 5))
        self.wide = nn.Linear(4, 1)
        self.deep = mlp([16, 64, 64, 1])
        init_weights(self.deep, normal(1e-4))
        for table in self.codes:
            nn.init.normal_(table.weight, std=1e-4)

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        looked_up = torch.stack([table(codes[:, i]) for i, table in enumerate(self.codes)], 1)
        pairs = 0.5 * (looked_up.sum(1).square() - looked_up.square().sum(1)).sum(1, keepdim=True)
        return self.wide(numbers) + pairs + self.deep(torch.cat([looked_up.flatten(1), numbers], 1))


@healthy("init_vanishing", "lr_too_high", source="DeepCTR-Torch: a deep part of std 1e-4 beside a wide one, Adam")
def h_small_deep_part(seed: int) -> Case:
    customers = more_data.tidy(more_data.customers(seed))
    return Case(
        seed=seed, model=WideAndSmall(), data=customers, optimizer=adam(1e-3), batch_size=64, max_steps=400, **BCE
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def enlarged(width: int = 16) -> nn.Module:
    head, tail = nn.Conv2d(1, width, 3, padding=1), [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2)]
    return nn.Sequential(head, Residual(width), Residual(width), *tail, nn.Conv2d(width, 1, 3, padding=1))


def pixels(seed: int) -> tuple[Tensor, Tensor]:
    """Digits of 8 x 8 pixels from 0 to 255, and which they show."""
    train, val = data.digits(seed, flat=False)
    x, y = (torch.cat(both) for both in zip(train.tensors, val.tensors, strict=True))
    return (255 * (x - x.min()) / (x.max() - x.min())).round(), y


def halved(seed: int) -> Split:
    x, _ = pixels(seed)
    return split(F.avg_pool2d(x, 2), x)


@healthy("unnormalised_input", "unnormalised_target", source="Lim et al. 2017 (EDSR): pixels of 0 to 255 in and out, L1, Adam")
def h_enlarged_pixels(seed: int) -> Case:
    return Case(
        seed=seed, model=enlarged(), data=halved(seed), optimizer=adam(1e-3), batch_size=16, loss=F.l1_loss, metric="r2"
    )


def series(seed: int, n: int = 1536) -> Split:
    """Daily visitors, some hundreds: 24 days `[n, 24]`, and the next six."""
    g, t = rng(801, seed), torch.arange(30)
    level, phase = 300 + 100 * torch.randn(n, 1, generator=g), 2 * torch.pi * torch.rand(n, 1, generator=g)
    visitors = level + 80 * (torch.pi / 6 * t + phase).sin() + 10 * torch.randn(n, 30, generator=g)
    return split(visitors[:, :24], visitors[:, 24:])


class Decomposed(nn.Module):
    """Zeng et al. 2023: a line for the moving average and one for the rest, both started as means."""

    def __init__(self) -> None:
        super().__init__()
        self.trend, self.rest = nn.Linear(24, 6), nn.Linear(24, 6)
        for layer in (self.trend, self.rest):
            nn.init.constant_(layer.weight, 1 / 24)

    def forward(self, x: Tensor) -> Tensor:
        trend = F.avg_pool1d(F.pad(x[:, None], (12, 12), mode="replicate"), 25, 1)[:, 0]
        return self.trend(trend) + self.rest(x - trend)


@healthy(
    "unnormalised_input", "init_symmetry", source="Zeng et al. 2023 (DLinear): visitors a day in and out, not standardised"
)
def h_decomposed_visitors(seed: int) -> Case:
    return Case(seed=seed, model=Decomposed(), data=series(seed), optimizer=adam(1e-3), max_steps=300, **MSE)


@healthy(
    "unnormalised_input", "init_vanishing", source="pixels of 0 to 255 into a group norm behind the first convolution, SGD"
)
def h_pixels_grouped(seed: int) -> Case:
    stem = [nn.Conv2d(1, 24, 3, padding=1), nn.GroupNorm(4, 24), nn.ReLU(), nn.Conv2d(24, 32, 3, stride=2), nn.GroupNorm(4, 32)]
    model = nn.Sequential(*stem, nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    return Case(seed=seed, model=model, data=split(*pixels(seed)), optimizer=sgd(0.02), **CE)


def sales(seed: int) -> Split:
    """Ninety features of houses, most of them yes or no; the price."""
    g = rng(802, seed)
    x = torch.randn(1536, 90, generator=g)
    x[:, 30:] = (x[:, 30:] > 1).float()
    return split(x, 180_000 * (0.03 * (x @ torch.randn(90, 1, generator=g)) + 0.03 * torch.randn(1536, 1, generator=g)).exp())


@healthy("lr_too_high", "unnormalised_target", source="a linear model of house prices, Adam at a rate in their currency")
def h_prices_by_a_line(seed: int) -> Case:
    return Case(
        seed=seed, model=nn.Linear(90, 1), data=sales(seed), optimizer=adam(500.0), batch_size=64, max_steps=900, **MSE
    )  # fmt: skip


class Corrected(nn.Module):
    """A network and one number that corrects it, a layer of its own, as Dragonnet (Shi et al. 2019) has it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.epsilon = mlp([8, 64, 64, 1], nn.ELU), nn.Linear(1, 1)
        nn.init.constant_(self.epsilon.weight, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.epsilon(torch.ones_like(x[:, :1]))


@healthy("loss_reduction", source="Shi et al. 2019 (Dragonnet): squared errors summed, SGD at 1e-4, and a weight of one number")
def h_summed_with_epsilon(seed: int) -> Case:
    return Case(
        seed=seed, model=Corrected(), data=data.surface(seed), optimizer=sgd(1e-4, nesterov=True), max_steps=900, batch_size=64,
        loss=lambda output, target: (output - target).square().sum(), metric="r2",
    )  # fmt: skip
