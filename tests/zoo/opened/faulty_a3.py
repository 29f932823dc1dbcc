"""Sequences, sets, attention and language, and how their layers, shapes and starts go wrong."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, faulty, healthy
from tests.zoo.data import Split, mirrored, next_token, rng, split, standardise, walks
from tests.zoo.more_data import clouds, openings, pulses, regimes
from tests.zoo.nets import CE, adam, mlp, sgd


def swap(case: Case, kind: type[nn.Module], **settings: object) -> None:
    """Another kind of model with the parameters of the present one."""
    model = kind(**settings)
    model.load_state_dict(case.model.state_dict())
    case.model = model


# ------------------------------------------------------------------------------------------ recurrences
class DriftNet(nn.Module):
    """A GRU over steps, layer norm, a head on the last state."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 24, batch_first=batch_first)
        self.head = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 4))

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(x)
        return self.head(states[:, -1])


@healthy("batch_mixing", source="a GRU classifies drifts of random walks")
def h_drift_gru(seed: int) -> Case:
    return Case(seed=seed, model=DriftNet(), data=walks(seed), optimizer=adam(5e-3), max_steps=250, **CE)


@faulty("batch_mixing", twin="h_drift_gru", source="forum: batch_first left at False, the state runs through the batch")
def f_drift_time_first(case: Case) -> None:
    swap(case, DriftNet, batch_first=False)


