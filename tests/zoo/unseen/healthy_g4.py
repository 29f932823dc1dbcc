"""Held-out healthy cases: maps, satellites, sky, machines."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import Split, rng, split, standardise
from tests.zoo.metrics import r2
from tests.zoo.nets import BCE, CE, MSE, adam, adamw, mlp, sgd
from tests.zoo.unseen.healthy_g1 import conv_bn, per_step, warmed


# ------------------------------------------------------------------------------------------ earth
def soils(seed: int, n: int = 2400) -> Split:
    """Coordinates in the unit square; a wavy property of the soil, standardised."""
    g = rng(7201, seed)
    x, wave = torch.rand(n, 2, generator=g), 9 * torch.randn(5, 2, generator=g)
    y = (x @ wave.T + 6.3 * torch.rand(5, generator=g)).sin().sum(1, keepdim=True)
    return split(x, standardise(y + 0.15 * torch.randn(n, 1, generator=g)))


class Fourier(nn.Module):
    """Sines and cosines of fixed random frequencies (a buffer), then an MLP."""

    def __init__(self, scale: float = 6.0, waves: int = 24) -> None:
        super().__init__()
        self.register_buffer("waves", scale * torch.randn(2, waves))
        self.top = mlp([2 * waves, 48, 1])

    def forward(self, x: Tensor) -> Tensor:
        angle = x @ self.waves
        return self.top(torch.cat([angle.sin(), angle.cos()], 1))


def fields_from_space(seed: int, n: int = 1400, size: int = 10, bands: int = 4, kinds: int = 5) -> Split:
    """Four bands `[n, 4, 10, 10]`, each standardised: five land covers differ in spectrum and in texture."""
    g = rng(7202, seed)
    y = torch.randint(kinds, (n,), generator=g)
    spectrum = 0.5 * torch.randn(kinds, bands, generator=g)[y][..., None, None]
    row = torch.arange(size)[:, None] * (0.5 + 0.5 * y[:, None, None]) + 6.3 * torch.rand(n, 1, 1, generator=g)
    haze = 0.4 * torch.randn(n, 1, 1, 1, generator=g)
    x = spectrum + haze + 0.7 * row.sin()[:, None] + 0.8 * torch.randn(n, bands, size, size, generator=g)
    return split((x - x.mean((0, 2, 3), True)) / x.std((0, 2, 3), keepdim=True), y)


def scenes(seed: int, n: int = 600, size: int = 12) -> Split:
    """Three bands of water, field and forest in patches; the cover of each pixel, -100 under cloud."""
    g = rng(7203, seed)
    y = F.interpolate(torch.randn(n, 3, 4, 4, generator=g), (size, size), mode="bilinear").argmax(1)
    ink = torch.tensor([[1.0, -1.0, 0.0], [-0.5, 1.0, -0.5], [0.0, 0.2, 1.2]])
    x = ink[y].permute(0, 3, 1, 2) + 0.9 * torch.randn(n, 3, size, size, generator=g)
    cloud = F.interpolate(torch.randn(n, 1, 3, 3, generator=g), (size, size)) > 1.3
    return split(standardise(x.masked_fill(cloud, 3.0), None), y.masked_fill(cloud[:, 0], -100))


def separable(a: int, b: int) -> list[nn.Module]:
    return [nn.Conv2d(a, a, 3, padding=1, groups=a, bias=False), nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU6()]


def seasons(seed: int, n: int = 1500, length: int = 24) -> Split:
    """Greenness through a year, two channels `[n, 2, 24]`: four crops differ in when they rise and how often."""
    g = rng(7204, seed)
    y, at = torch.randint(4, (n,), generator=g), torch.arange(length)
    peak = torch.tensor([7.0, 12.0, 16.0, 6.0])[y][:, None] + torch.randn(n, 1, generator=g)
    wide = 2 + 0.5 * torch.rand(n, 1, generator=g)
    green = (-((at - peak) / wide).square()).exp() + (y == 3)[:, None] * (-((at - peak - 10) / wide).square()).exp()
    x = torch.stack([green, 0.4 - 0.7 * green.roll(1, 1)], 1) + 0.25 * torch.randn(n, 2, length, generator=g)
    return split(standardise(x, None), y)


class Attentive(nn.Module):
    """A lightweight temporal attention encoder: one learnt query per head over the dates."""

    def __init__(self, features: int = 2, width: int = 24, heads: int = 4, length: int = 24, classes: int = 4) -> None:
        super().__init__()
        at = torch.arange(length)[:, None] / 1000 ** (torch.arange(0, width, 2) / width)
        self.register_buffer("dates", torch.cat([at.sin(), at.cos()], 1))
        self.stem, self.keys = nn.Linear(features, width), nn.Linear(width, width)
        self.query = nn.Parameter(torch.randn(heads, width // heads) / (width // heads) ** 0.5)
        self.head = mlp([width, 32, classes], nn.GELU)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.transpose(1, 2)) + self.dates
        keys, values = (t.unflatten(2, (self.heads, -1)) for t in (self.keys(h), h))
        weight = (keys * self.query).sum(3).softmax(1)
        return self.head((weight[..., None] * values).sum(1).flatten(1))


@healthy("frozen_by_accident", "unnormalised_input", source="soil map from coordinates: fixed random Fourier features")
def h_soil_fourier(seed: int) -> Case:
    return Case(seed=seed, model=Fourier(), data=soils(seed), optimizer=adam(4e-3), batch_size=64, max_steps=300, **MSE)


@healthy(source="EuroSAT-like land cover: convolutions with batch norm, SGD with Nesterov momentum, steps, weight decay")
def h_land_cover(seed: int) -> Case:
    model = nn.Sequential(*conv_bn(4, 12), *conv_bn(12, 24, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))
    steps = per_step(lambda o: MultiStepLR(o, [100, 160], 0.2))
    return Case(
        seed=seed, model=model, data=fields_from_space(seed), optimizer=sgd(0.05, nesterov=True, weight_decay=5e-4),
        scheduler=steps, max_steps=200, **CE,
    )  # fmt: skip


@healthy(
    "labels_broken",
    "missing_activation",
    source="land cover per pixel, clouds ignored: depthwise separable, ReLU6",
)
def h_scene_separable(seed: int) -> Case:
    model = nn.Sequential(*conv_bn(3, 12), *separable(12, 24), *separable(24, 24), nn.Conv2d(24, 3, 1))
    return Case(seed=seed, model=model, data=scenes(seed), optimizer=adam(5e-3), batch_size=16, max_steps=150, **CE)


@healthy("frozen_by_accident", source="crops from a year of greenness (Garnot 2020): master query attention over dates")
def h_crop_attention(seed: int) -> Case:
    model = Attentive()
    return Case(
        seed=seed, model=model, data=seasons(seed), optimizer=adamw(3e-3), scheduler=warmed(20, 200), max_steps=200, **CE
    )


# ------------------------------------------------------------------------------------------ sky
def redshifts(seed: int, n: int = 2400) -> Split:
    """Five colours, standardised, of a galaxy; the standardised log of one plus its redshift."""
    g = rng(7205, seed)
    z = 1.5 * torch.rand(n, 1, generator=g).sqrt()
    age, band = torch.rand(n, 1, generator=g), torch.arange(5)
    x = (1.2 * z * (band + 1) / 2 + 0.8 * age).tanh() * (1 + 0.4 * band) + 0.3 * (3 * z - band).cos()
    return split(standardise(x + 0.05 * torch.randn(n, 5, generator=g)), standardise((1 + z).log()))


class Mixture(nn.Module):
    """A mixture density network of three normal distributions: logits, means, log widths."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp([5, 48, 48, 9], nn.GELU)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.body(x).chunk(3, 1)  # type: ignore[return-value]


