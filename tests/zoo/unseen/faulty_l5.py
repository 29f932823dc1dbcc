"""Triplets, uncertainty, autoencoders, forecasts, rare kinds."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tests.zoo.case import Case, faulty, healthy
from tests.zoo.data import Split, manifold, reorder, rng, split, standardise, surface
from tests.zoo.metrics import METRICS
from tests.zoo.more_data import judgements, swings
from tests.zoo.nets import MSE, adam, adamw, mlp, sgd


# ------------------------------------------------------------------------------------------ triplets
class Triplets(LightningModule):
    """Embeds an anchor and two candidates; the nearer candidate is the answer."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.embed, self.make_optimizer, self.metric = case.model, case.optimizer, METRICS[case.metric]

    def forward(self, *views: Tensor) -> Tensor:
        anchor, first, second = (F.normalize(self.embed(view), dim=1) for view in views)
        return torch.stack([(anchor * first).sum(1), (anchor * second).sum(1)], 1)

    def hinge(self, near: Tensor, far: Tensor) -> Tensor:
        return F.relu(0.5 + far - near).mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        *views, which = batch
        likeness = self(*views)
        return self.hinge(likeness.gather(1, which[:, None]), likeness.gather(1, 1 - which[:, None]))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        *views, which = batch
        likeness = self(*views)
        self.log("val_loss", self.hinge(likeness.gather(1, which[:, None]), likeness.gather(1, 1 - which[:, None])))
        self.log("val_metric", self.metric.score(likeness, which), batch_size=len(which))

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.embed)


class FarTriplets(Triplets):
    """Similarities in a formula for distances."""

    def hinge(self, near: Tensor, far: Tensor) -> Tensor:
        return F.relu(0.5 + near - far).mean()


@healthy("wrong_loss", "dead_relu", source="metric learning: a hinge on cosine similarities of a shared encoder")
def h_triplets_hinge(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 48, 48, 8]), data=judgements(seed), loss=F.cross_entropy, metric="accuracy",
        optimizer=adam(3e-3),
        module=Triplets, max_steps=250,
    )  # fmt: skip


@faulty("loss_sign", "labels_broken", twin="h_triplets_hinge", source="similarities put into the triplet formula of distances")
def f_triplets_hinge_of_distances(case: Case) -> None:
    case.module = FarTriplets


# ------------------------------------------------------------------------------------------ uncertainty
class MeanAndSpread(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.spread = mlp([8, 48, 48], nn.ReLU), nn.Linear(48, 1), nn.Linear(48, 1)

    def positive(self, raw: Tensor) -> Tensor:
        return F.softplus(raw) + 1e-3

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x).relu()
        return self.mean(h), self.positive(self.spread(h))


class AnySpread(MeanAndSpread):
    def positive(self, raw: Tensor) -> Tensor:
        return raw


def gaussian(output: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    mean, std = output
    return (std.log() + 0.5 * ((y - mean) / std).square()).mean()


@healthy("wrong_loss", source="Nix and Weigend 1994: a mean and a softplus deviation")
def h_spreader(seed: int) -> Case:
    return Case(
        seed=seed,
        model=MeanAndSpread(),
        data=surface(seed),
        loss=gaussian,
        metric="mean_r2",
        optimizer=adam(3e-3),
        max_steps=300,
    )


@faulty("nan_loss", "wrong_last_activation", twin="h_spreader", source="forum: the logarithm of a raw output as deviation")
def f_spreader_raw(case: Case) -> None:
    case.model = AnySpread()


# ------------------------------------------------------------------------------------------ autoencoder
class Squeezer(nn.Module):
    """A bottleneck of three for twenty columns."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp([20, 48, 3], nn.ELU), mlp([3, 48, 20], nn.ELU)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


@healthy("data_not_shuffled", source="a denoising-free autoencoder for a table")
def h_squeezer(seed: int) -> Case:
    return Case(seed=seed, model=Squeezer(), data=manifold(seed), optimizer=adam(5e-3), max_steps=300, **MSE)


@faulty("not_in_optimizer", twin="h_squeezer", source="Adam(decoder.parameters()), from the script of stage two")
def f_squeezer_stage_two(case: Case) -> None:
    case.optimizer = lambda model: torch.optim.Adam(model.decoder.parameters(), 5e-3)  # type: ignore[union-attr, arg-type]


# ------------------------------------------------------------------------------------------ forecasts
class Forecaster(nn.Module):
    """Dilated convolutions over a window; the next two values."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(1 if i == 0 else 16, 16, 3, padding=2**i, dilation=2**i) for i in range(3))
        self.out = nn.Linear(16 * 20, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        for conv in self.convs:
            x = F.leaky_relu(conv(x))
        return self.out(x.flatten(1))


@healthy(source="a dilated convolution forecasts two steps")
def h_forecaster(seed: int) -> Case:
    return Case(seed=seed, model=Forecaster(), data=swings(seed), optimizer=sgd(0.03), max_steps=160, **MSE)


@faulty("data_not_shuffled", twin="h_forecaster", source="windows written in the order of their level, loader without shuffle")
def f_forecaster_in_order(case: Case) -> None:
    case.data, case.shuffle = reorder(case.data, lambda y: y[:, 0]), False


@faulty("lr_too_high", "nan_loss", twin="h_forecaster", source="the rate of the linear scaling rule for 32 devices, on one")
def f_forecaster_scaled_rate(case: Case) -> None:
    case.optimizer = sgd(0.96)


# ------------------------------------------------------------------------------------------ rare kinds
def kinds(seed: int, n: int = 3000) -> Split:
    """Three overlapping kinds: 88, 8 and 4 percent."""
    g = rng(955, seed)
    y = torch.multinomial(torch.tensor([0.88, 0.08, 0.04]), n, replacement=True, generator=g)
    centres = torch.randn(3, 2, 8, generator=g)
    x = centres[y, torch.randint(2, (n,), generator=g)] + 0.9 * torch.randn(n, 8, generator=g)
    return split(standardise(x), y)


def weighted_loss(data: Split, power: float) -> Any:
    share = data[0].tensors[1].bincount().float() / len(data[0])
    weight = share**power / (share**power).mean()
    return lambda out, y: F.cross_entropy(out, y, weight=weight)


@healthy("class_imbalance", source="class weights inverse to the frequency")
def h_kinds(seed: int) -> Case:
    data = kinds(seed)
    return Case(
        seed=seed, model=mlp([8, 32, 3], nn.Mish), data=data, loss=weighted_loss(data, -1), metric="balanced_accuracy",
        optimizer=adamw(5e-3), batch_size=64, val_batch_size=1000, max_steps=200,
    )  # fmt: skip


@faulty("class_imbalance", "wrong_loss", twin="h_kinds", source="Kaggle: class weights proportional to the counts, not inverse")
def f_kinds_by_counts(case: Case) -> None:
    case.loss = weighted_loss(case.data, 1)  # type: ignore[arg-type]
