"""Recommenders."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.zoo.case import Case, healthy
from tests.zoo.data import rng, split
from tests.zoo.metrics import METRICS
from tests.zoo.more_data import ratings
from tests.zoo.nets import BCE, adam, adamw, mlp
from tests.zoo.opened.healthy_d1 import SharedStep, figure


# ------------------------------------------------------------------------------------------ recommenders
def tastes(seed: int, users: int = 80, items: int = 60) -> tuple[Tensor, Tensor]:
    """Who likes what: yes or no `[users, items]`, and a mask of the pairs that are kept for the judgement."""
    g = rng(800, seed)
    user, item = torch.randn(users, 3, generator=g), torch.randn(items, 3, generator=g)
    likes = user @ item.T + 0.5 * torch.randn(items, generator=g) > 0.9
    return likes, torch.rand(users, items, generator=g) < 0.25


class Factors(nn.Module):
    """Vectors of users and items, a bias per item."""

    def __init__(self, users: int = 80, items: int = 60, width: int = 8) -> None:
        super().__init__()
        self.user, self.item, self.bias = nn.Embedding(users, width), nn.Embedding(items, width), nn.Embedding(items, 1)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)
        nn.init.zeros_(self.bias.weight)

    def forward(self, who: Tensor, what: Tensor) -> Tensor:
        return (self.user(who) * self.item(what)).sum(-1) + self.bias(what).squeeze(-1)


class Triplets(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """A user, something liked, and something else that is not known to be liked, drawn anew each time."""

    def __init__(self, likes: Tensor, seed: int) -> None:
        self.pairs, self.likes, self.generator = likes.nonzero(), likes, rng(801, seed)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        who, what = self.pairs[index]
        others = (~self.likes[who]).nonzero()[:, 0]
        return who, what, others[torch.randint(len(others), (), generator=self.generator)]


class Personalised(LightningModule):
    """Bayesian personalised ranking; judged by how often the liked one of two unseen items is ranked first."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.factors, self.build = case.model, case.optimizer

    def gap(self, batch: Any) -> Tensor:
        who, what, other = batch[:3]
        return self.factors(who, what) - self.factors(who, other)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return -F.logsigmoid(self.gap(batch)).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        gap = self.gap(batch)
        self.log("val_loss", F.softplus(-gap).mean(), batch_size=len(gap))
        self.log("val_metric", (gap > 0).float().mean(), batch_size=len(gap))

    def configure_optimizers(self) -> Any:
        return self.build(self)


@healthy("wrong_loss", "init_vanishing", "labels_broken", source="Rendle et al. 2009: BPR, negatives drawn by the data set")
def h_likes_in_pairs(seed: int) -> Case:
    likes, kept = tastes(seed)
    g = rng(802, seed)
    yes, no = (likes & kept).nonzero(), (~likes & kept)
    no = torch.stack([torch.multinomial(no[who].float(), 1, generator=g)[0] for who in yes[:, 0]])
    seen = split(yes[:, 0], yes[:, 1], no, torch.ones(len(yes)), val=0.0)[0]
    return Case(
        seed=seed, model=Factors(), data=(Triplets(likes & ~kept, seed), seen), module=Personalised, loss=F.softplus,
        metric=figure("d_first_of_two", METRICS["binary_accuracy"].score, 0.5), optimizer=adam(1e-2, weight_decay=1e-5),
        max_steps=400, batch_size=64,
    )  # fmt: skip


class NeuralTaste(nn.Module):
    """NeuMF: a product of vectors beside an MLP of others, joined in one layer."""

    def __init__(self, users: int = 80, items: int = 60, width: int = 8) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(k, width) for k in (users, items, users, items))
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.1)
        self.mix, self.head = mlp([2 * width, 32, 8], nn.GELU, last=nn.GELU()), nn.Linear(width + 8, 1)

    def forward(self, who: Tensor, what: Tensor) -> Tensor:
        a, b, c, d = (table(i) for table, i in zip(self.tables, (who, what, who, what), strict=True))
        return self.head(torch.cat([a * b, self.mix(torch.cat([c, d], 1))], 1))


