"""Healthy, held out: everyday tables and numbers, own datasets and batches, unusual but proper targets."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import binary, counts, digits, rare_blobs, split, standardise, surface
from tests.zoo.more_data import customers, ratings, reviews, swings, tidy
from tests.zoo.nets import BCE, CE, MSE, Recurrent, adam, adamw, mlp, sgd
from tests.zoo.unseen.healthy_h2 import PackedReader


# ------------------------------------------------------------------------------------------ everyday
@healthy(source="the first net of every course: digits, two hidden layers, SGD with momentum")
def h_first_lesson(seed: int) -> Case:
    return Case(seed=seed, model=mlp([64, 64, 32, 10]), data=digits(seed), **CE, optimizer=sgd(0.05), max_steps=240)


@healthy(source="regression of a table with Adam and a little weight decay")
def h_table_of_numbers(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 1]), data=surface(seed, 3000), **MSE, optimizer=adamw(3e-3, weight_decay=1e-3),
        batch_size=64, max_steps=280,
    )  # fmt: skip


@healthy(source="embeddings of codes beside standardised numbers: will this customer buy")
def h_codes_and_numbers(seed: int) -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeds = nn.ModuleList(nn.Embedding(k, 4) for k in (12, 7, 5))
            self.top = mlp([16, 64, 32, 1], dropout=0.1)

        def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
            return self.top(torch.cat([*(embed(codes[:, i]) for i, embed in enumerate(self.embeds)), numbers], 1))

    return Case(
        seed=seed, model=Net(), data=tidy(customers(seed, 3600)), **BCE, optimizer=adam(4e-3), batch_size=64, max_steps=320
    )


@healthy("unnormalised_target", source="Koren 2009: factors of users and items, biases, the mean rating known")
def h_factors_of_ratings(seed: int) -> Case:
    data = ratings(seed, 6000)

    class Net(nn.Module):
        def __init__(self, mean: Tensor) -> None:
            super().__init__()
            self.user, self.item = nn.Embedding(50, 4), nn.Embedding(40, 4)
            self.user_bias, self.item_bias = nn.Embedding(50, 1), nn.Embedding(40, 1)
            for table in (self.user, self.item):
                nn.init.normal_(table.weight, std=0.3)
            for table in (self.user_bias, self.item_bias):
                nn.init.zeros_(table.weight)
            self.register_buffer("mean", mean)

        def forward(self, x: Tensor) -> Tensor:
            u, i = x.T
            product = (self.user(u) * self.item(i)).sum(1, keepdim=True)
            return self.mean + self.user_bias(u) + self.item_bias(i) + product

    return Case(
        seed=seed, model=Net(data[0].tensors[1].mean()), data=data, **MSE, optimizer=adam(1e-2, weight_decay=1e-5),
        batch_size=64, max_steps=400,
    )  # fmt: skip


@healthy(source="two classes, one logit, a small net with tanh")
def h_yes_or_no_tanh(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 48, 48, 1], act=nn.Tanh), data=binary(seed, 3000), **BCE, optimizer=adam(5e-3), max_steps=280
    )


@healthy(source="a GRU reads twenty values and forecasts the next two")
def h_forecast_of_swings(seed: int) -> Case:
    model = nn.Sequential(nn.Unflatten(1, (20, 1)), Recurrent(nn.GRU, 1, 32, 2))
    return Case(
        seed=seed,
        model=model,
        data=swings(seed),
        **MSE,
        optimizer=adam(8e-3),
        trainer={"gradient_clip_val": 1.0},
        max_steps=240,
    )


@healthy("wrong_last_activation", "wrong_loss", source="counts: a log rate under the Poisson likelihood, everyday")
def h_log_rate_of_visits(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 48, 48, 1], act=nn.SiLU), data=counts(seed, 3000), loss=F.poisson_nll_loss, metric="log_r2",
        optimizer=adam(3e-3), batch_size=64, max_steps=300,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ data of one's own
class Buckets(Dataset[Any]):
    """Ready batches of sentences of nearly one length, cut to the longest; drawn in any order."""

    def __init__(self, part: Any, size: int = 32) -> None:
        x, y = part.tensors
        order = ((x != 0).sum(1) + 0.5 * torch.rand(len(x))).argsort()
        self.batches = [(x[rows, : (x[rows] != 0).sum(1).max()], y[rows]) for rows in order.split(size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.batches[i]


@healthy("data_not_shuffled", "bad_data", source="batches by length, as in speech and translation; the batches are shuffled")
def h_buckets_by_length(seed: int) -> Case:
    train, val = reviews(seed, 3000)
    case = Case(seed=seed, model=PackedReader(), data=(Buckets(train), Buckets(val)), **CE, optimizer=adam(8e-3), max_steps=260)
    case.batch_size = case.val_batch_size = None  # type: ignore[assignment]
    return case


class Balanced(IterableDataset[Any]):
    """An endless stream that draws both classes equally often, as a weighted sampler does."""

    def __init__(self, part: Any, seed: int) -> None:
        self.x, self.y = part.tensors
        self.weight, self.seed = 1 / self.y.bincount().float()[self.y], seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        g = torch.Generator().manual_seed(self.seed)
        while True:
            for i in self.weight.multinomial(256, True, generator=g).tolist():
                yield self.x[i], self.y[i]


@healthy(
    "class_imbalance", "train_val_mismatch", source="a weighted sampler for a class of one in seven, as a stream without length"
)
def h_stream_of_both_alike(seed: int) -> Case:
    train, val = rare_blobs(seed, 0.15, 3000, overlap=0.35)
    return Case(
        seed=seed, model=mlp([6, 48, 48, 2]), data=(Balanced(train, seed), val), loss=F.cross_entropy,
        metric="balanced_accuracy", optimizer=adam(3e-3, weight_decay=1e-4), shuffle=False,
        trainer={"val_check_interval": 50}, max_steps=260,
    )  # fmt: skip


def nested(rows: list[Any]) -> dict[str, Any]:
    """Rows of codes, numbers and an answer, as a dictionary in a dictionary."""
    codes, numbers, answer = (torch.stack(column) for column in zip(*rows, strict=True))
    return {"features": {"codes": codes, "numbers": numbers}, "meta": {"rows": list(range(len(rows)))}, "answer": answer}


class FromNested(Supervised):
    """Takes the batch apart by name."""

    def shared(self, batch: Any) -> tuple[Tensor, Tensor]:
        output = self.model(batch["features"])
        return output, self.loss_fn(output, batch["answer"])

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        loss = self.shared(batch)[1]
        self.log("train_loss", loss, batch_size=len(batch["answer"]))
        return {"loss": loss}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        output, loss = self.shared(batch)
        size = len(batch["answer"])
        self.log("val_loss", loss, batch_size=size)
        self.log("val_metric", self.metric.score(output, batch["answer"]), batch_size=size)


@healthy("shape_broadcast", source="dictionaries within dictionaries from an own collate function; the step returns one too")
def h_dictionaries_within(seed: int) -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleDict({name: nn.Embedding(k, 3) for name, k in (("town", 12), ("trade", 7), ("age", 5))})
            self.top = mlp([13, 64, 1])

        def forward(self, features: dict[str, Tensor]) -> Tensor:
            codes = [table(features["codes"][:, i]) for i, table in enumerate(self.tables.values())]
            return self.top(torch.cat([*codes, features["numbers"]], 1))

    return Case(
        seed=seed,
        model=Net(),
        data=tidy(customers(seed, 3600)),
        **BCE,
        module=FromNested,
        collate=nested,
        optimizer=adam(6e-3),
        max_steps=320,
    )


# ------------------------------------------------------------------------------------------ targets
def mixture_nll(output: tuple[Tensor, Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    """Three Gaussians; `output` is their overall mean, log weights, means and log deviations."""
    _, weight, mean, deviation = output
    near = -((target - mean) / deviation.exp()).square() / 2 - deviation
    return -(weight + near).logsumexp(1).mean() + math.log(2 * math.pi) / 2


class Mixture(nn.Module):
    """Weights, means and deviations of three Gaussians; the means start apart by their biases."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(mlp([4, 48, 48], act=nn.SiLU), nn.SiLU()), nn.Linear(48, 9)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([0.0, 0, 0, -1, 0, 1, 0, 0, 0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weight, mean, deviation = self.head(self.body(x)).chunk(3, 1)
        weight = weight.log_softmax(1)
        return (weight.exp() * mean).sum(1, keepdim=True), weight, mean, deviation.clamp(-4, 3)