def mixture_nll(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    logits, mean, width = output
    each = -0.5 * ((target - mean) / width.exp()).square() - width - 0.5 * math.log(2 * math.pi)
    return -(logits.log_softmax(1) + each).logsumexp(1).mean()


class MixtureModule(Supervised):
    """Judged by the mean of the mixture."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, target = batch
        output = self(x)
        self.log("val_loss", self.loss_fn(output, target), batch_size=len(x))
        mean = (output[0].softmax(1) * output[1]).sum(1, keepdim=True)
        self.log("val_metric", r2(mean, target), batch_size=len(x))


def galaxies(seed: int, n: int = 1400, size: int = 14) -> Split:
    """Blurred pictures of smooth, barred and ringed galaxies; the share of votes for each, `[n, 3]`."""
    g = rng(7206, seed)
    weight = (2.5 * torch.randn(n, 3, generator=g)).softmax(1)
    at, turn = torch.arange(size) - size / 2 + 0.5, math.pi * torch.rand(n, 1, 1, generator=g)
    along = turn.cos() * at[:, None] + turn.sin() * at
    far = (at[:, None].square() + at.square()).sqrt().expand(n, -1, -1)
    across = far.square() - along.square()
    parts = torch.stack([(-far / 2).exp(), (-across / 2 - along.square() / 30).exp(), (-(far - 5).square() / 2).exp()], 1)
    x = (weight[..., None, None] * parts).sum(1) + 0.06 * torch.randn(n, size, size, generator=g)
    votes = torch.stack([torch.multinomial(w, 20, True, generator=g).bincount(minlength=3) for w in weight]) / 20
    return split(standardise(x, None)[:, None], votes)


def transits(seed: int, n: int = 1800, length: int = 60) -> Split:
    """Folded light curves `[n, 1, 60]`, standardised each: a box-shaped dip is a planet, a V or nothing is none."""
    g = rng(7207, seed)
    y, at = torch.rand(n, generator=g) < 0.5, torch.arange(length) - 30 + torch.randn(n, 1, generator=g)
    half, depth = 4 + 4 * torch.rand(n, 1, generator=g), 1.2 + torch.rand(n, 1, generator=g)
    box, vee = (at.abs() < half).float(), 1.3 * (1 - at.abs() / half).clamp_min(0)
    none = torch.rand(n, 1, generator=g) < 0.4
    dip = torch.where(y[:, None], box, vee.masked_fill(none, 0))
    x = -depth * dip + 0.3 * torch.randn(n, length, generator=g)
    return split(((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))[:, None], y.float()[:, None])


@healthy("wrong_loss", source="photometric redshift: mixture density network, negative log likelihood, AdamW, cosine")
def h_redshift_mixture(seed: int) -> Case:
    cosine = per_step(lambda o: CosineAnnealingLR(o, 300, eta_min=1e-4))
    return Case(
        seed=seed, model=Mixture(), data=redshifts(seed), loss=mixture_nll, metric="r2", module=MixtureModule,
        optimizer=adamw(3e-3), scheduler=cosine, batch_size=64, max_steps=300, trainer={"gradient_clip_val": 5.0},
    )  # fmt: skip


@healthy("labels_broken", "wrong_loss", source="Galaxy Zoo: cross entropy against shares of votes")
def h_galaxy_votes(seed: int) -> Case:
    model = nn.Sequential(*conv_bn(1, 10), *conv_bn(10, 20, 2), *conv_bn(20, 24, 2), nn.Flatten(), nn.Linear(24 * 16, 3))
    return Case(
        seed=seed, model=model, data=galaxies(seed), loss=F.cross_entropy, metric="one_hot_accuracy", optimizer=adam(2e-3),
        max_steps=200,
    )  # fmt: skip


@healthy(source="planets in light curves (AstroNet): one-dimensional convolutions, max pooling, dense layers, Adam")
def h_transit_planets(seed: int) -> Case:
    model = nn.Sequential(
        nn.Conv1d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 16, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2),
        nn.Flatten(), nn.Linear(16 * 15, 32), nn.LeakyReLU(), nn.Dropout(0.3), nn.Linear(32, 1),
    )  # fmt: skip
    return Case(seed=seed, model=model, data=transits(seed), optimizer=adam(2e-3), max_steps=250, **BCE)
