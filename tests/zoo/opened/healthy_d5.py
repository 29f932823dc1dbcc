"""Texts and sequences: tagging, language models, CTC, retrieval, masked words, experts."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import Dataset

from tests.zoo.case import Case, healthy
from tests.zoo.data import next_token, rng, split
from tests.zoo.metrics import accuracy, decoded
from tests.zoo.more_data import regimes, reviews
from tests.zoo.nets import CE, Transformer, adam, adamw
from tests.zoo.opened.healthy_d1 import SharedStep, figure

TOKENS: dict[str, Any] = {"loss": F.cross_entropy, "metric": "accuracy"}


def schedule(steps: int, warm: int) -> Any:
    """Linear warm-up, then cosine, per step."""

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 + 0.5 * float(torch.tensor(torch.pi * min(1.0, (step - warm) / (steps - warm))).cos())

    return lambda o: {"scheduler": torch.optim.lr_scheduler.LambdaLR(o, factor), "interval": "step"}


# ------------------------------------------------------------------------------------------ ragged, own collate
class Ragged(Dataset[tuple[Tensor, int]]):
    """Sentences without their padding."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.sentences, self.labels = [row[row > 0] for row in x], y.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.sentences[index], self.labels[index]


def collate(items: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    sentences, labels = zip(*items, strict=True)
    return {
        "tokens": pad_sequence(sentences, batch_first=True),
        "lengths": torch.tensor([len(s) for s in sentences]),
        "label": torch.tensor(labels),
    }


class PackedReader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16, padding_idx=0)
        self.rnn = nn.LSTM(16, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 2)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(tokens), lengths, batch_first=True, enforce_sorted=False)
        last = self.rnn(packed)[1][0]
        return self.head(torch.cat([last[0], last[1]], 1))


@healthy(source="everyday: padded by `collate_fn`, packed LSTM both ways, dictionaries as batches")
def h_ragged_opinions(seed: int) -> Case:
    train, val = reviews(seed, n=3000)
    return Case(
        seed=seed, model=PackedReader(), data=(Ragged(*train.tensors), Ragged(*val.tensors)), collate=collate,
        module=SharedStep, optimizer=adam(5e-3), max_steps=200, batch_size=64, trainer={"gradient_clip_val": 1.0}, **CE,
    )  # fmt: skip


class Tagger(nn.Module):
    """A GRU both ways over two numbers per step; classes in dimension 1."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(2, 20, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0]).transpose(1, 2)


@healthy(source="everyday: activity per time step by a two-layer bidirectional GRU")
def h_activity_tags(seed: int) -> Case:
    clip = {"gradient_clip_val": 1.0}
    return Case(seed=seed, model=Tagger(), data=regimes(seed), optimizer=adamw(5e-3), max_steps=150, trainer=clip, **CE)


# ------------------------------------------------------------------------------------------ language models
class TiedCausal(nn.Module):
    """A small GPT: the table of the input is the matrix of the output."""

    def __init__(self, vocabulary: int = 12, length: int = 12, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        x = self.embed(tokens) + self.place.weight
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.out(self.norm(x))


class Window(NamedTuple):
    tokens: Tensor
    following: Tensor


class Windows(Dataset[Window]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Window:
        return Window(self.x[index], self.y[index])


class LanguageModel(LightningModule):
    """GPT-2 style: N(0, 0.02), decay for matrices only, flattened cross-entropy."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.gpt, self.lr, self.plan = case.model, 5e-3, case.scheduler

    def loss(self, batch: Window) -> tuple[Tensor, Tensor]:
        logits = self.gpt(batch.tokens)
        return F.cross_entropy(logits.flatten(0, 1), batch.following.flatten()), logits

    def training_step(self, batch: Window, batch_idx: int) -> Tensor:
        return self.loss(batch)[0]

    def validation_step(self, batch: Window, batch_idx: int) -> None:
        loss, logits = self.loss(batch)
        self.log_dict({"val_loss": loss, "val_metric": accuracy(logits.transpose(1, 2), batch.following)})

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.parameters() if p.ndim > 1]
        rest = [p for p in self.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=self.lr, betas=(0.9, 0.95)
        )
        return {"optimizer": optimizer, "lr_scheduler": self.plan(optimizer)}


@healthy(
    "init_vanishing", "weight_decay_too_strong", source="nanoGPT: tied weights, N(0, 0.02), decay 0.1 for matrices, warm-up"
)
def h_tied_causal(seed: int) -> Case:
    train, val = next_token(seed)
    return Case(
        seed=seed, model=TiedCausal(), data=(Windows(*train.tensors), Windows(*val.tensors)), module=LanguageModel, **TOKENS,
        optimizer=adamw(5e-3), scheduler=schedule(200, 20), max_steps=200, trainer={"gradient_clip_val": 1.0},
    )  # fmt: skip


