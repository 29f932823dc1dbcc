"""Healthy, what only the losses of a whole run tell: continued training, other units, two targets, rare labels that are learnt."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import TensorDataset

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.healthy_steps import stepped
from tests.zoo.healthy_transfer import pretrain
from tests.zoo.nets import CE, MSE, Transformer, adam, adamw, convnet, mlp, sgd


# ------------------------------------------------------------------------------------------ two targets
class LengthAndMass(nn.Module):
    """A body with a head for each of two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.length, self.mass = mlp([8, 64, 64], last=nn.ReLU()), nn.Linear(64, 1), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        return torch.cat([self.length(hidden), self.mass(hidden)], 1)


@healthy("unnormalised_target", source="length and mass of parts, both standardised, under one squared error")
def h_length_and_mass(seed: int) -> Case:
    return Case(
        seed=seed,
        model=LengthAndMass(),
        data=data.several(seed, outputs=2),
        optimizer=adam(5e-3),
        max_steps=300,
        loss=F.mse_loss,
        metric="each_r2",
    )


@healthy("unnormalised_target", source="length in metres, mass in grams, each divided by its own scale in the loss")
def h_mass_scaled_in_the_loss(seed: int) -> Case:
    case = h_length_and_mass(seed)
    mean, scale = torch.tensor([0.0, 400.0]), torch.tensor([1.0, 120.0])
    case.data = data.replace(case.data, 1, lambda y: mean + scale * y)
    case.model = nn.Sequential(case.model, Unscale(mean, scale))
    case.loss = lambda output, target: F.mse_loss((output - mean) / scale, (target - mean) / scale)
    return case


class Unscale(nn.Module):
    """From standard units to the user's."""

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, z: Tensor) -> Tensor:
        return self.mean + self.scale * z


@healthy("unnormalised_target", "labels_broken", "lr_too_high", source="ages, 40 +- 12, by Adam: the offset takes a while")
def h_ages(seed: int) -> Case:
    split = data.replace(data.surface(seed), 1, lambda y: 40 + 12 * y)
    return Case(seed=seed, model=mlp([8, 96, 96, 1]), data=split, optimizer=adam(1e-2), max_steps=320, **MSE)


# ------------------------------------------------------------------------------------------ other units in validation
class ReportsInUnits(Supervised):
    """Learns in standard units, and logs its validation loss as an absolute error in the user's."""

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        output = self(x)
        self.log("val_loss", 85_000 * F.l1_loss(output, y), batch_size=len(y))
        self.log("val_metric", self.metric.score(output, y), batch_size=len(y))


@healthy("train_val_mismatch", "overfit_no_regularisation", source="a Huber loss in training, euros in validation")
def h_reports_in_euros(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([8, 64, 64, 1]),
        data=data.surface(seed),
        optimizer=adam(5e-3),
        max_steps=320,
        loss=F.smooth_l1_loss,
        metric="r2",
        module=ReportsInUnits,
    )


@healthy("train_val_mismatch", "overfit_no_regularisation", source="euros in validation, and no sanity check before")
def h_euros_unchecked(seed: int) -> Case:
    case = h_reports_in_euros(seed)
    case.trainer = {"num_sanity_val_steps": 0}
    return case


# ------------------------------------------------------------------------------------------ continued training
def few(split: data.Split, n: int) -> data.Split:
    """The first samples of the training part only."""
    return TensorDataset(*(t[:n] for t in split[0].tensors)), split[1]


def taught(seed: int) -> nn.Module:
    """A transformer that can tell the sentences apart already."""
    return pretrain(Transformer(dropout=0.0), data.words(seed, n=4096), steps=150)


@healthy(
    "lr_too_high", "overfit_no_regularisation", source="a network that can do it, trained on with few data at a small rate"
)
def h_trained_on(seed: int) -> Case:
    return Case(
        seed=seed, model=taught(seed), data=few(data.words(seed, n=4096), 128), optimizer=sgd(1e-3), max_steps=100, **CE
    )


@healthy("lr_too_high", source="warm restart: training goes on at the full rate behind a warm-up, and the loss bumps")
def h_restarted_warm(seed: int) -> Case:
    return Case(
        seed=seed,
        model=taught(seed),
        data=data.words(seed, n=4096),
        optimizer=adamw(3e-3),
        scheduler=stepped(LambdaLR, lr_lambda=lambda step: min((step + 1) / 20, 1.0)),
        max_steps=150,
        **CE,
    )


class Noisier(nn.Module):
    """Noise on the inputs, in training only, stronger with every step up to a bound."""

    def __init__(self, model: nn.Module, strength: float) -> None:
        super().__init__()
        self.model, self.strength, self.calls = model, strength, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            x = x + self.strength * min(self.calls / 40, 1.0) * torch.randn_like(x)
        return self.model(x)


@healthy("lr_too_high", source="a trained network hardened against noise that grows: the training loss rises, validation stays")
def h_trained_on_under_noise(seed: int) -> Case:
    split = data.digits(seed, flat=False)
    model = pretrain(convnet(size=8, width=12, classes=10), split, steps=150)
    return Case(seed=seed, model=Noisier(model, 1.5), data=split, optimizer=adam(1e-3), max_steps=160, **CE)


@healthy("lr_too_high", source="AdamW at a brisk 0.01 on a small transformer, normalised behind each layer")
def h_words_post_norm(seed: int) -> Case:
    return Case(
        seed=seed, model=Transformer(norm_first=False), data=data.words(seed), optimizer=adamw(1e-2), max_steps=200, **CE
    )


# ------------------------------------------------------------------------------------------ rare labels
@healthy(
    "class_imbalance", source="a fraud score under plain BCE, calibrated on purpose: six in a hundred, told apart but for some"
)
def h_calibrated_score(seed: int) -> Case:
    g = data.rng(261, seed)
    x = torch.randn(3000, 6, generator=g)
    risk = (6 * (x[:, 0] + 0.6 * x[:, 1]) - 11).sigmoid()
    y = torch.bernoulli(risk, generator=g)[:, None]
    return Case(
        seed=seed, model=mlp([6, 48, 48, 1]), data=data.split(x, y), optimizer=adam(3e-3), max_steps=260,
        loss=F.binary_cross_entropy_with_logits, metric="binary_accuracy",
    )  # fmt: skip


@healthy("class_imbalance", source="one of twelve is a positive, far from the others: plain cross-entropy learns them all")
def h_rare_and_apart(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([6, 48, 48, 2]),
        data=data.rare_blobs(seed, rare=0.08, overlap=0.25),
        optimizer=adam(8e-3),
        max_steps=260,
        loss=F.cross_entropy,
        metric="balanced_accuracy",
    )
