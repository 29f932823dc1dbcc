"""Held-out healthy cases: signals and series."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import Split, rng, split, standardise
from tests.zoo.more_data import pulses, spectra, swings
from tests.zoo.nets import CE, MSE, Recurrent, adam, adamw, mlp, trainable
from tests.zoo.opened.healthy_c1 import warm_cosine


@healthy(source="chemometrics: a 1-D convolutional network reads two numbers from a spectrum")
def h_spectrum_reader_uc(seed: int) -> Case:
    x, y = (torch.cat([part.tensors[i] for part in spectra(seed)]) for i in (0, 1))
    data = split((x - x.mean(0)) / x.std(), y)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 48)), nn.Conv1d(1, 12, 5, stride=2, padding=2), nn.GELU(),
        nn.Conv1d(12, 24, 5, stride=2, padding=2), nn.GELU(), nn.Flatten(), nn.Linear(288, 32), nn.GELU(), nn.Linear(32, 2),
    )  # fmt: skip
    return Case(seed=seed, model=model, data=data, loss=F.mse_loss, metric="each_r2", optimizer=adam(2e-3), max_steps=200)


class Causal(nn.Module):
    """A dilated convolution of the past with weight norm, inside a skip connection."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(width, width, 3, dilation=dilation))
        self.reach = 2 * dilation

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.conv(F.pad(x, (self.reach, 0))))


@healthy(source="Bai 2018: temporal convolutional network for a forecast, an everyday set-up")
def h_dilated_forecast_uc(seed: int) -> Case:
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, -1]

    model = nn.Sequential(
        nn.Unflatten(1, (1, 20)), nn.Conv1d(1, 24, 1), *(Causal(24, 2**i) for i in range(3)), Last(), nn.Linear(24, 2)
    )
    return Case(seed=seed, model=model, data=swings(seed), optimizer=adam(3e-3), max_steps=220, **MSE)


def sales(seed: int, n: int = 1500, past: int = 21, future: int = 7) -> Split:
    """Weekly patterns in units of each shop, from tens to thousands: three weeks and the next."""
    g, at = rng(771, seed), torch.arange(past + future)
    level = (5 + torch.randn(n, 1, generator=g)).exp()
    weekly = (2 * math.pi * at / 7 + 6.3 * torch.rand(n, 1, generator=g)).sin()
    shape = 1 + 0.3 * weekly + 0.15 * (weekly > 0.6) + 0.01 * torch.randn(n, 1, generator=g) * at
    x = level * (shape + 0.05 * torch.randn(n, past + future, generator=g))
    return split(x[:, :past], x[:, past:])


class OwnUnits(nn.Module):
    """Takes each series' own level and spread out first and puts them back last."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp([21, 64, 7])

    def forward(self, x: Tensor) -> Tensor:
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        return mean + std * self.body((x - mean) / std)


class Sold(Supervised):
    """Errors as a share of what each shop sells; validated in the spread of each series."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        x, y = batch
        loss = ((self(x) - y).abs() / x.mean(1, keepdim=True)).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        mean, std, output = x.mean(1, keepdim=True), x.std(1, keepdim=True), self(x)
        self.log("val_loss", ((output - y).abs() / mean).mean())
        self.log("val_metric", self.metric.score((output - mean) / std, (y - mean) / std))


@healthy("unnormalised_input", "unnormalised_target", source="Kim 2022: reversible instance normalisation of raw series")
def h_own_units_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=OwnUnits(), data=sales(seed), loss=F.l1_loss, metric="r2", module=Sold, optimizer=adam(2e-3),
        max_steps=200,
    )  # fmt: skip


class Shrinking(nn.Module):
    """A few steps of a proximal gradient method whose matrices and thresholds are learnt."""

    def __init__(self, measure: Tensor, steps: int = 4) -> None:
        super().__init__()
        n = measure.shape[1]
        rate = 1 / torch.linalg.matrix_norm(measure, 2).square()
        self.see = nn.ParameterList(nn.Parameter(rate * measure.T) for _ in range(steps))
        self.keep = nn.ParameterList(nn.Parameter(torch.eye(n) - rate * measure.T @ measure) for _ in range(steps - 1))
        self.floor = nn.ParameterList(nn.Parameter(torch.full((n,), 0.05)) for _ in range(steps))

    def forward(self, y: Tensor) -> Tensor:
        z = torch.zeros(())
        for i, (see, floor) in enumerate(zip(self.see, self.floor, strict=True)):
            z = y @ see.T + (z @ self.keep[i - 1].T if i else 0)
            z = z.sign() * F.relu(z.abs() - floor)
        return z


@healthy(
    "dead_relu", "wrong_last_activation", "init_symmetry", source="Gregor 2010: LISTA, an unrolled solver for sparse codes"
)
def h_unrolled_shrinkage_uc(seed: int) -> Case:
    g = rng(772, seed)
    measure = torch.randn(20, 30, generator=g) / 20**0.5
    z = torch.randn(3000, 30, generator=g) * (torch.rand(3000, 30, generator=g) < 0.12)
    y = z @ measure.T + 0.02 * torch.randn(3000, 20, generator=g)
    return Case(
        seed=seed, model=Shrinking(measure), data=split(y / y.std(), z / y.std()), optimizer=adam(3e-3), batch_size=64,
        max_steps=300, **MSE,
    )  # fmt: skip


