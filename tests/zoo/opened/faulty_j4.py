"""Held-out faults of generative models, denoisers, graphs and sets."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import Split, manifold, replace, rng, split, standardise
from tests.zoo.nets import CE, MSE, adam, mlp


# ------------------------------------------------------------------------------------------ a variational autoencoder
class VAE(nn.Module):
    """Reconstruction, mean and log variance."""

    def __init__(self, dim: int = 20, latent: int = 4) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp([dim, 48, 2 * latent]), mlp([latent, 48, dim])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, 1)
        z = mean + (log_var / 2).exp() * torch.randn_like(mean) if self.training else mean
        return self.decoder(z), mean, log_var


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)


def evidence(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    reconstruction, mean, log_var = output
    return (5 * (reconstruction - target).square().sum(1) + divergence(mean, log_var)).mean()


@healthy("wrong_loss", source="Gaussian VAE with a fixed variance of 0.1")
def h_j_vae(seed: int) -> Case:
    return Case(
        seed=seed, model=VAE(), data=manifold(seed), loss=evidence, metric="mean_r2", optimizer=adam(5e-3), batch_size=64,
        max_steps=250,
    )  # fmt: skip


@faulty("loss_reduction", twin="h_j_vae", source="mean over pixels against a sum over latents: the posterior collapses")
def f_j_vae_mean_and_sum(case: Case) -> None:
    def loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        return F.mse_loss(output[0], target) + divergence(*output[1:]).mean()

    case.loss = loss


@faulty("wrong_last_activation", twin="h_j_vae", source="sigmoid of the decoder for pictures kept for standardised data")
def f_j_vae_sigmoid(case: Case) -> None:
    case.model.decoder.append(nn.Sigmoid())  # type: ignore[union-attr, operator]


@faulty("detached_subgraph", twin="h_j_vae", source="z drawn with Normal.sample where rsample was meant")
def f_j_vae_sample(case: Case) -> None:
    model: Any = case.model

    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = model.encoder(x).chunk(2, 1)
        z = torch.distributions.Normal(mean, (log_var / 2).exp()).sample() if model.training else mean
        return model.decoder(z), mean, log_var

    model.forward = forward


# ------------------------------------------------------------------------------------------ a denoiser
def noised(seed: int, n: int = 2400, dim: int = 8) -> Split:
    """Points near a curve with noise of a known level in [0, 1]; the noise is the target."""
    g = rng(910, seed)
    t = torch.rand(n, 1, generator=g)
    x = (torch.randn(n, 2, generator=g) @ torch.randn(2, dim, generator=g)).tanh()
    noise = torch.randn(n, dim, generator=g)
    level = 0.2 + 0.8 * t
    return split((1 - level.square()).clamp_min(0).sqrt() * x + level * noise, t, noise)


class Denoiser(nn.Module):
    """The noise from the point and sinusoids of its level."""

    def __init__(self, dim: int = 8, width: int = 64) -> None:
        super().__init__()
        self.top = mlp([dim + 8, width, width, dim], nn.SiLU)

    def code(self, t: Tensor) -> Tensor:
        angles = 3.14 * t * torch.tensor([0.5, 1.0, 2.0, 4.0])
        return torch.cat([angles.sin(), angles.cos()], 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.top(torch.cat([x, self.code(t)], 1))


@healthy("unnormalised_target", source="diffusion: noise predicted from noised points and a coded level")
def h_j_denoiser(seed: int) -> Case:
    return Case(seed=seed, model=Denoiser(), data=noised(seed), optimizer=adam(4e-3), batch_size=64, max_steps=300, **MSE)


@faulty("unnormalised_input", twin="h_j_denoiser", source="time step of 0 to 999 fed as a number, not coded")
def f_j_denoiser_raw_time(case: Case) -> None:
    model: Any = case.model
    model.code = lambda t: (999 * t).round().expand(-1, 8)


@faulty("wrong_hidden_activation", "saturation", twin="h_j_denoiser", source="softmax between hidden layers")
def f_j_denoiser_softmax(case: Case) -> None:
    top: Any = case.model.top
    top[1], top[3] = nn.Softmax(1), nn.Softmax(1)


@faulty("dropout_too_high", twin="h_j_denoiser", source="probability to keep, 0.9, passed as the one to drop")
def f_j_denoiser_dropout(case: Case) -> None:
    top: Any = case.model.top
    top[1], top[3] = nn.Sequential(nn.SiLU(), nn.Dropout(0.9)), nn.Sequential(nn.SiLU(), nn.Dropout(0.9))


# ------------------------------------------------------------------------------------------ graphs
def molecules(seed: int, n: int = 2100, nodes: int = 10) -> Split:
    """Atoms `[n, nodes, 5]` (one-hot), bonds `[n, nodes, nodes]`; which (of three) counts of like neighbours prevails."""
    g = rng(913, seed)
    kind = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3])[torch.rand(n, nodes, generator=g).argsort(1)]
    bonds = (torch.rand(n, nodes, nodes, generator=g) < 0.4).float().triu(1)
    bonds = bonds + bonds.transpose(1, 2)
    like = bonds * (kind[:, :, None] == kind[:, None]).float()
    share = torch.stack([(like.sum(2) * (kind == k)).sum(1) for k in range(3)], 1)
    share = share + 0.01 * torch.rand(n, 3, generator=g)
    return split(F.one_hot(kind, 5).float(), bonds, share.argmax(1))


class Messages(nn.Module):
    """Two rounds of messages along bonds (own state and the sum of the neighbours), a sum, a head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.rounds = nn.ModuleList([mlp([10, width, width], last=nn.ReLU()), mlp([2 * width, width, width], last=nn.ReLU())])
        self.head = mlp([width, width, 3])
        self.norm = nn.LayerNorm(width)

    def gather(self, bonds: Tensor, h: Tensor) -> Tensor:
        return bonds @ h / 3

    def forward(self, x: Tensor, bonds: Tensor) -> Tensor:
        for layer in self.rounds:
            x = layer(torch.cat([x, self.gather(bonds, x)], 2))
        return self.head(self.norm(x.mean(1)))


