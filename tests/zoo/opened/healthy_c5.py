"""Held-out healthy cases: diffusion, flow matching, a translator with a critic, contractive and energy models."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import manifold, masks
from tests.zoo.nets import UNet, adam, mlp
from tests.zoo.opened.healthy_c2 import noisy_digits
from tests.zoo.opened.healthy_c4 import islands


class Timed(nn.Module):
    """A network of a point, a time (as waves) and perhaps a kind."""

    def __init__(self, dim: int = 2, kinds: int = 0, width: int = 64) -> None:
        super().__init__()
        self.body = mlp([dim + 8 + kinds, width, width, width, dim], act=nn.SiLU)
        self.register_buffer("rates", math.pi * 2.0 ** torch.arange(4))

    def forward(self, x: Tensor, t: Tensor, *kind: Tensor) -> Tensor:
        phase = t[:, None] * self.rates
        return self.body(torch.cat([x, phase.sin(), phase.cos(), *kind], 1))


class Diffusion(Supervised):
    """Predicts the noise that was added at a random time."""

    def noised(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        angle = math.pi / 2 * t[:, None]
        return angle.cos() * x + angle.sin() * noise

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        x = batch[0]
        t, noise = torch.rand(len(x)), torch.randn_like(x)
        loss = self.loss_fn(self.model(self.noised(x, t, noise), t), noise)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, g = batch[0], torch.Generator().manual_seed(batch_idx)
        t, noise = torch.rand(len(x), generator=g), torch.randn(x.shape, generator=g)
        guess = self.model(self.noised(x, t, noise), t)
        self.log_dict({"val_loss": self.loss_fn(guess, noise), "val_metric": self.metric.score(guess, noise)})


@healthy("wrong_loss", "labels_broken", source="Ho 2020, Nichol 2021: noise prediction; the loss levels off well above 0")
def h_noise_predictor_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=Timed(20, width=96), data=manifold(seed, 3000), loss=F.mse_loss, metric="r2", module=Diffusion,
        optimizer=adam(2e-3), batch_size=128, max_steps=350,
    )  # fmt: skip


class Paths(Supervised):
    """Straight paths from noise to data; validated by where twelve Euler steps lead."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        x, y = batch
        t, noise = torch.rand(len(x)), torch.randn_like(x)
        speed = self.model(noise.lerp(x, t[:, None]), t, F.one_hot(y, 5))
        loss = self.loss_fn(speed, x - noise)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        y, kind = batch[1], F.one_hot(batch[1], 5)
        x = torch.randn(len(y), 2)
        for i in range(12):
            x = x + self.model(x, torch.full((len(y),), i / 12), kind) / 12
        angle = 2 * math.pi * torch.arange(5) / 5
        corners = 1.4 * torch.stack([angle.cos(), angle.sin()], 1)
        self.log("val_metric", self.metric.score(-torch.cdist(x, corners), y))


@healthy("wrong_loss", source="Lipman 2023: flow matching, most of the loss cannot be explained")
def h_straight_paths_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=Timed(kinds=5), data=islands(seed), loss=F.mse_loss, metric="accuracy", module=Paths,
        optimizer=adam(3e-3), batch_size=64, max_steps=250,
    )  # fmt: skip


class Translator(nn.Module):
    """A U-Net and a critic of patches with spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = UNet()
        layers: list[nn.Module] = []
        for a, b, stride in ((2, 16, 1), (16, 24, 2), (24, 1, 1)):
            layers += [nn.utils.parametrizations.spectral_norm(nn.Conv2d(a, b, 3, stride, 1)), nn.LeakyReLU(0.2)]
        self.critic = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.maker(x)


class Translated(Supervised):
    """L1 and a little of what the critic thinks; hinge loss for the critic."""

    automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        first, second = self.optimizers()
        made, critic = self(x), self.model.critic
        first.zero_grad()
        self.manual_backward(F.l1_loss(made, y) - 0.01 * critic(torch.cat([x, made], 1)).mean())
        first.step()
        second.zero_grad()
        real, fake = (critic(torch.cat([x, p], 1)) for p in (y, made.detach()))
        self.manual_backward((F.relu(1 - real) + F.relu(1 + fake)).mean())
        second.step()

    def configure_optimizers(self) -> Any:
        return [self.make_optimizer(part) for part in (self.model.maker, self.model.critic)]


@healthy(
    "gradients_not_zeroed", "loss_sign", "detached_subgraph", source="Isola 2017: pix2pix, the critic's gradients cleared late"
)
def h_translated_digits_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=Translator(), data=noisy_digits(seed)[0], loss=F.l1_loss, metric="r2", module=Translated,
        optimizer=adam(2e-3, betas=(0.5, 0.99)), max_steps=400,
    )  # fmt: skip


@healthy(source="Ronneberger 2015: a U-Net with cross entropy and Dice, an everyday segmenter")
def h_dice_and_entropy_uc(seed: int) -> Case:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        chance = output.sigmoid()
        dice = 1 - (2 * (chance * target).sum((1, 2, 3)) + 1) / ((chance + target).sum((1, 2, 3)) + 1)
        return F.binary_cross_entropy_with_logits(output, target) + dice.mean()

    return Case(
        seed=seed, model=UNet(), data=masks(seed, 600), loss=loss, metric="jaccard", optimizer=adam(3e-3), max_steps=150
    )
