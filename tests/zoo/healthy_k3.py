"""Healthy: samples drawn otherwise in training, noisy targets, sigmoids, frozen patches, networks that mix samples."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo import data, more_data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.nets import CE, MSE, adam, he, init_weights, lecun, mlp, sgd, trainable


# ------------------------------------------------------------------------------------------ other draws in training
@healthy("train_val_mismatch", source="rare heavy rain: training draws all amounts equally often, validation as they are")
def h_amounts_drawn_evenly(seed: int) -> Case:
    g = data.rng(4301, seed)
    x = torch.randn(9000, 6, generator=g)
    y = 1.2 * F.softplus(1.3 * (x[:, 0] + x[:, 1] * x[:, 2]) - 0.5) + 0.05 * torch.randn(9000, generator=g)
    train, val = data.split(x, y[:, None])
    bins = (train.tensors[1][:, 0].clamp(0, 5.99) / 0.75).long()
    weights = 1 / torch.bincount(bins, minlength=8)[bins].float()
    drawn = torch.multinomial(weights, 2000, replacement=True, generator=g)
    evenly = TensorDataset(*(t[drawn] for t in train.tensors))
    return Case(seed=seed, model=mlp([6, 64, 64, 1]), data=(evenly, val), optimizer=adam(3e-3), max_steps=400, **MSE)


@healthy("train_val_mismatch", source="organs: training on crops about them, validation on whole slices, which are mostly air")
def h_crops_of_organs(seed: int) -> Case:
    def slices(kind: int, n: int, size: int) -> tuple[Tensor, Tensor]:
        g = data.rng(kind, seed)
        centre, radius = 16 + 8 * torch.rand(n, 2, 1, 1, generator=g), 4 + 2 * torch.rand(n, 1, 1, generator=g)
        at = torch.arange(40)
        r = ((at[:, None] - centre[:, 0]).square() + (at[None] - centre[:, 1]).square()).sqrt()
        body, organ = (r < 11).float(), (r < radius).float()
        x = 3.0 * body + 0.8 * organ + 0.35 * torch.randn(n, 40, 40, generator=g) * (0.2 + body) - 1.5
        if size < 40:
            top = (centre[:, :, 0, 0] - size / 2).long()
            cut = [(slice(a, a + size), slice(b, b + size)) for a, b in top.tolist()]
            x, organ = (torch.stack([t[i][c] for i, c in enumerate(cut)]) for t in (x, organ))
        return x[:, None], organ[:, None]

    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 3, padding=1)
    )
    split = TensorDataset(*slices(4302, 400, 14)), TensorDataset(*slices(4303, 96, 40))
    return Case(
        seed=seed, model=model, data=split, optimizer=adam(5e-3), max_steps=200, val_batch_size=32,
        loss=F.binary_cross_entropy_with_logits, metric="jaccard",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ noisy targets, sound ranges
@healthy(
    "wrong_last_activation", source="Noise2Noise with a sigmoid at the end: pixels are 0 to 1, only the targets' noise is not"
)
def h_noise_to_noise_in_range(seed: int) -> Case:
    train, val = data.masks(seed)

    def noisy(part: TensorDataset, kind: int, *, clean: bool) -> TensorDataset:
        g, y = data.rng(kind, seed), part.tensors[1]
        x = 0.2 + 0.6 * y
        first, second = (x + 0.3 * torch.randn(x.shape, generator=g) for _ in range(2))
        return TensorDataset(2 * first - 1, x if clean else second)

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 1, 3, padding=1), nn.Sigmoid(),
    )  # fmt: skip
    split = noisy(train, 4304, clean=False), noisy(val, 4305, clean=True)
    return Case(seed=seed, model=model, data=split, optimizer=adam(5e-3), max_steps=300, **MSE)


@healthy(
    "wrong_last_activation", source="concentrations less their background, some below 0 by noise; softplus, since none can be"
)
def h_less_background(seed: int) -> Case:
    g = data.rng(4306, seed)
    x = torch.randn(1536, 6, generator=g)
    y = F.softplus(2 * (x[:, :1] + x[:, 1:2] * x[:, 2:3]) - 1) / 2 + 0.25 * torch.randn(1536, 1, generator=g)
    model = mlp([6, 64, 64, 1], last=nn.Softplus())
    return Case(seed=seed, model=model, data=data.split(x, y), optimizer=adam(3e-3), max_steps=300, **MSE)


# ------------------------------------------------------------------------------------------ inside the network


@healthy("wrong_hidden_activation", source="Nielsen's book, chapter 3: two hidden layers of 30 sigmoids, SGD, N(0, 1 / fan_in)")
def h_nielsen_sigmoids(seed: int) -> Case:
    model = init_weights(mlp([64, 30, 30, 10], nn.Sigmoid), lecun)
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=sgd(0.3), batch_size=16, max_steps=600, **CE)


@healthy(
    "wrong_hidden_activation", source="an autoencoder of sigmoids throughout, as in Hinton and Salakhutdinov 2006, under Adam"
)
def h_sigmoid_autoencoder(seed: int) -> Case:
    model = init_weights(mlp([20, 48, 12, 48, 20], nn.Sigmoid), nn.init.xavier_normal_)
    return Case(seed=seed, model=model, data=data.manifold(seed), optimizer=adam(1e-2), max_steps=500, **MSE)


@healthy(
    "frozen_by_accident", source="MoCo v3: --stop-grad-conv1, a random patch projection that stays, for a calm transformer"
)
def h_patches_kept_random(seed: int) -> Case:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch_embed = nn.Conv2d(1, 48, 3, stride=3)
            self.place = nn.Parameter(0.02 * torch.randn(1, 16, 48))
            layer = nn.TransformerEncoderLayer(48, 4, 96, 0.0, batch_first=True, norm_first=True)
            self.encoder, self.norm = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.LayerNorm(48)
            self.head = nn.Linear(48, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.place
            return self.head(self.norm(self.encoder(x)).mean(1))

    model = Patches()
    model.patch_embed.requires_grad_(False)
    return Case(
        seed=seed, model=model, data=data.gratings(seed), optimizer=trainable(torch.optim.AdamW, lr=3e-3), max_steps=250, **CE
    )


def orthogonal_beside(factor: float) -> type[Supervised]:
    class Orthogonal(Supervised):
        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            weights = [p for p in self.parameters() if p.ndim == 2]
            return loss + factor * sum((w.T @ w - torch.eye(w.shape[1])).square().sum() for w in weights)

    return Orthogonal


@healthy(
    "weight_decay_too_strong",
    source="soft orthogonality (Bansal et al. 2018), which pulls He's weights to length 1",
)
def h_softly_orthogonal(seed: int) -> Case:
    model = init_weights(mlp([64, 64, 64, 64, 10]), he)
    return Case(
        seed=seed,
        model=model,
        data=data.digits(seed),
        optimizer=adam(2e-3),
        module=orthogonal_beside(0.02),
        max_steps=300,
        **CE,
    )


# ------------------------------------------------------------------------------------------ networks that mix samples
class Switch(nn.Module):
    """Fedus et al. 2022: each sample goes to one expert, which takes as many as it has room for, first come, first served."""

    def __init__(self, experts: int = 4, room: float = 1.25) -> None:
        super().__init__()
        self.stem, self.router = nn.Linear(8, 48), nn.Linear(48, experts)
        self.experts = nn.ModuleList(mlp([48, 64, 48]) for _ in range(experts))
        self.head, self.room = nn.Linear(48, 4), room

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        share, expert = self.router(x).softmax(1).max(1)
        most = int(self.room * len(x) / len(self.experts)) + 1
        chosen = F.one_hot(expert, len(self.experts))
        taken = chosen * (chosen.cumsum(0) <= most)
        out = sum(taken[:, i, None] * net(x) for i, net in enumerate(self.experts))
        return self.head(x + share[:, None] * out)


@healthy("batch_mixing", source="Switch transformers: experts have room for so many tokens of a batch, in evaluation as well")
def h_experts_with_room(seed: int) -> Case:
    return Case(seed=seed, model=Switch(), data=data.blobs(seed), optimizer=adam(3e-3), max_steps=400, **CE)


class Rows(nn.Module):
    """SAINT (Somepalli et al. 2021): rows of a table attend to the other rows of their batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = mlp([8, 64, 48]), nn.LayerNorm(48)
        self.between, self.head = nn.MultiheadAttention(48, 4, batch_first=True), mlp([48, 64, 1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        row = self.norm(x)[None]
        return self.head(x + self.between(row, row, row, need_weights=False)[0][0])


@healthy("batch_mixing", source="SAINT: intersample attention, also when it predicts")
def h_rows_see_rows(seed: int) -> Case:
    return Case(seed=seed, model=Rows(), data=data.surface(seed), optimizer=adam(2e-3), max_steps=400, **MSE)


class Citations(nn.Module):
    """Two graph convolutions; the graph belongs to the network, the loader gives all nodes at once."""

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.first, self.second = nn.Linear(6, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.adjacency @ self.second(F.relu(self.adjacency @ self.first(x)))


@healthy("batch_mixing", source="Kipf and Welling 2017: the whole graph as a batch, its adjacency a buffer of the network")
def h_graph_in_a_buffer(seed: int) -> Case:
    train, val = more_data.network(seed)
    split = tuple(TensorDataset(part.tensors[0][0], part.tensors[2][0]) for part in (train, val))
    return Case(
        seed=seed, model=Citations(train.tensors[1][0]), data=(split[0], split[1]), optimizer=adam(1e-2), batch_size=160,
        val_batch_size=160, shuffle=False, max_steps=150, **CE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ one structure, one task at a time
class Total(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.atom = mlp([4, 48, 48, 1], nn.SiLU)

    def forward(self, atoms: Tensor) -> Tensor:
        return self.atom(atoms).sum(0)


@healthy("wrong_loss", source="Behler and Parrinello 2007: a structure at a time, its energy is the sum over its atoms")
def h_one_structure_a_step(seed: int) -> Case:
    g = data.rng(4308, seed)
    atoms = torch.randn(900, 16, 4, generator=g)
    energy = data.standardise((atoms[..., :1].tanh() * atoms[..., 1:2] + atoms[..., 2:3].abs()).sum(1))

    def first(samples: list[Any]) -> Any:
        return samples[0] if len(samples) == 1 else torch.utils.data.default_collate(samples)

    class Whole(Supervised):
        def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
            atoms, energy = batch
            told = torch.stack([self(one) for one in atoms])
            self.log("val_metric", self.metric.score(told, energy), batch_size=len(energy))

    return Case(
        seed=seed, model=Total(), data=data.split(atoms, energy), optimizer=adam(2e-3), batch_size=1, module=Whole,
        max_steps=900, collate=first, **MSE,
    )  # fmt: skip
