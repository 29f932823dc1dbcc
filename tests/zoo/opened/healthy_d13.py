"""Everyday set-ups: what ordinary users run on tables, sequences, sets and ratings."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics.regression import R2Score

from tests.zoo.case import Case, healthy
from tests.zoo.data import Split, attributes, blobs, counts, digits, rng, several, split, standardise, surface, walks, words
from tests.zoo.metrics import accuracy
from tests.zoo.more_data import cipher, clouds, ratings, regimes, reviews, swings
from tests.zoo.nets import BCE, CE, MSE, Recurrent, ResidualMLP, Transformer, WordBag, adam, adamw, mlp, sgd
from tests.zoo.opened.healthy_d1 import SharedStep
from tests.zoo.opened.healthy_d5 import schedule


@healthy(source="everyday: several targets at once, tanh units, SGD with Nesterov momentum, MultiStepLR")
def h_usual_three_targets(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 48, 48, 3], nn.Tanh), data=several(seed, n=2000), **MSE, optimizer=sgd(0.05, nesterov=True),
        scheduler=lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [9, 13], 0.3), max_steps=350, batch_size=32,
    )  # fmt: skip


@healthy(source="everyday: multi-label rows, BCE with logits, AdamW, OneCycleLR")
def h_usual_labels(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([10, 64, 64, 6], dropout=0.05), data=attributes(seed, n=2400), **BCE, optimizer=adamw(1e-3),
        scheduler=lambda o: {
            "scheduler": torch.optim.lr_scheduler.OneCycleLR(o, 1e-2, total_steps=350), "interval": "step",
        },
        max_steps=350, batch_size=64,
    )  # fmt: skip


@healthy(source="everyday: an LSTM's last step to a linear head, Adam, clipped gradients")
def h_usual_lstm(seed: int) -> Case:
    return Case(
        seed=seed, model=Recurrent(nn.LSTM, 3, 32, 4), data=walks(seed), **CE, optimizer=adam(5e-3), max_steps=250,
        batch_size=64, trainer={"gradient_clip_val": 1.0}, module=SharedStep,
    )  # fmt: skip


@healthy(source="everyday: a small transformer encoder as sentence classifier, warm-up and cosine")
def h_usual_encoder(seed: int) -> Case:
    return Case(
        seed=seed, model=Transformer(dropout=0.1), data=words(seed, n=2400), **CE, optimizer=adamw(3e-3, weight_decay=0.01),
        scheduler=schedule(200, 20), max_steps=200, batch_size=64,
    )  # fmt: skip


class MeanSet(nn.Module):
    """Each element through one net, the mean through another."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = mlp([3, 48, 32], nn.GELU, last=nn.GELU()), mlp([32, 32, 1], nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        return self.all(self.each(x).mean(1))


class Reported(LightningModule):
    """Train and validation figures by torchmetrics' `R2Score`, computed per epoch."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["case"])
        self.net, self.build, self.loss = case.model, case.optimizer, nn.MSELoss()
        self.train_r2, self.val_r2 = R2Score(), R2Score()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        prediction = self(x)
        loss = self.loss(prediction, y)
        self.train_r2.update(prediction.detach().flatten(), y.flatten())
        self.log("train_loss", loss, on_step=True, on_epoch=False)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train_r2", self.train_r2.compute())
        self.train_r2.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        prediction = self(x)
        self.val_r2.update(prediction.flatten(), y.flatten())
        self.log("val_loss", self.loss(prediction, y), batch_size=len(y))

    def on_validation_epoch_end(self) -> None:
        self.log("val_metric", self.val_r2.compute())
        self.val_r2.reset()

    def configure_optimizers(self) -> Any:
        return self.build(self)


@healthy(source="everyday: Deep Sets regression of a statistic of unordered points")
def h_usual_set(seed: int) -> Case:
    g = rng(820, seed)
    x = torch.randn(2000, 12, 3, generator=g) + 0.5 * torch.randn(2000, 1, 3, generator=g)
    y = x[:, :, 0].abs().mean(1) + (x[:, :, 1] * x[:, :, 2]).mean(1) + 0.05 * torch.randn(2000, generator=g)
    return Case(
        seed=seed, model=MeanSet(), data=split(standardise(x, None), standardise(y)[:, None]), module=Reported,
        optimizer=adam(3e-3), max_steps=350, batch_size=64, **MSE,
    )  # fmt: skip


class Stars(nn.Module):
    """Vectors and biases of users and items."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(50, 7), nn.Embedding(40, 7)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.2)

    def forward(self, pair: Tensor) -> Tensor:
        a, b = self.user(pair[:, 0]), self.item(pair[:, 1])
        return ((a[:, 1:] * b[:, 1:]).sum(1) + a[:, 0] + b[:, 0])[:, None]


