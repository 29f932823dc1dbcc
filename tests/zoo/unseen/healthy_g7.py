"""Held-out healthy cases: speech, music, writing, documents, language."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from tests.zoo.case import Case, healthy
from tests.zoo.data import Split, digits, rng, split, standardise
from tests.zoo.more_data import reviews
from tests.zoo.nets import BCE, CE, adam, adamw, mlp, sgd
from tests.zoo.unseen.healthy_g1 import conv_bn, per_step, warmed


# ------------------------------------------------------------------------------------------ sound
def commands(seed: int, n: int = 1500, bands: int = 16, length: int = 20) -> Split:
    """Log spectrograms `[n, 1, 16, 20]` of five words: two formants that glide, each word in its own way."""
    g = rng(7401, seed)
    y, band = torch.randint(5, (n,), generator=g), torch.arange(bands)[:, None]
    t = torch.linspace(0, 1, length) + 0.08 * torch.randn(n, 1, generator=g)
    ways = torch.tensor([[3.0, 4, 10, 0], [7.0, -4, 10, 0], [4.0, 0, 9, 4], [4.0, 0, 13, -4], [3.0, 4, 13, -4]])[y]
    x = torch.zeros(n, bands, length)
    for k in (0, 2):
        place = ways[:, k, None] + ways[:, k + 1, None] * t + 0.5 * torch.randn(n, 1, generator=g)
        x = x + 2 * (-(band - place[:, None]).square() / 2).exp()
    return split(standardise(x + 0.5 * torch.randn(x.shape, generator=g), None)[:, None], y)


class SpecAugment(nn.Module):
    """In training, two bands and three time steps of each spectrogram are set to the mean (0)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        f, t = (torch.randint(x.shape[d] - 3, (len(x), 1, 1, 1), device=x.device) for d in (2, 3))
        band, step = torch.arange(x.shape[2])[:, None], torch.arange(x.shape[3])
        return x.masked_fill(((band >= f) & (band < f + 2)) | ((step >= t) & (step < t + 3)), 0.0)


def songs(seed: int, n: int = 1500, bands: int = 24, length: int = 16) -> Split:
    """Spectrograms `[n, 1, 24, 16]`; whether a drum, a drone, an arpeggio and a siren are heard, `[n, 4]`."""
    g = rng(7402, seed)
    y = (torch.rand(n, 4, generator=g) < 0.4).float()
    band, t = torch.arange(bands)[:, None], torch.arange(length) + torch.randint(8, (n, 1, 1), generator=g)
    drum = (t % 4 == 0).float() * (band < 10)
    drone = ((band - 12).abs() < 1).float() * torch.ones_like(t)
    arpeggio = ((band - 14 - 2 * (t % 4)).abs() < 1).float()
    siren = (-(band - 12 - 5 * (0.8 * t).sin()).square() / 2).exp()
    parts = torch.stack(torch.broadcast_tensors(drum, drone, arpeggio, siren), 1)
    loud = 1.2 + 0.4 * torch.rand(n, 4, generator=g)
    x = (y * loud)[..., None, None].mul(parts).sum(1) + 0.5 * torch.randn(n, bands, length, generator=g)
    return split(standardise(x, None)[:, None], y)


class ConvRecurrent(nn.Module):
    """Convolutions that pool over frequency, a GRU over time, the mean of its outputs."""

    def __init__(self, tags: int = 4) -> None:
        super().__init__()
        self.conv = nn.Sequential(*conv_bn(1, 10), nn.MaxPool2d((3, 1)), *conv_bn(10, 16), nn.MaxPool2d((2, 1)))
        self.rnn, self.head = nn.GRU(64, 24, batch_first=True), nn.Linear(24, tags)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.conv(x).flatten(1, 2).transpose(1, 2))[0].mean(1))


@healthy("train_val_mismatch", "dropout_too_high", source="speech commands: batch norm and SpecAugment (Park 2019)")
def h_command_words(seed: int) -> Case:
    model = nn.Sequential(
        SpecAugment(), *conv_bn(1, 10), *conv_bn(10, 16, 2), *conv_bn(16, 20, 2), nn.Flatten(), nn.Linear(400, 5)
    )
    data = commands(seed)
    return Case(seed=seed, model=model, data=data, optimizer=adamw(2e-3), scheduler=warmed(20, 220), max_steps=220, **CE)


@healthy(source="music tagging: convolutional recurrent network (Choi 2017), several tags, binary cross entropy, Adam")
def h_song_tags(seed: int) -> Case:
    return Case(seed=seed, model=ConvRecurrent(), data=songs(seed), optimizer=adam(4e-3), max_steps=160, **BCE)


