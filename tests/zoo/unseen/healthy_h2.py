"""Healthy, held out: recurrent nets, attention and other models of sequences and patches."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from tests.zoo.case import Case, healthy
from tests.zoo.data import digits, mirrored, walks, words
from tests.zoo.more_data import pulses, regimes, reviews
from tests.zoo.nets import CE, Recurrent, Transformer, adam, adamw, conv1d_net, sgd


def warm_cosine(warm: int, steps: int) -> Any:
    """Linear warm-up, then half a cosine down to a hundredth."""

    def factor(step: int) -> float:
        late = (step - warm) / max(1, steps - warm)
        return (step + 1) / warm if step < warm else 0.01 + 0.495 * (1 + math.cos(math.pi * min(1.0, late)))

    return lambda optimizer: {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}


def tokens_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of `[batch, classes, length]`, padding -100 left out."""
    return F.cross_entropy(logits, target, ignore_index=-100)


# ------------------------------------------------------------------------------------------ recurrent
@healthy(source="Elman net with orthogonal recurrence, a label at each step, clipped gradients")
def h_elman_labels_each_step(seed: int) -> Case:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.RNN(2, 24, batch_first=True), nn.Linear(24, 3)
            nn.init.orthogonal_(self.rnn.weight_hh_l0)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0]).transpose(1, 2)

    return Case(
        seed=seed,
        model=Tagger(),
        data=regimes(seed),
        **CE,
        optimizer=adam(5e-3),
        trainer={"gradient_clip_val": 1.0},
        max_steps=240,
    )


@healthy("bad_bias_init", source="Jozefowicz 2015: the forget gate of the LSTM starts open")
def h_lstm_open_forget_gate(seed: int) -> Case:
    model = Recurrent(nn.LSTM, 3, 24, 4)
    with torch.no_grad():
        model.rnn.bias_hh_l0[24:48] += 1.0
    return Case(seed=seed, model=model, data=walks(seed), **CE, optimizer=adam(1e-2), max_steps=240)


@healthy(source="two-layer GRU with dropout between, everyday")
def h_gru_two_layers(seed: int) -> Case:
    model = Recurrent(nn.GRU, 3, 24, 4, num_layers=2, dropout=0.1)
    return Case(seed=seed, model=model, data=walks(seed), **CE, optimizer=adam(1e-2), max_steps=200)


class PackedReader(nn.Module):
    """Both directions of a GRU over packed sentences; row 0 of the embedding is padding."""

    def __init__(self, vocabulary: int = 40, width: int = 16, hidden: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width, padding_idx=0)
        self.rnn = nn.GRU(width, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(x), (x != 0).sum(1), batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1].transpose(0, 1).flatten(1))


@healthy("no_update", source="packed bidirectional GRU: the embedding of the padding stays at zero")
def h_packed_two_ways(seed: int) -> Case:
    return Case(seed=seed, model=PackedReader(), data=reviews(seed, 3000), **CE, optimizer=adam(1e-2), max_steps=240)


class Translator(nn.Module):
    """Encoder and decoder with additive attention; fed with the truth while it trains, with its own words otherwise."""

    def __init__(self, vocabulary: int = 8, width: int = 32) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(vocabulary, width), nn.Embedding(vocabulary + 1, width)
        self.encoder, self.cell = nn.GRU(width, width, batch_first=True), nn.GRUCell(2 * width, width)
        self.key, self.query, self.energy = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.head, self.start = nn.Linear(2 * width, vocabulary), vocabulary

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        memory, hidden = self.encoder(self.source(x))
        hidden, word, keys = hidden[0], torch.full_like(x[:, 0], self.start), self.key(memory)
        logits = []
        for t in range(y.shape[1]):
            weights = self.energy((keys + self.query(hidden)[:, None]).tanh()).softmax(1)
            context = (weights * memory).sum(1)
            hidden = self.cell(torch.cat([self.target(word), context], 1), hidden)
            logits.append(self.head(torch.cat([hidden, context], 1)))
            word = y[:, t] if self.training else logits[-1].argmax(1)
        return torch.stack(logits, 2)


class Sentences(Dataset[Any]):
    """Source, what the decoder is fed, target."""

    def __init__(self, part: Any) -> None:
        self.x, self.y = part.tensors

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.x[i], self.y[i], self.y[i]