def centred(data: Split) -> Split:
    mean, std = data[0].tensors[-1].mean(), data[0].tensors[-1].std()
    x, y = (torch.cat(pair) for pair in zip(data[0].tensors, data[1].tensors, strict=True))
    return split(x, (y - mean) / std)


@healthy(source="everyday: matrix factorisation of standardised ratings, AdamW")
def h_usual_ratings(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Stars(),
        data=centred(ratings(seed, n=6000)),
        optimizer=adamw(1e-2),
        max_steps=350,
        batch_size=64,
        **MSE,
    )


@healthy(source="everyday: the mean of word vectors, then a small net")
def h_usual_bag(seed: int) -> Case:
    return Case(
        seed=seed,
        model=WordBag(40, 24, 2),
        data=reviews(seed, n=3000),
        optimizer=adam(5e-3),
        max_steps=250,
        batch_size=64,
        **CE,
    )


@healthy(source="everyday: residual layers with layer norm on a table, AdamW, cosine per epoch")
def h_usual_residual(seed: int) -> Case:
    return Case(
        seed=seed, model=ResidualMLP(8, 32, 1, 3, norm=nn.LayerNorm), data=surface(seed, n=2400), optimizer=adamw(2e-3), **MSE,
        scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 14), max_steps=350, batch_size=64,
    )  # fmt: skip


class Literal(LightningModule):
    """As in the first tutorial: layers, loss and optimiser written out."""

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.l1, self.l2 = nn.Linear(64, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.l2(torch.relu(self.l1(x)))

    def training_step(self, batch: Any, batch_nb: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_nb: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y), prog_bar=True)
        self.log("val_metric", accuracy(logits, y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


@healthy(source="everyday: Lightning's first tutorial, on small digits")
def h_usual_tutorial(seed: int) -> Case:
    return Case(
        seed=seed,
        model=nn.Identity(),
        data=digits(seed),
        module=lambda case: Literal(3e-3),
        optimizer=adam(3e-3),
        max_steps=200,
        **CE,
    )


@healthy(source="everyday: counts by Poisson regression with a log link")
def h_usual_counts(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 48, 1], nn.Tanh), data=counts(seed, n=2400), loss=F.poisson_nll_loss, metric="log_r2",
        optimizer=adam(5e-3), max_steps=350, batch_size=64,
    )  # fmt: skip


class PerToken(nn.Module):
    """An embedding, a GRU both ways and a linear layer; a class for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(8, 16), nn.GRU(16, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0]).transpose(1, 2)


@healthy(source="everyday: a tagger of tokens by a bidirectional GRU")
def h_usual_tagger(seed: int) -> Case:
    return Case(
        seed=seed, model=PerToken(), data=cipher(seed, n=2400), optimizer=adam(8e-3), max_steps=250, batch_size=64,
        trainer={"gradient_clip_val": 1.0}, **CE,
    )  # fmt: skip


@healthy(source="everyday: the next two values of a window by a perceptron, Huber loss")
def h_usual_forecast(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([20, 64, 64, 2]), data=swings(seed), loss=nn.HuberLoss(), metric="r2", optimizer=adam(2e-3),
        max_steps=300, module=SharedStep,
    )  # fmt: skip


class Points(nn.Module):
    """Shared layers per point with batch norm, the maximum over points, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 64, 1), nn.BatchNorm1d(64), nn.ReLU()
        )
        self.head = mlp([64, 32, 4], nn.GELU, dropout=0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x.transpose(1, 2)).amax(2))


@healthy(source="everyday: PointNet without its transforms")
def h_usual_points(seed: int) -> Case:
    return Case(seed=seed, model=Points(), data=clouds(seed, n=1200), optimizer=adamw(3e-3), max_steps=200, **CE)


@healthy(source="everyday: dilated convolutions that tell the regime at each step, SGD")
def h_usual_regimes(seed: int) -> Case:
    class Steps(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.transpose(1, 2))

    model = Steps(
        nn.Conv1d(2, 24, 3, padding=1), nn.ReLU(), nn.Conv1d(24, 24, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv1d(24, 3, 1)
    )
    return Case(seed=seed, model=model, data=regimes(seed), optimizer=sgd(0.05), max_steps=200, **CE)


@healthy(source="everyday: four classes of a table, dropout, Adam, a little L2")
def h_usual_classes(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4], dropout=0.1), data=blobs(seed, n=2400, per_class=4), **CE,
        optimizer=adam(2e-3, weight_decay=1e-4), max_steps=300, batch_size=64,
    )  # fmt: skip