@healthy("bad_bias_init", "loss_sign", source="Bishop 1994, mixture density net: a target with two branches")
def h_branches_of_bishop(seed: int) -> Case:
    x = torch.randn(3000, 4)
    branch = (torch.rand(3000) < 0.15 + 0.7 * (2 * x[:, 3]).sigmoid()).float()
    y = 1.5 * (1.5 * x[:, 0]).sin() + x[:, 1] * x[:, 2] + 1.2 * branch + 0.15 * torch.randn(3000)
    return Case(
        seed=seed, model=Mixture(), data=split(x, standardise(y)[:, None]), loss=mixture_nll, metric="mean_r2",
        optimizer=adam(3e-3), batch_size=64, trainer={"gradient_clip_val": 5.0}, max_steps=320,
    )  # fmt: skip


class TwoLevels(nn.Module):
    """Log probabilities of ten digits by group of five, then within: Goodman 2001."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.group, self.within = mlp([64, 64, 48], last=nn.ReLU()), nn.Linear(48, 2), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        group, within = self.group(h).log_softmax(1), self.within(h).unflatten(1, (2, 5)).log_softmax(2)
        return (group[:, :, None] + within).flatten(1)


@healthy(
    "wrong_last_activation", "wrong_loss", source="Goodman 2001, hierarchical softmax: log probabilities under the likelihood"
)
def h_digits_in_two_levels(seed: int) -> Case:
    return Case(seed=seed, model=TwoLevels(), data=digits(seed), loss=F.nll_loss, metric="accuracy", optimizer=adam(4e-3))
