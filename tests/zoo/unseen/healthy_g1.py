"""Held-out healthy cases: medicine and the life sciences."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, StepLR

from tests.zoo.case import Case, healthy
from tests.zoo.data import Split, rng, split, standardise
from tests.zoo.nets import BCE, CE, Lambda, Recurrent, Transformer, adam, adamw, mlp, sgd


def per_step(make: Callable[[Optimizer], Any]) -> Callable[[Optimizer], Any]:
    """A scheduler that moves with every step."""
    return lambda optimizer: {"scheduler": make(optimizer), "interval": "step"}


def warmed(warm: int, steps: int) -> Callable[[Optimizer], Any]:
    """Linear warm-up, cosine decay to a twentieth."""

    def factor(t: int) -> float:
        return (t + 1) / warm if t < warm else 0.05 + 0.475 * (1 + math.cos(math.pi * min(1, (t - warm) / (steps - warm))))

    return per_step(lambda optimizer: LambdaLR(optimizer, factor))


def conv_bn(a: int, b: int, stride: int = 1, act: Callable[[], nn.Module] = nn.ReLU) -> list[nn.Module]:
    return [nn.Conv2d(a, b, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(b), act()]


# ------------------------------------------------------------------------------------------ radiology
def films(seed: int, n: int = 1500, size: int = 16, share: float = 0.5, kinds: int = 1) -> Split:
    """Smooth anatomy with, or without, a disc, a ring, a vertical and a horizontal line; targets `[n, kinds]`."""
    g = rng(7001, seed)
    y = (torch.rand(n, kinds, generator=g) < share).float()
    at, phase = torch.arange(size), 6.3 * torch.rand(n, 2, 1, 1, generator=g)
    x = 0.5 * (0.35 * at[:, None] + phase[:, 0]).sin() + 0.5 * (0.3 * at + phase[:, 1]).cos()
    x = x + 0.35 * torch.randn(n, size, size, generator=g)
    for k in range(kinds):
        centre = 4 + (size - 8) * torch.rand(n, 2, 1, 1, generator=g)
        down, right = at[:, None] - centre[:, 0], at[None, :] - centre[:, 1]
        far = (down.square() + right.square()).sqrt()
        near = far < 4
        mark = [far < 2, (far - 3).abs() < 0.7, near & (right.abs() < 0.6), near & (down.abs() < 0.6)][k]
        x = x + 1.9 * y[:, k, None, None] * mark
    return split(standardise(x, None)[:, None], y)


@healthy(source="chest film, nodule or none: small convolutional network with batch norm, AdamW and cosine decay")
def h_film_nodule(seed: int) -> Case:
    model = nn.Sequential(
        *conv_bn(1, 8), *conv_bn(8, 16, 2), *conv_bn(16, 24, 2), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(24, 1)
    )
    cosine = per_step(lambda o: CosineAnnealingLR(o, 220, eta_min=1e-4))
    data = films(seed)
    return Case(seed=seed, model=model, data=data, optimizer=adamw(4e-3), scheduler=cosine, max_steps=220, **BCE)


@healthy("class_imbalance", "wrong_loss", source="CheXpert style: several findings at once, the rare positives weighted up")
def h_film_findings(seed: int) -> Case:
    def norm(width: int) -> nn.Module:
        return nn.GroupNorm(4, width)

    layers = [[nn.Conv2d(a, b, 3, s, 1), norm(b), nn.SiLU()] for a, b, s in ((1, 12, 1), (12, 16, 1), (16, 24, 2))]
    flat = [layer for block in layers for layer in block]
    model = nn.Sequential(*flat, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(24, 4))
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 2.0, 2.0, 2.0]))
    data = films(seed, n=1800, share=0.3, kinds=4)
    return Case(
        seed=seed, model=model, data=data, loss=loss, metric="binary_accuracy", optimizer=adam(6e-3),
        scheduler=warmed(20, 300), max_steps=300,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ heart and brain
def beats(seed: int, n: int = 1800, length: int = 48) -> Split:
    """One beat `[n, 1, length]`: normal, wide without P wave, narrow without P wave, paced; seven in ten are normal."""
    g = rng(7002, seed)
    y = torch.multinomial(torch.tensor([0.7, 0.1, 0.1, 0.1]), n, True, generator=g)
    at = torch.arange(length) - 24 - 2 * torch.randn(n, 1, generator=g)

    def bump(place: float, width: float) -> Tensor:
        return (-(at - place).square() / (2 * width**2)).exp()

    narrow, p, t = 2.5 * bump(0, 1.3) - 0.6 * bump(3, 1.2), 0.6 * bump(-10, 2), 0.8 * bump(12, 3)
    wide, spike = 2.4 * bump(0, 3.5) - 0.9 * bump(9, 4), 2 * bump(-5, 0.6)
    x = torch.stack([p + narrow + t, wide, narrow + t, p + spike + wide + t])[y, torch.arange(n)]
    x = x * (1 + 0.1 * torch.randn(n, 1, generator=g)) + 0.2 * torch.randn(n, length, generator=g)
    return split(standardise(x, None)[:, None], y)


def rhythms(seed: int, n: int = 1500, length: int = 24) -> Split:
    """Standardised intervals `[n, length, 1]` between beats: slowly varying, irregular, or every second one early."""
    g = rng(7003, seed)
    y, at = torch.randint(3, (n,), generator=g), torch.arange(length)
    slow = (0.4 * at + 6.3 * torch.rand(n, 1, generator=g)).sin()
    kinds = [slow, torch.randn(n, length, generator=g), 0.9 * (-1.0) ** (at + torch.randint(2, (n, 1), generator=g))]
    x = torch.stack(kinds)[y, torch.arange(n)] + 0.4 * torch.randn(n, length, generator=g)
    return split(standardise(x, None)[..., None], y)


def imagery(seed: int, n: int = 1500, channels: int = 6, length: int = 64) -> Split:
    """Six electrodes `[n, 1, 6, length]`: which of three hidden sources swings strongly."""
    g = rng(7004, seed)
    y, at = torch.randint(3, (n,), generator=g), torch.arange(length)
    phase, rate = 6.3 * torch.rand(n, 3, 1, generator=g), torch.tensor([0.6, 0.6, 1.2])[:, None]
    strength = 0.4 + 1.4 * F.one_hot(y, 3)[..., None] + 0.1 * torch.randn(n, 3, 1, generator=g)
    sources = strength * (rate * at + phase).sin()
    mixing = torch.randn(channels, 3, generator=g)
    x = torch.einsum("cs,nst->nct", mixing, sources) + 0.9 * torch.randn(n, channels, length, generator=g)
    return split(standardise(x, None)[:, None], y)


@healthy("class_imbalance", source="MIT-BIH beats: one-dimensional convolutions, cross entropy weighted by inverse frequency")
def h_heartbeat_kinds(seed: int) -> Case:
    model = nn.Sequential(
        nn.Conv1d(1, 12, 7, padding=3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(12, 24, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(24, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(24 * 12, 4),
    )  # fmt: skip
    data = beats(seed)
    share = data[0].tensors[1].bincount(minlength=4) / len(data[0])
    loss = nn.CrossEntropyLoss(weight=0.25 / share)
    return Case(seed=seed, model=model, data=data, loss=loss, metric="balanced_accuracy", optimizer=adam(2e-3), max_steps=200)


@healthy(source="rhythm from beat-to-beat intervals: a GRU on Adam with gradient clipping")
def h_rhythm_gru(seed: int) -> Case:
    model = Recurrent(nn.GRU, 1, 24, 3)
    return Case(
        seed=seed,
        model=model,
        data=rhythms(seed),
        optimizer=adam(5e-3),
        max_steps=250,
        trainer={"gradient_clip_val": 1.0},
        **CE,
    )


@healthy("missing_activation", "dropout_too_high", source="EEGNet (Lawhern 2018): temporal, depthwise spatial, separable; ELU")
def h_imagery_eegnet(seed: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 4, (1, 15), padding=(0, 7), bias=False), nn.BatchNorm2d(4),
        nn.Conv2d(4, 12, (6, 1), groups=4, bias=False), nn.BatchNorm2d(12), nn.ELU(), nn.AvgPool2d((1, 4)), nn.Dropout(0.25),
        nn.Conv2d(12, 12, (1, 7), padding=(0, 3), groups=12, bias=False), nn.Conv2d(12, 12, 1, bias=False),
        nn.BatchNorm2d(12), nn.ELU(), nn.AvgPool2d((1, 4)), nn.Dropout(0.25), nn.Flatten(), nn.Linear(48, 3),
    )  # fmt: skip
    return Case(seed=seed, model=model, data=imagery(seed), optimizer=adam(4e-3), batch_size=48, max_steps=250, **CE)


@healthy("wrong_hidden_activation", "missing_activation", source="ShallowConvNet (Schirrmeister 2017): square, mean pool, log")
def h_imagery_band_power(seed: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 8, (1, 15), bias=False), nn.Conv2d(8, 12, (6, 1), bias=False), nn.BatchNorm2d(12), Lambda(torch.square),
        nn.AvgPool2d((1, 20), (1, 10)), Lambda(lambda x: x.clamp_min(1e-4).log()), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(48, 3),
    )  # fmt: skip
    return Case(seed=seed, model=model, data=imagery(seed), optimizer=adamw(3e-3, weight_decay=1e-3), max_steps=220, **CE)


# ------------------------------------------------------------------------------------------ genes and proteins
def promoters(seed: int, n: int = 2100, length: int = 40) -> Split:
    """One-hot letters `[n, 4, length]`; whether a motif, or only a shuffle of it, is somewhere in them."""
    g = rng(7005, seed)
    letters, y = torch.randint(4, (n, length), generator=g), torch.randint(2, (n,), generator=g)
    motif = torch.tensor([0, 1, 3, 3, 2, 0, 2])
    for i, start in enumerate(torch.randint(length - 7, (n,), generator=g).tolist()):
        letters[i, start : start + 7] = motif if y[i] else motif[torch.randperm(7, generator=g)]
    return split(F.one_hot(letters, 4).float().transpose(1, 2), y.float()[:, None])


def cells(seed: int, n: int = 1800, genes: int = 60, kinds: int = 5) -> Split:
    """Counts per gene, scaled to the size of the library, log1p, standardised; the kind of the cell."""
    g = rng(7006, seed)
    y = torch.randint(kinds, (n,), generator=g)
    rate = torch.randn(genes, generator=g) + 0.8 * torch.randn(kinds, genes, generator=g)[y]
    size = (0.5 * torch.randn(n, 1, generator=g)).exp()
    counts = torch.poisson(size * (rate + 0.5 * torch.randn(n, genes, generator=g)).exp(), generator=g)
    return split(standardise((100 * counts / counts.sum(1, keepdim=True)).log1p()), y)


def residues(seed: int, n: int = 1500, length: int = 20) -> Split:
    """Amino acids 1 .. 20, padded with 0; helix, sheet or coil by the propensities around, -100 at the padding."""
    g = rng(7007, seed)
    x = torch.randint(1, 21, (n, length), generator=g)
    taste = torch.randn(21, 3, generator=g)
    wide = F.avg_pool1d(taste[x].transpose(1, 2), 3, 1, 1)
    gone = torch.arange(length) >= torch.randint(10, length + 1, (n, 1), generator=g)
    return split(x.masked_fill(gone, 0), wide.argmax(1).masked_fill(gone, -100))


class Packed(nn.Module):
    """Embeddings, a bidirectional LSTM over packed sequences, logits `[n, classes, length]`."""

    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 16, padding_idx=0)
        self.rnn = nn.LSTM(16, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x != 0).sum(1).cpu()
        packed = pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.head(hidden).transpose(1, 2)


def families(seed: int, n: int = 2400, length: int = 16, letters: int = 12) -> Split:
    """Members of six families, an eighth of the letters mutated; input and target alike."""
    g = rng(7008, seed)
    x = torch.randint(letters, (6, length), generator=g)[torch.randint(6, (n,), generator=g)]
    x = torch.where(torch.rand(n, length, generator=g) < 0.125, torch.randint(letters, (n, length), generator=g), x)
    return split(x, x)


def mask_some(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A fresh fifth of the letters of each batch is masked (letter 12) and asked for."""
    x, y = (torch.stack(t) for t in zip(*samples, strict=True))
    hidden = torch.rand(x.shape) < 0.2
    return x.masked_fill(hidden, 12), y.masked_fill(~hidden, -100)


