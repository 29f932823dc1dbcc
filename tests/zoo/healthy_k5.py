"""Healthy: long tails that are learnt, dropout under noise, energies, masks in forward, series as batches, other units apart."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.nets import CE, MSE, adam, adamw, mlp, trainable


# ------------------------------------------------------------------------------------------ long tails
def tickets(seed: int, n: int = 4000, queues: int = 12, wrong: float = 0.0) -> data.Split:
    """Tickets of queues of which two get most, a few centres each."""
    g = data.rng(4501, seed)
    share = 1 / torch.arange(1, queues + 1).float() ** 2.3
    y = torch.multinomial(share, n, replacement=True, generator=g)
    centres = 1.6 * torch.randn(queues, 2, 12, generator=g)
    x = centres[y, torch.randint(2, (n,), generator=g)] + 0.7 * torch.randn(n, 12, generator=g)
    other = torch.multinomial(share, n, replacement=True, generator=g)
    return data.split(data.standardise(x), torch.where(torch.rand(n, generator=g) < wrong, other, y))


def smoothed(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, label_smoothing=0.1)


@healthy("class_imbalance", source="tickets by queue, a long tail that is told well; label_smoothing=0.1 as timm has it")
def h_long_tail_smoothed(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([12, 96, 96, 12]), data=tickets(seed), optimizer=adamw(3e-3), batch_size=64, max_steps=400,
        loss=smoothed, metric="accuracy",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ dropout
@healthy("dropout_too_high", source="dropout .6 (GAT, click models), where a quarter of the labels is wrong in validation, too")
def h_dropout_under_noise(seed: int) -> Case:
    train, val = data.blobs(seed, n=3000, classes=3, per_class=3)
    g = data.rng(4502, seed)

    def noisy(part: TensorDataset) -> TensorDataset:
        x, y = part.tensors
        return TensorDataset(x, torch.where(torch.rand(len(y), generator=g) < 0.3, torch.randint(3, y.shape, generator=g), y))

    model = mlp([8, 256, 256, 3], dropout=0.6)
    return Case(
        seed=seed, model=model, data=(noisy(train), noisy(val)), optimizer=adam(1e-3), batch_size=64, max_steps=500, **CE
    )


class Masked(nn.Module):
    """SimMIM, PatchTST: forward hides 60 % of the patches and rebuilds them, also when it is validated."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.zeros(4))
        self.net = mlp([20, 128, 128, 20])

    def forward(self, x: Tensor) -> Tensor:
        patches = x.view(len(x), 5, 4)
        mask = torch.rand(len(x), 5, 1) < 0.4
        return self.net(torch.where(mask, self.hidden, patches).flatten(1))


@healthy(
    "dropout_active_in_eval",
    source="masked modelling whose masks are drawn in forward, in validation as well (SimMIM, PatchTST)",
)
def h_masks_in_forward(seed: int) -> Case:
    return Case(seed=seed, model=Masked(), data=data.manifold(seed), optimizer=adam(3e-3), max_steps=500, **MSE)


# ------------------------------------------------------------------------------------------ energies, places
def of_energies(energy: Tensor, target: Tensor) -> Tensor:
    """LeCun et al. 2006: the right answer's energy, and the free energy of all."""
    return (energy.gather(1, target[:, None])[:, 0] + torch.logsumexp(-energy, 1)).mean()


class Told(Supervised):
    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self.log("val_metric", self.metric.score(-self(batch[0]), batch[1]), batch_size=len(batch[1]))


@healthy("loss_sign", source="energy-based classification: the negative log-likelihood of energies, low for the right class")
def h_low_energy_is_right(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([64, 64, 10]), data=data.digits(seed), optimizer=adam(3e-3), module=Told, max_steps=300,
        loss=of_energies, metric="accuracy",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ batches
class Following(nn.Module):
    """An LSTM over one long series: what the loader gives are the next 64 steps, an unbatched sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


@healthy(
    "batch_mixing", "data_not_shuffled", source="one long series: a batch is a stretch of time, read as an unbatched sequence"
)
def h_stretches_of_a_series(seed: int) -> Case:
    g = data.rng(4504, seed)
    x = torch.randn(9600, 3, generator=g)
    y = torch.zeros(9600)
    for t in range(2, 9600):
        y[t] = 0.5 * y[t - 1] + x[t - 1, 0] * x[t, 1] + 0.5 * x[t - 2, 2]
    split = data.split(x, data.standardise(y)[:, None])
    return Case(
        seed=seed, model=Following(), data=split, optimizer=adam(1e-2), batch_size=64, val_batch_size=64, shuffle=False,
        max_steps=400, **MSE,
    )  # fmt: skip


class InEuros(Supervised):
    """Validation prices are in euros, as the report wants them; outputs are scaled back."""

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        told = 250_000 + 80_000 * self(x)
        self.log("val_mae", (told - y).abs().mean(), batch_size=len(y))
        self.log("val_metric", self.metric.score(told, y), batch_size=len(y))


@healthy(
    "train_val_mismatch",
    source="the training set's targets are standardised, the validation set's are in euros, where outputs go",
)
def h_validated_in_euros(seed: int) -> Case:
    train, val = data.surface(seed)
    euros = TensorDataset(val.tensors[0], 250_000 + 80_000 * val.tensors[1])
    return Case(
        seed=seed, model=mlp([8, 64, 64, 1]), data=(train, euros), optimizer=adam(3e-3), module=InEuros, max_steps=300, **MSE
    )


# ------------------------------------------------------------------------------------------ heads, adapters


class HalfTrained(nn.Module):
    """LoRA-FA (Zhang et al. 2023): the random factor in front stays, the one that starts at zero learns."""

    def __init__(self, layer: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.layer, self.a, self.b = layer, nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features)
        layer.requires_grad_(False)
        self.a.requires_grad_(False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.b(self.a(x))


@healthy("frozen_by_accident", source="LoRA-FA: the first factor stays as it was drawn")
def h_half_of_the_factors(seed: int) -> Case:
    model = mlp([64, 96, 96, 10])
    train, val = data.digits(seed)
    x, y = train.tensors
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for i in range(300):
        part = torch.arange(i * 32, i * 32 + 32) % len(x)
        optimizer.zero_grad()
        F.cross_entropy(model(x[part].flip(1)), y[part]).backward()
        optimizer.step()
    for i in (0, 2, 4):
        model[i] = HalfTrained(model[i], 24 if i == 0 else 8)
    return Case(seed=seed, model=model, data=(train, val), optimizer=trainable(torch.optim.AdamW, lr=1e-2), max_steps=400, **CE)
