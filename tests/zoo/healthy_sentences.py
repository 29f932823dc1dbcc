"""Healthy, second set: sentences and ciphers, from convolutions over words to a conditional random field."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from tests.zoo import more_data as data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.nets import CE, adam, adamw


class Packed(nn.Module):
    """A GRU over sentences of several lengths, packed; the final state is read out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16, padding_idx=0)
        self.gru, self.head = nn.GRU(16, 24, batch_first=True), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x != 0).sum(1)
        packed = pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.gru(packed)[1][-1])


@healthy("batch_mixing", "bad_data", source="packed sequences: the samples of a batch lie one inside the other")
def h_packed(seed: int) -> Case:
    return Case(seed=seed, model=Packed(), data=data.reviews(seed), optimizer=adam(8e-3), max_steps=250, **CE)


class WordConvolutions(nn.Module):
    """Kim 2014: convolutions of several widths over word vectors, the maximum over time, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.convs = nn.ModuleList(nn.Conv1d(16, 12, k, padding=k // 2) for k in (1, 3, 5))
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).transpose(1, 2)
        return self.head(self.dropout(torch.cat([F.relu(conv(x)).mean(2) for conv in self.convs], 1)))


@healthy("dropout_too_high", "dead_relu", source="Kim 2014: convolutions over words, dropout in front of the head")
def h_word_convolutions(seed: int) -> Case:
    return Case(seed=seed, model=WordConvolutions(), data=data.reviews(seed), optimizer=adam(1e-2), max_steps=250, **CE)


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class Llama(nn.Module):
    """One pre-norm block: attention without biases by scaled_dot_product_attention, SwiGLU, RMS norm, tied head."""

    def __init__(self, vocabulary: int = 8, length: int = 9, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.norm1, self.norm2, self.norm3 = RMSNorm(width), RMSNorm(width), RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, 96, bias=False), nn.Linear(width, 96, bias=False)
        self.down, self.head = nn.Linear(96, width, bias=False), nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place(torch.arange(x.shape[1]))
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = self.norm2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(self.norm3(x)).transpose(1, 2)


@healthy("batch_mixing", "bad_gain", "missing_activation", source="Touvron et al. 2023: a block of Llama, no biases anywhere")
def h_llama_block(seed: int) -> Case:
    return Case(seed=seed, model=Llama(), data=data.cipher(seed), optimizer=adamw(6e-3), max_steps=250, **CE)


class Cipher(nn.Module):
    """An embedding and two convolutions over the sequence, one class per token."""

    def __init__(self, vocabulary: int = 8, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.conv, self.mix = nn.Conv1d(width, 64, 3, padding=1, padding_mode="circular"), nn.Conv1d(64, vocabulary, 1)
        self.act: Callable[[Tensor], Tensor] = F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.act(self.conv(self.embed(x).transpose(1, 2))))


@healthy("shape_broadcast", "batch_mixing", source="a class per token from convolutions, logits [N, V, T]")
def h_cipher_conv(seed: int) -> Case:
    return Case(seed=seed, model=Cipher(), data=data.cipher(seed), optimizer=adam(1e-2), max_steps=120, **CE)


class Translator(nn.Module):
    """Bahdanau et al. 2015 in small: a GRU reads, a GRU writes and looks back by additive attention."""

    def __init__(self, vocabulary: int = 8, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Parameter(0.5 * torch.randn(9, width))
        self.reader = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.writer = nn.GRUCell(2 * width, width)
        self.ask, self.tell, self.score = nn.Linear(2 * width, width), nn.Linear(2 * width, width), nn.Linear(width, 1)
        self.head, self.over = nn.Linear(3 * width, vocabulary), 1

    def forward(self, x: Tensor) -> Tensor:
        read, _ = self.reader(self.embed(x) + self.place)
        keys, state, outputs = self.tell(read), read.new_zeros(len(x), read.shape[2] // 2), []
        for place in self.place:
            query = self.ask(torch.cat([state, place.expand_as(state)], 1))
            share = self.score((keys + query[:, None]).tanh()).softmax(self.over)
            context = (share * read).sum(1)
            state = self.writer(context, state)
            outputs.append(self.head(torch.cat([state, context], 1)))
        return torch.stack(outputs, 2)


@healthy("saturation", "init_vanishing", source="Bahdanau et al. 2015: a plateau until the attention finds its places")
def h_translator(seed: int) -> Case:
    return Case(seed=seed, model=Translator(), data=data.cipher(seed), optimizer=adam(1.5e-2), max_steps=250, **CE)


class RandomField(nn.Module):
    """Lafferty et al. 2001: emissions of a small net and a table of transitions; forward gives the emissions `[N, C, T]`."""

    def __init__(self) -> None:
        super().__init__()
        self.emit = nn.Sequential(nn.Conv1d(2, 16, 3, padding=1), nn.Tanh(), nn.Conv1d(16, 3, 1))
        self.move = nn.Parameter(torch.zeros(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.emit(x.transpose(1, 2))

    def negative_log_likelihood(self, scores: Tensor, y: Tensor) -> Tensor:
        path = scores.gather(1, y[:, None])[:, 0].sum(1) + self.move[y[:, :-1], y[:, 1:]].sum(1)
        alpha = scores[:, :, 0]
        for t in range(1, scores.shape[2]):
            alpha = (alpha[:, :, None] + self.move).logsumexp(1) + scores[:, :, t]
        return (alpha.logsumexp(1) - path).mean()


class FieldModule(Supervised):
    """Trains a random field by its likelihood and validates its emissions."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.model.negative_log_likelihood(self(x), y)