# ------------------------------------------------------------------------------------------ writing
def lines(seed: int, n: int = 1200) -> Split:
    """Pictures of a line `[n, 1, 8, 32]` with four letters out of four, spaced by chance; the letters, 1 .. 4."""
    g = rng(7403, seed)
    glyphs, y = (torch.rand(4, 8, 5, generator=rng(7403, 0)) < 0.45).float(), torch.randint(4, (n, 4), generator=g)
    x, shift = torch.zeros(n, 8, 32), torch.randint(4, (n, 4), generator=g)
    for i in range(n):
        for k in range(4):
            at = 8 * k + int(shift[i, k])
            x[i, :, at : at + 5] = glyphs[y[i, k]][:, : 32 - at]
    return split(standardise(x + 0.25 * torch.randn(x.shape, generator=g), None)[:, None], y + 1)


class Reader(nn.Module):
    """CRNN (Shi 2015): convolutions over the line, a bidirectional LSTM, logits `[n, 16, 5]` with blank 0."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(*conv_bn(1, 12), nn.MaxPool2d((2, 2)), *conv_bn(12, 20), nn.MaxPool2d((2, 1)))
        self.rnn, self.head = nn.LSTM(40, 24, batch_first=True, bidirectional=True), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.conv(x).flatten(1, 2).transpose(1, 2))[0])


def ctc(output: Tensor, target: Tensor) -> Tensor:
    n, length, _ = output.shape
    lengths = torch.full((n,), length), torch.full((n,), target.shape[1])
    return F.ctc_loss(output.log_softmax(2).transpose(0, 1), target, *lengths, blank=0)


@healthy(
    "wrong_loss", "shape_broadcast", source="text lines without alignment: CRNN with connectionist temporal classification"
)
def h_line_reader(seed: int) -> Case:
    return Case(
        seed=seed, model=Reader(), data=lines(seed), loss=ctc, metric="decoded", optimizer=adam(5e-3), max_steps=170,
        trainer={"gradient_clip_val": 5.0},
    )  # fmt: skip


@healthy(
    "lr_too_high", "wrong_last_activation", source="PyTorch's MNIST example: log softmax, NLL, dropout, Adadelta at rate 1"
)
def h_zip_adadelta(seed: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(),
        nn.Linear(96, 48), nn.ReLU(), nn.Dropout(0.3), nn.Linear(48, 10), nn.LogSoftmax(1),
    )  # fmt: skip
    return Case(
        seed=seed, model=model, data=digits(seed, flat=False), loss=F.nll_loss, metric="accuracy", max_steps=240,
        optimizer=lambda m: torch.optim.Adadelta(m.parameters(), lr=1.0), scheduler=lambda o: StepLR(o, 1, 0.7),
    )  # fmt: skip


@healthy(source="postal digits: LeNet-like network with tanh and average pooling, SGD with momentum and cosine decay")
def h_zip_lenet(seed: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(8, 24, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(96, 48), nn.Tanh(), nn.Linear(48, 10),
    )  # fmt: skip
    cosine = per_step(lambda o: CosineAnnealingLR(o, 250))
    data = digits(seed, flat=False)
    return Case(seed=seed, model=model, data=data, optimizer=sgd(0.05), scheduler=cosine, max_steps=250, **CE)


# ------------------------------------------------------------------------------------------ documents and language
def documents(seed: int, n: int = 2100, words: int = 80, topics: int = 5) -> Split:
    """TF-IDF of 60 words per document, rows of length 1; the topic."""
    g = rng(7404, seed)
    y = torch.randint(topics, (n,), generator=g)
    common, special = 1.2 * torch.randn(words, generator=g), 0.8 * torch.randn(topics, words, generator=g)
    drawn = torch.multinomial((common + special[y]).softmax(1), 60, True, generator=g)
    counts = F.one_hot(drawn, words).sum(1).float()
    rarity = (n / (counts > 0).sum(0).clamp_min(1)).log() + 1
    return split(F.normalize(counts.log1p() * rarity, dim=1), y)


def notes(seed: int, n: int = 1500, length: int = 14) -> Split:
    """Tokens 0 .. 39; a name (30 and up) is a person after 0 .. 4 (titles), a place after 5 .. 9 (in, at, ...)."""
    g = rng(7405, seed)
    x = torch.randint(10, 40, (n, length), generator=g)
    lead = torch.rand(n, length, generator=g) < 0.25
    lead[:, 1:] &= ~lead[:, :-1]
    x = torch.where(lead, torch.randint(10, (n, length), generator=g), x)
    after = x.roll(1, 1)
    after[:, 0] = 20
    x = torch.where(after < 10, torch.randint(30, 40, (n, length), generator=g), x)
    before = x.roll(1, 1)
    before[:, 0] = 20
    name = x >= 30
    return split(x, (name & (before < 5)).long() + 2 * (name & (before >= 5) & (before < 10)).long())


class Tagger(nn.Module):
    """Embeddings, a bidirectional GRU, logits `[n, 3, length]`."""

    def __init__(self, words: int = 40, width: int = 20, tags: int = 3) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(words, 16), nn.Dropout(0.1)
        self.rnn, self.head = nn.GRU(16, width, batch_first=True, bidirectional=True), nn.Linear(2 * width, tags)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.rnn(self.drop(self.embed(x)))[0])).transpose(1, 2)


def phrases(seed: int, n: int = 2100, length: int = 6, words: int = 10) -> Split:
    """Source tokens, the target shifted right behind a start token (10), the target: other words, neighbours swapped."""
    g = rng(7406, seed)
    x, other = torch.randint(words, (n, length), generator=g), torch.randperm(words, generator=g)
    y = other[x.view(n, -1, 2).flip(2).flatten(1)]
    return split(x, torch.cat([torch.full((n, 1), words), y[:, :-1]], 1), y)


class Translator(nn.Module):
    """A small transformer with encoder and decoder; logits `[n, words, length]`."""

    def __init__(self, words: int = 11, length: int = 6, width: int = 32) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(words, width), nn.Embedding(words, width)
        self.at = nn.Parameter(0.3 * torch.randn(2, length, width))
        encoder = nn.TransformerEncoderLayer(width, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(encoder, 1, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoderLayer(width, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words - 1)

    def forward(self, x: Tensor, shifted: Tensor) -> Tensor:
        memory = self.encoder(self.embed(x) + self.at[0])
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.norm(self.decoder(self.out(shifted) + self.at[1], memory, tgt_mask=mask))).transpose(1, 2)


def questions(seed: int, n: int = 2100, length: int = 15) -> Split:
    """A question (0 .. 11) and a passage `[n, 15]` of five runs of such tokens; where its run begins and ends, `[n, 2]`."""
    g = rng(7407, seed)
    kinds = torch.rand(n, 12, generator=g).argsort(1)[:, :5]
    ends = torch.rand(n, length - 1, generator=g).argsort(1)[:, :4].sort(1).values
    run = (torch.arange(length)[None, :, None] > ends[:, None]).sum(2)
    which = torch.randint(5, (n, 1), generator=g)
    hit = (run == which).float()
    span = torch.stack([hit.argmax(1), length - 1 - hit.flip(1).argmax(1)], 1)
    return split(kinds.gather(1, which)[:, 0], kinds.gather(1, run), span)


class Spans(nn.Module):
    """Passage and question embeddings and their product, a bidirectional GRU, logits of start and end `[n, length, 2]`."""

    def __init__(self, words: int = 12, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.rnn, self.head = nn.GRU(3 * width, 20, batch_first=True, bidirectional=True), nn.Linear(40, 2)

    def forward(self, question: Tensor, passage: Tensor) -> Tensor:
        q, p = self.embed(question)[:, None], self.embed(passage)
        return self.head(self.rnn(torch.cat([p, q.expand_as(p), p * q], 2))[0])


@healthy("unnormalised_input", source="document classification: TF-IDF rows of unit length, one hidden layer, dropout, Adam")
def h_document_tfidf(seed: int) -> Case:
    return Case(seed=seed, model=mlp([80, 48, 5], dropout=0.2), data=documents(seed), optimizer=adam(5e-3), max_steps=220, **CE)


@healthy(source="named entities: embeddings, bidirectional GRU, cross entropy per token, AdamW")
def h_note_entities(seed: int) -> Case:
    return Case(seed=seed, model=Tagger(), data=notes(seed), optimizer=adamw(8e-3), max_steps=180, **CE)


@healthy("lr_too_high", "missing_activation", source="fastText (Joulin 2017): mean of sparse embeddings, linear, SGD at rate 1")
def h_review_fasttext(seed: int) -> Case:
    model = nn.Sequential(nn.EmbeddingBag(40, 16, mode="mean", sparse=True, padding_idx=0), nn.Linear(16, 2))
    return Case(seed=seed, model=model, data=reviews(seed), optimizer=sgd(1.0, momentum=0.0), max_steps=300, **CE)


@healthy(source="toy translation: encoder-decoder transformer with teacher forcing, pre-norm, warm-up, AdamW")
def h_phrase_translator(seed: int) -> Case:
    model = Translator()
    return Case(
        seed=seed, model=model, data=phrases(seed), optimizer=adamw(5e-3), scheduler=warmed(30, 250), max_steps=250, **CE
    )


@healthy(source="extractive question answering: start and end of the span, cross entropy over positions, Adam")
def h_question_span(seed: int) -> Case:
    return Case(seed=seed, model=Spans(), data=questions(seed), optimizer=adam(8e-3), batch_size=64, max_steps=180, **CE)
