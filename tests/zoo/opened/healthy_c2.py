"""Held-out healthy cases: answers for each pixel, places, boxes and counts in pictures."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import Split, digits, rng, split, standardise
from tests.zoo.more_data import shapes
from tests.zoo.nets import UNet, adam, adamw, conv_block, he, init_weights, mlp
from tests.zoo.opened.healthy_c1 import warm_cosine


def grid(size: int) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel."""
    return torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")


def landmarks(seed: int, n: int = 1000, size: int = 12) -> tuple[Tensor, Tensor]:
    """Noisy pictures with a cross and a ring, and the row and column of each, `[n, 2, 2]`."""
    g = rng(701, seed)
    at = torch.randint(1, size - 1, (n, 2, 2), generator=g)
    row, column = grid(size)
    down, right = (row - at[..., :1, None]).abs(), (column - at[..., 1:, None]).abs()
    near = torch.maximum(down, right) <= 1
    cross, ring = near[:, 0] & (torch.minimum(down, right)[:, 0] == 0), near[:, 1] & ((down + right)[:, 1] > 0)
    x = 2.0 * (cross | ring)[:, None] + 0.3 * torch.randn(n, 1, size, size, generator=g)
    return standardise(x, None), at


def bumps(at: Tensor, size: int, width: float) -> Tensor:
    """A Gaussian of height 1 on each place, `[n, k, size, size]`."""
    row, column = grid(size)
    return (-((row - at[..., :1, None]).square() + (column - at[..., 1:, None]).square()) / (2 * width**2)).exp()


def trunk(width: int = 16) -> list[nn.Module]:
    return [*conv_block(1, width, nn.BatchNorm2d, nn.ReLU, False), *conv_block(width, width, nn.BatchNorm2d, nn.ReLU, False)]


@healthy("class_imbalance", "unnormalised_target", source="Xiao 2018: keypoints as heat maps that are nearly all zero")
def h_heat_maps_uc(seed: int) -> Case:
    x, at = landmarks(seed)
    model = nn.Sequential(*trunk(), nn.Conv2d(16, 2, 1))
    return Case(
        seed=seed, model=model, data=split(x, bumps(at, 12, 1.2)), loss=lambda a, b: 10 * F.mse_loss(a, b), metric="r2",
        optimizer=adam(4e-3), max_steps=220,
    )  # fmt: skip


