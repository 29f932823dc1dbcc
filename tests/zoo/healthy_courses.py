"""Healthy: whole runs whose losses, batches or schedules look like a fault's: noise, seasons, rare classes, harder tasks."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR
from torch.utils.data import TensorDataset

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.healthy_steps import stepped
from tests.zoo.healthy_transfer import pretrain, transferred
from tests.zoo.nets import BCE, CE, MSE, adam, mlp, sgd, trainable


# ------------------------------------------------------------------------------------------ noise
def skewed(seed: int, n: int) -> data.Split:
    """Zero for most, a few large numbers: claims."""
    g = data.rng(301, seed)
    x = torch.randn(n, 6, generator=g)
    y = (torch.rand(n, generator=g) < 0.3).float() * (x[:, 0] + 1).exp()
    return data.split(x, data.standardise(y)[:, None])


@healthy("lr_too_high", source="claims in batches of eight, two epochs: the first batch held no large one")
def h_claims(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 32, 1]), data=skewed(seed, 900), optimizer=adam(5e-3), batch_size=8,
        trainer={"max_epochs": 2}, max_steps=-1, **MSE,
    )  # fmt: skip


@healthy("labels_broken", "lr_too_low", source="clicks: a cross-entropy of .97 of a guess's is what there is to learn")
def h_clicks_hardly_told(seed: int) -> Case:
    g = data.rng(302, seed)
    x = torch.randn(6000, 10, generator=g)
    y = torch.rand(6000, generator=g) < (0.35 * (x[:, 0] + x[:, 1] * x[:, 2] - 0.5 * x[:, 3])).sigmoid()
    return Case(
        seed=seed, model=mlp([10, 32, 1]), data=data.split(x, y.float()[:, None]), optimizer=adam(2e-3), batch_size=128,
        trainer={"max_epochs": 5}, max_steps=-1, **BCE,
    )  # fmt: skip


class NextBase(Supervised):
    """Predict each base from those before it."""

    def compare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(x[:, :-1])
        return F.cross_entropy(logits, x[:, 1:]), (logits.argmax(1) == x[:, 1:]).float().mean()

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return self.compare(batch[0])[0]

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        loss, hits = self.compare(batch[0])
        self.log_dict({"val_loss": loss, "val_metric": hits})


class Bases(nn.Module):
    """A recurrent language model of four letters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(4, 16), nn.GRU(16, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0]).transpose(1, 2)