@healthy(
    "wrong_loss", "loss_reduction", "init_symmetry", source="Lafferty et al. 2001: a conditional random field, T log C at first"
)
def h_random_field(seed: int) -> Case:
    return Case(
        seed=seed,
        model=RandomField(),
        data=data.regimes(seed),
        optimizer=adam(1e-2),
        max_steps=120,
        module=FieldModule,
        **CE,
    )


class LatentQuery(nn.Module):
    """Jaegle et al. 2021 (Perceiver): four latent vectors look at the sentence twice through shared weights."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed, self.latent = nn.Embedding(40, width, padding_idx=0), nn.Parameter(0.02 * torch.randn(4, width))
        self.look = nn.MultiheadAttention(width, 2, batch_first=True)
        self.think = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        words, state = self.embed(x), self.latent.expand(len(x), -1, -1)
        for _ in range(2):
            state = state + self.look(state, words, words, key_padding_mask=x == 0, need_weights=False)[0]
            state = state + self.think(state)
        return self.head(state.mean(1))


@healthy("batch_mixing", "init_symmetry", "not_in_optimizer", source="Jaegle et al. 2021: shared weights called twice per step")
def h_latent_query(seed: int) -> Case:
    return Case(seed=seed, model=LatentQuery(), data=data.reviews(seed), optimizer=adamw(6e-3), max_steps=250, **CE)


class Hashed(nn.Module):
    """Weinberger et al. 2009: words hashed into buckets, summed with weights of their own, offsets kept by the bag."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.importance = nn.EmbeddingBag(97, 12, mode="sum"), nn.Parameter(torch.ones(97))
        self.head = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 2))

    def forward(self, x: Tensor) -> Tensor:
        bucket = (x * 31 + 7) % 97
        return self.head(self.bag(bucket, per_sample_weights=self.importance[bucket] * (x != 0)))


@healthy("frozen_by_accident", "missing_activation", source="Weinberger et al. 2009: hashed words, most buckets never used")
def h_hashed_words(seed: int) -> Case:
    return Case(seed=seed, model=Hashed(), data=data.reviews(seed), optimizer=adam(2e-2), max_steps=200, **CE)
