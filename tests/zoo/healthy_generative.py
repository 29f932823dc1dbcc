"""Healthy: models of the data themselves, and outputs that are random by design."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.metrics import r2
from tests.zoo.nets import MSE, adam, adamw, mlp, sgd


class Variational(nn.Module):
    """Kingma and Welling 2014: the code is sampled, in evaluation too."""

    def __init__(self, dim: int, width: int, code: int) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp([dim, width, 2 * code]), mlp([code, width, dim])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return self.decoder(code), mean, log_variance


def evidence_bound(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    reconstruction, mean, log_variance = output
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
    return (10 * (reconstruction - target).square().sum(1) + divergence).mean()


@healthy(
    "dropout_active_in_eval",
    "loss_reduction",
    "wrong_loss",
    source="VAE: two evaluations differ, the loss sums over features and adds a divergence",
)
def h_variational(seed: int) -> Case:
    model = Variational(20, 64, 4)
    return Case(
        seed=seed,
        model=model,
        data=data.manifold(seed),
        optimizer=adam(3e-3),
        loss=evidence_bound,
        metric="mean_r2",
        max_steps=260,
    )


class BernoulliVariational(nn.Module):
    """A VAE of binary pictures whose decoder ends in logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Variational(64, 96, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, mean, log_variance = self.inner(2 * x - 1)
        return logits, mean, log_variance


def bernoulli_bound(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    logits, mean, log_variance = output
    reconstruction = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
    return (reconstruction + 0.1 * 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)).mean()


@healthy(
    "loss_reduction",
    "wrong_last_activation",
    "unnormalised_input",
    source="VAE of pictures in {0, 1}: BCE summed over pixels, as in the paper",
)
def h_variational_pictures(seed: int) -> Case:
    return Case(
        seed=seed, model=BernoulliVariational(), data=data.bars(seed), optimizer=adam(5e-3), loss=bernoulli_bound,
        metric="first_binary_accuracy", max_steps=300,
    )  # fmt: skip


class Denoiser(LightningModule):
    """Ho et al. 2020 in small: predict the noise that was mixed in at a random time."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net = mlp([3, 96, 96, 2], nn.SiLU)

    def noised(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        t = 0.4 + 0.55 * torch.rand(len(x), 1, generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        return torch.cat([(1 - t).sqrt() * x + t.sqrt() * noise, t], 1), noise

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        mixed, noise = self.noised(batch[0])
        return F.mse_loss(self.net(mixed), noise)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        mixed, noise = self.noised(batch[0], torch.Generator().manual_seed(batch_idx))
        self.log("val_metric", r2(self.net(mixed), noise), batch_size=len(noise))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


@healthy("bad_data", "lr_too_low", source="a diffusion model of spirals: the loss cannot fall far")
def h_denoiser(seed: int) -> Case:
    return Case(
        seed=seed,
        model=nn.Identity(),
        data=data.spirals(seed),
        optimizer=adamw(3e-3),
        module=Denoiser,
        batch_size=64,
        loss=F.mse_loss,
        metric="r2",
    )


class NoisyInput(nn.Module):
    """Vincent et al. 2008: noise on the input, in training only."""

    def __init__(self, model: nn.Module, std: float) -> None:
        super().__init__()
        self.model, self.std = model, std

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + self.std * torch.randn_like(x) if self.training else x)


@healthy(
    "dropout_active_in_eval",
    "train_val_mismatch",
    source="denoising autoencoder: training inputs are noisier than validation inputs",
)
def h_denoising_autoencoder(seed: int) -> Case:
    return Case(
        seed=seed, model=NoisyInput(mlp([20, 64, 8, 64, 20]), 0.5), data=data.manifold(seed), optimizer=adam(4e-3), **MSE
    )


class FunctionalDropout(nn.Module):
    """`F.dropout` with the flag that it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.first(x).relu(), 0.5, training=self.training)
        return self.head(F.dropout(self.second(x).relu(), 0.3, self.training))


