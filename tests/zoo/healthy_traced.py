"""Healthy: what a traced step could mistake - results for a log, tables moved by hand, scores of samples, sharp attention."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.utils.data import TensorDataset

from tests.zoo import data, more_data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.nets import CE, MSE, adam, conv_block, mlp, sgd


# ------------------------------------------------------------------------------------------ results and masks
class Watched(nn.Module):
    """Tanh layers; what a rectifier would leave of them is only counted, for a log."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList([nn.Linear(2, 48), nn.Linear(48, 48)]), nn.Linear(48, 2)

    def act(self, x: Tensor) -> Tensor:
        self.firing = (F.relu(x) > 0).float().mean().item()
        return x.tanh()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.act(layer(x))
        return self.head(x)


@healthy("missing_activation", "dead_relu", source="a rectifier whose result only a log reads, beside tanh")
def h_firing_counted(seed: int) -> Case:
    return Case(seed=seed, model=Watched(), data=data.spirals(seed), optimizer=adam(1e-2), **CE)


class Lookup(nn.Module):
    """Softmax over slots of a memory, dropout on what is looked at, and the mean of the slots' contents."""

    def __init__(self) -> None:
        super().__init__()
        self.address = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 24))
        self.drop, self.contents, self.head = nn.Dropout(0.1), nn.Linear(24, 48, bias=False), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.contents(self.drop((8 * self.address(x)).softmax(1))).relu())


@healthy("wrong_hidden_activation", "saturation", source="memory network: softmax over slots, dropout, their contents' mean")
def h_memory_lookup(seed: int) -> Case:
    return Case(seed=seed, model=Lookup(), data=data.blobs(seed), optimizer=adam(8e-3), max_steps=260, **CE)


# ------------------------------------------------------------------------------------------ samples
class Latent(nn.Module):
    """Standardised digits through a normal code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mean, self.scale = nn.Sequential(nn.Linear(64, 96), nn.ReLU()), nn.Linear(96, 8), nn.Linear(96, 8)
        self.decoder = mlp([8, 96, 64])

    def code(self, x: Tensor) -> Normal:
        h = self.encoder(x)
        return Normal(self.mean(h), (0.5 * self.scale(h) - 1).exp())

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.code(x).mean)


class Autoencoding(Supervised):
    """Kingma and Welling 2014, with a light penalty."""

    def draw(self, code: Normal) -> Tensor:
        return code.rsample()

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        code = self.model.code(batch[0])
        error = (self.model.decoder(self.draw(code)) - batch[1]).square().sum(1).mean()
        return error + 0.5 * kl_divergence(code, Normal(0.0, 1.0)).sum(1).mean()


@healthy("detached_subgraph", source="Kingma and Welling 2014: the sample is mean plus scaled noise")
def h_latent_reparametrised(seed: int) -> Case:
    train, val = (TensorDataset(part.tensors[0], part.tensors[0]) for part in data.digits(seed))
    return Case(seed=seed, model=Latent(), data=(train, val), optimizer=adam(3e-3), module=Autoencoding, max_steps=350, **MSE)


class Aiming(Supervised):
    """A Gaussian policy that is rewarded for coming near the target, learnt from its own log-probabilities (Williams 1992)."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        policy = Normal(self.model(batch[0]), 0.3)
        action = policy.sample()
        reward = -(action - batch[1]).square().sum(1)
        judged = self.model.critic(torch.cat([batch[0], action], 1))[:, 0]
        advantage = (reward - reward.mean()) / reward.std()
        return F.mse_loss(judged, reward) - 0.1 * (policy.log_prob(action).sum(1) * advantage).mean()


