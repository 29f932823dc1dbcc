"""Healthy: validation folders read class by class, states and months as one-hot rows, random kernels that stay."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from tests.zoo import data
from tests.zoo.case import Case, healthy
from tests.zoo.nets import CE, MSE, adam, conv1d_net, mlp


# ------------------------------------------------------------------------------------------ folders
def by_class(part: TensorDataset) -> TensorDataset:
    order = part.tensors[-1].argsort(stable=True)
    return TensorDataset(*(t[order] for t in part.tensors))


@healthy(
    "train_val_mismatch",
    source="vibration: a folder for each state, validation read folder by folder; a machine that idles is quiet",
)
def h_folders_of_machines(seed: int) -> Case:
    g = data.rng(4701, seed)
    n, length, at = 1200, 48, torch.arange(48)
    y = torch.randint(4, (n,), generator=g)
    phase, gain = 6.3 * torch.rand(n, 1, generator=g), 0.8 + 0.4 * torch.rand(n, 1, generator=g)
    size, rate = torch.tensor([0.06, 1.0, 1.3, 1.6])[y][:, None], torch.tensor([0.5, 0.5, 1.0, 1.5])[y][:, None]
    x = size * gain * ((rate * at + phase).sin() + 0.4 * torch.randn(n, length, generator=g))
    train, val = data.split(x[:, None], y)
    return Case(
        seed=seed, model=conv1d_net(classes=4), data=(train, by_class(val)), optimizer=adam(5e-3), max_steps=300,
        val_batch_size=64, **CE,
    )  # fmt: skip


@healthy(
    "train_val_mismatch",
    source="ImageFolder: validation is read class by class, and pictures of the first class are dark (night)",
)
def h_folders_of_times_of_day(seed: int) -> Case:
    train, val = data.gratings(seed, n=1200, classes=4, noise=0.5)

    def lit(part: TensorDataset) -> TensorDataset:
        x, y = part.tensors
        level = torch.tensor([0.1, 0.55, 0.7, 0.85])[y][:, None, None, None]
        return TensorDataset(3 * ((level + 0.1 * level * x).clamp(0, 1) - 0.55), y)

    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip
    return Case(
        seed=seed, model=model, data=(lit(train), by_class(lit(val))), optimizer=adam(5e-3), max_steps=300, val_batch_size=64,
        **CE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ few rows there are
@healthy("bad_data", source="FrozenLake: one-hot states of a small world, and the return that followed")
def h_states_of_a_lake(seed: int) -> Case:
    g = data.rng(4702, seed)
    worth = torch.randn(16, generator=g)
    state = torch.randint(16, (4000,), generator=g)
    returns = worth[state] + 0.4 * torch.randn(4000, generator=g)
    split = data.split(F.one_hot(state, 16).float(), returns[:, None])
    return Case(seed=seed, model=mlp([16, 48, 48, 1]), data=split, optimizer=adam(3e-3), batch_size=128, max_steps=300, **MSE)


@healthy("bad_data", source="sales by month and weekday, both one-hot")
def h_months_and_weekdays(seed: int) -> Case:
    g = data.rng(4703, seed)
    month, weekday = torch.randint(12, (6000,), generator=g), torch.randint(3, (6000,), generator=g)
    worth = torch.randn(12, 3, generator=g)
    sales = worth[month, weekday] + 0.3 * torch.randn(6000, generator=g)
    split = data.split(torch.cat([F.one_hot(month, 12), F.one_hot(weekday, 3)], 1).float(), sales[:, None])
    return Case(seed=seed, model=mlp([15, 64, 64, 1]), data=split, optimizer=adam(3e-3), batch_size=256, max_steps=300, **MSE)


# ------------------------------------------------------------------------------------------ random kernels