class MaskedWords(LightningModule):
    """BERT's cloze: 80 % mask, 10 % another word, 10 % the word itself; the loss at the chosen places only."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.encoder, self.build = case.model, case.optimizer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (tokens,) = batch[:1]
        chosen, dice = torch.rand(tokens.shape) < 0.2, torch.rand(tokens.shape)
        seen = tokens.masked_fill(chosen & (dice < 0.8), 0)
        seen = torch.where(chosen & (dice > 0.9), torch.randint(1, 13, tokens.shape), seen)
        return F.cross_entropy(self.encoder(seen), tokens.masked_fill(~chosen, -100))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        _, seen, target = batch
        logits = self.encoder(seen)
        self.log_dict({"val_loss": F.cross_entropy(logits, target), "val_metric": accuracy(logits, target)})

    def configure_optimizers(self) -> Any:
        return self.build(self)


@healthy("labels_broken", "bad_data", source="Devlin et al. 2019: masked words, most labels are -100")
def h_masked_cloze(seed: int) -> Case:
    g = rng(770, seed)
    start, step = torch.randint(12, (3000, 1), generator=g), torch.randint(1, 3, (3000, 1), generator=g)
    tokens = 1 + (start + step * torch.arange(10)) % 12
    hidden = torch.rand(tokens.shape, generator=g) < 0.2
    data = split(tokens, tokens.masked_fill(hidden, 0), tokens.masked_fill(~hidden, -100))
    model = Transformer(13, 10, 32, depth=2, classes=13, dropout=0.0, per_token=True, activation="gelu")
    return Case(
        seed=seed, model=model, data=data, module=MaskedWords, optimizer=adamw(5e-3), max_steps=400, batch_size=64, **TOKENS
    )


class Replaced(SharedStep):
    """ELECTRA: which tokens were exchanged, told for each."""

    def shared_step(self, batch: Any, stage: str) -> Tensor:
        tokens, fake = batch
        logits = self(tokens)[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, fake, pos_weight=torch.tensor(3.0))
        self.log_dict({f"{stage}_loss": loss, f"{stage}_metric": self.figure(logits, fake)}, batch_size=len(tokens))
        return loss


def balanced_places(output: Tensor, target: Tensor) -> Tensor:
    right = (output > 0) == (target > 0.5)
    return (right[target > 0.5].float().mean() + right[target < 0.5].float().mean()) / 2


@healthy("class_imbalance", source="Clark et al. 2020: replaced-token detection, one token in six is replaced")
def h_exchanged_tokens(seed: int) -> Case:
    g = rng(771, seed)
    start = torch.randint(12, (3000, 1), generator=g)
    tokens = (start + torch.arange(10)) % 12
    fake = torch.rand(tokens.shape, generator=g) < 1 / 6
    tokens = torch.where(fake, (tokens + torch.randint(3, 10, tokens.shape, generator=g)) % 12, tokens)
    model = Transformer(12, 10, 32, depth=2, classes=1, dropout=0.0, per_token=True)
    return Case(
        seed=seed, model=model, data=split(tokens, fake.float()), module=Replaced, loss=F.binary_cross_entropy_with_logits,
        metric=figure("d_places", balanced_places, 0.5), optimizer=adamw(5e-3), max_steps=350, batch_size=64,
        scheduler=schedule(350, 30),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ CTC, translation
class Strokes(nn.Module):
    """Frames to log probabilities `[batch, time, classes]`, by a convolution and a GRU."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv1d(4, 24, 3, padding=1), nn.BatchNorm1d(24), nn.ReLU())
        self.rnn, self.head = nn.GRU(24, 24, batch_first=True, bidirectional=True), nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.front(x.transpose(1, 2)).transpose(1, 2))[0]).log_softmax(2)


def ctc(output: Tensor, target: Tensor) -> Tensor:
    lengths = torch.full((len(target),), output.shape[1]), torch.full((len(target),), target.shape[1])
    return F.ctc_loss(output.transpose(0, 1), target, *lengths, zero_infinity=True)


@healthy("wrong_loss", "wrong_last_activation", source="line recognition: convolution, GRU, CTC on log-softmax")
def h_ctc_strokes(seed: int) -> Case:
    g = rng(772, seed)
    y = torch.randint(1, 5, (900, 4), generator=g)
    starts = 4 * torch.arange(4) + torch.randint(3, (900, 4), generator=g)
    shapes = 1.5 * torch.randn(5, 2, 4, generator=g)
    x = 0.3 * torch.randn(900, 18, 4, generator=g)
    for i in range(4):
        for j in range(2):
            x[torch.arange(900), starts[:, i] + j] += shapes[y[:, i], j]
    metric = figure("d_decoded", decoded, 0.25)
    return Case(seed=seed, model=Strokes(), data=split(x, y), loss=ctc, metric=metric, optimizer=adam(6e-3), max_steps=250)


class Reverser(nn.Module):
    """GRU to GRU with attention; the decoder is fed the truth (shifted) in training and in validation."""

    def __init__(self, vocabulary: int = 9, width: int = 32) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(vocabulary, width), nn.Embedding(vocabulary, width)
        self.encoder, self.decoder = nn.GRU(width, width, batch_first=True), nn.GRU(width, width, batch_first=True)
        self.query, self.head = nn.Linear(width, width, bias=False), nn.Linear(2 * width, vocabulary)

    def forward(self, tokens: Tensor, shifted: Tensor) -> Tensor:
        memory, state = self.encoder(self.source(tokens))
        hidden, _ = self.decoder(self.target(shifted), state)
        weights = (self.query(hidden) @ memory.transpose(1, 2) / memory.shape[2] ** 0.5).softmax(2)
        return self.head(torch.cat([hidden, weights @ memory], 2)).transpose(1, 2)


@healthy(source="Luong attention: a translator with teacher forcing")
def h_teacher_forced(seed: int) -> Case:
    x = torch.randint(1, 9, (3000, 6), generator=rng(773, seed))
    y = 9 - x.flip(1)
    return Case(
        seed=seed, model=Reverser(), data=split(x, F.pad(y[:, :-1], (1, 0)), y), optimizer=adam(8e-3), max_steps=300,
        batch_size=64, trainer={"gradient_clip_val": 2.0}, **TOKENS,
    )  # fmt: skip