@healthy("labels_broken", source="a language model of DNA: 4 bases, of 2 bits 1.9 are noise")
def h_bases(seed: int) -> Case:
    g = data.rng(303, seed)
    table, x = torch.randn(4, 4, 4, generator=g).mul(0.45).softmax(2), torch.randint(4, (1500, 30), generator=g)
    for t in range(2, 30):
        x[:, t] = torch.multinomial(table[x[:, t - 2], x[:, t - 1]], 1, generator=g)[:, 0]
    return Case(
        seed=seed, model=Bases(), data=data.split(x), optimizer=adam(3e-3), module=NextBase, trainer={"max_epochs": 6},
        max_steps=-1, **CE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ validation
@healthy("train_val_mismatch", source="hourly temperatures, split by time: the first validation batch is five days of winter")
def h_winter_first(seed: int) -> Case:
    t = torch.arange(2190)
    s = (
        10 * (2 * math.pi * t / 2190).sin()
        + 2 * (2 * math.pi * t / 6).sin()
        + 0.5 * torch.randn(2190, generator=data.rng(304, seed))
    )
    s = (s - s[:1533].mean()) / s[:1533].std()
    x, y = s.unfold(0, 24, 1)[:-1].clone(), s[24:, None]
    parts = TensorDataset(x[:1509], y[:1509]), TensorDataset(x[1509:], y[1509:])
    return Case(
        seed=seed, model=mlp([24, 32, 1]), data=parts, optimizer=adam(2e-3), trainer={"max_epochs": 4}, max_steps=-1, **MSE
    )


@healthy("train_val_mismatch", "class_imbalance", source="a rare class sampled as often as the common one, in training only")
def h_rare_class_repeated(seed: int) -> Case:
    g = data.rng(305, seed)
    x = torch.randn(9000, 6, generator=g)
    y = (torch.rand(9000, generator=g) < (3 * x[:, 0] + 2 * x[:, 1] * x[:, 2] - 9).sigmoid()).float()[:, None]
    common, rare = (y[:6000, 0] == 0).nonzero()[:, 0], (y[:6000, 0] == 1).nonzero()[:, 0]
    rows = torch.cat([common, rare.repeat(len(common) // len(rare))])
    return Case(
        seed=seed, model=mlp([6, 32, 1]), data=(TensorDataset(x[rows], y[rows]), TensorDataset(x[6000:], y[6000:])),
        optimizer=adam(3e-3), batch_size=64, trainer={"max_epochs": 3}, max_steps=-1,
        loss=F.binary_cross_entropy_with_logits, metric="balanced_binary",
    )  # fmt: skip


class InCurrency(Supervised):
    """Validate in the units of the target."""

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        output = self(x)
        self.log_dict({"val_loss": F.mse_loss(300 * output, 300 * y), "val_metric": self.metric.score(output, y)})


@healthy("train_val_mismatch", "overfit_no_regularisation", source="val_loss in currency, training on standardised targets")
def h_loss_in_currency(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 1]), data=data.surface(seed), optimizer=adam(5e-3), module=InCurrency,
        trainer={"max_epochs": 8}, max_steps=-1, **MSE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ rates, schedules, decay
@healthy("lr_schedule", source="0.95 an epoch over 200 epochs, which EarlyStopping ends after 30")
def h_fading_rate(seed: int) -> Case:
    stop = EarlyStopping("val_loss", patience=8, strict=False)
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=adam(5e-3),
        scheduler=lambda optimizer: ExponentialLR(optimizer, 0.95), trainer={"max_epochs": 200, "callbacks": [stop]},
        max_steps=-1, **CE,
    )  # fmt: skip


@healthy("lr_schedule", source="Adam at 1, and LambdaLR gives the rate itself: a warm-up, then 5e-3")
def h_lambda_rate(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=adam(1.0),
        scheduler=stepped(LambdaLR, lr_lambda=lambda step: min(5e-3, 1e-4 * (step + 1))), trainer={"max_epochs": 8},
        max_steps=-1, **CE,
    )  # fmt: skip


@healthy("lr_schedule", "no_update", source="LambdaLR with a function per group: the body stays for six epochs of ten")
def h_waiting_body(seed: int) -> Case:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam([{"params": part.parameters()} for part in (model.body, model.head)], lr=5e-3)

    def schedule(held: torch.optim.Optimizer) -> LambdaLR:
        return LambdaLR(held, [lambda epoch: float(epoch >= 6), lambda epoch: 1.0])

    return Case(
        seed=seed, model=transferred(seed), data=data.gratings(seed), optimizer=optimizer, scheduler=schedule,
        trainer={"max_epochs": 10}, max_steps=-1, **CE,
    )  # fmt: skip


@healthy("weight_decay_too_strong", source="a converged net goes on at SGD's usual decay, which outweighs a loss of .01")
def h_goes_on(seed: int) -> Case:
    split = data.blobs(seed)
    return Case(
        seed=seed, model=pretrain(mlp([8, 64, 64, 4]), split, steps=400), data=split,
        optimizer=sgd(0.1, weight_decay=5e-4), trainer={"max_epochs": 70}, max_steps=-1, **CE,
    )  # fmt: skip


class Adapter(nn.Module):
    """Houlsby et al. 2019: a frozen layer and a bottleneck that starts near zero."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down, self.up = nn.Linear(layer.out_features, 8), nn.Linear(8, layer.out_features)
        for part in (self.down, self.up):
            nn.init.normal_(part.weight, std=1e-3)
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        return hidden + self.up(F.gelu(self.down(hidden)))


@healthy("lr_too_high", "init_vanishing", source="Houlsby et al. 2019: adapters drawn with a std of .001, Adam at .005")
def h_tiny_adapters(seed: int) -> Case:
    model = pretrain(mlp([8, 64, 64, 64, 4]), data.blobs(seed + 500), steps=200)
    for i in (0, 2, 4):
        model[i] = Adapter(model[i])  # type: ignore[index, operator, arg-type]
    model[6] = nn.Linear(64, 4)  # type: ignore[index, operator]
    frozen = [f"model.{i}.layer.{name}" for i in (0, 2, 4) for name in ("weight", "bias")]
    return Case(
        seed=seed, model=model, data=data.blobs(seed), optimizer=trainable(torch.optim.Adam, lr=5e-3),
        frozen=frozen, trainer={"max_epochs": 15}, max_steps=-1, **CE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ frozen, infinite
class Distilled(Supervised):
    """Burda et al. 2019: predict what a random network says; the error tells what is new."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.random = mlp([8, 32, 4]).requires_grad_(False)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self.model(batch[0]), self.random(batch[0]))

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        output, target = self.model(batch[0]), self.random(batch[0])
        self.log_dict({"val_loss": F.mse_loss(output, target), "val_metric": self.metric.score(output, target)})


@healthy("frozen_by_accident", source="Burda et al. 2019: a random network is the target, nobody declares it")
def h_random_target(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=adam(3e-3), module=Distilled,
        trainer={"max_epochs": 5}, max_steps=-1, **MSE,
    )  # fmt: skip


class Pointer(nn.Module):
    """Vinyals et al. 2015: a score per candidate, minus infinity for those that are not there."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query = nn.Linear(3, 32), nn.Parameter(torch.randn(32) / 6)

    def forward(self, x: Tensor, absent: Tensor) -> Tensor:
        return (self.embed(x).tanh() @ self.query).masked_fill(absent, -torch.inf)


@healthy("nan_loss", "bad_data", source="Vinyals et al. 2015: logits of absent candidates are minus infinity")
def h_absent_candidates(seed: int) -> Case:
    g = data.rng(306, seed)
    x, absent = torch.randn(1200, 8, 3, generator=g), torch.arange(8) >= torch.randint(4, 9, (1200, 1), generator=g)
    best = (x[..., 0] + x[..., 1].abs()).masked_fill(absent, -99).argmax(1)
    return Case(
        seed=seed, model=Pointer(), data=data.split(x, absent, best), optimizer=adam(1e-2), trainer={"max_epochs": 6},
        max_steps=-1, **CE,
    )  # fmt: skip
