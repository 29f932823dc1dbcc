"""Held-out healthy cases: molecules, weather, energy."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, OneCycleLR, ReduceLROnPlateau

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import Split, replace, rng, split, standardise
from tests.zoo.metrics import r2
from tests.zoo.nets import MSE, Lambda, adam, adamw, mlp, sgd
from tests.zoo.unseen.healthy_g1 import per_step, warmed


# ------------------------------------------------------------------------------------------ molecules
def molecules(seed: int, n: int = 1800, atoms: int = 8, kinds: int = 5) -> Split:
    """Random trees with a ring bond as one-hot atoms and a dense adjacency, zero-padded; an additive property."""
    g = rng(7009, seed)
    kind, size = torch.randint(kinds, (n, atoms), generator=g), torch.randint(4, atoms + 1, (n,), generator=g)
    there = (torch.arange(atoms) < size[:, None]).float()
    x = F.one_hot(kind, kinds) * there[..., None]
    parent = (torch.rand(n, atoms, generator=g) * torch.arange(atoms)).long()
    bonds = F.one_hot(parent, atoms).float().tril(-1)
    bonds[:, 3, 0] = 1
    bonds = (bonds + bonds.transpose(1, 2)) * there[:, None] * there[..., None]
    own, pair = torch.randn(kinds, generator=g), torch.randn(kinds, kinds, generator=g)
    y = (x @ own).sum(1) + 0.5 * torch.einsum("nik,nij,njl,kl->n", x, bonds, x, pair + pair.T) / 2
    return split(x, bonds, standardise(y + 0.1 * torch.randn(n, generator=g))[:, None])


class Messages(nn.Module):
    """Rounds of messages along bonds with a skip connection, summed over the atoms that exist."""

    def __init__(self, kinds: int = 5, width: int = 32, rounds: int = 2) -> None:
        super().__init__()
        self.stem = nn.Linear(kinds, width)
        self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(rounds))
        self.sent = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(rounds))
        self.head = mlp([width, width, 1], nn.SiLU)

    def forward(self, x: Tensor, bonds: Tensor) -> Tensor:
        h = self.stem(x)
        for own, sent in zip(self.own, self.sent, strict=True):
            h = h + F.silu(own(h) + bonds @ sent(h))
        there = x.sum(2, keepdim=True)
        return self.head((h * there).sum(1) / 6)


def assays(seed: int, n: int = 2100, bits: int = 32, tasks: int = 5) -> Split:
    """Fingerprints of zeros and ones; which of five assays is positive, -1 where it was not run (training only)."""
    g = rng(7010, seed)
    x = (torch.rand(n, bits, generator=g) < 0.35).float()
    score = (x - 0.35) @ torch.randn(bits, tasks, generator=g) + 2 * (x[:, :5] - 0.35) * (x[:, 5:10] - 0.35)
    missing = torch.rand(n * 2 // 3, tasks, generator=g) < 0.4
    return replace(split(x, (score > 0.2).float()), 1, lambda t: t.masked_fill(missing, -1), val=False)


def known_only(output: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of the assays that were run."""
    known = target >= 0
    return F.binary_cross_entropy_with_logits(output[known], target[known])


@healthy(
    "unnormalised_input", source="message passing on molecules (Gilmer 2017) as dense graphs with padding; Adam, one cycle"
)
def h_molecule_messages(seed: int) -> Case:
    cycle = per_step(lambda o: OneCycleLR(o, 8e-3, total_steps=300))
    data = molecules(seed)
    return Case(seed=seed, model=Messages(), data=data, optimizer=adam(1e-3), scheduler=cycle, max_steps=300, **MSE)


@healthy("labels_broken", "unnormalised_input", source="Tox21: multi-task fingerprints with assays missing, masked in the loss")
def h_assays_missing(seed: int) -> Case:
    model = mlp([32, 48, 5], dropout=0.1)
    return Case(
        seed=seed,
        model=model,
        data=assays(seed),
        loss=known_only,
        metric="binary_accuracy",
        optimizer=adamw(5e-3),
        max_steps=220,
    )


# ------------------------------------------------------------------------------------------ weather and energy
def fields(seed: int, n: int = 900, size: int = 12) -> Split:
    """Coarse temperature and fine height `[n, 2, 12, 12]`; the fine temperature, standardised."""
    g = rng(7107, seed)
    coarse = F.interpolate(torch.randn(n, 1, 4, 4, generator=g), (size, size), mode="bilinear")
    height = F.interpolate(torch.randn(n, 1, 6, 6, generator=g), (size, size), mode="bilinear")
    slope = height - height.roll(1, 3)
    y = coarse - 0.9 * height.relu() + 0.6 * slope + 0.1 * torch.randn(n, 1, size, size, generator=g)
    return split(torch.cat([standardise(coarse, None), standardise(height, None)], 1), standardise(y, None))


