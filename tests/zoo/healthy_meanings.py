"""Healthy: outputs, targets, orders and scales that mean something else than usual."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import rng, split, standardise
from tests.zoo.nets import CE, MSE, adam, mlp, sgd


# ------------------------------------------------------------------------------------------ outputs
class Decay(nn.Module):
    """What is left after a while, at a rate that a network tells: more of the one is less of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = mlp([6, 64, 64, 1])

    def forward(self, x: Tensor) -> Tensor:
        return (-F.softplus(self.rate(x))).exp()


@healthy("loss_sign", source="a decay rate in front of a known law: the output falls where the target rises")
def h_decay_rate(seed: int) -> Case:
    g = rng(901, seed)
    x = torch.randn(1536, 6, generator=g)
    y = (-F.softplus(x[:, 0] + x[:, 1] * x[:, 2])).exp() + 0.02 * torch.randn(1536, generator=g)
    return Case(seed=seed, model=Decay(), data=split(x, y[:, None]), optimizer=adam(3e-3), **MSE)


class TimesInputs(nn.Module):
    """The outer product of features and inputs, as in bilinear pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = mlp([8, 32, 8]), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head((self.features(x)[:, :, None] * x[:, None, :]).flatten(1))
        return out


@healthy("shape_broadcast", source="Lin et al. 2015: bilinear features, as many of the net as there are inputs")
def h_features_times_inputs(seed: int) -> Case:
    return Case(seed=seed, model=TimesInputs(), data=data.surface(seed), optimizer=adam(3e-3), **MSE)


# ------------------------------------------------------------------------------------------ targets
def known_only(loss: Tensor, target: Tensor) -> Tensor:
    return (loss * (target >= 0)).sum() / (target >= 0).sum()


@healthy("labels_broken", "wrong_loss", source="MoleculeNet: labels that nobody measured are -1, and masked out of BCE")
def h_unknown_labels(seed: int) -> Case:
    (x, y), val = data.attributes(seed)[0].tensors, data.attributes(seed)[1]
    y = y.masked_fill(torch.rand(y.shape, generator=rng(910, seed)) < 0.4, -1)
    return Case(
        seed=seed, model=mlp([10, 96, 96, 6]), data=(TensorDataset(x, y), val), optimizer=adam(3e-3), metric="binary_accuracy",
        loss=lambda output, target: known_only(F.binary_cross_entropy_with_logits(output, target, reduction="none"), target),
    )  # fmt: skip


@healthy("wrong_last_activation", source="amounts of -1 stand for unknown, masked out; a softplus at the end")
def h_unknown_amounts(seed: int) -> Case:
    g = rng(911, seed)
    x = torch.randn(1536, 8, generator=g)
    train, val = split(x, F.softplus(x @ torch.randn(8, 4, generator=g) / 2))
    x, y = train.tensors
    y = y.masked_fill(torch.rand(y.shape, generator=g) < 0.3, -1)
    return Case(
        seed=seed, model=nn.Sequential(mlp([8, 96, 96, 4]), nn.Softplus()), data=(TensorDataset(x, y), val),
        optimizer=adam(3e-3), metric="r2", loss=lambda output, target: known_only((output - target).square(), target),
    )  # fmt: skip


class Consistent(Supervised):
    """Cross-entropy of the few labels there are; two noisy views of every sample are told alike."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        view, other = (self(x + 0.1 * torch.randn_like(x)) for _ in range(2))
        labelled = F.cross_entropy(view, y, ignore_index=-1, reduction="sum") / max(int((y >= 0).sum()), 1)
        return labelled + F.mse_loss(view.softmax(1), other.softmax(1).detach())


@healthy("labels_broken", source="Laine and Aila 2017: one sample in fourteen has a label, consistency for all")
def h_mostly_unlabelled(seed: int) -> Case:
    (x, y), val = data.blobs(seed, n=3000, per_class=2)[0].tensors, data.blobs(seed, n=3000, per_class=2)[1]
    y = y.masked_fill(torch.rand(len(y), generator=rng(944, seed)) < 0.93, -1)
    return Case(
        seed=seed, model=mlp([8, 96, 96, 4]), data=(TensorDataset(x, y), val), batch_size=64, optimizer=adam(3e-3),
        max_steps=300, module=Consistent, **CE,
    )  # fmt: skip


@healthy("labels_broken", source="rain: dry in 24 hours of 25, and each shower is another")
def h_rare_rain(seed: int) -> Case:
    x = torch.randn(6000, 6, generator=rng(946, seed))
    y = 3 * (x[:, :1] + x[:, 1:2] - 2.4).relu()
    return Case(
        seed=seed, model=mlp([6, 64, 64, 1]), data=split(x, y), batch_size=64, optimizer=adam(3e-3), max_steps=400, **MSE
    )


