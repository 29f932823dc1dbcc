"""Held-out healthy cases: credit, customers, clicks, recommendations, prices, markets."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import Split, replace, rng, split
from tests.zoo.nets import BCE, MSE, adam, adamw, mlp, sgd
from tests.zoo.unseen.healthy_g1 import per_step, warmed


# ------------------------------------------------------------------------------------------ credit and customers
def applicants(seed: int, n: int = 2100, share: float = 0.5, noise: float = 0.3) -> Split:
    """Eight standardised figures and two one-hot codes (4 and 6 values); who defaults, `[n, 1]`."""
    g = rng(7301, seed)
    x = torch.randn(n, 8, generator=g)
    codes = [torch.randint(k, (n,), generator=g) for k in (4, 6)]
    score = x @ torch.tensor([1.2, -0.9, 0.7, 0.5, 0.0, 0.0, -0.4, 0.3]) + noise * torch.randn(n, generator=g)
    score = score + torch.randn(4, generator=g)[codes[0]] + 0.7 * torch.randn(6, generator=g)[codes[1]]
    hot = [F.one_hot(code, k).float() for code, k in zip(codes, (4, 6), strict=True)]
    return split(torch.cat([x, *hot], 1), (score > score.quantile(1 - share)).float()[:, None])


def subscribers(seed: int, n: int = 2400) -> Split:
    """Three codes (10, 6, 4 values), five standardised figures; who leaves, `[n, 1]`."""
    g = rng(7302, seed)
    codes = torch.stack([torch.randint(k, (n,), generator=g) for k in (10, 6, 4)], 1)
    x = torch.randn(n, 5, generator=g)
    effect = [torch.randn(k, generator=g) for k in (10, 6, 4)]
    score = sum(e[c] for e, c in zip(effect, codes.T, strict=True)) + 1.2 * x[:, 0] * x[:, 1] - x[:, 2] + 0.5 * x[:, 3]
    score = score + 0.2 * torch.randn(n, generator=g)
    return split(codes, x, (score > score.quantile(0.65)).float()[:, None])


class Codes(nn.Module):
    """One embedding per code, beside the figures, then an MLP."""

    def __init__(self, sizes: tuple[int, ...] = (10, 6, 4), figures: int = 5, dropout: float = 0.1) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Embedding(k, 4) for k in sizes)
        for table in self.embed:
            nn.init.normal_(table.weight, std=0.3)
        self.norm = nn.BatchNorm1d(figures)
        self.top = mlp([4 * len(sizes) + figures, 48, 24, 1], dropout=dropout)

    def forward(self, codes: Tensor, x: Tensor) -> Tensor:
        return self.top(torch.cat([*(e(c) for e, c in zip(self.embed, codes.T, strict=True)), self.norm(x)], 1))


class AsDict(Supervised):
    """Batches are dicts of codes, figures and label; both classes are judged alike."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss_fn(self(batch["codes"], batch["figures"]), batch["label"])
        self.log("train_loss", loss, batch_size=len(batch["label"]))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        output, label = self(batch["codes"], batch["figures"]), batch["label"]
        self.log("val_loss", self.loss_fn(output, label), batch_size=len(label))
        self.log("val_metric", self.metric.score(output, label), batch_size=len(label))