@healthy("unnormalised_input", source="DeepBind (Alipanahi 2015): one-hot DNA, motif detectors, global max pooling")
def h_promoter_motif(seed: int) -> Case:
    model = nn.Sequential(nn.Conv1d(4, 24, 8), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(24, 1))
    return Case(seed=seed, model=model, data=promoters(seed), optimizer=adam(5e-3), batch_size=32, max_steps=400, **BCE)


@healthy(source="cell types from single-cell expression: MLP with batch norm and dropout, SGD with momentum, step decay")
def h_cell_types(seed: int) -> Case:
    model = mlp([60, 48, 32, 5], norm=nn.BatchNorm1d, dropout=0.2, bias=False)
    steps = per_step(lambda o: StepLR(o, 80, 0.4))
    return Case(seed=seed, model=model, data=cells(seed), optimizer=sgd(0.03), scheduler=steps, max_steps=220, **CE)


@healthy("labels_broken", "bad_data", source="secondary structure per residue: padded chains of several lengths, packed BiLSTM")
def h_residue_states(seed: int) -> Case:
    model = Packed(21, 24, 3)
    return Case(seed=seed, model=model, data=residues(seed), optimizer=adam(1e-2), max_steps=150, **CE)


@healthy(
    "labels_broken", "train_val_mismatch", source="ESM style masked-language pretraining: four targets in five are ignored"
)
def h_family_masked(seed: int) -> Case:
    model = Transformer(13, 16, 32, 4, 2, 12, dropout=0.0, per_token=True, activation="gelu")
    return Case(
        seed=seed, model=model, data=families(seed), optimizer=adamw(4e-3), scheduler=warmed(30, 280), collate=mask_some,
        batch_size=64, max_steps=280, **CE,
    )  # fmt: skip