# ------------------------------------------------------------------------------------------ orders
class ByClass(IterableDataset[Any]):
    """Batches that are put together of as many classes and samples of each as are asked for, one class after the other."""

    def __init__(self, part: TensorDataset, classes: int, samples: int, seed: int) -> None:
        self.part, self.classes, self.samples, self.generator = part, classes, samples, rng(930, seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.part.tensors
        for _ in range(100):
            for label in torch.randperm(int(y.max()) + 1, generator=self.generator)[: self.classes]:
                own = torch.where(y == label)[0]
                for i in own[torch.randint(len(own), (self.samples,), generator=self.generator)]:
                    yield x[i], y[i]


@healthy("data_not_shuffled", source="Hermans et al. 2017: batches of 8 classes times 4 samples, class by class")
def h_batches_of_classes(seed: int) -> Case:
    train, val = data.blobs(seed, classes=24, per_class=2, n=3000, dim=12)
    return Case(
        seed=seed, model=mlp([12, 96, 96, 24]), data=(ByClass(train, 8, 4, seed), val), shuffle=False,  # type: ignore[arg-type]
        optimizer=adam(3e-3), max_steps=300, **CE,
    )  # fmt: skip


@healthy("train_val_mismatch", source="a season: the first validation windows lie in its dry part, one after the other")
def h_series_in_order(seed: int) -> Case:
    g, t = rng(950, seed), torch.arange(2400.0)
    slow, fast = (2 * math.pi * t / 800).sin(), (2 * math.pi * t / 24).sin()
    windows = standardise(1.5 * slow + 0.25 * fast + 0.08 * torch.randn(2400, generator=g)).unfold(0, 25, 1)
    x, y = windows[:, :24], windows[:, 24:]
    return Case(
        seed=seed, model=mlp([24, 64, 1]), data=(TensorDataset(x[:1600], y[:1600]), TensorDataset(x[1600:], y[1600:])),
        val_batch_size=32, optimizer=adam(3e-3), **MSE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ scales
class Logged(nn.Module):
    """Takes the logarithm of amounts itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp([5, 64, 64, 1])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x.log() / 2.2)
        return out


@healthy("train_val_mismatch", "bad_data", source="amounts over six decades, logged in the model: no two batches have one std")
def h_heavy_amounts(seed: int) -> Case:
    z = torch.randn(1500, 5, generator=rng(955, seed))
    y = standardise(z[:, :1] * z[:, 1:2] + z[:, 2:3])
    return Case(
        seed=seed, model=Logged(), data=split((2.2 * z).exp(), y), batch_size=16, val_batch_size=64, optimizer=adam(3e-3),
        max_steps=400, **MSE,
    )  # fmt: skip


class Points(nn.Module):
    """Lang et al. 2019, PointPillars: a layer and batch norm for each point, then a maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(6, 48, bias=False), nn.BatchNorm1d(48), mlp([48, 64, 3])

    def forward(self, x: Tensor) -> Tensor:
        points: Tensor = self.norm(self.layer(x).flatten(0, 1)).view(len(x), -1, 48).relu()
        out: Tensor = self.head(points.amax(1))
        return out


@healthy("unnormalised_input", source="Lang et al. 2019: points in metres, 50 away, into a layer with batch norm behind it")
def h_points_in_metres(seed: int) -> Case:
    g = rng(960, seed)
    y = torch.randint(3, (900,), generator=g)
    centre = 40 * torch.randn(900, 1, 3, generator=g) * torch.tensor([1, 1, 0.05])
    offset = torch.randn(900, 32, 3, generator=g) * (1 + 2 * torch.eye(3))[y][:, None]
    cloud = split(torch.cat([centre + offset, offset], 2), y)
    return Case(seed=seed, model=Points(), data=cloud, optimizer=adam(5e-3), max_steps=300, **CE)


@healthy("bad_data", source="three questions of yes or no: eight different answers")
def h_three_questions(seed: int) -> Case:
    x = torch.randint(2, (1500, 3), generator=rng(963, seed)).float()
    return Case(
        seed=seed, model=mlp([3, 32, 2]), data=split(x, (x.sum(1) % 2).long()), batch_size=64, optimizer=adam(1e-2), **CE
    )


class EveryFourth(Supervised):
    """A step for every four batches, by hand."""

    automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.manual_backward(self.loss_fn(self(x), y) / 4)
        if (batch_idx + 1) % 4 == 0:
            optimizer = self.optimizers()
            assert isinstance(optimizer, LightningOptimizer)
            optimizer.step()
            optimizer.zero_grad()


@healthy("loss_reduction", source="batches of four, four to a step: the mean is divided by four")
def h_four_of_four(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 4]), data=data.blobs(seed), batch_size=4, optimizer=sgd(0.1), max_steps=400,
        module=EveryFourth, **CE,
    )  # fmt: skip


class NextLetter(nn.Module):
    """Bengio et al. 2003: three letters, embedded, tell the next one."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.table, self.net = nn.Embedding(letters, 16), mlp([48, 96, letters])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.table(x).flatten(1))
        return out


@healthy("class_imbalance", source="Bengio et al. 2003: the next letter, of which few are common")
def h_next_letter(seed: int, letters: int = 40) -> Case:
    g = rng(942, seed)
    follows = torch.rand(letters, letters, generator=g).pow(9) * torch.arange(1.0, letters + 1).pow(-1.3)
    follows = follows.square()
    text = [0]
    for _ in range(6000):
        text.append(int(torch.multinomial(follows[text[-1]], 1, generator=g)))
    windows = torch.tensor(text).unfold(0, 4, 1)[torch.randperm(len(text) - 3, generator=g)]
    return Case(
        seed=seed, model=NextLetter(letters), data=split(windows[:, :3], windows[:, 3]), batch_size=128, optimizer=adam(5e-3),
        max_steps=300, **CE,
    )  # fmt: skip
