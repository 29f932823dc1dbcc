"""Held-out healthy cases: autoencoders, flows, adversaries, diffusion."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import Split, bars, digits, manifold, rings, rng, split
from tests.zoo.nets import adam, mlp
from tests.zoo.opened.healthy_c2 import noisy_digits


def itself(seed: int, flat: bool = True) -> Split:
    """Digits, which are also the target."""
    x = torch.cat([part.tensors[0] for part in digits(seed, flat)])
    return split(x, x)


# ------------------------------------------------------------------------------------------ autoencoders
class Variational(nn.Module):
    """Reconstruction, mean and log variance; a sample of the code while training."""

    def __init__(self, dim: int, width: int, code: int) -> None:
        super().__init__()
        self.encode = mlp([dim, width, 2 * code], act=nn.ELU)
        self.decode = mlp([code, width, dim], act=nn.ELU)
        self.log_sigma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encode(x).chunk(2, 1)
        z = mean + (log_var / 2).exp() * torch.randn_like(mean) if self.training else mean
        return self.decode(z), mean, log_var


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean()


def bernoulli_bound(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    logits, *code = output
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(target) + divergence(*code)


@healthy(
    "loss_reduction", "class_imbalance", "unnormalised_input", source="Kingma 2014: VAE of binary pictures, sums over pixels"
)
def h_bars_vae_uc(seed: int) -> Case:
    model = Variational(64, 96, 16)
    del model.log_sigma
    return Case(
        seed=seed, model=model, data=bars(seed, 1500), loss=bernoulli_bound, metric="first_binary_accuracy",
        optimizer=adam(2e-3), max_steps=350,
    )  # fmt: skip


class Warmed(Supervised):
    """The weight of the divergence rises from 0 to 1 in the first half; the width of the likelihood is learnt."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        x, y = batch
        guess, mean, log_var = self(x)
        log_sigma, beta = self.model.log_sigma, min(1.0, self.global_step / 150)
        likely = (0.5 * ((guess - y) / log_sigma.exp()).square() + log_sigma).sum(1).mean()
        return (likely + beta * divergence(mean, log_var)) / y.shape[1]


@healthy("wrong_loss", "loss_sign", source="Bowman 2016 and Rybkin 2021: KL annealing, learnt sigma; the loss falls below 0")
def h_annealed_vae_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=Variational(20, 64, 4), data=manifold(seed), loss=lambda output, y: F.mse_loss(output[0], y),
        metric="mean_r2", module=Warmed, optimizer=adam(2e-3), max_steps=300,
    )  # fmt: skip


class Coded(nn.Module):
    """Each of 16 places gets the nearest entry of a codebook; gradients pass straight through."""

    def __init__(self, entries: int = 24, dim: int = 8) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(1, 24, 4, stride=2, padding=1), nn.SiLU(), nn.Conv2d(24, dim, 1))
        self.decode = nn.Sequential(nn.Conv2d(dim, 24, 3, padding=1), nn.SiLU(), nn.ConvTranspose2d(24, 1, 4, 2, 1))
        self.book = nn.Embedding(entries, dim)
        nn.init.normal_(self.book.weight, std=0.3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encode(x).movedim(1, 3)
        q = self.book(torch.cdist(z.detach().flatten(0, 2), self.book.weight.detach()).argmin(1)).view(z.shape)
        return self.decode((z + (q - z).detach()).movedim(3, 1)), z, q


def coded_loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    guess, z, q = output
    return F.mse_loss(guess, target) + F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())


@healthy("detached_subgraph", "no_update", source="van den Oord 2017: VQ-VAE, straight-through gradients")
def h_codebook_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=Coded(), data=itself(seed, flat=False), loss=coded_loss, metric="mean_r2", optimizer=adam(3e-3),
        max_steps=300,
    )  # fmt: skip


class Tied(nn.Module):
    """One weight to encode and, transposed, to decode."""

    def __init__(self, dim: int = 64, code: int = 32) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(code, dim)))
        self.inner, self.outer = nn.Parameter(torch.zeros(code)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.weight, self.inner).tanh(), self.weight.T, self.outer)


@healthy("saturation", source="Vincent 2010: denoising autoencoder with tied weights")
def h_tied_denoiser_uc(seed: int) -> Case:
    x, y = (torch.cat([part.tensors[i] for part in noisy_digits(seed, 0.5)[0]]).flatten(1) for i in (0, 1))
    return Case(seed=seed, model=Tied(), data=split(x, y), loss=F.mse_loss, metric="r2", optimizer=adam(3e-3), max_steps=250)