class Downscale(nn.Module):
    """A correction that is added to the coarse temperature."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] + self.body(x)


def stations(seed: int, n: int = 2100) -> Split:
    """Predictors of a station; the temperature, standardised, whose noise depends on the weather."""
    g = rng(7108, seed)
    x = torch.randn(n, 7, generator=g)
    y = (
        x[:, 0]
        + 0.6 * (1.5 * x[:, 1]).sin()
        + 0.5 * x[:, 2] * x[:, 3]
        + (0.5 * x[:, 4] - 1.3).exp() * torch.randn(n, generator=g)
    )
    return split(x, standardise(y)[:, None])


def normal_nll(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    mean, log_var = output
    return 0.5 * (log_var + (target - mean).square() * (-log_var).exp()).mean()


class TwoHeads(nn.Module):
    """Mean and log variance; the variance starts at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp([7, 48, 48], nn.GELU, last=nn.GELU())
        self.mean, self.log_var = nn.Linear(48, 1), nn.Linear(48, 1)
        nn.init.zeros_(self.log_var.weight)
        nn.init.zeros_(self.log_var.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x)
        return self.mean(hidden), self.log_var(hidden)


@healthy(source="statistical downscaling: a convolutional correction of the coarse field, AdamW, warm-up and cosine")
def h_field_downscaling(seed: int) -> Case:
    data = fields(seed)
    return Case(seed=seed, model=Downscale(), data=data, optimizer=adamw(3e-3), scheduler=warmed(15, 200), max_steps=200, **MSE)


@healthy(
    "wrong_loss", "init_symmetry", "bad_gain", source="weather post-processing: Gaussian likelihood, log variance from zero"
)
def h_station_gaussian(seed: int) -> Case:
    return Case(
        seed=seed, model=TwoHeads(), data=stations(seed), loss=normal_nll, metric="mean_r2", optimizer=adam(3e-3), max_steps=250
    )


def loads(seed: int, n: int = 1500, past: int = 36, ahead: int = 6, noise: float = 0.15) -> Split:
    """Hourly load of the last day and a half with a daily cycle (12 steps), `[n, 36, 1]`; the next six steps."""
    g = rng(7109, seed)
    at, start = torch.arange(past + ahead), torch.randint(12, (n, 1), generator=g)
    level, swing = 0.7 * torch.randn(n, 1, generator=g), 1 + 0.3 * torch.randn(n, 1, generator=g)
    clock = 2 * math.pi * (at + start) / 12
    x = level + swing * (clock.sin() + 0.5 * (2 * clock + 0.5).cos()) + noise * torch.randn(n, past + ahead, generator=g)
    return split(standardise(x[:, :past], None)[..., None], standardise(x[:, past:], None))


class Forecast(nn.Module):
    """A GRU reads the past; a linear head says all the steps ahead at once."""

    def __init__(self, ahead: int = 6, width: int = 32) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(1, width, batch_first=True), nn.Linear(width, ahead)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[1][0])


class Causal(nn.Module):
    """Dilated causal convolutions with skip connections and weight norm; the last step is read."""

    def __init__(self, width: int = 20, ahead: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, width, 1)
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv1d(width, width, 3, dilation=d)) for d in (1, 2, 4)
        )
        self.head = nn.Linear(width, ahead)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.transpose(1, 2))
        for layer in self.layers:
            h = h + F.relu(layer(F.pad(h, (2 * layer.dilation[0], 0))))
        return self.head(h[:, :, -1])


class Pinball(Supervised):
    """Quantiles 0.1, 0.5 and 0.9 `[n, 3, ahead]`; the metric is that of the median."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, target = batch
        output = self(x)
        self.log("val_loss", self.loss_fn(output, target), batch_size=len(x))
        self.log("val_metric", r2(output[:, 1], target), batch_size=len(x))


def pinball(output: Tensor, target: Tensor) -> Tensor:
    level = torch.tensor([0.1, 0.5, 0.9])[:, None]
    off = target[:, None] - output
    return torch.maximum(level * off, (level - 1) * off).mean()


@healthy(source="load forecast: a GRU over the last day and a half, Huber loss, AdamW, one cycle, clipped gradients")
def h_load_gru(seed: int) -> Case:
    cycle = per_step(lambda o: OneCycleLR(o, 1e-2, total_steps=220))
    return Case(
        seed=seed, model=Forecast(), data=loads(seed), loss=nn.HuberLoss(), metric="r2", optimizer=adamw(1e-3), scheduler=cycle,
        max_steps=220, trainer={"gradient_clip_val": 1.0},
    )  # fmt: skip


@healthy("wrong_loss", "init_symmetry", source="probabilistic load forecast: dilated causal convolutions, three quantiles")
def h_grid_load_band(seed: int) -> Case:
    model = nn.Sequential(Causal(ahead=18), Lambda(lambda x: x.view(-1, 3, 6)))
    return Case(
        seed=seed, model=model, data=loads(seed), loss=pinball, metric="r2", module=Pinball, optimizer=adam(5e-3), max_steps=250
    )


@healthy("lr_schedule", "lr_too_high", source="load forecast, dilated convolutions: SGDR warm restarts on SGD with momentum")
def h_load_restarts(seed: int) -> Case:
    again = per_step(lambda o: CosineAnnealingWarmRestarts(o, 60, eta_min=1e-3))
    return Case(seed=seed, model=Causal(), data=loads(seed), optimizer=sgd(0.03), scheduler=again, max_steps=240, **MSE)


@healthy(source="solar power from weather predictors: plain MLP, Adam, the rate cut when the validation loss stalls")
def h_solar_plateau(seed: int) -> Case:
    def cut(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return {"scheduler": ReduceLROnPlateau(optimizer, factor=0.3, patience=2), "monitor": "val_loss"}

    model = mlp([7, 48, 24, 1])
    return Case(seed=seed, model=model, data=stations(seed), optimizer=adam(5e-3), scheduler=cut, max_steps=300, **MSE)