class Keeper(nn.Module):
    """An LSTM cell in a loop that must keep what came first; forget gate open at the start (Jozefowicz 2015)."""

    def __init__(self, width: int = 16, forget: float = 1.0) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(2, width), nn.Linear(width, 2)
        self.open(forget)

    def open(self, forget: float) -> None:
        nn.init.zeros_(self.cell.bias_hh)
        nn.init.zeros_(self.cell.bias_ih)
        width = self.cell.hidden_size
        nn.init.constant_(self.cell.bias_ih[width : 2 * width], forget)

    def carried(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return state

    def forward(self, x: Tensor) -> Tensor:
        state = (x.new_zeros(len(x), self.cell.hidden_size),) * 2
        for step in x.unbind(1):
            state = self.cell(step, self.carried(state))
        return self.head(state[0])


class Cutting(Keeper):
    def carried(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return state[0].detach(), state[1].detach()


@healthy("bad_bias_init", source="an LSTM cell in a loop, the bias of its forget gate at one")
def h_keeper_cell(seed: int) -> Case:
    return Case(
        seed=seed, model=Keeper(), data=openings(seed, length=32), optimizer=adam(5e-3), max_steps=220, **CE
    )  # fmt: skip


@faulty("bad_bias_init", twin="h_keeper_cell", source="the bias of the forget gate negated: the cell forgets")
def f_keeper_forgets(case: Case) -> None:
    case.model.open(-5.0)


@faulty("detached_subgraph", twin="h_keeper_cell", source="forum: hidden state detached at each step rather than each window")
def f_keeper_cut_each_step(case: Case) -> None:
    swap(case, Cutting)


class Tagger(nn.Module):
    """A tanh recurrence (orthogonal start) that labels each step."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(2, width, batch_first=True), nn.Linear(width, 3)
        nn.init.orthogonal_(self.rnn.weight_hh_l0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0]).transpose(1, 2)


@healthy("saturation", source="a tanh recurrence with an orthogonal matrix labels each step of a signal")
def h_regime_tagger(seed: int) -> Case:
    return Case(seed=seed, model=Tagger(), data=regimes(seed), optimizer=adam(2e-3), max_steps=250, **CE)


@faulty("saturation", "init_exploding", "bad_gain", twin="h_regime_tagger", source="all weights from randn: tanh at +-1")
def f_tagger_randn(case: Case) -> None:
    for p in case.model.rnn.parameters():
        nn.init.normal_(p)


# ------------------------------------------------------------------------------------------ attention
class Attention(nn.Module):
    """Scaled dot products of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def weights(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = self.weights(q @ k.transpose(2, 3) * self.scale) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class OverBatch(Attention):
    def weights(self, scores: Tensor) -> Tensor:
        return scores.softmax(0)


class Reverser(nn.Module):
    """Token and position embeddings, one pre-norm block, one logit per word and place."""

    def __init__(self, attention: type[Attention] = Attention, width: int = 64, length: int = 6, vocabulary: int = 8) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(vocabulary, width), nn.Parameter(torch.randn(length, width))
        self.attention = attention(width, 2)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.feed(self.norm2(x))
        return self.head(self.norm3(x)).transpose(1, 2)


@healthy("batch_mixing", source="a one-block transformer by hand turns words round")
def h_reverser(seed: int) -> Case:
    return Case(seed=seed, model=Reverser(), data=mirrored(seed), optimizer=adam(2e-3), max_steps=220, **CE)


@faulty("batch_mixing", twin="h_reverser", source="softmax of attention over dimension 0, which is the batch")
def f_attention_over_batch(case: Case) -> None:
    swap(case, Reverser, attention=OverBatch)


def moods(seed: int, n: int = 1800, length: int = 14, vocabulary: int = 40) -> Split:
    """Texts `[n, length]` padded with 0, one in forty empty; whether the valences of their words sum above 0."""
    g = rng(941, seed)
    valence, x = standardise(torch.randn(vocabulary, generator=g)), torch.randint(1, vocabulary, (n, length), generator=g)
    ends = torch.randint(5, length + 1, (n, 1), generator=g) * (torch.arange(n)[:, None] % 40 != 7)
    x = x.masked_fill(torch.arange(length) >= ends, 0)
    return split(x, ((valence[x] * (x > 0)).sum(1) > 0).long())


class Reader(nn.Module):
    """Words embedded, pooled by learnt attention over what is no padding, an MLP."""

    def __init__(self, vocabulary: int = 40, width: int = 6) -> None:
        super().__init__()
        self.embed, self.score = nn.Embedding(vocabulary, width, padding_idx=0), nn.Linear(width, 1)
        self.top = mlp([width, 32, 2])
        self.masked = -1e4

    def forward(self, x: Tensor) -> Tensor:
        words = self.embed(x)
        share = self.score(words).squeeze(2).masked_fill(x == 0, self.masked).softmax(1)
        return self.top((share[:, :, None] * words).sum(1))


@healthy("nan_loss", source="sentiment by attention pooling; a few reviews are empty, and masked by a large number")
def h_reader_pool(seed: int) -> Case:
    return Case(
        seed=seed, model=Reader(), data=moods(seed), optimizer=adam(8e-3), max_steps=300, **CE
    )  # fmt: skip


@faulty("nan_loss", twin="h_reader_pool", source="a row of -inf under softmax, for a text that is all padding")
def f_reader_empty_text(case: Case) -> None:
    case.model.masked = -math.inf


@faulty("frozen_by_accident", twin="h_reader_pool", source="Embedding.from_pretrained freezes by default")
def f_reader_from_pretrained(case: Case) -> None:
    table = case.model.embed.weight.detach()
    case.model.embed = nn.Embedding.from_pretrained(table, padding_idx=0)


def linear_groups(model: nn.Module) -> Iterable[dict[str, object]]:
    """Weights with decay, biases without."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    yield {"params": [layer.weight for layer in linear], "weight_decay": 1e-3}
    yield {"params": [layer.bias for layer in linear], "weight_decay": 0.0}


@faulty("not_in_optimizer", twin="h_reader_pool", source="decay groups by module type: whatever is no Linear is lost")
def f_reader_linear_groups(case: Case) -> None:
    case.optimizer = lambda model: torch.optim.AdamW(linear_groups(model), lr=5e-3)


# ------------------------------------------------------------------------------------------ sets
class CloudNet(nn.Module):
    """Deep Sets: each point through phi, the mean, rho."""

    def __init__(self, act: type[nn.Module] = nn.ReLU, width: int = 32) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, width), act(), nn.Linear(width, width), act())
        self.rho = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))

    def pooled(self, points: Tensor) -> Tensor:
        return points.mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.rho(self.pooled(self.phi(x)))


class Reshaped(CloudNet):
    def pooled(self, points: Tensor) -> Tensor:
        n, k, width = points.shape
        return points.reshape(k, n, width).mean(0)


@healthy("batch_mixing", source="Deep Sets on clouds of points")
def h_cloud_sets(seed: int) -> Case:
    return Case(seed=seed, model=CloudNet(), data=clouds(seed), optimizer=adam(5e-3), max_steps=250, **CE)


@faulty("missing_activation", twin="h_cloud_sets", source="phi of linear layers only: a mean of points is all that is left")
def f_cloud_linear_phi(case: Case) -> None:
    swap(case, CloudNet, act=nn.Identity)


@faulty("batch_mixing", twin="h_cloud_sets", source="forum: reshape(T, N, C) where transpose(0, 1) was meant")
def f_cloud_reshaped(case: Case) -> None:
    swap(case, Reshaped)


# ------------------------------------------------------------------------------------------ language
class Tied(nn.Module):
    """A GRU language model whose embedding is also its output matrix (Press and Wolf 2017)."""

    def __init__(self, vocabulary: int = 12, width: int = 64) -> None:
        super().__init__()
        self.embed, self.gru = nn.Embedding(vocabulary, width), nn.GRU(width, width, batch_first=True)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.embed.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return (F.linear(self.gru(self.embed(x))[0], self.embed.weight) + self.bias).transpose(1, 2)


@healthy("init_vanishing", source="a small language model with tied embeddings, SGD with momentum and clipping")
def h_tied_gru(seed: int) -> Case:
    return Case(
        seed=seed, model=Tied(), data=next_token(seed), optimizer=sgd(0.3), max_steps=250,
        trainer={"gradient_clip_val": 1.0}, **CE,
    )  # fmt: skip


@faulty("loss_reduction", twin="h_tied_gru", source="a mean over tokens divided by the number of tokens once more")
def f_tied_averaged_twice(case: Case) -> None:
    case.loss = lambda o, y: F.cross_entropy(o, y) / y.numel()


# ------------------------------------------------------------------------------------------ layers in lists
class PulseNet(nn.Module):
    """Dilated convolutions, global pooling."""

    def __init__(self, listed: bool = False, width: int = 16) -> None:
        super().__init__()
        stack = [nn.Conv1d(2 if d == 1 else width, width, 3, padding=d, dilation=d) for d in (1, 2, 4)]
        self.stack = stack if listed else nn.ModuleList(stack)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.stack:
            x = F.relu(layer(x))
        return self.head(x.amax(2))


@healthy(source="dilated 1-D convolutions tell pulses apart")
def h_pulse_dilated(seed: int) -> Case:
    return Case(seed=seed, model=PulseNet(), data=pulses(seed), optimizer=adam(3e-3), max_steps=220, **CE)


@faulty("not_in_optimizer", twin="h_pulse_dilated", source="forum: layers in a Python list are no parameters of the model")
def f_pulse_python_list(case: Case) -> None:
    case.model = PulseNet(listed=True)