@healthy(
    "frozen_by_accident",
    "not_in_optimizer",
    "init_vanishing",
    source="Jaeger 2001: echo state network, only the readout learns",
)
def h_echo_states_uc(seed: int) -> Case:
    model = Recurrent(nn.RNN, 1, 120, 2)
    with torch.no_grad():
        weight = torch.randn(120, 120) * (torch.rand(120, 120) < 0.1)
        model.rnn.weight_hh_l0.copy_(0.9 * weight / torch.linalg.eigvals(weight).abs().max())
        model.rnn.weight_ih_l0.uniform_(-0.8, 0.8)
        model.rnn.bias_hh_l0.zero_()
        model.rnn.bias_ih_l0.uniform_(-0.2, 0.2)
    model.rnn.requires_grad_(False)
    x, y = (torch.cat([part.tensors[i] for part in swings(seed)]) for i in (0, 1))
    return Case(
        seed=seed, model=model, data=split(x[:, :, None], y), optimizer=trainable(torch.optim.Adam, lr=3e-3), max_steps=300,
        frozen=[f"model.rnn.{name}" for name, _ in model.rnn.named_parameters()], **MSE,
    )  # fmt: skip


def chirps(seed: int, n: int = 1200, length: int = 256) -> Split:
    """Tones that rise, fall, stay or tremble, in noise, at any loudness."""
    g = rng(773, seed)
    y, t = torch.randint(4, (n,), generator=g), torch.linspace(0, 1, length)
    start, loud = 40 + 20 * torch.rand(n, 1, generator=g), 0.5 + torch.rand(n, 1, generator=g)
    course = torch.stack([25 * t, -25 * t, 0 * t, 8 * (2 * math.pi * 3 * t).sin()])[y]
    phase = 2 * math.pi * ((start + course) / length).cumsum(1) + 6.3 * torch.rand(n, 1, generator=g)
    return split(loud * phase.sin() + 0.4 * torch.randn(n, length, generator=g), y)


class LogSpectrogram(nn.Module):
    """The logarithm of a short-time spectrum, as a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stft(x, 64, 16, window=self.window, return_complex=True).abs().add(0.1).log()[:, None]


@healthy(source="audio tutorials: log spectrogram, batch norm, a small convolutional network")
def h_spectrogram_classes_uc(seed: int) -> Case:
    model = nn.Sequential(
        LogSpectrogram(), nn.BatchNorm2d(1), nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 4)), nn.Flatten(), nn.Linear(384, 4),
    )  # fmt: skip
    return Case(
        seed=seed, model=model, data=chirps(seed), optimizer=adamw(3e-3), scheduler=warm_cosine(10, 220), max_steps=220, **CE
    )


class SignalUNet(nn.Module):
    """One step down and up along time, with a skip connection."""

    def __init__(self, channels: int = 2, width: int = 16) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv1d(channels, width, 5, padding=2), nn.BatchNorm1d(width), nn.ReLU())
        self.bottom = nn.Sequential(nn.Conv1d(width, 2 * width, 5, 2, 2), nn.BatchNorm1d(2 * width), nn.ReLU())
        self.up = nn.ConvTranspose1d(2 * width, width, 4, 2, 1)
        self.out = nn.Sequential(nn.Conv1d(2 * width, width, 5, padding=2), nn.ReLU(), nn.Conv1d(width, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.out(torch.cat([skip, self.up(self.bottom(skip))], 1))


@healthy(source="electrocardiogram clean-up: a 1-D U-Net takes noise and drift away")
def h_signal_cleaner_uc(seed: int) -> Case:
    g = rng(774, seed)
    x = torch.cat([part.tensors[0] for part in pulses(seed)])
    at = torch.arange(40)
    clean = F.avg_pool1d(x, 3, 1, 1) * 1.3
    drift = (0.15 * at + 6.3 * torch.rand(len(x), 2, 1, generator=g)).sin() * torch.rand(len(x), 2, 1, generator=g)
    seen = clean + drift + 0.5 * torch.randn(x.shape, generator=g)
    return Case(
        seed=seed, model=SignalUNet(), data=split(standardise(seen, None), clean), optimizer=adam(3e-3), max_steps=220, **MSE
    )


@healthy(source="remaining life of machines: a GRU over sensor windows, Huber loss")
def h_remaining_life_uc(seed: int) -> Case:
    g = rng(775, seed)
    n, at = 1500, torch.arange(16)
    wear, rate = 3 * torch.rand(n, 1, generator=g), 0.03 + 0.04 * torch.rand(n, 1, generator=g)
    course = wear + rate * at
    sensors = torch.stack([course.square() / 4, (-course).exp(), torch.randn(n, 16, generator=g), course], 2)
    x = (sensors - sensors.mean((0, 1))) / sensors.std((0, 1)) + 0.2 * torch.randn(n, 16, 4, generator=g)
    left = ((5 - course[:, -1:]) / rate).log()
    return Case(
        seed=seed, model=Recurrent(nn.GRU, 4, 32, 1), data=split(x, standardise(left)),
        loss=F.huber_loss, metric="r2", optimizer=adam(4e-3), max_steps=250, trainer={"gradient_clip_val": 1.0},
    )  # fmt: skip
