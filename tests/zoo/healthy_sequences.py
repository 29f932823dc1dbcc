"""Healthy: sequences and tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo import data
from tests.zoo.case import Case, healthy
from tests.zoo.nets import (
    CE,
    MSE,
    Recurrent,
    Transformer,
    WordBag,
    adam,
    adamw,
    conv1d_net,
    scale_recurrent,
    sgd,
    trainable,
)


@healthy("batch_mixing", "saturation", source="control: LSTM classifier, batch first")
def h_lstm(seed: int) -> Case:
    return Case(seed=seed, model=Recurrent(), data=data.walks(seed), optimizer=adam(6e-3), **CE)


@healthy("saturation", "wrong_hidden_activation", source="control: GRU classifier")
def h_gru(seed: int) -> Case:
    return Case(seed=seed, model=Recurrent(nn.GRU), data=data.walks(seed), optimizer=adam(6e-3), **CE)


@healthy("init_exploding", "clip_too_small", source="Elman net with clipping at 1, which binds often and is right")
def h_rnn_clipped(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Recurrent(nn.RNN),
        data=data.walks(seed),
        optimizer=sgd(0.05),
        trainer={"gradient_clip_val": 1.0},
        max_steps=260,
        **CE,
    )


class TimeFirst(nn.Module):
    """A GRU in torch's default layout, with the transposition it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.transpose(0, 1))[0][-1])


@healthy("batch_mixing", source="time-first GRU, transposed before and indexed by time after")
def h_gru_time_first(seed: int) -> Case:
    return Case(seed=seed, model=TimeFirst(), data=data.walks(seed), optimizer=adam(6e-3), **CE)


@healthy("bad_bias_init", "saturation", source="Jozefowicz et al. 2015: forget-gate bias of 1, bidirectional LSTM")
def h_lstm_forget_bias(seed: int) -> Case:
    model = Recurrent(bidirectional=True, hidden=16)
    for name, p in model.rnn.named_parameters():
        if name.startswith("bias_ih"):
            nn.init.zeros_(p)
            nn.init.ones_(p[16:32].detach())
    return Case(seed=seed, model=model, data=data.walks(seed), optimizer=adam(6e-3), **CE)


@healthy("lr_too_low", source="the adding problem: a plateau first, then a GRU finds it")
def h_adding_problem(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Recurrent(nn.GRU, features=2, hidden=24, outputs=1),
        data=data.marked_sum(seed),
        optimizer=adam(1e-2),
        max_steps=300,
        **MSE,
    )


@healthy("bad_gain", "dropout_too_high", source="control: small pre-norm transformer, AdamW")
def h_transformer(seed: int) -> Case:
    return Case(seed=seed, model=Transformer(), data=data.words(seed), optimizer=adamw(3e-3), **CE)


@healthy("lr_schedule", "no_update", source="Vaswani et al. 2017: post-norm transformer, linear warm-up from rate 0")
def h_transformer_warm_up(seed: int) -> Case:
    def schedule(optimizer: torch.optim.Optimizer) -> object:
        return {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 30)), "interval": "step"}

    model = Transformer(norm_first=False, dropout=0.0)
    return Case(seed=seed, model=model, data=data.words(seed), optimizer=adamw(3e-3), scheduler=schedule, **CE)


@healthy("batch_mixing", "shape_broadcast", source="causal language model: cross-entropy per token, logits [N, V, T]")
def h_language_model(seed: int) -> Case:
    model = Transformer(vocabulary=12, classes=12, causal=True, per_token=True, dropout=0.0)
    return Case(seed=seed, model=model, data=data.next_token(seed), optimizer=adamw(5e-3), max_steps=160, **CE)


class TiedModel(nn.Module):
    """A language model whose output layer is its embedding (Press and Wolf 2017)."""

    def __init__(self, vocabulary: int = 12, width: int = 32) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(vocabulary, width), nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.embed.weight, std=0.2)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(x))[0]).transpose(1, 2)


@healthy("not_in_optimizer", "bad_gain", source="tied embeddings: one parameter under two names")
def h_tied_embedding(seed: int) -> Case:
    return Case(seed=seed, model=TiedModel(), data=data.next_token(seed), optimizer=adam(1e-2), max_steps=160, **CE)


@healthy("labels_broken", "bad_data", source="padding: token 0 is ignored as input and -100 as target")
def h_padding_ignored(seed: int) -> Case:
    model = Transformer(vocabulary=8, length=8, classes=8, per_token=True, dropout=0.0)
    return Case(seed=seed, model=model, data=data.padded_copy(seed), optimizer=adamw(5e-3), max_steps=120, **CE)


@healthy("frozen_by_accident", "init_symmetry", source="padding_idx: one embedding row is zero and never learns")
def h_padding_idx(seed: int) -> Case:
    model = Recurrent(nn.GRU, features=16, hidden=24, outputs=3)
    embed = nn.Embedding(31, 16, padding_idx=0)
    split = data.replace(data.words(seed), 0, lambda x: F.pad(x + 1, (0, 3)))
    return Case(seed=seed, model=nn.Sequential(embed, model), data=split, optimizer=adam(8e-3), **CE)


@healthy("missing_activation", "init_vanishing", source="bag of words: the mean of embeddings has a small spread")
def h_word_bag(seed: int) -> Case:
    return Case(seed=seed, model=WordBag(), data=data.words(seed), optimizer=adam(1e-2), **CE)


@healthy("frozen_by_accident", "no_update", source="sparse gradients of an embedding, SparseAdam-like plain SGD")
def h_sparse_embedding(seed: int) -> Case:
    return Case(
        seed=seed, model=WordBag(sparse=True), data=data.words(seed), optimizer=sgd(0.5, momentum=0.0), max_steps=300, **CE
    )


