"""Fields, pictures and autoencoders, and what goes wrong with their starts, activations and likelihoods."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import Split, digits, gratings, manifold, masks, rng, split, standardise
from tests.zoo.more_data import shapes
from tests.zoo.nets import CE, MSE, adam, he, init_weights, mlp, plain_deep, sgd, weighted


# ------------------------------------------------------------------------------------------ a field of two coordinates
def terrain(seed: int, n: int = 3000) -> Split:
    """Coordinates in [-1, 1] and the standardised height there, `[n, 1]`."""
    g = rng(901, seed)
    x = 2 * torch.rand(n, 2, generator=g) - 1
    k, phase, size = 5 * torch.randn(2, 6, generator=g), 6 * torch.rand(6, generator=g), torch.rand(6, generator=g) + 0.3
    return split(x, standardise(((x @ k + phase).sin() * size).sum(1, keepdim=True)))


class Siren(nn.Module):
    """Sine layers with the start of Sitzmann et al. 2020."""

    def __init__(self, width: int = 48, omega: float = 8.0) -> None:
        super().__init__()
        self.omega = omega
        self.layers = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, width)])
        self.out = nn.Linear(width, 1)
        nn.init.uniform_(self.layers[0].weight, -0.5, 0.5)
        for layer in [*self.layers[1:], self.out]:
            bound = math.sqrt(6 / width) / omega
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(self.omega * layer(x))
        return self.out(x)


@healthy("init_vanishing", "bad_gain", "wrong_hidden_activation", source="SIREN fits a field from coordinates")
def h_siren_terrain(seed: int) -> Case:
    return Case(
        seed=seed, model=Siren(), data=terrain(seed), optimizer=adam(1e-3), batch_size=100, max_steps=400, **MSE
    )  # fmt: skip


@faulty("init_vanishing", "bad_gain", twin="h_siren_terrain", source="omega divides the start but is forgotten in forward")
def f_siren_omega_only_at_start(case: Case) -> None:
    case.model.omega = 1.0


@faulty("init_exploding", "bad_gain", twin="h_siren_terrain", source="SIREN issue: He bound without division by omega")
def f_siren_without_division(case: Case) -> None:
    with torch.no_grad():
        for layer in case.model.layers[1:]:
            layer.weight.mul_(case.model.omega)


# ------------------------------------------------------------------------------------------ segmentation
def soft_dice(output: Tensor, target: Tensor) -> Tensor:
    """The overlap coefficient of each picture, in [0, 1]."""
    p, y = output.sigmoid().flatten(1), target.flatten(1)
    return (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)


def bce_dice(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, target) + (1 - soft_dice(output, target)).mean()


class SpotNet(nn.Module):
    """Three convolutions and a prior of 1 % foreground in the last bias (RetinaNet)."""

    def __init__(self, width: int = 10, prior: float = 0.01) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 5, padding=2), nn.ReLU()
        )
        self.logits = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.constant_(self.logits.bias, math.log(prior / (1 - prior)))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.body(x))


@healthy("bad_bias_init", "class_imbalance", source="segmentation of small spots, prior in the bias, BCE + Dice")
def h_spot_masks(seed: int) -> Case:
    return Case(
        seed=seed, model=SpotNet(), data=masks(seed, size=16), loss=bce_dice, metric="jaccard", optimizer=sgd(0.05),
        batch_size=16, max_steps=250,
    )  # fmt: skip


@faulty("loss_sign", twin="h_spot_masks", source="the Dice coefficient added instead of 1 - Dice")
def f_spot_dice_rewarded_away(case: Case) -> None:
    case.loss = lambda o, y: F.binary_cross_entropy_with_logits(o, y) + soft_dice(o, y).mean()


@faulty("loss_reduction", twin="h_spot_masks", source="BCE summed over pixels and pictures next to a mean")
def f_spot_summed(case: Case) -> None:
    case.loss = lambda o, y: F.binary_cross_entropy_with_logits(o, y, reduction="sum") + (1 - soft_dice(o, y)).mean()


# ------------------------------------------------------------------------------------------ classification
@healthy("unnormalised_input", source="colour pictures straight from ToTensor(), a small convolutional net, Adam")
def h_shapes_to_tensor(seed: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip
    return Case(
        seed=seed, model=init_weights(model, he), data=shapes(seed), optimizer=adam(2e-3), max_steps=220, **CE
    )  # fmt: skip


@faulty("dead_relu", twin="h_shapes_to_tensor", source="uniform_(-a, 0) typed for uniform_(-a, a), pixels in [0, 1]")
def f_kernels_all_negative(case: Case) -> None:
    nn.init.uniform_(weighted(case.model)[0].weight, -0.3, 0.0)


@faulty("dead_relu", "bad_bias_init", twin="h_shapes_to_tensor", source="activation sparsity by a bias far below")
def f_sparse_by_bias(case: Case) -> None:
    nn.init.constant_(case.model[7].bias, -5.0)


@faulty("wrong_hidden_activation", twin="h_shapes_to_tensor", source="channel 'attention' by softmax in place of each ReLU")
def f_softmax_over_channels(case: Case) -> None:
    for i in (1, 4, 8):
        case.model[i] = nn.Softmax(dim=1)


@healthy("init_exploding", source="six 3 x 3 convolutions without norm, He start, SGD")
def h_plain_six(seed: int) -> Case:
    return Case(
        seed=seed, model=init_weights(plain_deep(6, width=12), he), data=gratings(seed), optimizer=sgd(0.01), max_steps=250, **CE
    )  # fmt: skip


@faulty("init_vanishing", "bad_gain", twin="h_plain_six", source="He by hand: fan counted as in * out * kernel")
def f_fan_of_all_axes(case: Case) -> None:
    init_weights(case.model, lambda w: nn.init.normal_(w, std=math.sqrt(2 / w.numel())))


@faulty("init_exploding", "bad_gain", twin="h_plain_six", source="torch.rand written for torch.randn in a start by hand")
def f_rand_for_randn(case: Case) -> None:
    init_weights(case.model, lambda w: w.data.copy_(torch.rand_like(w) * math.sqrt(2 / w[0].numel())))


# ------------------------------------------------------------------------------------------ variational autoencoder
class Vae(Supervised):
    """Gaussian encoder and decoder; validated by the reconstruction of the mean."""

    sigma2 = 0.1

    def code(self, mean: Tensor, log_var: Tensor) -> Tensor:
        return mean + (0.5 * log_var).exp() * torch.randn_like(mean)

    def bound(self, output: Tensor, x: Tensor, kl: Tensor) -> Tensor:
        return ((output - x).square().sum(1) / (2 * self.sigma2) + kl).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        mean, log_var = self.model["encoder"](x).chunk(2, 1)
        kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(1)
        loss = self.bound(self.model["decoder"](self.code(mean, log_var)), x, kl)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, target = batch
        mean, _ = self.model["encoder"](x).chunk(2, 1)
        output = self.model["decoder"](mean)
        self.log("val_loss", F.mse_loss(output, target), batch_size=len(x))
        self.log("val_metric", self.metric.score(output, target), batch_size=len(x))


@healthy("loss_reduction", source="a VAE whose bound is summed over features and averaged over the batch")
def h_vae_sheet(seed: int) -> Case:
    model = nn.ModuleDict({"encoder": mlp([20, 48, 8]), "decoder": mlp([4, 48, 20])})
    return Case(
        seed=seed, model=model, data=manifold(seed), module=Vae, optimizer=adam(3e-3), batch_size=64, max_steps=350, **MSE
    )  # fmt: skip


class SampledVae(Vae):
    def code(self, mean: Tensor, log_var: Tensor) -> Tensor:
        return torch.distributions.Normal(mean, (0.5 * log_var).exp()).sample()


class AveragedVae(Vae):
    def bound(self, output: Tensor, x: Tensor, kl: Tensor) -> Tensor:
        return F.mse_loss(output, x) + kl.mean()


class FleeingVae(Vae):
    def bound(self, output: Tensor, x: Tensor, kl: Tensor) -> Tensor:
        return ((output - x).square().sum(1) / (2 * self.sigma2) - kl).mean()


@faulty("detached_subgraph", twin="h_vae_sheet", source="forum: sample() for rsample(), the encoder learns nothing")
def f_vae_sample(case: Case) -> None:
    case.module = SampledVae


@faulty("loss_reduction", twin="h_vae_sheet", source="forum: mse_loss averages over features, the divergence sums: collapse")
def f_vae_mean_against_sum(case: Case) -> None:
    case.module = AveragedVae


@faulty("loss_sign", twin="h_vae_sheet", source="the divergence subtracted from a loss as it is from the bound")
def f_vae_divergence_rewarded(case: Case) -> None:
    case.module = FleeingVae


# ------------------------------------------------------------------------------------------ vector quantisation
class Quantised(nn.Module):
    """A product of small codebooks between an encoder and a decoder (VQ-VAE)."""

    def __init__(self, dim: int = 64, groups: int = 6, codes: int = 16, size: int = 3) -> None:
        super().__init__()
        self.shape = groups, size
        self.encoder, self.decoder = mlp([dim, 64, groups * size]), mlp([groups * size, 64, dim])
        self.codebook = nn.Parameter(0.3 * torch.randn(groups, codes, size))

    def nearest(self, z: Tensor) -> Tensor:
        index = (z[:, :, None] - self.codebook).square().sum(3).argmin(2)
        return self.codebook[torch.arange(self.shape[0]), index]

    def passed(self, z: Tensor, q: Tensor) -> Tensor:
        return z + (q - z).detach()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x).unflatten(1, self.shape)
        q = self.nearest(z)
        aside = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return self.decoder(self.passed(z, q).flatten(1)), aside


class Unpassed(Quantised):
    def passed(self, z: Tensor, q: Tensor) -> Tensor:
        return q.detach()


def vq_loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return F.mse_loss(output[0], target) + output[1]


@healthy("detached_subgraph", source="VQ-VAE with product codes on digits: straight-through gradients, stopped gradients")
def h_vq_digits(seed: int) -> Case:
    train, val = digits(seed)
    data = tuple(split(part.tensors[0], part.tensors[0], val=0)[0] for part in (train, val))
    return Case(
        seed=seed, model=Quantised(), data=data, loss=vq_loss, metric="mean_r2", optimizer=adam(3e-3), max_steps=400
    )  # fmt: skip


@faulty("detached_subgraph", twin="h_vq_digits", source="VQ-VAE without the straight-through estimator")
def f_vq_no_straight_through(case: Case) -> None:
    model = Unpassed()
    model.load_state_dict(case.model.state_dict())
    case.model = model
