"""Held-out healthy cases: prices, claims, markets, machines."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR
from torch.utils.data import TensorDataset

from tests.zoo.case import Case, healthy
from tests.zoo.data import Split, rng, split, standardise
from tests.zoo.nets import MSE, Recurrent, adam, mlp, sgd
from tests.zoo.unseen.healthy_g1 import per_step


# ------------------------------------------------------------------------------------------ prices and markets
def offers(seed: int, n: int = 2100) -> Split:
    """Log price (standardised) and six features; the log of the demand, standardised, which falls with the price."""
    g = rng(7307, seed)
    price, x = torch.randn(n, 1, generator=g), torch.randn(n, 6, generator=g)
    y = -(0.8 + 0.4 * x[:, :1].sigmoid()) * price - 0.3 * F.softplus(2 * price) + x[:, 1:2] + 0.5 * (2 * x[:, 2:3]).sin()
    return split(price, x, standardise(y + 0.15 * torch.randn(n, 1, generator=g)))


def claims(seed: int, n: int = 2400) -> Split:
    """Figures of a policy; the size of its claim, gamma distributed (shape 30) around about 3."""
    g = rng(7308, seed)
    x = torch.randn(n, 6, generator=g)
    mean = (1 + 0.4 * x[:, 0] - 0.4 * x[:, 1].abs() + 0.3 * (2 * x[:, 2]).sin() + 0.2 * x[:, 3] * x[:, 4]).exp()
    noise = torch.empty(30, n).exponential_(generator=g).mean(0)
    return split(x, (mean * noise)[:, None])


def gamma_deviance(output: Tensor, target: Tensor) -> Tensor:
    """Half the gamma deviance, up to what does not depend on the output, a log mean."""
    return (output + target * (-output).exp()).mean()


def markets(seed: int, n: int = 2400, length: int = 30) -> Split:
    """Standardised returns `[n, 30, 1]` whose volatility differs between windows; the squared volatility ahead, about 1."""
    g = rng(7309, seed)
    level = 0.5 * torch.randn(n, 1, generator=g)
    drift = 0.04 * torch.randn(n, length + 5, generator=g).cumsum(1)
    returns = (level + drift).exp() * torch.randn(n, length + 5, generator=g)
    ahead = (2 * (level + drift[:, length:].mean(1, keepdim=True))).exp()
    returns = returns[:, :length]
    return split((returns / returns.std())[..., None], (ahead / ahead.mean()))


class Volatility(nn.Module):
    """Log of squared returns into a GRU; the log variance ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Recurrent(nn.GRU, 1, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x.square() + 0.01).log())


@healthy("wrong_loss", "unnormalised_target", source="claim sizes: gamma regression with log link, RMSprop")
def h_claim_gamma(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 32, 32, 1], nn.ELU), data=claims(seed), loss=gamma_deviance, metric="log_r2", batch_size=64,
        optimizer=lambda m: torch.optim.RMSprop(m.parameters(), lr=2e-3), max_steps=300,
    )  # fmt: skip


@healthy("wrong_loss", "unnormalised_input", source="volatility forecast: QLIKE loss (Patton 2011) on the log variance")
def h_market_volatility(seed: int) -> Case:
    return Case(
        seed=seed, model=Volatility(), data=markets(seed), loss=gamma_deviance, metric="log_r2", optimizer=adam(3e-3),
        max_steps=250, trainer={"gradient_clip_val": 5.0},
    )  # fmt: skip


@healthy(source="demand from price and features: plain MLP, mean squared error, Adam with cosine decay")
def h_offer_plain(seed: int) -> Case:
    data = offers(seed)
    joined = tuple(TensorDataset(torch.cat(d.tensors[:2], 1), d.tensors[2]) for d in data)
    cosine = per_step(lambda o: CosineAnnealingLR(o, 250))
    return Case(
        seed=seed,
        model=mlp([7, 48, 24, 1], nn.LeakyReLU),
        data=joined,
        optimizer=adam(3e-3),
        scheduler=cosine,
        max_steps=250,
        **MSE,
    )  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ machines
def bearings(seed: int, n: int = 2400, length: int = 128) -> Split:
    """Vibration `[n, 1, 128]`: sound, or ringing after impacts at one of three rates."""
    g = rng(7310, seed)
    y, at = torch.randint(4, (n,), generator=g), torch.arange(length)
    period = torch.tensor([1000.0, 16.0, 24.0, 40.0])[y][:, None]
    since = (at + 1000 * torch.rand(n, 1, generator=g)) % period
    ring = 3 * (-since / 4).exp() * (1.8 * since).sin() * (y > 0)[:, None]
    shaft = (0.2 * at + 6.3 * torch.rand(n, 1, generator=g)).sin()
    return split(standardise(ring + 0.6 * shaft + 0.5 * torch.randn(n, length, generator=g), None)[:, None], y)


