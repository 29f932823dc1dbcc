"""Healthy: panels validated from winter on, scores of what is normal, gradients of inputs of two views."""

import torch

from tests.zoo import data
from tests.zoo.case import Case, healthy
from tests.zoo.nets import MSE, adam, mlp


@healthy(
    "train_val_mismatch", source="a panel of stations, validated on the year after: read by date, the first batch is January"
)
def h_panel_from_january(seed: int) -> Case:
    g = data.rng(4801, seed)
    stations, days = 40, torch.arange(0, 1095, 5)
    level = 0.3 * torch.randn(stations, generator=g)
    season = -(2 * torch.pi * days / 365).cos()[:, None]
    z = torch.randn(len(days), stations, 3, generator=g)
    now = 1.3 * season + level + 0.35 * z[..., 0]
    demand = now.square() + 0.5 * z[..., 1] * z[..., 2]
    x = torch.stack([now, now + 0.3 * z[..., 1], now - 0.3 * z[..., 2]], 2).flatten(0, 1)
    y = data.standardise(demand.flatten())[:, None]
    return Case(
        seed=seed,
        model=mlp([3, 64, 64, 1]),
        data=data.split(data.standardise(x), y),
        optimizer=adam(3e-3),
        max_steps=400,
        **MSE,
    )