class Largest(nn.Module):
    """Only the `k` largest activations of each sample pass."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        kept = x.topk(self.k, 1)
        return torch.zeros_like(x).scatter(1, kept.indices, kept.values)


@healthy("dead_relu", source="Makhzani 2014: k-sparse autoencoder, most of the code is zero")
def h_largest_codes_uc(seed: int) -> Case:
    model = nn.Sequential(nn.Linear(64, 80), Largest(14), nn.Linear(80, 64))
    return Case(seed=seed, model=model, data=itself(seed), loss=F.mse_loss, metric="r2", optimizer=adam(2e-3), max_steps=300)


@healthy("missing_activation", source="a convolutional autoencoder with a narrow code, as in any tutorial")
def h_digit_autoencoder_uc(seed: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.LeakyReLU(0.1),
        nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.LeakyReLU(0.1), nn.Flatten(),
        nn.Linear(96, 16), nn.Linear(16, 96), nn.Unflatten(1, (24, 2, 2)), nn.LeakyReLU(0.1),
        nn.ConvTranspose2d(24, 16, 4, 2, 1), nn.LeakyReLU(0.1), nn.ConvTranspose2d(16, 1, 4, 2, 1),
    )  # fmt: skip
    return Case(
        seed=seed, model=model, data=itself(seed, flat=False), loss=F.mse_loss, metric="r2", optimizer=adam(3e-3), max_steps=300
    )


# ------------------------------------------------------------------------------------------ likelihoods
class Masked(nn.Linear):
    """A linear layer whose weights are zero where the mask is."""

    def __init__(self, before: Tensor, after: Tensor, strict: bool) -> None:
        super().__init__(len(before), len(after))
        allowed = after[:, None] > before[None] if strict else after[:, None] >= before[None]
        self.register_buffer("mask", allowed.float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


@healthy(
    "class_imbalance", "no_update", source="Germain 2015: MADE, each pixel from those before it; masked weights never move"
)
def h_masked_pixels_uc(seed: int) -> Case:
    place, hidden = torch.arange(64), torch.arange(192) % 63
    model = nn.Sequential(
        Masked(place, hidden, False), nn.SiLU(), Masked(hidden, hidden, False), nn.SiLU(), Masked(hidden, place, True)
    )
    return Case(
        seed=seed, model=model, data=bars(seed, 1800), loss=F.binary_cross_entropy_with_logits, metric="binary_accuracy",
        optimizer=adam(4e-3), max_steps=350,
    )  # fmt: skip


class ClassFlow(nn.Module):
    """The log density of a point under each class: affine couplings that know the class and start as the identity."""

    def __init__(self, classes: int = 3, depth: int = 6) -> None:
        super().__init__()
        self.classes = classes
        self.steps = nn.ModuleList(mlp([1 + classes, 48, 48, 2], act=nn.SiLU) for _ in range(depth))
        for step in self.steps:
            nn.init.zeros_(step[-1].weight)
            nn.init.zeros_(step[-1].bias)

    def density(self, x: Tensor, kind: Tensor) -> Tensor:
        a, b = x.split(1, 1)
        log_volume = torch.zeros(len(x))
        for step in self.steps:
            scale, shift = step(torch.cat([a, kind], 1)).split(1, 1)
            scale = 2 * (scale / 2).tanh()
            a, b, log_volume = b * scale.exp() + shift, a, log_volume + scale[:, 0]
        return log_volume - 0.5 * (a.square() + b.square())[:, 0] - math.log(2 * math.pi)

    def forward(self, x: Tensor) -> Tensor:
        kinds = torch.eye(self.classes)
        return torch.stack([self.density(x, k.expand(len(x), -1)) for k in kinds], 1)


@healthy("init_symmetry", "wrong_loss", "loss_sign", source="Dinh 2017: RealNVP for each class, Bayes' rule to classify")
def h_class_flow_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=ClassFlow(), data=rings(seed, 2400), loss=F.nll_loss, metric="accuracy", optimizer=adam(3e-3),
        batch_size=64, max_steps=300, trainer={"gradient_clip_val": 5.0},
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ adversaries
def islands(seed: int, n: int = 1536, kinds: int = 5) -> Split:
    """Points around the corners of a polygon, and which corner."""
    g = rng(741, seed)
    y = torch.randint(kinds, (n,), generator=g)
    angle = 2 * math.pi * y / kinds
    return split(1.4 * torch.stack([angle.cos(), angle.sin()], 1) + 0.15 * torch.randn(n, 2, generator=g), y)


class Rivals(nn.Module):
    """A generator of points of a given kind, and a judge of points and kinds."""

    def __init__(self, kinds: int = 5, noise: int = 4) -> None:
        super().__init__()
        self.kinds, self.noise = kinds, noise
        self.generator = mlp([noise + kinds, 48, 48, 2], act=lambda: nn.LeakyReLU(0.2))
        self.judge = mlp([2 + kinds, 48, 48, 1], act=lambda: nn.LeakyReLU(0.2))

    def forward(self, y: Tensor) -> Tensor:
        return self.generator(torch.cat([torch.randn(len(y), self.noise), F.one_hot(y, self.kinds)], 1))

    def verdict(self, x: Tensor, y: Tensor) -> Tensor:
        return self.judge(torch.cat([x, F.one_hot(y, self.kinds)], 1))


class Adversarial(Supervised):
    """Non-saturating adversaries with an optimiser each; validated by the corner that a made point is nearest to."""

    automatic_optimization = False

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        x, y = case.data[0].tensors  # type: ignore[attr-defined]
        self.register_buffer("corners", torch.stack([x[y == k].mean(0) for k in range(case.model.kinds)]))

    def judge_loss(self, x: Tensor, y: Tensor) -> Tensor:
        m = self.model
        return (F.softplus(-m.verdict(x, y)) + F.softplus(m.verdict(m(y).detach(), y))).mean()

    def maker_loss(self, y: Tensor) -> Tensor:
        return F.softplus(-self.model.verdict(self.model(y), y)).mean()

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        maker, judge = self.optimizers()
        for optimizer, loss in ((judge, lambda: self.judge_loss(x, y)), (maker, lambda: self.maker_loss(y))):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss())
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        score = -torch.cdist(self(batch[1]), self.corners)
        self.log("val_metric", self.metric.score(score, batch[1]))

    def configure_optimizers(self) -> Any:
        return [self.make_optimizer(part) for part in (self.model.generator, self.model.judge)]


@healthy("no_update", "detached_subgraph", "frozen_by_accident", source="Mirza 2014: conditional GAN, manual optimisation")
def h_class_adversaries_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=Rivals(), data=islands(seed), loss=F.cross_entropy, metric="accuracy", module=Adversarial,
        optimizer=adam(2e-3, betas=(0.5, 0.99)), batch_size=64, max_steps=600,
    )  # fmt: skip
