"""Held-out faults of text and time: padding, packing, masks, windows."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import Dataset, TensorDataset

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import Split, next_token, rng, split, standardise
from tests.zoo.nets import CE, MSE, adam


# ------------------------------------------------------------------------------------------ sentences of several lengths
class Sentences(Dataset[Any]):
    """Token lists of 4 to 16 words; the class is the kind (of three) of a signal word among the first two."""

    def __init__(self, kind: int, seed: int, n: int) -> None:
        g = rng(kind, seed)
        self.words, self.labels = [], torch.randint(3, (n,), generator=g)
        for label in self.labels.tolist():
            length = int(torch.randint(4, 17, (1,), generator=g))
            tokens = torch.randint(10, 40, (length,), generator=g)
            tokens[int(torch.randint(2, (1,), generator=g))] = 1 + label + 3 * int(torch.randint(3, (1,), generator=g))
            self.words.append(tokens)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.words[i], int(self.labels[i])


def padded(batch: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    tokens, labels = zip(*batch, strict=True)
    return pad_sequence(tokens, True), torch.tensor([len(t) for t in tokens]), torch.tensor(labels)


def sorted_apart(batch: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    tokens, labels = zip(*batch, strict=True)
    longest_first = sorted(tokens, key=len, reverse=True)
    return pad_sequence(longest_first, True), torch.tensor([len(t) for t in longest_first]), torch.tensor(labels)


class Reader(nn.Module):
    """Embedding, bidirectional GRU over packed sequences, head on the two last states."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 12, padding_idx=0)
        self.rnn, self.head = nn.GRU(12, width, batch_first=True, bidirectional=True), nn.Linear(2 * width, 3)

    def last(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(tokens), lengths, batch_first=True, enforce_sorted=False)
        return self.rnn(packed)[1]

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.head(self.last(tokens, lengths).transpose(0, 1).flatten(1))


@healthy("batch_mixing", source="bidirectional GRU over packed sentences, own collate function")
def h_j_sentences(seed: int) -> Case:
    return Case(
        seed=seed, model=Reader(), data=(Sentences(902, seed, 900), Sentences(903, seed, 300)), optimizer=adam(5e-3),
        collate=padded, max_steps=220, **CE,
    )  # fmt: skip


@faulty("labels_broken", twin="h_j_sentences", source="collate sorts the sentences for packing, and forgets the labels")
def f_j_sentences_sorted(case: Case) -> None:
    case.collate = sorted_apart


@faulty("batch_mixing", twin="h_j_sentences", source="h_n.view(batch, -1) for both directions, without a transposition")
def f_j_sentences_view(case: Case) -> None:
    model: Any = case.model
    model.forward = lambda tokens, lengths: model.head(model.last(tokens, lengths).reshape(len(tokens), -1))


@faulty("frozen_by_accident", twin="h_j_sentences", source="Embedding.from_pretrained freezes unless told otherwise")
def f_j_sentences_from_pretrained(case: Case) -> None:
    model: Any = case.model
    model.embed = nn.Embedding.from_pretrained(0.05 * torch.randn(40, 12), padding_idx=0)


# ------------------------------------------------------------------------------------------ a causal language model
class Causal(nn.Module):
    """Dilated causal convolutions over embedded tokens; the output shares the weights of the input."""

    def __init__(self, vocabulary: int = 12, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embed.weight, std=0.2)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=d) for d in (1, 2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            past = F.pad(norm(h).transpose(1, 2), (conv.dilation[0], 0))
            h = h + F.gelu(conv(past)).transpose(1, 2)
        return (h @ self.embed.weight.T + self.bias).transpose(1, 2)


@healthy("init_vanishing", source="character model of causal convolutions with tied weights")
def h_j_characters(seed: int) -> Case:
    return Case(seed=seed, model=Causal(), data=next_token(seed), optimizer=adam(5e-3), max_steps=200, **CE)


@faulty("labels_broken", "train_val_mismatch", twin="h_j_characters", source="targets not shifted: the model learns to copy")
def f_j_characters_unshifted(case: Case) -> None:
    x, _ = case.data[0].tensors  # type: ignore[attr-defined]
    case.data = TensorDataset(x, x), case.data[1]


@faulty("lr_schedule", "lr_too_low", twin="h_j_characters", source="warm-up of ten thousand steps copied from a long run")
def f_j_characters_long_warmup(case: Case) -> None:
    case.scheduler = lambda optimizer: {
        "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10_000)), "interval": "step",
    }  # fmt: skip


@faulty("wrong_loss", twin="h_j_characters", source="focal loss by hand with the wrong factor: p instead of 1 - p")
def f_j_characters_focal(case: Case) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        each = F.cross_entropy(output, target, reduction="none")
        return ((-each).exp() ** 2 * each).mean()

    case.loss = loss


# ------------------------------------------------------------------------------------------ windows of several sensors
def sensors(seed: int, n: int = 1200, length: int = 16) -> Split:
    """Windows `[n, length, 4]` of sensors of unlike noise; the next value of a nonlinear mix of their trends."""
    g = rng(904, seed)
    level, slope = torch.randn(n, 1, 4, generator=g), 0.15 * torch.randn(n, 1, 4, generator=g)
    clean = level + slope * torch.arange(length)[:, None]
    x = clean + 0.9 * torch.randn(n, length, 4, generator=g)
    end = clean[:, -1]
    y = end[:, 0] + end[:, 1].abs() + (2 * end[:, 2]).sin() * end[:, 3].tanh()
    return split(standardise(x, None), standardise(y)[:, None])


class Forecaster(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.rnn, self.head = (
            nn.GRU(4, 24, batch_first=batch_first),
            nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@healthy("lr_schedule", source="GRU forecaster, one cycle of the rate over the whole run")
def h_j_sensors(seed: int) -> Case:
    return Case(
        seed=seed, model=Forecaster(), data=sensors(seed), optimizer=adam(1e-2), max_steps=250,
        scheduler=lambda optimizer: {
            "scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=251), "interval": "step",
        }, **MSE,
    )  # fmt: skip


@faulty("batch_mixing", twin="h_j_sensors", source="batch_first forgotten: time is taken for the batch")
def f_j_sensors_batch_first(case: Case) -> None:
    case.model = Forecaster(batch_first=False)


@faulty("shape_broadcast", twin="h_j_sensors", source="squeezed targets against outputs of one column")
def f_j_sensors_squeezed(case: Case) -> None:
    case.loss = lambda output, target: (output - target.squeeze(1)).square().mean()


@faulty("train_val_mismatch", "bad_data", twin="h_j_sensors", source="each validation window standardised by itself")
def f_j_sensors_own_statistics(case: Case) -> None:
    x, y = case.data[1].tensors  # type: ignore[attr-defined]
    case.data = case.data[0], TensorDataset((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), y)


class Resetting(Supervised):
    """Weights copied from an average that is updated the wrong way round."""

    def on_fit_start(self) -> None:
        self.average = [p.detach().clone() for p in self.parameters()]

    @torch.no_grad()
    def on_train_batch_end(self, *args: Any) -> None:
        for p, mean in zip(self.parameters(), self.average, strict=True):
            p.lerp_(mean, 0.9)


@faulty("no_update", "lr_too_low", twin="h_j_sensors", source="moving average written into the trained weights, not from them")
def f_j_sensors_average_backwards(case: Case) -> None:
    case.module = Resetting