@healthy(
    "frozen_by_accident", "no_update", source="a large vocabulary: most embedding rows never occur in a batch, lazily updated"
)
def h_rare_tokens(seed: int) -> Case:
    split = data.replace(data.words(seed), 0, lambda x: x * 33)
    return Case(seed=seed, model=WordBag(vocabulary=1000), data=split, optimizer=adam(1e-2), **CE)


@healthy("batch_mixing", source="1-D convolutions on signals, global pooling")
def h_conv1d(seed: int) -> Case:
    return Case(seed=seed, model=conv1d_net(), data=data.waves(seed), optimizer=adam(5e-3), **CE)


@healthy("batch_mixing", "shape_broadcast", source="a transformer that mirrors its input: each position attends to another one")
def h_transformer_mirror(seed: int) -> Case:
    model = Transformer(vocabulary=8, length=6, width=32, classes=8, depth=1, per_token=True, dropout=0.0)
    nn.init.normal_(model.position, std=1.0)
    return Case(seed=seed, model=model, data=data.mirrored(seed), optimizer=adamw(5e-3), max_steps=260, **CE)


class Attention(nn.Module):
    """Self-attention over the steps of a sequence, then their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 24)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        self.head = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 4))

    def forward(self, x: Tensor) -> Tensor:
        steps = self.embed(x)
        return self.head(self.attention(steps, steps, steps, need_weights=False)[0].mean(1))


@healthy("batch_mixing", "saturation", source="self-attention, batch first")
def h_self_attention(seed: int) -> Case:
    return Case(seed=seed, model=Attention(), data=data.walks(seed), optimizer=adam(5e-3), **CE)


@healthy(
    "frozen_by_accident", "not_in_optimizer", source="declared frozen word vectors under a trained GRU, as from_pretrained does"
)
def h_frozen_word_vectors(seed: int) -> Case:
    embed = nn.Embedding.from_pretrained(
        F.one_hot(torch.arange(30) % 3, 3).float() @ torch.randn(3, 16) + 0.3 * torch.randn(30, 16), freeze=True
    )
    model = nn.Sequential(embed, Recurrent(nn.GRU, features=16, hidden=16, outputs=3))
    return Case(
        seed=seed,
        model=model,
        data=data.words(seed),
        optimizer=trainable(torch.optim.Adam, lr=1e-2),
        frozen=["model.0.weight"],
        **CE,
    )


@healthy("saturation", "bad_bias_init", source="LSTM over forty steps whose early part matters: remembers from the start")
def h_lstm_long(seed: int) -> Case:
    split = data.replace(data.walks(seed, length=6), 0, lambda x: F.pad(x, (0, 0, 0, 18)))
    model = Recurrent(hidden=24)
    for bias in (model.rnn.bias_ih_l0, model.rnn.bias_hh_l0):
        nn.init.constant_(bias.detach()[24:48], 1.0)  # type: ignore[index]
    return Case(seed=seed, model=model, data=split, optimizer=adam(8e-3), **CE)


@healthy("saturation", "bad_bias_init", source="Tallec and Ollivier 2018: gates open and closed by biases of up to log(100)")
def h_lstm_chrono(seed: int) -> Case:
    model = Recurrent(hidden=24)
    forget = torch.empty(24).uniform_(1, 99, generator=torch.Generator().manual_seed(seed)).log()
    with torch.no_grad():
        for bias in (model.rnn.bias_ih_l0, model.rnn.bias_hh_l0):
            bias.zero_()  # type: ignore[operator]
        model.rnn.bias_ih_l0[:24], model.rnn.bias_ih_l0[24:48] = -forget, forget  # type: ignore[index, operator]
    return Case(seed=seed, model=model, data=data.walks(seed), optimizer=adam(2e-2), max_steps=300, **CE)


@healthy("saturation", "init_exploding", source="a GRU drawn three times as large as torch's default")
def h_gru_wide(seed: int) -> Case:
    model = Recurrent(nn.GRU)
    scale_recurrent(model, 3.0)
    return Case(seed=seed, model=model, data=data.walks(seed), optimizer=adam(6e-3), **CE)


@healthy("init_vanishing", source="embeddings of three numbers each, averaged")
def h_narrow_embedding(seed: int) -> Case:
    return Case(seed=seed, model=WordBag(width=3), data=data.words(seed), optimizer=adam(2e-2), **CE)


@healthy("dropout_too_high", "dropout_active_in_eval", source="the adding problem with dropout in front of the head")
def h_gru_dropout(seed: int) -> Case:
    model = Recurrent(nn.GRU, features=2, hidden=48, outputs=1)
    model.head = nn.Sequential(nn.Dropout(0.7), nn.Linear(48, 1))
    return Case(seed=seed, model=model, data=data.marked_sum(seed), optimizer=adam(1e-2), max_steps=300, **MSE)


class SequenceAutoencoder(nn.Module):
    """Srivastava et al. 2015: one GRU reads the tokens into its state, another writes them down, given those before."""

    def __init__(self, vocabulary: int = 8, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.reader, self.writer = nn.GRU(width, width, batch_first=True), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x)
        before = F.pad(tokens[:, :-1], (0, 0, 1, 0))
        return self.head(self.writer(before, self.reader(tokens)[1])[0]).transpose(1, 2)


@healthy("labels_broken", source="an autoencoder of sequences: its targets are its inputs, through one vector")
def h_token_autoencoder(seed: int) -> Case:
    train, val = data.mirrored(seed)
    split = tuple(TensorDataset(part.tensors[0], part.tensors[0]) for part in (train, val))
    return Case(seed=seed, model=SequenceAutoencoder(), data=split, optimizer=adam(5e-3), max_steps=300, **CE)  # type: ignore[arg-type]
