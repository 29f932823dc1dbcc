"""Healthy: noise on purpose in eval mode, numbers that are amounts, nights without sun, machines that stand still, clicks."""

import torch
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, healthy
from tests.zoo.metrics import METRICS, Metric
from tests.zoo.nets import CE, MSE, adam, adamw, mlp


def area(output: Tensor, target: Tensor) -> Tensor:
    """Area under the ROC curve of scores `[n, 1]`."""
    ranks = output.flatten().argsort().argsort().double() + 1
    yes = target.flatten() > 0.5
    n, m = yes.sum(), (~yes).sum()
    return ((ranks[yes].sum() - n * (n + 1) / 2) / (n * m).clamp_min(1)).float()


METRICS.setdefault("auc", Metric(area, lambda target: 0.5))


# ------------------------------------------------------------------------------------------ noise on purpose


class Binary(nn.Module):
    """An autoencoder with coins for a code, straight through (Bengio et al. 2013): chance is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp([20, 64, 32]), mlp([32, 64, 20])

    def forward(self, x: Tensor) -> Tensor:
        p = self.encoder(x).sigmoid()
        return self.decoder(torch.bernoulli(p.detach()) + p - p.detach())


@healthy("dropout_active_in_eval", "detached_subgraph", source="stochastic binary codes, sampled in eval mode as well")
def h_coins_for_a_code(seed: int) -> Case:
    return Case(seed=seed, model=Binary(), data=data.manifold(seed), optimizer=adam(4e-3), max_steps=400, **MSE)


# ------------------------------------------------------------------------------------------ amounts


# ------------------------------------------------------------------------------------------ nights, stand-still
@healthy("bad_data", "unnormalised_input", source="solar power: the last hours of a plant, of which those at night are zero")
def h_nights_without_sun(seed: int) -> Case:
    g = data.rng(4103, seed)
    n, length = 1536, 16
    hour = 24 * torch.rand(n, 1, generator=g)
    time = hour + 0.25 * torch.arange(length + 4)
    clouds = 0.4 + 0.6 * torch.rand(n, 1, generator=g)
    sun = (torch.pi * (time % 24 - 6) / 12).sin().clamp_min(0) * clouds
    power = sun * (1 + 0.05 * torch.randn(sun.shape, generator=g))
    x, y = power[:, :length] / 0.4, power[:, length:].mean(1, keepdim=True) / 0.25
    model = mlp([length, 64, 64, 1])
    return Case(seed=seed, model=model, data=data.split(x, y), optimizer=adam(2e-3), max_steps=300, **MSE)


@healthy("bad_data", source="radar: next map of rain from the last one, where a third of the hours are dry")
def h_dry_hours(seed: int) -> Case:
    g = data.rng(4104, seed)
    n, size = 600, 12
    at = torch.arange(size + 2)
    centre, width = size * torch.rand(n, 2, 1, 1, generator=g), 8 + 30 * torch.rand(n, 1, 1, generator=g)
    distance = (at[None, :, None] - centre[:, 0]).square() + (at[None, None] - centre[:, 1]).square()
    rain = ((-distance / width).exp() - 0.05).clamp_min(0) * (torch.rand(n, 1, 1, generator=g) > 0.35)
    now, then = rain[:, 1:-1, 1:-1], rain[:, :-2, 1:-1]
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1))
    split = data.split(4 * now[:, None], 4 * then[:, None])
    return Case(seed=seed, model=model, data=split, optimizer=adam(5e-3), max_steps=300, **MSE)


@healthy("bad_data", source="telemetry of generators: 50 Hz when they are on the grid, 0 Hz when they stand still")
def h_standing_generators(seed: int) -> Case:
    g = data.rng(4105, seed)
    n = 1536
    on = torch.rand(n, generator=g) < 0.75
    z = torch.randn(n, 5, generator=g)
    hertz = on * (50 + 0.03 * z[:, 0])
    x = torch.stack([hertz, *z[:, 1:].T], 1)
    wear = torch.where(on, (1.5 * z[:, 1]).sin() + z[:, 2] * z[:, 3], -0.5 + 0.3 * z[:, 4]) + 0.1 * torch.randn(n, generator=g)
    split = data.split(data.standardise(x), data.standardise(wear)[:, None])
    return Case(seed=seed, model=mlp([5, 64, 64, 1]), data=split, optimizer=adam(3e-3), max_steps=400, **MSE)


# ------------------------------------------------------------------------------------------ rare and told as a risk


class NextItem(nn.Module):
    """GRU4Rec: items 1 to n, 0 for padding, so that the table has a row more than there are scores."""

    def __init__(self, items: int = 24, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(items + 1, width, padding_idx=0)
        self.gru, self.head = nn.GRU(width, 48, batch_first=True), nn.Linear(48, items)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.embed(x))[0][:, -1])


@healthy("class_imbalance", source="GRU4Rec, SASRec: the next category that a visitor opens; a few categories are most of them")
def h_next_category(seed: int) -> Case:
    g = data.rng(4107, seed)
    items, n, length = 24, 2400, 8
    popular = 1 / torch.arange(1, items + 1).float() ** 2.2
    likes = torch.randint(items, (items,), generator=g)
    likes[:3] = torch.tensor([1, 2, 0])
    x = torch.multinomial(popular, n * (length + 1), replacement=True, generator=g).view(n, length + 1)
    for t in range(length):
        x[:, t + 1] = torch.where(torch.rand(n, generator=g) < 0.75, likes[x[:, t]], x[:, t + 1])
    split = data.split(x[:, :-1] + 1, x[:, -1])
    return Case(seed=seed, model=NextItem(), data=split, optimizer=adamw(4e-3), batch_size=64, max_steps=300, **CE)
