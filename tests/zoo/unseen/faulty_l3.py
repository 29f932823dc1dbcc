"""Sequences: recurrent nets, attention, words."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from tests.zoo.case import Case, faulty, healthy
from tests.zoo.data import mirrored, reorder, walks, words
from tests.zoo.more_data import openings, pulses, reviews
from tests.zoo.nets import CE, adam, adamw, sgd


# ------------------------------------------------------------------------------------------ who drifts where
class DriftGRU(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 24, batch_first=batch_first)
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x)
        return self.fc(out[:, -1, :])


class DriftRNN(nn.Module):
    """An Elman net written out."""

    def __init__(self, std: float = 0.2) -> None:
        super().__init__()
        self.wx, self.wh = nn.Parameter(0.5 * torch.randn(3, 32)), nn.Parameter(std * torch.randn(32, 32))
        self.b, self.out = nn.Parameter(torch.zeros(32)), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 32)
        for t in range(x.shape[1]):
            h = torch.tanh(x[:, t] @ self.wx + h @ self.wh + self.b)
        return self.out(h)


@healthy(source="a GRU classifier on sensor windows")
def h_drifter(seed: int) -> Case:
    return Case(seed=seed, model=DriftGRU(), data=walks(seed), optimizer=adam(5e-3), max_steps=220, **CE)


@faulty("lr_too_low", twin="h_drifter", source="2e-5, the rate of BERT, in a GRU from scratch")
def f_drifter_bert_rate(case: Case) -> None:
    case.optimizer = adamw(2e-5)


@faulty("lr_too_high", twin="h_drifter", source="SGD's 0.5 kept after the change to Adam", margin=0.15)
def f_drifter_adam_half(case: Case) -> None:
    case.optimizer = adam(0.5)


@healthy("detached_subgraph", "saturation", source="lecture exercise: an Elman cell of tensors")
def h_elman(seed: int) -> Case:
    return Case(seed=seed, model=DriftRNN(), data=walks(seed), optimizer=adam(3e-3), max_steps=250, **CE)


@faulty(
    "saturation",
    "init_exploding",
    "bad_gain",
    twin="h_elman",
    source="torch.randn for the recurrent matrix, unscaled",
    margin=0.15,
)
def f_elman_randn(case: Case) -> None:
    case.model = DriftRNN(std=1.5)


# ------------------------------------------------------------------------------------------ what opens
class OpenerRNN(nn.Module):
    """A cell in a loop: what counts is the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = nn.RNNCell(2, 24), nn.Linear(24, 2)
        nn.init.orthogonal_(self.cell.weight_hh)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 24)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.fc(h)


@healthy("bad_gain", source="Le et al. 2015: an orthogonal recurrent matrix for a long memory")
def h_opener(seed: int) -> Case:
    return Case(seed=seed, model=OpenerRNN(), data=openings(seed), optimizer=sgd(0.02), max_steps=150, **CE)


@faulty(
    "init_vanishing",
    "bad_gain",
    twin="h_opener",
    source="normal_(0, 0.02) over all recurrent weights, as in transformers",
    margin=0.15,
)
def f_opener_normal_02(case: Case) -> None:
    for p in case.model.parameters():
        nn.init.normal_(p, std=0.02)


# ------------------------------------------------------------------------------------------ reviews
def tokens(batch: list[Any]) -> tuple[Tensor, Tensor]:
    """Trims the padding, pads again to the longest."""
    rows = [x[x > 0] for x, _ in batch]
    return pad_sequence(rows, batch_first=True), torch.stack([y for _, y in batch])


def sorted_tokens(batch: list[Any]) -> tuple[Tensor, Tensor]:
    """Sorts for packing; the labels stay in their old order."""
    rows = sorted((x[x > 0] for x, _ in batch), key=len, reverse=True)
    return pad_sequence(rows, batch_first=True), torch.stack([y for _, y in batch])


class Critic(nn.Module):
    """Word vectors, a packed LSTM, the mean of its outputs."""

    def __init__(self, table: nn.Embedding | None = None) -> None:
        super().__init__()
        self.words = table or nn.Embedding(40, 16, padding_idx=0)
        self.lstm, self.fc = nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        length = (x > 0).sum(1)
        packed = pack_padded_sequence(self.words(x), length, batch_first=True, enforce_sorted=False)
        out = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]
        return self.fc(out.sum(1) / length[:, None])


@healthy("bad_data", source="sentiment with a padding collate function and packed sequences")
def h_critic(seed: int) -> Case:
    return Case(seed=seed, model=Critic(), data=reviews(seed), optimizer=adam(5e-3), collate=tokens, max_steps=200, **CE)


