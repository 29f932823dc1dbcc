"""Faulty gradient flow: parts cut off, frozen, unknown to the optimiser, never stepped; samples weighed against all."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo import data, more_data
from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.nets import BCE, CE, MSE, adam, mlp, trainable


# ------------------------------------------------------------------------------------------ weights of samples
def weighed(seed: int) -> data.Split:
    """Inputs, reliabilities `[n, 1]` and targets; what is unreliable has its sign turned (in training only)."""
    train, val = data.surface(seed)
    bad = torch.rand(len(train), 1, generator=data.rng(4401, seed)) < 0.45
    x, y = train.tensors
    reliable = torch.where(bad, 0.01, 1.0)
    sets = [(x, reliable, torch.where(bad, -y, y)), (val.tensors[0], torch.ones(len(val), 1), val.tensors[1])]
    return TensorDataset(*sets[0]), TensorDataset(*sets[1])


class Weighed(Supervised):
    """Errors weighed by the reliability of each sample."""

    def errors(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square()

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, weight, target = batch
        loss = (weight * self.errors(self.model(x), target)).mean() / weight.mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step([batch[0], batch[2]], batch_idx)


class FlatlyWeighed(Weighed):
    def errors(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean(1)


@healthy("labels_broken", "wrong_loss", source="survey data with reliability weights")
def h_reliability_weights(seed: int) -> Case:
    model = mlp([8, 48, 48, 1])
    return Case(seed=seed, model=model, data=weighed(seed), optimizer=adam(3e-3), module=Weighed, max_steps=300, **MSE)


@faulty(
    "shape_broadcast", twin="h_reliability_weights", source="weights [N, 1] times losses [N]: every weight meets every loss"
)
def f_reliability_of_everyone(case: Case) -> None:
    case.module = FlatlyWeighed


# ------------------------------------------------------------------------------------------ memory cut off
class Remembering(nn.Module):
    """A GRU cell stepped by hand."""

    def __init__(self, features: int = 2, hidden: int = 16, outputs: int = 2) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(features, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.cell.hidden_size)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.out(h)


class Forgetting(Remembering):
    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.cell.hidden_size)
        for step in x.unbind(1):
            h = self.cell(step, h.detach())
        return self.out(h)


@healthy(source="recurrent cell stepped by hand over signals")
def h_cell_by_hand(seed: int) -> Case:
    opened = more_data.openings(seed)
    return Case(seed=seed, model=Remembering(), data=opened, optimizer=adam(1e-2), max_steps=250, **CE)


@faulty("detached_subgraph", twin="h_cell_by_hand", source="hidden state detached at every step, not between windows")
def f_cell_cut_each_step(case: Case) -> None:
    case.model = Forgetting()


# ------------------------------------------------------------------------------------------ hard codes
class HardCode(nn.Module):
    """An autoencoder with a code of signs, passed straight through (Bengio et al. 2013)."""

    def __init__(self, dim: int = 64, bits: int = 24) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp([dim, 96, bits]), mlp([bits, 96, dim])

    def forward(self, x: Tensor) -> Tensor:
        soft = self.encoder(x).tanh()
        return self.decoder(soft + (soft.sign() - soft).detach())


class HarderCode(HardCode):
    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x).tanh().sign())


@healthy("detached_subgraph", source="binary autoencoder with a straight-through estimator")
def h_straight_through_code(seed: int) -> Case:
    return Case(seed=seed, model=HardCode(), data=data.bars(seed), optimizer=adam(3e-3), max_steps=400, **BCE)


@faulty("detached_subgraph", "wrong_hidden_activation", twin="h_straight_through_code", source="sign without straight-through")
def f_code_not_through(case: Case) -> None:
    case.model = HarderCode()


# ------------------------------------------------------------------------------------------ adapters
class LowRank(nn.Module):
    """A frozen linear layer and a trained update of low rank (Hu et al. 2021)."""

    def __init__(self, base: nn.Linear, rank: int = 6) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def turned(part: TensorDataset) -> TensorDataset:
    """Digits as negatives, on their side."""
    x, y = part.tensors
    return TensorDataset(-x.view(-1, 8, 8).rot90(1, (1, 2)).flatten(1), y)


def adapted(seed: int) -> nn.Sequential:
    """A classifier of upright digits whose layers carry low-rank updates."""
    x, y = data.digits(seed)[0].tensors
    model = mlp([64, 32, 16, 10])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return nn.Sequential(*(LowRank(layer) if isinstance(layer, nn.Linear) else layer for layer in model))


@healthy(
    "frozen_by_accident", "init_vanishing", "init_symmetry", source="Hu et al. 2021: low-rank fine-tuning of a trained net"
)
def h_low_rank_turned_digits(seed: int) -> Case:
    parts = data.digits(seed)
    frozen = [f"model.{i}.base.{what}" for i in (0, 2, 4) for what in ("weight", "bias")]
    return Case(
        seed=seed, model=adapted(seed), data=(turned(parts[0]), turned(parts[1])), frozen=frozen,
        optimizer=trainable(torch.optim.Adam, lr=1e-2), max_steps=300, **CE,
    )  # fmt: skip


@faulty(
    "frozen_by_accident",
    twin="h_low_rank_turned_digits",
    source="base frozen after the adapters were put in, which it froze too",
)
def f_low_rank_adapters_frozen(case: Case) -> None:
    for layer in case.model[:3]:
        layer.requires_grad_(False)


# ------------------------------------------------------------------------------------------ vectors of words
class Valence(nn.Module):
    """The mean of the vectors of the words that are there, then a small net."""

    def __init__(self, vectors: Tensor, freeze: bool) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(vectors, freeze=freeze, padding_idx=0)
        self.top = mlp([vectors.shape[1], 24, 2])

    def count(self, x: Tensor) -> Tensor:
        return (x != 0).sum(1, keepdim=True).clamp_min(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.words(x).sum(1) / self.count(x))


class Careless(Valence):
    def count(self, x: Tensor) -> Tensor:
        return (x != 0).sum(1, keepdim=True)


def vectors(seed: int) -> Tensor:
    """Word vectors that know nothing of valence."""
    table = torch.randn(40, 4, generator=data.rng(4402, seed))
    table[0] = 0
    return table


def partly_empty(seed: int) -> data.Split:
    """Reviews of which a few are empty."""

    def emptied(part: TensorDataset) -> TensorDataset:
        x, y = part.tensors
        gone = torch.rand(len(x), generator=data.rng(4403, seed)) < 0.02
        return TensorDataset(x.masked_fill(gone[:, None], 0), y)

    train, val = more_data.reviews(seed)
    return emptied(train), emptied(val)


@healthy(source="sentiment from given word vectors that are tuned along; some texts are empty")
def h_tuned_word_vectors(seed: int) -> Case:
    model = Valence(vectors(seed), freeze=False)
    return Case(seed=seed, model=model, data=partly_empty(seed), optimizer=adam(1e-2), max_steps=300, **CE)


@faulty("frozen_by_accident", twin="h_tuned_word_vectors", source="Embedding.from_pretrained freezes unless told otherwise")
def f_word_vectors_stay(case: Case) -> None:
    case.model = Valence(vectors(case.seed), freeze=True)


@faulty("nan_loss", "bad_data", twin="h_tuned_word_vectors", source="masked mean of a text without words: 0 / 0")
def f_word_mean_of_none(case: Case) -> None:
    case.model = Careless(vectors(case.seed), freeze=False)


# ------------------------------------------------------------------------------------------ branches in a list
class Branches(nn.Module):
    """One small net per input column (additive model), summed."""

    def __init__(self, columns: int = 8) -> None:
        super().__init__()
        self.nets = nn.ModuleList(mlp([1, 24, 8], nn.Tanh, last=nn.Tanh()) for _ in range(columns))
        self.out = nn.Linear(8 * columns, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([net(x[:, i : i + 1]) for i, net in enumerate(self.nets)], 1))


class ListOfBranches(Branches):
    def __init__(self, columns: int = 8) -> None:
        super().__init__()
        nets = list(self.nets)
        del self.nets
        self.nets = nets


def additive(seed: int) -> data.Split:
    """A sum of fast waves, one per input."""
    g = data.rng(4404, seed)
    x, rate = 2 * torch.rand(1536, 8, generator=g) - 1, torch.linspace(2, 6, 8)
    return data.split(x * 3**0.5, data.standardise((rate * x).sin().sum(1, keepdim=True)))


@healthy(source="neural additive model")
def h_additive_branches(seed: int) -> Case:
    return Case(seed=seed, model=Branches(), data=additive(seed), optimizer=adam(1e-2), max_steps=400, **MSE)


@faulty("not_in_optimizer", twin="h_additive_branches", source="sub-networks in a Python list, not an nn.ModuleList")
def f_branches_in_plain_list(case: Case) -> None:
    case.model = ListOfBranches()


@faulty("not_in_optimizer", twin="h_additive_branches", source="optimiser of the parameters of the head alone")
def f_branches_head_only(case: Case) -> None:
    case.optimizer = lambda model: torch.optim.Adam(model.out.parameters(), lr=1e-2)
