"""Sequences: recurrent networks, attention, tokens, signals."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import mirrored, next_token, walks
from tests.zoo.more_data import pulses, reviews
from tests.zoo.nets import CE, adam, adamw


# ------------------------------------------------------------------------------------------ gated recurrent
class Drift(nn.Module):
    """A GRU that starts from a zero state that it makes itself, and a head on its last state."""

    batch_first = True

    def __init__(self, features: int = 3, hidden: int = 32, outputs: int = 4) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(features, hidden, batch_first=self.batch_first), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x)[0][:, -1])


@healthy(source="everyday GRU classifier of short series, clipping at 1")
def h_drift_meter(seed: int) -> Case:
    return Case(
        seed=seed, model=Drift(), data=walks(seed), optimizer=adam(4e-3), max_steps=250,
        trainer={"gradient_clip_val": 1.0}, **CE,
    )  # fmt: skip


@faulty("batch_mixing", twin="h_drift_meter", source="PyTorch forum: batch_first forgotten, nothing crashes")
def f_drift_meter_time_first(case: Case) -> None:
    case.model.gru.batch_first = False  # type: ignore[union-attr]


@faulty("lr_too_low", twin="h_drift_meter", source="AUTOTRAINER: slow convergence; a rate for fine-tuning")
def f_drift_meter_snail(case: Case) -> None:
    case.optimizer = adam(2e-6)


@faulty("saturation", "init_exploding", twin="h_drift_meter", source="recurrent weights drawn with a variance of 16")
def f_drift_meter_stiff(case: Case) -> None:
    for name, p in case.model.gru.named_parameters():  # type: ignore[union-attr]
        if "weight" in name:
            nn.init.normal_(p, std=8.0)


# ------------------------------------------------------------------------------------------ attention by hand
class Mirror(nn.Module):
    """One head of attention by hand over tokens and learnt places, then a position-wise network."""

    def __init__(self, vocabulary: int = 8, length: int = 6, width: int = 32) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Parameter(0.3 * torch.randn(length, width))
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def attend(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x) + self.place
        return self.out(self.norm(self.attend(self.q(h), self.k(h)) @ self.v(h))).transpose(1, 2)


@healthy("saturation", source="tutorial attention written by hand, no residual, on a task of reversal")
def h_looking_glass(seed: int) -> Case:
    return Case(seed=seed, model=Mirror(), data=mirrored(seed), optimizer=adam(4e-3), max_steps=300, **CE)


@faulty("batch_mixing", twin="h_looking_glass", source="attention weights softmaxed over dim 0, the batch")
def f_looking_glass_dim_zero(case: Case) -> None:
    class DimZero(Mirror):
        def attend(self, q: Tensor, k: Tensor) -> Tensor:
            return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=0)

    case.model = DimZero()


@faulty("detached_subgraph", twin="h_looking_glass", source="forum: attention scores passed through NumPy and back")
def f_looking_glass_numpy(case: Case) -> None:
    class Numpy(Mirror):
        def attend(self, q: Tensor, k: Tensor) -> Tensor:
            scores = (q @ k.transpose(1, 2)).detach().numpy() / math.sqrt(q.shape[-1])
            return torch.softmax(torch.from_numpy(scores), dim=-1)

    case.model = Numpy()


# ------------------------------------------------------------------------------------------ next token
class Gram(nn.Module):
    """Embeddings, an LSTM, a head per step."""

    def __init__(self, vocabulary: int = 12, width: int = 32) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(vocabulary, width), nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x))[0]).transpose(1, 2)


@healthy(source="a small LSTM language model, AdamW, cross-entropy over every step")
def h_babbler(seed: int) -> Case:
    return Case(seed=seed, model=Gram(), data=next_token(seed), optimizer=adamw(5e-3), max_steps=200, **CE)


@faulty("labels_broken", twin="h_babbler", source="targets not shifted: the model is taught to repeat its input")
def f_babbler_parrot(case: Case) -> None:
    x, _ = case.data[0].tensors  # type: ignore[attr-defined]
    case.data = TensorDataset(x, x), case.data[1]


@faulty("not_in_optimizer", twin="h_babbler", source="new layers put in after the optimiser had been built", margin=0.03)
def f_babbler_new_words(case: Case) -> None:
    class Late(Supervised):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            self.model.head, self.model.lstm = nn.Linear(32, 12), nn.LSTM(32, 32, batch_first=True)
            return optimizer

    case.module = Late


# ------------------------------------------------------------------------------------------ reviews of several lengths
class Opinion(nn.Module):
    """Embeddings with padding, a masked mean, two layers."""

    def __init__(self, vocabulary: int = 40, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width, padding_idx=0)
        self.fc1, self.fc2 = nn.Linear(width, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        known = (x > 0).float()[:, :, None]
        return self.fc2(torch.relu(self.fc1((self.embed(x) * known).sum(1) / known.sum(1))))


class Reviews(Dataset[Any]):
    """Token lists without their padding, each with its class."""

    def __init__(self, part: TensorDataset) -> None:
        self.rows = [(x[x > 0], y) for x, y in part]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.rows[i]


def pad(rows: list[Any]) -> tuple[Tensor, Tensor]:
    """A batch as long as its longest review."""
    return nn.utils.rnn.pad_sequence([x for x, _ in rows], batch_first=True), torch.stack([y for _, y in rows])


@healthy("bad_data", source="reviews of several lengths, own Dataset, padded by a collate function")
def h_film_critic(seed: int) -> Case:
    first, second = reviews(seed)
    data = Reviews(first), Reviews(second)
    return Case(seed=seed, model=Opinion(), data=data, collate=pad, optimizer=adam(5e-3), max_steps=250, **CE)


@faulty("labels_broken", twin="h_film_critic", source="StackOverflow: collate sorts the sequences by length, not the labels")
def f_film_critic_sorted(case: Case) -> None:
    def collate(rows: list[Any]) -> tuple[Tensor, Tensor]:
        by_length = sorted((x for x, _ in rows), key=len, reverse=True)
        return nn.utils.rnn.pad_sequence(by_length, batch_first=True), torch.stack([y for _, y in rows])

    case.collate = collate


@faulty(
    "train_val_mismatch", twin="h_film_critic", source="vocabulary built anew from the validation file: other token numbers"
)
def f_film_critic_other_words(case: Case) -> None:
    first, second = reviews(case.seed)
    table = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(39)])
    case.data = Reviews(first), Reviews(TensorDataset(table[second.tensors[0]], second.tensors[1]))


@faulty("nan_loss", twin="h_film_critic", source="mean over zero tokens: empty reviews divided by their length")
def f_film_critic_empty(case: Case) -> None:
    rows = case.data[0].rows  # type: ignore[attr-defined]
    rows[7::90] = [(x[:0], y) for x, y in rows[7::90]]


# ------------------------------------------------------------------------------------------ signals
def beats(width: int = 16) -> nn.Sequential:
    """Three strided 1-D convolutions with batch norm, and a head."""
    layers: list[nn.Module] = []
    for a, b in ((2, width), (width, width), (width, 2 * width)):
        layers += [nn.Conv1d(a, b, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(2 * width, 3))


@healthy(source="everyday 1-D convolutional network on two-channel signals")
def h_heart_beats(seed: int) -> Case:
    return Case(seed=seed, model=beats(), data=pulses(seed), optimizer=adam(3e-3), max_steps=200, **CE)


@faulty("no_update", "lr_too_low", twin="h_heart_beats", source="integer division of the rate: 1 // 1000 is 0")
def f_heart_beats_flat(case: Case) -> None:
    case.optimizer = adam(3 // 1000)


@faulty(
    "bn_stats",
    twin="h_heart_beats",
    source="momentum 1: the statistics are those of the last two rows",
    margin=0.05,
)
def f_heart_beats_momentum_one(case: Case) -> None:
    case.batch_size = 2
    for layer in case.model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.momentum = 1.0


@faulty("bad_data", twin="h_heart_beats", source="a Dataset that ignores its index and always returns the first rows")
def f_heart_beats_same_row(case: Case) -> None:
    class Same(Dataset[Any]):
        def __init__(self, part: TensorDataset) -> None:
            self.part = part

        def __len__(self) -> int:
            return len(self.part)

        def __getitem__(self, i: int) -> Any:
            return self.part[i % 16]

    case.data = Same(case.data[0]), case.data[1]  # type: ignore[arg-type]
