"""Healthy: curves as long as a batch, tasks by turns, seasons, days in order, fixed heads, complex numbers."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.nets import CE, MSE, adam, mlp, trainable


# ------------------------------------------------------------------------------------------ shapes
class Decay(nn.Module):
    """Amplitude and rate of a decay from what is known of a sample; the curve at given times."""

    def __init__(self, times: int = 32) -> None:
        super().__init__()
        self.amplitude, self.rate, self.times = mlp([6, 48, 1]), mlp([6, 48, 1], last=nn.Softplus()), times

    def forward(self, x: Tensor) -> Tensor:
        t = torch.linspace(0, 2, self.times)
        return self.amplitude(x) * (-self.rate(x) * t).exp()


@healthy("shape_broadcast", source="a curve of 32 points from a few parameters of each sample, and 32 samples in a batch")
def h_curves_of_32_points(seed: int) -> Case:
    g = data.rng(4401, seed)
    x = torch.randn(1200, 6, generator=g)
    rate, t = F.softplus(x[:, 1:2] + x[:, 2:3]), torch.linspace(0, 2, 32)
    y = (1.5 * x[:, :1] + x[:, 3:4].sin()) * (-rate * t).exp() + 0.05 * torch.randn(1200, 32, generator=g)
    return Case(seed=seed, model=Decay(), data=data.split(x, y), optimizer=adam(4e-3), max_steps=300, **MSE)


class Drawn(nn.Module):
    """Turns noise into amounts whose distribution is that of the data (energy distance, Szekely and Rizzo)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp([4, 48, 48, 1])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def energy_distance(output: Tensor, target: Tensor) -> Tensor:
    return 2 * (output - target.T).abs().mean() - (output - output.T).abs().mean()


class Sampled(Supervised):
    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        out, target = self(batch[0]).sort(0)[0], batch[1].sort(0)[0]
        self.log("val_metric", self.metric.score(out, target), batch_size=len(target))


@healthy("shape_broadcast", source="a generator of amounts: the energy distance compares each drawn one with each real one")
def h_energy_distance(seed: int) -> Case:
    g = data.rng(4402, seed)
    noise, z = torch.randn(2400, 4, generator=g), torch.randn(2400, 1, generator=g)
    amounts = data.standardise(torch.where(torch.rand(2400, 1, generator=g) < 0.4, 2 + 0.3 * z, (0.8 * z).exp() - 2))
    return Case(
        seed=seed, model=Drawn(), data=data.split(noise, amounts), optimizer=adam(2e-3), batch_size=64, module=Sampled,
        val_batch_size=800, max_steps=400, loss=energy_distance, metric="r2",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ tasks by turns
class Languages(nn.Module):
    """A shared body; each of six tasks has a branch of its own whose last layer starts at zero (Bapna and Firat 2019)."""

    def __init__(self, tasks: int = 6) -> None:
        super().__init__()
        self.body, self.head = mlp([8, 64, 48]), nn.Linear(48, 1)
        self.down = nn.ModuleList(nn.Linear(48, 16) for _ in range(tasks))
        self.up = nn.ModuleList(nn.Linear(16, 48) for _ in range(tasks))
        for layer in self.up:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, task: Tensor, x: Tensor) -> Tensor:
        h = F.relu(self.body(x))
        out = torch.zeros(len(x), 1)
        for k in task.unique().tolist():
            mine = h[task == k]
            out[task == k] = self.head(mine + self.up[k](F.relu(self.down[k](mine))))
        return out


class OfOneTask(Supervised):
    """A batch is of one task, the next one of another."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        task, x, y = batch
        mine = task == batch_idx % 6
        loss = self.loss_fn(self(task[mine], x[mine]), y[mine])
        self.log("train_loss", loss)
        return loss


@healthy(
    "init_symmetry",
    source="adapters of several tasks, a batch is of one of them; they end in zeros at first",
)
def h_adapters_by_turns(seed: int) -> Case:
    g = data.rng(4403, seed)
    task, x = torch.randint(6, (3600,), generator=g), torch.randn(3600, 8, generator=g)
    own = torch.randn(6, 8, generator=g) / 3
    y = (1.5 * x[:, 0]).sin() + x[:, 1] * x[:, 2] + (x * own[task]).sum(1)
    split = data.split(task, x, data.standardise(y)[:, None])
    return Case(
        seed=seed, model=Languages(), data=split, optimizer=adam(3e-3), module=OfOneTask, batch_size=192, max_steps=400, **MSE
    )


# ------------------------------------------------------------------------------------------ scores and samplers
class Scores(Supervised):
    """Song and Ermon 2019: noise of .05 to 50; validated by points that are drawn, from the largest noise down."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x = batch[0]
        noise = torch.exp(torch.empty(len(x), 1).uniform_(math.log(0.05), math.log(50)))
        z = torch.randn_like(x)
        loss = (self.model(x + noise * z, noise) + z).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        g = torch.Generator().manual_seed(batch_idx)
        levels = torch.logspace(math.log10(50), math.log10(0.05), 80)
        x = 50 * torch.randn(len(batch[0]), 2, generator=g)
        for now, then in pairwise(levels):
            x = x + (then - now) * -self.model(x, now.expand(len(x), 1))
        self.log("val_metric", ((x.norm(dim=1) - 2**0.5).abs() < 0.35).float().mean(), batch_size=len(x))


class ScoreNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp([3, 96, 96, 2], nn.SiLU)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.net(torch.cat([x / (1 + noise**2).sqrt(), noise.log() / 2], 1))


@healthy("train_val_mismatch", source="score networks: noise of all sizes in training, validation draws samples")
def h_drawn_from_noise(seed: int) -> Case:
    g = data.rng(4404, seed)
    angle = 2 * torch.pi * torch.rand(2400, generator=g)
    ring = data.standardise(torch.stack([angle.cos(), angle.sin()], 1)) + 0.03 * torch.randn(2400, 2, generator=g)
    return Case(
        seed=seed, model=ScoreNet(), data=data.split(ring, ring), optimizer=adam(3e-3), module=Scores, batch_size=128,
        max_steps=600, loss=F.mse_loss, metric="jaccard",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ layers
class Pooled(nn.Module):
    """Attention pools the words, an embedding is made of that (it is kept for search), and a classifier reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query = nn.Embedding(30, 32), nn.Parameter(torch.randn(1, 1, 32))
        self.words = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32))
        self.pool = nn.MultiheadAttention(32, 4, batch_first=True)
        self.embedding, self.classifier = nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(self.embed(x))
        pooled = self.pool(self.query.expand(len(x), -1, -1), h, h, need_weights=False)[0][:, 0]
        return self.classifier(self.embedding(pooled))


@healthy("missing_activation", source="attention pooling, an embedding layer as of speakers or faces, a linear classifier")
def h_embedding_behind_attention(seed: int) -> Case:
    return Case(seed=seed, model=Pooled(), data=data.words(seed), optimizer=adam(4e-3), max_steps=300, **CE)


class Seasons(nn.Module):
    """Learned seasons of a time in hours: frequencies that start at a day's, half a day's, a week's."""

    def __init__(self) -> None:
        super().__init__()
        self.frequencies, self.head = nn.Linear(1, 12), mlp([24, 48, 1])
        with torch.no_grad():
            periods = torch.tensor([24.0, 12, 8, 6, 4, 168, 84, 56, 48, 36, 30, 20])
            self.frequencies.weight.copy_(2 * math.pi / periods[:, None])

    def forward(self, hours: Tensor) -> Tensor:
        phase = self.frequencies(hours)
        return self.head(torch.cat([phase.sin(), phase.cos()], 1))


@healthy(
    "unnormalised_input",
    source="Time2Vec: hours times learned frequencies, which start at those of a day and a week",
)
def h_hours_of_a_month(seed: int) -> Case:
    g = data.rng(4405, seed)
    t = 720 * torch.rand(1800, 1, generator=g)
    y = (2 * torch.pi * t / 24).sin() + 0.6 * (4 * torch.pi * t / 24 + 1).sin() + 0.8 * (2 * torch.pi * t / 168).cos()
    split = data.split(t, data.standardise(y + 0.2 * torch.randn(1800, 1, generator=g)))
    return Case(seed=seed, model=Seasons(), data=split, optimizer=adam(2e-3), max_steps=400, **MSE)


@healthy(
    "frozen_by_accident", source="Hoffer et al. 2018, Yang et al. 2022: a fixed orthogonal classifier, only the body learns"
)
def h_fixed_classifier(seed: int) -> Case:
    model = mlp([64, 96, 32, 10], bias=True)
    with torch.no_grad():
        model[-1].weight.copy_(4 * torch.linalg.qr(torch.randn(32, 10))[0].T)
    model[-1].requires_grad_(False)
    return Case(
        seed=seed, model=model, data=data.digits(seed), optimizer=trainable(torch.optim.Adam, lr=3e-3), max_steps=300, **CE
    )


@healthy(
    "data_not_shuffled",
    source="forecasts of days: windows in the order of time, shuffle=False, as tutorials have it",
)
def h_days_in_order(seed: int) -> Case:
    g = data.rng(4406, seed)
    days = torch.arange(2400)
    noise = torch.zeros(2400)
    for t in range(1, 2400):
        noise[t] = 0.8 * noise[t - 1] + 0.5 * torch.randn((), generator=g)
    heat = data.standardise((2 * torch.pi * days / 365).sin() * 2 + noise)
    windows = heat.unfold(0, 15, 1)
    split = data.split(windows[:, :14].clone(), windows[:, 14:].clone())
    return Case(
        seed=seed, model=mlp([14, 48, 48, 1]), data=split, optimizer=adam(2e-3), batch_size=32, shuffle=False, max_steps=400,
        **MSE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ programs
class Waves(nn.Module):
    """Complex layers on the spectrum of a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(17, 32, dtype=torch.cfloat), nn.Linear(32, 32, dtype=torch.cfloat)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(torch.fft.rfft(x[:, 0], norm="ortho"))
        z = self.second(torch.complex(F.relu(z.real), F.relu(z.imag)))
        return self.head(z.abs())


@healthy("missing_activation", "init_exploding", source="complex-valued networks on spectra, as for MRI and radio")
def h_complex_spectrum(seed: int) -> Case:
    return Case(seed=seed, model=Waves(), data=data.waves(seed), optimizer=adam(4e-3), max_steps=250, **CE)