@healthy(source="message passing on small molecules, mean readout")
def h_j_molecules(seed: int) -> Case:
    return Case(seed=seed, model=Messages(), data=molecules(seed), optimizer=adam(5e-3), max_steps=320, **CE)


@faulty("bad_data", twin="h_j_molecules", source="bonds built for another order of the atoms than the features")
def f_j_molecules_order(case: Case) -> None:
    case.data = replace(case.data, 0, lambda x: x.flip(1))  # type: ignore[arg-type]


@faulty("batch_mixing", twin="h_j_molecules", source="dense batch flattened atoms first, cut apart graphs first")
def f_j_molecules_flattened(case: Case) -> None:
    model: Any = case.model
    model.gather = lambda bonds, h: (bonds @ h.transpose(0, 1).reshape(h.shape)) / 3


# ------------------------------------------------------------------------------------------ sets
def crowds(seed: int, n: int = 1400, size: int = 12) -> Split:
    """Sets `[n, size, 3]`; the spread of the first coordinate and the largest product of the others."""
    x = torch.randn(n, size, 3, generator=rng(914, seed)) * (0.5 + torch.rand(n, 1, 3, generator=rng(915, seed)))
    y = torch.stack([x[:, :, 0].square().mean(1).sqrt(), (x[:, :, 1] * x[:, :, 2]).mean(1)], 1)
    return split(x, standardise(y))


class Sets(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.each, self.top = mlp([3, width, width], last=nn.ReLU()), mlp([width, width, 2])

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.each(x).mean(1))


class ByHand(Supervised):
    """Manual optimisation, in the order that a case asks for."""

    order = ("zero", "backward", "step")

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        x, y = batch
        loss = self.loss_fn(self(x), y)
        self.log("train_loss", loss)
        for what in self.order:
            if what == "zero":
                optimizer.zero_grad()
            elif what == "backward":
                self.manual_backward(loss)
            else:
                optimizer.step()


class NeverZeroed(ByHand):
    order = ("backward", "step")


class ZeroedTooEarly(ByHand):
    order = ("backward", "zero", "step")


@healthy("gradients_not_zeroed", "no_update", source="deep sets, optimised by hand")
def h_j_crowds(seed: int) -> Case:
    case = Case(seed=seed, model=Sets(), data=crowds(seed), optimizer=adam(5e-3), batch_size=64, max_steps=300, **MSE)
    case.module = ByHand
    return case


@faulty("gradients_not_zeroed", twin="h_j_crowds", source="zero_grad forgotten in manual optimisation")
def f_j_crowds_never_zeroed(case: Case) -> None:
    case.module = NeverZeroed


@faulty("no_update", twin="h_j_crowds", source="zero_grad between backward and step")
def f_j_crowds_zeroed_early(case: Case) -> None:
    case.module = ZeroedTooEarly
