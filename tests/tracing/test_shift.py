"""A language model whose targets are not shifted, or that looks ahead, sees what it is to predict; an autoencoder does not."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_training import audit
from lit_training.tracing.shift import places_ahead

VOCABULARY, WIDTH = 16, 8


def causal(time: int) -> Tensor:
    return torch.full((time, time), -torch.inf).triu(1)


def own_attention(z: Tensor) -> Tensor:
    scores = (z @ z.transpose(1, 2)).masked_fill(causal(z.shape[1]) < 0, -torch.inf)
    return z + scores.softmax(-1) @ z


class Sequential(nn.Module):
    def __init__(self, body) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.body = body if isinstance(body, nn.Module) else None
        self.run = body

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self.embed(x)))


class Rnn(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, WIDTH // (2 if options.get("bidirectional") else 1), batch_first=True, **options)

    def forward(self, z: Tensor) -> Tensor:
        return self.rnn(z)[0]


class Encoder(nn.Module):
    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.layer, self.masked = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True), masked

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z, causal(z.shape[1]) if self.masked else None)


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reader, self.writer = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, z: Tensor) -> Tensor:
        return self.writer(F.pad(z[:, :-1], (0, 0, 1, 0)), self.reader(z)[1])[0]


def alarms(body, shifted: bool, ignored: Tensor | None = None) -> list[str]:
    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (8, 12))
    targets = tokens if ignored is None else tokens.masked_fill(ignored, -100)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        logits, y = (logits[:, :-1], y[:, 1:]) if shifted else (logits, y)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())

    return [finding.rule for finding in audit(Sequential(body), (tokens, targets), loss).alarms]


BODIES = {
    "lstm": Rnn,
    "encoder with a causal mask": lambda: Encoder(masked=True),
    "torch's attention": lambda: lambda z: z + F.scaled_dot_product_attention(z, z, z, is_causal=True),
    "attention by hand": lambda: own_attention,
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("shifted", [False, True])
def test_targets_that_are_not_shifted_are_named(kind: str, shifted: bool) -> None:
    torch.manual_seed(1)
    assert alarms(BODIES[kind](), shifted) == ([] if shifted else ["labels_broken"])


class Convolutions(nn.Module):
    def __init__(self, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=padding)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv(z.transpose(1, 2))[..., : z.shape[1]].transpose(1, 2)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (lambda: Encoder(masked=False), ["labels_broken"]),
        (lambda: Rnn(bidirectional=True), ["labels_broken"]),
        (lambda: Convolutions(padding=1), ["labels_broken"]),
        (lambda: Convolutions(padding=2), []),
        (lambda: lambda z: z + z.cumsum(1) / 12, []),  # looks back only, in a way that no operation names
        (Autoencoder, []),
    ],
)
def test_a_network_that_sees_the_next_token_is_named(body, said: list[str]) -> None:
    torch.manual_seed(1)
    assert alarms(body(), shifted=True) == said


def test_places_that_are_ignored_do_not_hide_it() -> None:
    torch.manual_seed(1)
    assert alarms(Rnn(), False, ignored=torch.arange(12).expand(8, 12) > 8) == ["labels_broken"]


@pytest.mark.parametrize("body", [Autoencoder, lambda: Rnn(bidirectional=True), lambda: Encoder(masked=False)])
def test_what_may_rebuild_its_input_is_silent(body) -> None:
    torch.manual_seed(1)
    assert alarms(body(), False) == []


def test_tokens_that_are_all_one_or_few_tell_nothing() -> None:
    assert places_ahead(torch.zeros(4, 8, dtype=torch.long), torch.zeros(32, dtype=torch.long)) is None
    assert places_ahead(torch.arange(8).view(2, 4), torch.arange(8)) is None


def shifting(padded: bool, *places: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Make a loss that shifts labels itself, with logits for all places or all but the last, as those of transformers do."""

    def loss(logits: Tensor, labels: Tensor, k: int) -> Tensor:
        if padded:
            return F.cross_entropy(logits.flatten(0, 1), F.pad(labels, (0, k), value=-100)[:, k:].flatten())
        return F.cross_entropy(logits[:, :-k].flatten(0, 1), labels[:, k:].flatten())

    return lambda logits, labels: torch.stack([loss(logits, labels, k) for k in places]).sum()


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(
    ("by_hand", "places", "said"), [(True, (1,), ["labels_broken"]), (False, (1,), []), (False, (1, 2), []), (False, (3,), [])]
)
def test_targets_that_are_shifted_twice_are_named(
    padded: bool, by_hand: bool, places: tuple[int, ...], said: list[str]
) -> None:
    """A head for the next token but one (Gloeckle et al. 2024) is meant, where another is for the next."""
    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (8, 13))
    batch = (tokens[:, :-1], tokens[:, 1:] if by_hand else tokens[:, :-1])
    report = audit(Sequential(Encoder(masked=True)), batch, shifting(padded, *places))
    assert [f.rule for f in report.alarms] == said


class Translation(nn.Module):
    """A decoder that reads another sentence, too, and gets its own words unshifted, as Lightning's demo transformer does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.body = nn.Transformer(WIDTH, 2, 1, 1, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = causal(x.shape[1])
        return self.head(self.body(self.embed(x.roll(1, 1)), self.embed(x), tgt_mask=mask))


def test_a_translation_is_left_alone() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (8, 12))
    loss = lambda logits, y: F.cross_entropy(logits.flatten(0, 1), y.flatten())  # noqa: E731
    assert audit(Translation(), (tokens, tokens), loss).alarms == []