@healthy("init_vanishing", "class_imbalance", source="He et al. 2017: neural matrix factorisation of implicit feedback")
def h_neural_tastes(seed: int) -> Case:
    likes, kept = tastes(seed, 80, 60)
    data = tuple(split(*at.T, likes[tuple(at.T)].float()[:, None], val=0.0)[0] for at in ((~kept).nonzero(), kept.nonzero()))
    return Case(
        seed=seed, model=NeuralTaste(), data=data, optimizer=adam(5e-3), max_steps=300, batch_size=64, loss=BCE["loss"],
        metric=figure("d_balanced", lambda out, y: balanced(out, y), 0.5), module=SharedStep,
    )  # fmt: skip


def balanced(output: Tensor, target: Tensor) -> Tensor:
    right = (output > 0) == (target > 0.5)
    return (right[target > 0.5].float().mean() + right[target < 0.5].float().mean()) / 2


class Biased(nn.Module):
    """Mean plus biases plus product, and a squared penalty that the module gives out."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.vectors, self.biases = nn.ModuleList([nn.Embedding(50, 6), nn.Embedding(40, 6)]), nn.ModuleList([
            nn.Embedding(50, 1), nn.Embedding(40, 1)
        ])  # fmt: skip
        for table in self.vectors:
            nn.init.normal_(table.weight, std=0.3)
        for table in self.biases:
            nn.init.zeros_(table.weight)
        self.register_buffer("mean", torch.tensor(mean))

    def forward(self, pair: Tensor) -> Tensor:
        a, b = (table(i) for table, i in zip(self.vectors, pair.T, strict=True))
        self.penalty = a.square().sum(1).mean() + b.square().sum(1).mean()
        return self.mean + sum(t(i) for t, i in zip(self.biases, pair.T, strict=True)) + (a * b).sum(1, keepdim=True)


@healthy("unnormalised_target", "init_symmetry", source="Koren 2009: stars, mean and biases and vectors, by Adam")
def h_stars_with_biases(seed: int) -> Case:
    data = ratings(seed, n=6000)
    model = Biased(data[0].tensors[1].mean().item())
    return Case(
        seed=seed, model=model, data=data, loss=lambda out, y: F.mse_loss(out, y) + 2e-3 * model.penalty, metric="r2",
        optimizer=adam(1e-2), max_steps=400, batch_size=64,
    )  # fmt: skip


class Shelves(nn.Module):
    """Mult-DAE: normalised, half-dropped baskets to logits over all things."""

    def __init__(self, items: int = 60) -> None:
        super().__init__()
        self.drop, self.encode, self.decode = nn.Dropout(0.3), nn.Linear(items, 24), nn.Linear(24, items)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(self.drop(F.normalize(x, dim=1))).tanh())


@healthy("dropout_too_high", "wrong_loss", source="Liang et al. 2018: multinomial likelihood of what a user likes")
def h_shelves(seed: int) -> Case:
    g = rng(803, seed)
    groups = torch.randint(6, (1500, 2), generator=g)
    like = torch.stack([torch.arange(60) % 6 == groups[:, i : i + 1] for i in range(2)]).any(0)
    basket = ((torch.rand(1500, 60, generator=g) < 0.6) & like) | (torch.rand(1500, 60, generator=g) < 0.02)
    given = basket & (torch.rand(1500, 60, generator=g) < 0.7)
    rest = (basket & ~given).float()

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return -(out.log_softmax(1) * y).sum(1).mean()

    def hits(out: Tensor, y: Tensor) -> Tensor:
        """Which share of a user's group stands above the median of the logits' range; constants do no better than half."""
        inside, outside = (out * y).sum(1) / y.sum(1).clamp_min(1), (out * (1 - y)).sum(1) / (1 - y).sum(1)
        return (y * (out > (inside + outside)[:, None] / 2)).sum() / y.sum()

    return Case(
        seed=seed, model=Shelves(), data=split(given.float(), rest), loss=loss, metric=figure("d_hits", hits, 0.5),
        optimizer=adamw(5e-3), max_steps=250, batch_size=64,
    )  # fmt: skip