def to_dict(samples: list[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    return {k: torch.stack(v) for k, v in zip(("codes", "figures", "label"), zip(*samples, strict=True), strict=True)}


@healthy("missing_activation", "init_symmetry", source="credit score card: logistic regression from zero weights, SGD")
def h_scorecard_logistic(seed: int) -> Case:
    model = nn.Linear(18, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return Case(seed=seed, model=model, data=applicants(seed), optimizer=sgd(0.1, weight_decay=1e-4), max_steps=250, **BCE)


@healthy(source="credit default: MLP with dropout on standardised figures and one-hot codes, Adam")
def h_scorecard_mlp(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([18, 32, 16, 1], dropout=0.1), data=applicants(seed), optimizer=adam(3e-3), max_steps=250, **BCE
    )


@healthy("unnormalised_input", source="churn: embeddings of codes beside figures that a batch norm standardises, AdamW")
def h_churn_embeddings(seed: int) -> Case:
    scale, start = torch.tensor([12.0, 900.0, 3.0, 0.1, 30.0]), torch.tensor([41.0, 3200.0, 5.0, 0.5, 200.0])
    data = replace(subscribers(seed), 1, lambda x: scale * x + start)
    return Case(
        seed=seed, model=Codes(), data=data, optimizer=adamw(4e-3, weight_decay=0.02), batch_size=64, max_steps=300, **BCE
    )


@healthy(source="churn from batches that are dicts, NAdam, rate decayed linearly")
def h_churn_dicts(seed: int) -> Case:
    return Case(
        seed=seed, model=Codes(dropout=0.0), data=subscribers(seed), module=AsDict, collate=to_dict,
        optimizer=lambda m: torch.optim.NAdam(m.parameters(), lr=4e-3),
        scheduler=per_step(lambda o: LinearLR(o, 1.0, 0.1, 250)), max_steps=250, **BCE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ clicks
def clicks(seed: int, n: int = 6000, fields: int = 5, values: int = 8) -> Split:
    """Five codes of eight values each, numbered through (0 .. 39); clicked or not, by pairwise affinities."""
    g = rng(7303, seed)
    codes = torch.randint(values, (n, fields), generator=g) + values * torch.arange(fields)
    v, w = torch.randn(fields * values, 2, generator=g), torch.randn(fields * values, generator=g)
    total = v[codes].sum(1)
    score = 0.5 * (total.square() - v[codes].square().sum(1)).sum(1) + w[codes].sum(1)
    return split(codes, (score + 0.3 * torch.randn(n, generator=g) > score.median()).float()[:, None])


class Factorisation(nn.Module):
    """A factorisation machine: a bias, a weight and a vector per code; no activation at all."""

    def __init__(self, codes: int = 40, width: int = 6) -> None:
        super().__init__()
        self.bias, self.weight, self.vector = nn.Parameter(torch.zeros(1)), nn.Embedding(codes, 1), nn.Embedding(codes, width)
        nn.init.zeros_(self.weight.weight)
        nn.init.normal_(self.vector.weight, std=0.2)

    def forward(self, codes: Tensor) -> Tensor:
        v = self.vector(codes)
        pairs = 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1, keepdim=True)
        return self.bias + self.weight(codes).sum(1) + pairs


class DeepCross(nn.Module):
    """Two cross layers `x0 * (W x + b) + x` beside a small deep part (DCN v2)."""

    def __init__(self, codes: int = 40, fields: int = 5, width: int = 6) -> None:
        super().__init__()
        dim = fields * width
        self.embed = nn.Embedding(codes, width)
        nn.init.normal_(self.embed.weight, std=0.3)
        self.cross, self.deep = (
            nn.ModuleList(nn.Linear(dim, dim) for _ in range(2)),
            mlp([dim, 32, 16], nn.GELU, last=nn.GELU()),
        )
        self.head = nn.Linear(dim + 16, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x0 = x = self.embed(codes).flatten(1)
        for layer in self.cross:
            x = x0 * layer(x) + x
        return self.head(torch.cat([x, self.deep(x0)], 1))


@healthy("lr_too_high", "missing_activation", source="click-through: factorisation machine (Rendle 2010) on Adagrad, rate 0.2")
def h_click_factorisation(seed: int) -> Case:
    return Case(
        seed=seed, model=Factorisation(), data=clicks(seed), batch_size=128, max_steps=300,
        optimizer=lambda m: torch.optim.Adagrad(m.parameters(), lr=0.2), **BCE,
    )  # fmt: skip


@healthy("missing_activation", source="click-through: deep and cross network v2 (Wang 2021), Adam")
def h_click_deep_cross(seed: int) -> Case:
    return Case(seed=seed, model=DeepCross(), data=clicks(seed), batch_size=128, optimizer=adam(4e-3), max_steps=250, **BCE)


# ------------------------------------------------------------------------------------------ recommendations and ranking
def stars(seed: int, n: int = 6000, users: int = 60, items: int = 50) -> Split:
    """User and item `[n, 2]`; stars `[n, 1]` about 3.5 +- 1."""
    g = rng(7304, seed)
    who, what = torch.randint(users, (n,), generator=g), torch.randint(items, (n,), generator=g)
    u, v = torch.randn(users, 3, generator=g), torch.randn(items, 3, generator=g)
    y = 3.5 + 0.35 * (u[who] * v[what]).sum(1) + 0.5 * torch.randn(users, generator=g)[who]
    y = y + 0.5 * torch.randn(items, generator=g)[what] + 0.2 * torch.randn(n, generator=g)
    return split(torch.stack([who, what], 1), y[:, None])


class Factors(nn.Module):
    """Dot product of user and item, biases of both, and the mean rating as the start of the common bias."""

    def __init__(self, mean: float, users: int = 60, items: int = 50, width: int = 6) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, width), nn.Embedding(items, width)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for table, std in ((self.user, 0.3), (self.item, 0.3), (self.user_bias, 0.0), (self.item_bias, 0.0)):
            nn.init.normal_(table.weight, std=std)
        self.mean = nn.Parameter(torch.tensor([mean]))

    def forward(self, pair: Tensor) -> Tensor:
        who, what = pair.T
        match = (self.user(who) * self.item(what)).sum(1, keepdim=True)
        return self.mean + self.user_bias(who) + self.item_bias(what) + match


def visits(seed: int, n: int = 4500, items: int = 24) -> Split:
    """What a user has seen, as features `[n, 10]`; the item (of 24) that is bought next."""
    g = rng(7305, seed)
    x = torch.randn(n, 10, generator=g)
    taste = (x @ torch.randn(10, 6, generator=g) / 10**0.5).tanh()
    score = taste @ torch.randn(6, items, generator=g) + 0.1 * torch.randn(n, items, generator=g)
    return split(x, score.argmax(1))


class Towers(nn.Module):
    """Cosine of a user tower and of the item vectors, over a learnt temperature."""

    def __init__(self, items: int = 24, width: int = 16) -> None:
        super().__init__()
        self.user, self.item = mlp([10, 48, width]), nn.Embedding(items, width)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        cosine = F.normalize(self.user(x), dim=1) @ F.normalize(self.item.weight, dim=1).T
        return self.log_scale.exp() * cosine


def queries(seed: int, n: int = 1800, docs: int = 6, dim: int = 8) -> Split:
    """Features of six documents per query `[n, 6, 8]`; which one was clicked."""
    g = rng(7306, seed)
    x = torch.randn(n, docs, dim, generator=g) + 0.7 * torch.randn(n, 1, dim, generator=g)
    score = x[..., 0] + (1.5 * x[..., 1]).sin() - x[..., 2].abs() + 0.5 * x[..., 3] * x[..., 4]
    return split(x / x.std(), (score + 0.1 * torch.randn(n, docs, generator=g)).argmax(1))


class Scorer(nn.Module):
    """One score per document, by the same network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp([8, 48, 24, 1], nn.LeakyReLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)


@healthy("bad_bias_init", "unnormalised_target", source="MovieLens-like matrix factorisation, weight decay on Adam")
def h_stars_factors(seed: int) -> Case:
    data = stars(seed)
    model = Factors(data[0].tensors[1].mean().item())
    return Case(
        seed=seed, model=model, data=data, optimizer=adam(0.02, weight_decay=1e-5), batch_size=128, max_steps=300, **MSE
    )


@healthy("wrong_loss", "lr_schedule", source="two-tower retrieval: normalised vectors, learnt temperature, softmax over items")
def h_visit_towers(seed: int) -> Case:
    return Case(
        seed=seed, model=Towers(), data=visits(seed), loss=F.cross_entropy, metric="accuracy", optimizer=adam(5e-3),
        scheduler=warmed(20, 300), batch_size=64, max_steps=300,
    )  # fmt: skip


@healthy("frozen_by_accident", "wrong_last_activation", source="ListNet ranking: softmax over the documents of a query")
def h_query_listwise(seed: int) -> Case:
    return Case(
        seed=seed, model=Scorer(), data=queries(seed), loss=F.cross_entropy, metric="accuracy", optimizer=adam(4e-3),
        max_steps=250,
    )  # fmt: skip