@healthy("train_val_mismatch", source="Bahdanau 2015: teacher forcing in training, greedy decoding in validation")
def h_attentive_translator(seed: int) -> Case:
    train, val = mirrored(seed, 1800)
    return Case(
        seed=seed, model=Translator(), data=(Sentences(train), Sentences(val)), loss=tokens_loss, metric="accuracy",
        optimizer=adam(8e-3), trainer={"gradient_clip_val": 1.0}, max_steps=280,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ convolutions over time
class Temporal(nn.Module):
    """A residual block of dilated causal convolutions."""

    def __init__(self, a: int, b: int, dilation: int) -> None:
        super().__init__()
        self.pad = dilation
        self.conv = nn.Conv1d(a, b, 2, dilation=dilation)
        self.mix, self.skip = nn.Conv1d(b, b, 1), nn.Conv1d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.mix(F.relu(self.conv(F.pad(x, (self.pad, 0)))))


@healthy(source="Bai 2018, TCN: dilated causal convolutions, head on the last step")
def h_dilated_tcn(seed: int) -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*(Temporal(3 if i == 0 else 24, 24, 2**i) for i in range(4)))
            self.head = nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.transpose(1, 2))[:, :, -1])

    return Case(seed=seed, model=Net(), data=walks(seed), **CE, optimizer=adam(3e-3), max_steps=200)


@healthy(source="1-D convnet on a sensor signal, everyday")
def h_sensor_convnet(seed: int) -> Case:
    return Case(seed=seed, model=conv1d_net(2, 16, 3), data=pulses(seed, 1800), **CE, optimizer=adam(4e-3), max_steps=280)


@healthy(source="Kim 2014: convolutions of several widths over words, the maximum over time, dropout")
def h_words_of_kim(seed: int) -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.drop, self.head = nn.Embedding(30, 24), nn.Dropout(0.3), nn.Linear(36, 3)
            self.convs = nn.ModuleList(nn.Conv1d(24, 12, k) for k in (1, 2, 3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).transpose(1, 2)
            return self.head(self.drop(torch.cat([F.relu(conv(x)).mean(2) for conv in self.convs], 1)))

    return Case(seed=seed, model=Net(), data=words(seed), **CE, optimizer=adam(5e-3))


# ------------------------------------------------------------------------------------------ attention
class Patches(nn.Module):
    """Patch embedding, a class token, learnt positions, encoder layers."""

    def __init__(self, patch: int = 2, count: int = 16, width: int = 32, depth: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, patch, stride=patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, count + 1, width))
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
                for _ in range(depth)
            )
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.layers(x)[:, 0]))


@healthy("init_symmetry", "init_vanishing", "lr_schedule", source="Dosovitskiy 2021, ViT: head at zero, warm-up and cosine")
def h_vit_zero_head(seed: int) -> Case:
    return Case(
        seed=seed, model=Patches(), data=digits(seed, flat=False), **CE, optimizer=adamw(5e-3, weight_decay=0.05),
        scheduler=warm_cosine(40, 400), max_steps=400,
    )  # fmt: skip


class Mixer(nn.Module):
    """An MLP across patches, then one across channels."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(count, 24), nn.GELU(), nn.Linear(24, count))
        self.within = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm2(x))


@healthy(source="Tolstikhin 2021, MLP-Mixer on digits")
def h_mixer_digits(seed: int) -> Case:
    patches = [nn.Conv2d(1, 32, 2, stride=2), nn.Flatten(2)]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.head = nn.Sequential(*patches), nn.Linear(32, 10)
            self.body = nn.Sequential(Mixer(16, 32), Mixer(16, 32), nn.LayerNorm(32))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.patches(x).transpose(1, 2)).mean(1))

    return Case(seed=seed, model=Net(), data=digits(seed, flat=False), **CE, optimizer=adamw(3e-3, weight_decay=0.05))


@healthy(source="a small Transformer encoder on sentences, everyday")
def h_encoder_everyday(seed: int) -> Case:
    return Case(seed=seed, model=Transformer(), data=words(seed), **CE, optimizer=adamw(2e-3), max_steps=200)


@healthy(source="bag of pooled word vectors under SGD with momentum, everyday")
def h_embedding_mean_sgd(seed: int) -> Case:
    model = nn.Sequential(nn.EmbeddingBag(30, 24, mode="mean"), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 3))
    return Case(seed=seed, model=model, data=words(seed), **CE, optimizer=sgd(0.1), max_steps=240)
