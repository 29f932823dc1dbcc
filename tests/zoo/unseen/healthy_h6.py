"""Healthy, held out: sets, graphs, parametrised weights, and nets that start from other nets."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import Split, blobs, digits, replace
from tests.zoo.more_data import clouds, network
from tests.zoo.nets import CE, adam, init_weights, lecun, mlp, sgd, trainable


# ------------------------------------------------------------------------------------------ sets and graphs
@healthy(source="Zaheer 2017, deep sets: an MLP per point, the mean and the spread, an MLP")
def h_deep_sets_moments(seed: int) -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each, self.all = mlp([3, 32, 32]), mlp([64, 32, 4])

        def forward(self, x: Tensor) -> Tensor:
            h = self.each(x)
            return self.all(torch.cat([h.mean(1), h.std(1)], 1))

    return Case(seed=seed, model=Net(), data=clouds(seed, 1200), **CE, optimizer=adam(4e-3), max_steps=240)


@healthy("labels_broken", "data_not_shuffled", source="Kipf 2017: one graph is the whole batch, most of its labels are hidden")
def h_kipf_whole_graph(seed: int) -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.drop = nn.Linear(6, 16), nn.Linear(16, 4), nn.Dropout(0.3)

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            h = self.drop(F.relu(adjacency @ self.first(x)))
            return (adjacency @ self.second(h)).transpose(1, 2)

    return Case(
        seed=seed, model=Net(), data=network(seed, 320), loss=F.cross_entropy, metric="accuracy",
        optimizer=adam(2e-2, weight_decay=5e-3), max_steps=120, trainer={"check_val_every_n_epoch": 10},
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ units and weights
@healthy("wrong_hidden_activation", "bad_gain", source="Klambauer 2017: eight SELU layers from LeCun's normal, alpha dropout")
def h_selu_alpha_dropout(seed: int) -> Case:
    sizes = [64, *[48] * 7]
    hidden = [nn.Sequential(nn.Linear(a, b), nn.SELU(), nn.AlphaDropout(0.02)) for a, b in pairwise(sizes)]
    model = init_weights(nn.Sequential(*hidden, nn.Linear(48, 10)), lecun)
    return Case(seed=seed, model=model, data=digits(seed), **CE, optimizer=sgd(0.01), max_steps=260)


@healthy(source="Salimans 2016: weight normalisation in every layer")
def h_weight_normed_blobs(seed: int) -> Case:
    model = nn.Sequential(
        weight_norm(nn.Linear(8, 64)), nn.ReLU(), weight_norm(nn.Linear(64, 64)), nn.ReLU(), weight_norm(nn.Linear(64, 4))
    )
    return Case(seed=seed, model=model, data=blobs(seed, 2400), **CE, optimizer=adam(4e-3), max_steps=240)


# ------------------------------------------------------------------------------------------ from another net
def schooled(net: nn.Module, data: Split, steps: int = 250) -> nn.Module:
    """The net after a little training on another task."""
    x, y = data[0].tensors
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net


def known_and_new(seed: int) -> tuple[nn.Sequential, Split]:
    """A net that reads digits, and digits that lie on their side."""
    data = digits(seed)
    return schooled(mlp([64, 96, 96, 10]), data), replace(data, 0, lambda x: x.view(-1, 8, 8).transpose(1, 2).flatten(1))


class LowRank(nn.Module):
    """A frozen layer and a product of two thin ones that starts at zero."""

    def __init__(self, base: nn.Linear, rank: int = 6, alpha: float = 12.0) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * (x @ self.a.T @ self.b.T)


@healthy(
    "frozen_by_accident",
    "init_symmetry",
    "init_vanishing",
    source="Hu 2022, LoRA in each layer of a net that knows a near task",
)
def h_thin_products(seed: int) -> Case:
    net, data = known_and_new(seed)
    model = nn.Sequential(*(LowRank(layer) if isinstance(layer, nn.Linear) else layer for layer in net))
    frozen = [f"model.{i}.base.{p}" for i in (0, 2, 4) for p in ("weight", "bias")]
    return Case(seed=seed, model=model, data=data, **CE, optimizer=trainable(torch.optim.AdamW, lr=4e-3), frozen=frozen)


class Staged(Supervised):
    """Sixty steps for the head alone, then all, the body at a tenth of the rate."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.model[:4].requires_grad_(False)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == 60 and not self.model[0].weight.requires_grad:
            self.model[:4].requires_grad_(True)
            self.optimizers().add_param_group({"params": list(self.model[:4].parameters()), "lr": 5e-4})

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.model[4].parameters(), lr=5e-3)


@healthy("not_in_optimizer", "frozen_by_accident", source="Howard 2018: first the head, later the body at a lower rate")
def h_head_first_body_later(seed: int) -> Case:
    net, data = known_and_new(seed)
    net[4] = nn.Linear(96, 10)
    return Case(seed=seed, model=net, data=data, **CE, module=Staged, optimizer=adam(5e-3), max_steps=220)


class Taught(Supervised):
    """Half the truth, half what a larger frozen net says at temperature 3."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.teacher = schooled(mlp([64, 128, 128, 10]), case.data).requires_grad_(False).eval()

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        soft = F.kl_div((logits / 3).log_softmax(1), (self.teacher(x) / 3).softmax(1), reduction="batchmean")
        loss = 0.5 * self.loss_fn(logits, y) + 0.5 * 9 * soft
        self.log("train_loss", loss)
        return loss


@healthy("frozen_by_accident", "not_in_optimizer", "wrong_loss", source="Hinton 2015: a small net taught by a larger one")
def h_taught_by_larger(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([64, 24, 10]),
        data=digits(seed),
        **CE,
        module=Taught,
        optimizer=adam(5e-3),
        frozen=[f"teacher.{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias")],
    )