class SoftArgmax(nn.Module):
    """The mean place under a softmax over all pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*trunk(), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        heat = self.body(x).flatten(2).softmax(2).unflatten(2, x.shape[2:])
        line = torch.linspace(-1, 1, x.shape[2])
        return torch.cat([(heat.sum(3) * line).sum(2), (heat.sum(2) * line).sum(2)], 1)


@healthy("wrong_last_activation", "saturation", source="Nibali 2018: coordinates from a spatial softmax, smooth L1 loss")
def h_soft_argmax_uc(seed: int) -> Case:
    x, at = landmarks(seed)
    target = (at.float() / 5.5 - 1).transpose(1, 2).flatten(1)
    return Case(
        seed=seed, model=SoftArgmax(), data=split(x, target), loss=F.smooth_l1_loss, metric="r2", optimizer=adam(4e-3),
        max_steps=250,
    )  # fmt: skip


def foggy(seed: int, n: int = 600, size: int = 12) -> Split:
    """Surfaces in fog: what is far is pale; the target is the logarithm of the distance."""
    g = rng(702, seed)
    coarse = torch.randn(n, 1, 3, 3, generator=g)
    log_depth = 0.4 * F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    albedo = 0.8 + 0.4 * torch.rand(n, 1, 1, 1, generator=g)
    x = albedo * (-log_depth.exp()).exp() + 0.01 * torch.randn(n, 1, size, size, generator=g)
    return split(standardise(x, None), log_depth)


def scale_invariant(output: Tensor, target: Tensor) -> Tensor:
    error = output - target
    return error.square().mean() - 0.5 * error.mean((1, 2, 3)).square().mean()


@healthy("wrong_loss", source="Eigen 2014: depth from one picture with the scale-invariant logarithmic loss")
def h_foggy_depth_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=UNet(), data=foggy(seed), loss=scale_invariant, metric="r2", optimizer=adam(3e-3), max_steps=200
    )


class Enlarge(nn.Module):
    """What a network adds to the bilinear enlargement; its last layer starts at zero."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = init_weights(
            nn.Sequential(*conv_block(3, width, None, nn.ReLU), *conv_block(width, width, None, nn.ReLU)), he
        )
        self.last = nn.Conv2d(width, 12, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        big = F.interpolate(x, scale_factor=2, mode="bilinear")
        return big + F.pixel_shuffle(self.last(self.body(x)), 2)


@healthy(
    "init_symmetry", "init_vanishing", "unnormalised_input", source="Shi 2016, Lim 2017: pixel shuffle on pictures in [0, 1]"
)
def h_enlarged_shapes_uc(seed: int) -> Case:
    big = torch.cat([part.tensors[0] for part in shapes(seed, 600)])
    return Case(
        seed=seed, model=Enlarge(), data=split(F.avg_pool2d(big, 2), big), metric="r2",
        loss=lambda a, b: ((a - b).square() + 1e-6).sqrt().mean(), optimizer=adam(2e-3), max_steps=150,
    )  # fmt: skip


def noisy_digits(seed: int, noise: float = 0.6) -> tuple[Split, Split]:
    """Digits under noise and without; the same with targets under noise of their own to train on."""
    g = rng(703, seed)
    x = torch.cat([part.tensors[0] for part in digits(seed, flat=False)])
    seen, again = (x + noise * torch.randn(x.shape, generator=g) for _ in range(2))
    clean, both = split(seen, x), split(seen, again)
    return clean, (both[0], clean[1])


class NoiseTaker(nn.Module):
    """Estimates the noise and takes it away."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        middle = [layer for _ in range(2) for layer in conv_block(width, width, nn.BatchNorm2d, nn.ReLU, False)]
        self.noise = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), *middle, nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.noise(x)


@healthy(source="Zhang 2017: DnCNN, an everyday denoiser that learns the noise")
def h_residual_denoiser_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=NoiseTaker(), data=noisy_digits(seed)[0], loss=F.mse_loss, metric="r2", optimizer=adam(2e-3),
        max_steps=200,
    )  # fmt: skip


@healthy("train_val_mismatch", "labels_broken", source="Lehtinen 2018: Noise2Noise, no clean picture to train on")
def h_noise_from_noise_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=UNet(), data=noisy_digits(seed)[1], loss=F.mse_loss, metric="r2", optimizer=adam(2e-3), max_steps=220
    )


def scenes(seed: int, n: int = 500, size: int = 14) -> Split:
    """A disc and a square in noise; the class of each pixel, -100 along the outlines."""
    g = rng(704, seed)
    row, column = grid(size)
    centre = 3 + (size - 7) * torch.rand(n, 2, 2, 1, 1, generator=g)
    down, right = (row - centre[:, :, 0]).abs(), (column - centre[:, :, 1]).abs()
    away = torch.stack([(down.square() + right.square()).sqrt()[:, 0], torch.maximum(down, right)[:, 1]], 1)
    y = (away[:, 0] < 3.0).long()
    y = torch.where(away[:, 1] < 2.6, 2, y)
    x = torch.tensor([0.0, 1.2, -1.2])[y] + 0.5 * torch.randn(n, size, size, generator=g)
    edge = ((away[:, 0] - 3.0).abs() < 0.4) | ((away[:, 1] - 2.6).abs() < 0.4)
    return split(standardise(x, None)[:, None], y.masked_fill(edge, -100))


@healthy("class_imbalance", "labels_broken", source="PASCAL VOC: void pixels along outlines; dilated convolutions")
def h_void_outlines_uc(seed: int) -> Case:
    layers: list[nn.Module] = []
    for a, dilation in ((1, 1), (16, 2), (16, 4)):
        layers += [nn.Conv2d(a, 16, 3, padding=dilation, dilation=dilation, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return Case(
        seed=seed, model=nn.Sequential(*layers, nn.Conv2d(16, 3, 1)), data=scenes(seed), loss=F.cross_entropy,
        metric="accuracy", optimizer=adamw(4e-3), scheduler=warm_cosine(10, 160), max_steps=160,
    )  # fmt: skip


class Centres(Supervised):
    """Trains heat and offsets; the hottest cell is the answer."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        x, heat, offset, cell = batch
        score, shift = self(x).split([1, 2], 1)
        chance, peak = score.sigmoid().clamp(1e-4, 1 - 1e-4), heat == 1
        pull = torch.where(peak, (1 - chance).square() * chance.log(), (1 - heat) ** 4 * chance.square() * (1 - chance).log())
        there = shift.flatten(2)[torch.arange(len(x)), :, cell]
        loss = -pull.sum() / len(x) + F.l1_loss(there, offset)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        output = self(batch[0])[:, 0].flatten(1)
        self.log("val_loss", self.loss_fn(output, batch[-1]))
        self.log("val_metric", self.metric.score(output, batch[-1]))


@healthy(
    "bad_bias_init", "class_imbalance", "loss_reduction", source="Zhou 2019: CenterNet, focal loss with a prior in the bias"
)
def h_centre_points_uc(seed: int) -> Case:
    g = rng(705, seed)
    at, offset = torch.randint(12, (1000, 2, 2), generator=g), torch.rand(1000, 2, 2, generator=g) - 0.5
    bright, dark = bumps(at + offset, 12, 0.9).split(1, 1)
    x = standardise(2 * bright - 2 * dark + 0.15 * torch.randn(bright.shape, generator=g), None)
    model = nn.Sequential(*trunk(), nn.Conv2d(16, 3, 1))
    nn.init.zeros_(model[-1].bias)
    nn.init.constant_(model[-1].bias[:1], -2.19)
    data = split(x, bumps(at[:, :1], 12, 0.8), offset[:, 0], at[:, 0, 0] * 12 + at[:, 0, 1])
    return Case(
        seed=seed, model=model, data=data, loss=F.cross_entropy, metric="accuracy", module=Centres, optimizer=adam(4e-3),
        max_steps=200,
    )  # fmt: skip


def parcels(seed: int, n: int = 1200, size: int = 14) -> tuple[Tensor, Tensor, Tensor]:
    """A full, hollow or striped rectangle in noise; its box (centre and extent in [0, 1]) and its kind."""
    g = rng(706, seed)
    extent = torch.randint(5, 10, (n, 2), generator=g)
    corner = (torch.rand(n, 2, generator=g) * (size + 1 - extent)).long()
    row, column = grid(size)
    down, right = row - corner[:, :1, None], column - corner[:, 1:, None]
    inside = (down >= 0) & (right >= 0) & (down < extent[:, :1, None]) & (right < extent[:, 1:, None])
    rim = inside & ((down == 0) | (right == 0) | (down == extent[:, :1, None] - 1) | (right == extent[:, 1:, None] - 1))
    kind = torch.randint(3, (n,), generator=g)
    drawn = torch.stack([inside, rim, rim | (inside & (down % 2 == 0))])[kind, torch.arange(n)].float()
    x = standardise(drawn + 0.25 * torch.randn(n, size, size, generator=g), None)[:, None]
    return x, torch.cat([corner + extent / 2, extent], 1) / size, kind


def backbone() -> list[nn.Module]:
    return [*trunk(), nn.MaxPool2d(2), *conv_block(16, 24, nn.BatchNorm2d, nn.ReLU, False), nn.Flatten()]


def box_loss(output: Tensor, target: Tensor) -> Tensor:
    """Generalised overlap of the boxes, and the distance of their numbers."""
    (a, b), (c, d) = ((t[:, :2] - t[:, 2:] / 2, t[:, :2] + t[:, 2:] / 2) for t in (output, target))
    common = (torch.minimum(b, d) - torch.maximum(a, c)).clamp_min(0).prod(1)
    union = output[:, 2:].prod(1) + target[:, 2:].prod(1) - common
    hull = (torch.maximum(b, d) - torch.minimum(a, c)).prod(1)
    return (1 - common / union + (hull - union) / hull).mean() + 5 * F.l1_loss(output, target)


@healthy("wrong_last_activation", source="Rezatofighi 2019, Carion 2020: a box from sigmoids, GIoU and L1 loss")
def h_one_box_uc(seed: int) -> Case:
    x, box, _ = parcels(seed)
    model = nn.Sequential(*backbone(), nn.Linear(24 * 49, 48), nn.LeakyReLU(0.1), nn.Linear(48, 4), nn.Sigmoid())
    return Case(
        seed=seed, model=model, data=split(x, box), loss=box_loss, metric="each_r2", optimizer=adam(1.5e-3), max_steps=220
    )


class BoxAndKind(Supervised):
    """A weighted sum of two losses; the kind is what counts."""

    def parts(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        x, box, kind = batch
        output = self(x)
        return output[:, 4:], F.cross_entropy(output[:, 4:], kind) + 5 * F.smooth_l1_loss(output[:, :4], box)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        return self.parts(batch)[1]

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        score, loss = self.parts(batch)
        self.log("val_loss", loss)
        self.log("val_metric", self.metric.score(score, batch[-1]))


@healthy(source="Girshick 2015: one trunk for the class and the box, an everyday detector of one thing")
def h_box_and_kind_uc(seed: int) -> Case:
    x, box, kind = parcels(seed)
    model = nn.Sequential(*backbone(), mlp([24 * 49, 48, 7], act=nn.SiLU))
    return Case(
        seed=seed, model=model, data=split(x, standardise(box), kind), loss=F.cross_entropy, metric="accuracy",
        module=BoxAndKind, optimizer=adam(2e-3), max_steps=200,
    )  # fmt: skip