@faulty("labels_broken", twin="h_critic", source="collate_fn sorts the sequences for packing and not the labels")
def f_critic_sorted(case: Case) -> None:
    case.collate = sorted_tokens


class SumOfWords(nn.Module):
    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.words, self.fc = table, nn.Linear(table.embedding_dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.words(x) * (x > 0)[..., None]).mean(1))


@healthy("missing_activation", source="fastText: a linear classifier over the mean word vector")
def h_fasttext(seed: int) -> Case:
    return Case(seed=seed, model=SumOfWords(nn.Embedding(40, 6)), data=reviews(seed), optimizer=adam(0.02), max_steps=250, **CE)


@faulty("frozen_by_accident", twin="h_fasttext", source="Embedding.from_pretrained freezes by default; the vectors are random")
def f_fasttext_from_pretrained(case: Case) -> None:
    case.model = SumOfWords(nn.Embedding.from_pretrained(torch.randn(40, 6)))


# ------------------------------------------------------------------------------------------ attention
class Reader(nn.Module):
    """Attention by hand: queries, keys, values, a residual, a norm, an MLP."""

    def __init__(self, vocabulary: int = 8, length: int = 6, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.out, self.scale = nn.Linear(width, vocabulary), width**-0.5

    def weights(self, score: Tensor) -> Tensor:
        return score.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(self.embed(x) + self.place.weight)
        score = self.q(h) @ self.k(h).transpose(1, 2) * self.scale
        h = h + self.weights(score) @ self.v(h)
        return self.out(h + self.mlp(self.norm2(h))).transpose(1, 2)


class BatchReader(Reader):
    def weights(self, score: Tensor) -> Tensor:
        return score.softmax(0)


@healthy("missing_activation", source="lecture exercise: one head of self-attention that mirrors its input")
def h_mirrorer(seed: int) -> Case:
    return Case(seed=seed, model=Reader(), data=mirrored(seed), optimizer=adam(3e-3), max_steps=300, **CE)


@faulty("batch_mixing", twin="h_mirrorer", source="softmax(dim=0) over a batch of scores", margin=0.1)
def f_mirrorer_softmax_zero(case: Case) -> None:
    case.model = BatchReader()


@faulty(
    "lr_schedule", "no_update", "lr_too_low", twin="h_mirrorer", source="warm-up by integer division: step // 1000", margin=0.1
)
def f_mirrorer_integer_warmup(case: Case) -> None:
    case.scheduler = lambda o: {
        "scheduler": torch.optim.lr_scheduler.LambdaLR(o, lambda s: min(1, s // 1000)),
        "interval": "step",
    }


# ------------------------------------------------------------------------------------------ topics
class TopicEncoder(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.embed, self.cls = nn.Embedding(30, 24), nn.Parameter(torch.randn(1, 1, 24))
        self.attention = nn.MultiheadAttention(24, 4, batch_first=batch_first)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.cls.expand(len(x), -1, -1), self.embed(x)], 1)
        return self.head(self.norm(self.attention(h, h, h, need_weights=False)[0])[:, 0])


@healthy("missing_activation", source="a class token that attends to the words")
def h_topical(seed: int) -> Case:
    return Case(seed=seed, model=TopicEncoder(), data=words(seed), optimizer=adam(4e-3), max_steps=200, **CE)


@faulty("batch_mixing", twin="h_topical", source="nn.MultiheadAttention wants the sequence first by default")
def f_topical_sequence_first(case: Case) -> None:
    case.model = TopicEncoder(batch_first=False)


@faulty("data_not_shuffled", twin="h_topical", source="a corpus written topic by topic and read in order")
def f_topical_in_order(case: Case) -> None:
    case.data, case.shuffle = reorder(case.data, lambda y: y), False


# ------------------------------------------------------------------------------------------ signals
def pulse_net() -> nn.Sequential:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv1d(a, b, 5, padding=2), nn.GroupNorm(4, b), nn.ReLU(), nn.MaxPool1d(2), nn.Dropout(0.1)]

    return nn.Sequential(*block(2, 16), *block(16, 24), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(24, 3))


@healthy(source="1-D convolutions with group norm on accelerometer pulses")
def h_pulser(seed: int) -> Case:
    return Case(seed=seed, model=pulse_net(), data=pulses(seed), optimizer=adam(3e-3), max_steps=150, **CE)


@faulty("frozen_by_accident", twin="h_pulser", source="parameters()[:-1] frozen, to keep the last layer: it is the last bias")
def f_pulser_last_bias(case: Case) -> None:
    for p in list(case.model.parameters())[:-1]:
        p.requires_grad_(False)