@healthy("dropout_active_in_eval", source="F.dropout(x, p, training=self.training)")
def h_functional_dropout(seed: int) -> Case:
    return Case(
        seed=seed,
        model=FunctionalDropout(),
        data=data.digits(seed),
        optimizer=adam(4e-3),
        loss=F.cross_entropy,
        metric="accuracy",
    )


class Contrastive(Supervised):
    """Chen et al. 2020: two noisy views of each sample attract each other; validated by how well a view finds its partner."""

    def views(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = 0.4 * torch.randn((2, *x.shape), generator=generator)
        z = F.normalize(self.model(torch.cat(tuple(x + noise))), dim=1)
        return z[: len(x)] @ z[len(x) :].T / 0.2

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        similarity = self.views(batch[0])
        return F.cross_entropy(similarity, torch.arange(len(similarity)))

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        similarity = self.views(batch[0][:32], torch.Generator().manual_seed(0))
        hits = (similarity.argmax(1) == torch.arange(len(similarity))).float().mean()
        self.log("val_metric", hits, batch_size=len(similarity))


@healthy(
    "batch_mixing",
    "labels_broken",
    "shape_broadcast",
    source="SimCLR in small: logits [N, N], each sample is compared with its batch mates",
)
def h_contrastive(seed: int) -> Case:
    split = data.manifold(seed, dim=16, latent=8)
    return Case(
        seed=seed, model=mlp([16, 64, 16]), data=split, optimizer=adam(3e-3), module=Contrastive, loss=F.mse_loss, metric="r2"
    )


class MixtureDensity(nn.Module):
    """Bishop 1994: weights, means and scales of a mixture per input."""

    def __init__(self, components: int = 3) -> None:
        super().__init__()
        self.body, self.heads = mlp([8, 64, 64]), nn.Linear(64, 3 * components)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, means, log_scales = self.heads(self.body(x).relu()).chunk(3, 1)
        weights = logits.log_softmax(1)
        return (weights.exp() * means).sum(1, keepdim=True), weights, torch.stack([means, log_scales.clamp(-4, 4)])


def mixture_nll(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    _, weights, (means, log_scales) = output
    log_density = torch.distributions.Normal(means, log_scales.exp()).log_prob(target)
    return -(weights + log_density).logsumexp(1).mean()


@healthy("loss_sign", "wrong_loss", source="mixture density network: a negative log-likelihood that goes below zero")
def h_mixture_density(seed: int) -> Case:
    split = data.surface(seed, noise=0.02)
    return Case(
        seed=seed, model=MixtureDensity(), data=split, optimizer=adam(4e-3), loss=mixture_nll, metric="mean_r2", max_steps=260
    )


class SpectrallyNormed(nn.Module):
    """Miyato et al. 2018: every weight divided by its largest singular value."""

    def __init__(self) -> None:
        super().__init__()
        normed = torch.nn.utils.parametrizations.spectral_norm
        self.layers = nn.Sequential(normed(nn.Linear(8, 64)), nn.LeakyReLU(0.2), normed(nn.Linear(64, 64)), nn.LeakyReLU(0.2))
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


@healthy("init_vanishing", "no_update", source="spectral norm: parametrised weights, buffers that change in each forward")
def h_spectral_norm(seed: int) -> Case:
    return Case(
        seed=seed,
        model=SpectrallyNormed(),
        data=data.blobs(seed),
        optimizer=sgd(0.1),
        loss=F.cross_entropy,
        metric="accuracy",
        max_steps=260,
    )


@healthy("bad_gain", "weight_decay_too_strong", source="Salimans and Kingma 2016: weight norm, direction and length apart")
def h_weight_norm(seed: int) -> Case:
    model = mlp([8, 64, 64, 4])
    for i in (0, 2):
        torch.nn.utils.parametrizations.weight_norm(model[i])
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adam(5e-3), loss=F.cross_entropy, metric="accuracy")