class Policy(nn.Module):
    """An actor, and a critic that reads what it did."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = mlp([8, 48, 1]), mlp([9, 48, 1])

    def forward(self, x: Tensor) -> Tensor:
        return self.actor(x)


@healthy("detached_subgraph", source="Williams 1992: Gaussian actions without a gradient, scored by their log-probability")
def h_gaussian_policy(seed: int) -> Case:
    return Case(seed=seed, model=Policy(), data=data.surface(seed), optimizer=adam(5e-3), module=Aiming, max_steps=900, **MSE)


# ------------------------------------------------------------------------------------------ towers and tables
class Halves(nn.Module):
    """Upper and lower half of a digit, each through a network of its own; a linear reader classifies both codes."""

    def __init__(self) -> None:
        super().__init__()
        self.upper, self.lower = mlp([32, 64, 16]), mlp([32, 64, 16])
        self.reader = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(torch.cat([self.upper(x[:, :32]), self.code(x[:, 32:])], 1).relu())

    def code(self, x: Tensor) -> Tensor:
        return self.lower(x)


@healthy("detached_subgraph", source="two towers of one build, both learn")
def h_two_halves(seed: int) -> Case:
    return Case(seed=seed, model=Halves(), data=data.digits(seed), optimizer=adam(3e-3), **CE)


class Followed(Halves):
    """The lower half goes, without gradients, through a slow average of the upper half's network, which started for itself."""

    def code(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            if self.training:
                for slow, fast in zip(self.lower.parameters(), self.upper.parameters(), strict=True):
                    slow.lerp_(fast, 0.1)
            return self.lower(x)


@healthy("detached_subgraph", "no_update", source="a tower that is a moving average of the other, with a start of its own")
def h_averaged_half(seed: int) -> Case:
    return Case(seed=seed, model=Followed(), data=data.digits(seed), optimizer=adam(3e-3), **CE)


class Raters(nn.Module):
    """Normalised vectors of users and items, their product per feature weighed."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Parameter(torch.randn(50, 8)), nn.Parameter(torch.randn(40, 8))
        self.weights, self.offset = nn.Linear(8, 1), nn.Embedding(50, 1)

    def tables(self) -> tuple[Tensor, Tensor]:
        return self.users, self.items

    def forward(self, pair: Tensor) -> Tensor:
        users, items = (F.normalize(table, dim=1) for table in self.tables())
        return self.weights(8 * users[pair[:, 0]] * items[pair[:, 1]]) + self.offset(pair[:, 0])


@healthy("detached_subgraph", "not_in_optimizer", source="matrix factorisation with normalised tables, indexed by hand")
def h_normalised_tables(seed: int) -> Case:
    ratings = data.replace(more_data.ratings(seed), 1, lambda y: y - 3)
    return Case(seed=seed, model=Raters(), data=ratings, optimizer=adam(2e-2), max_steps=400, **MSE)


class TwoAims(Supervised):
    """Reconstructs its input, and predicts a number from the same code; the number is what is scored."""

    def second(self, value: Tensor) -> Any:
        return value

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        code = self.model.body(batch[0])
        guess = F.mse_loss(self.model.head(code), batch[1])
        self.log("guess", guess.item())
        return F.mse_loss(self.model.back(code), batch[0]) + self.second(guess)


class Coded(nn.Module):
    """A body and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.back = nn.Sequential(mlp([8, 64, 48]), nn.ReLU()), nn.Linear(48, 1), nn.Linear(48, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@healthy("detached_subgraph", source="two losses over one body, one of them logged with .item()")
def h_two_aims(seed: int) -> Case:
    return Case(seed=seed, model=Coded(), data=data.surface(seed), optimizer=adam(5e-3), module=TwoAims, max_steps=300, **MSE)


# ------------------------------------------------------------------------------------------ attention
class ClassToken(nn.Module):
    """A transformer over the rows of a digit, in torch's `[position, sample]` layout; a class token is read."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.rows, self.token = nn.Linear(8, 32), nn.Parameter(0.02 * torch.randn(1, 1, 32))
        self.places = nn.Parameter(0.5 * torch.randn(1, 9, 32))
        layers = (nn.TransformerEncoderLayer(32, 4, 64, dropout, norm_first=True) for _ in range(2))
        self.layers, self.head = nn.ModuleList(layers), nn.Linear(32, 10)

    def mix(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x.transpose(0, 1)).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.rows(x.view(-1, 8, 8))], 1) + self.places
        for layer in self.layers:
            x = self.mix(layer, x)
        return self.head(x[:, 0])


@healthy("batch_mixing", "dropout_too_high", source="time-first transformer, transposed in front of each layer and behind it")
def h_class_token(seed: int) -> Case:
    return Case(seed=seed, model=ClassToken(), data=data.digits(seed), optimizer=adam(3e-3), max_steps=300, **CE)


class Looking(nn.Module):
    """Attention written by hand over the rows of a digit."""

    def __init__(self, temperature: float | None = None) -> None:
        super().__init__()
        self.rows, self.places = nn.Linear(8, 32), nn.Parameter(0.5 * torch.randn(8, 32))
        self.qkv, self.head, self.temperature = nn.Linear(32, 96), nn.Linear(256, 10), temperature

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        if self.temperature is None:
            return q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2) / self.temperature

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.rows(x.view(-1, 8, 8)) + self.places).chunk(3, -1)
        return self.head((self.scores(q, k).softmax(-1) @ v).flatten(1).relu())


@healthy("saturation", "bad_gain", source="attention by hand, its scores divided by the root of the width")
def h_attention_by_hand(seed: int) -> Case:
    return Case(seed=seed, model=Looking(), data=data.digits(seed), optimizer=adam(3e-3), max_steps=250, **CE)


@healthy("saturation", "bad_gain", source="cosine attention at a temperature of .01: sharp on purpose")
def h_sharp_cosine_attention(seed: int) -> Case:
    return Case(seed=seed, model=Looking(0.01), data=data.digits(seed), optimizer=adam(3e-3), max_steps=250, **CE)


# ------------------------------------------------------------------------------------------ dropout, batch norm
@healthy("dropout_too_high", source="two wide layers with dropout of .7, as Srivastava et al. 2014 widen by 1 / (1 - p)")
def h_two_wide_dropouts(seed: int) -> Case:
    model = mlp([64, 512, 512, 10], dropout=0.7)
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=adam(2e-3), max_steps=300, **CE)


@healthy("bn_stats", source="batches of two pictures: batch norm has their positions to average over")
def h_two_pictures(seed: int) -> Case:
    model = nn.Sequential(
        *conv_block(1, 12, nn.BatchNorm2d, nn.ReLU),
        *conv_block(12, 16, nn.BatchNorm2d, nn.ReLU),
        nn.Flatten(),
        nn.LazyLinear(4),
    )
    model(torch.zeros(2, 1, 12, 12))
    return Case(seed=seed, model=model, data=data.gratings(seed), optimizer=sgd(0.005), batch_size=2, max_steps=600, **CE)


@healthy("bn_stats", source="batch norm over batches of sixteen vectors")
def h_norm_over_sixteen(seed: int) -> Case:
    model = mlp([8, 64, 64, 4], norm=nn.BatchNorm1d, bias=False)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adam(3e-3), batch_size=16, max_steps=500, **CE)