def engines(seed: int, n: int = 1500, length: int = 16) -> Split:
    """Five sensors of a worn engine `[n, 16, 5]`; its remaining life, capped, from 0 to 1."""
    g = rng(7311, seed)
    left = 1.4 * torch.rand(n, 1, 1, generator=g)
    wear = (-2.5 * (left + torch.arange(length - 1, -1, -1)[:, None] / 40)).exp()
    x = wear * torch.randn(5, generator=g).sign() * 3 + 0.6 * torch.randn(n, 1, 5, generator=g) * torch.tensor(
        [1.0, 1, 1, 0, 0]
    )
    return split(standardise(x + 0.3 * torch.randn(n, length, 5, generator=g), (0, 1)), left[:, 0].clamp_max(1))


def drives(seed: int, n: int = 1500, length: int = 24) -> Split:
    """Accelerations `[n, 3, 24]` and a noisy position `[n, 4]`; the displacement since, standardised, `[n, 2]`."""
    g = rng(7312, seed)
    push = torch.randn(n, 2, 1, generator=g) + 0.7 * torch.randn(n, 2, length, generator=g)
    moved = push.cumsum(2).sum(2)
    moved = moved / moved.std()
    gps = torch.cat([moved + 0.5 * torch.randn(n, 2, generator=g), torch.randn(n, 2, generator=g)], 1)
    imu = torch.cat([push, torch.randn(n, 1, length, generator=g)], 1) + 0.3 * torch.randn(n, 3, length, generator=g)
    return split(imu / imu.std(), standardise(gps), standardise(moved))


class Fusion(nn.Module):
    """A convolutional branch and a dense one, gated and joined."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.imu = nn.Sequential(
            nn.Conv1d(3, 12, 5, stride=2),
            nn.ReLU(),
            nn.Conv1d(12, 12, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, width),
        )
        self.gps, self.gate = mlp([4, width, width]), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, imu: Tensor, gps: Tensor) -> Tensor:
        a, b = self.imu(imu), self.gps(gps)
        gate = self.gate(torch.cat([a, b], 1)).sigmoid()
        return self.head(gate * a + (1 - gate) * b)


class Reconstruct(nn.Module):
    """A convolutional autoencoder of vibration windows."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv1d(1, 8, 7, 2, 3), nn.ReLU(), nn.Conv1d(8, 12, 5, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 32, 16)
        )
        self.up = nn.Sequential(
            nn.Linear(16, 12 * 32), nn.ReLU(), nn.Unflatten(1, (12, 32)), nn.ConvTranspose1d(12, 8, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose1d(8, 1, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


def smooth(seed: int, n: int = 1500, length: int = 128) -> Split:
    """Sound machines only: two slow swings of random phase and strength, as input and as target."""
    g = rng(7313, seed)
    at, phase = torch.arange(length), 6.3 * torch.rand(n, 2, 1, generator=g)
    strength = 0.6 + 0.8 * torch.rand(n, 2, 1, generator=g)
    x = (strength * (torch.tensor([0.12, 0.21])[:, None] * at + phase).sin()).sum(1) + 0.15 * torch.randn(
        n, length, generator=g
    )
    x = standardise(x, None)[:, None]
    return split(x, x)


@healthy("wrong_loss", source="bearing faults: wide first kernel (Zhang 2017), batch norm, label smoothing, cyclic rate")
def h_bearing_wide_kernel(seed: int) -> Case:
    model = nn.Sequential(
        nn.Conv1d(1, 12, 32, 4, 14, bias=False), nn.BatchNorm1d(12), nn.ReLU(),
        nn.Conv1d(12, 24, 5, 1, 2, bias=False), nn.BatchNorm1d(24), nn.ReLU(), nn.MaxPool1d(2),
        nn.Flatten(), nn.Linear(24 * 16, 4),
    )  # fmt: skip
    cycle = per_step(lambda o: CyclicLR(o, 0.002, 0.02, step_size_up=40))
    return Case(
        seed=seed, model=model, data=bearings(seed), loss=nn.CrossEntropyLoss(label_smoothing=0.1), metric="accuracy",
        optimizer=sgd(0.01), scheduler=cycle, max_steps=200,
    )  # fmt: skip


@healthy(source="remaining useful life (C-MAPSS style, capped): a two-layer LSTM, mean absolute error, Adam")
def h_engine_life(seed: int) -> Case:
    model = Recurrent(nn.LSTM, 5, 24, 1, num_layers=2, dropout=0.1)
    return Case(seed=seed, model=model, data=engines(seed), loss=nn.L1Loss(), metric="r2", optimizer=adam(4e-3), max_steps=220)


@healthy("wrong_hidden_activation", "saturation", source="sensor fusion: gated sum of two encoders, smooth L1, RAdam")
def h_drive_fusion(seed: int) -> Case:
    return Case(
        seed=seed, model=Fusion(), data=drives(seed), loss=nn.SmoothL1Loss(), metric="each_r2", max_steps=250,
        optimizer=lambda m: torch.optim.RAdam(m.parameters(), lr=5e-3),
    )  # fmt: skip


@healthy(source="anomaly detection: a convolutional autoencoder trained on sound machines only")
def h_machine_autoencoder(seed: int) -> Case:
    return Case(seed=seed, model=Reconstruct(), data=smooth(seed), optimizer=adam(3e-3), max_steps=200, **MSE)
