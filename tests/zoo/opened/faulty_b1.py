"""Held-out: forecasts, sentences and labelled sequences, with their healthy twins."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.optim import Optimizer
from torch.utils.data import Dataset

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import Split, replace, rng, split, standardise
from tests.zoo.nets import CE, MSE, adam, adamw, mlp, sgd


def by_step(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step"}


# ------------------------------------------------------------------------------------------ a tide gauge
def tides(seed: int, n: int = 1500, length: int = 36) -> Split:
    """Windows `[n, 1, length]` of two tidal constituents; the level three hours after."""
    g = rng(711, seed)
    at = torch.arange(length + 3)
    parts = [
        (0.5 + torch.rand(n, 1, generator=g)) * (2 * math.pi * (at / period + torch.rand(n, 1, generator=g))).sin()
        for period in (12.4, 23.9)
    ]
    level = standardise(sum(parts) + 0.1 * torch.randn(n, length + 3, generator=g), None)
    return split(level[:, None, :length], level[:, -1:])


class Causal(nn.Module):
    """Residual convolutions that look back, dilated by 1, 2, 4 and 8."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, width, 1)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=2**i) for i in range(4))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv in self.layers:
            x = x + F.relu(conv(F.pad(x, (2 * conv.dilation[0], 0))))
        return self.head(x[:, :, -1])


def one_cycle(optimizer: Optimizer, peak: float = 3e-3) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=300, div_factor=100)


@healthy("lr_schedule", source="temporal convolutional network on tide gauges, one-cycle schedule by step")
def h_buoy_tcn(seed: int) -> Case:
    case = Case(seed=seed, model=Causal(), data=tides(seed), optimizer=adamw(3e-3, weight_decay=1e-2), **MSE)
    case.scheduler, case.max_steps = lambda optimizer: by_step(one_cycle(optimizer)), 300
    return case


@faulty("lr_schedule", "lr_too_low", twin="h_buoy_tcn", source="Lightning steps by epoch unless told", margin=0.05)
def f_buoy_cycle_by_epoch(case: Case) -> None:
    case.scheduler = one_cycle


@faulty("lr_too_high", twin="h_buoy_tcn", source="max_lr read off the wrong end of a range test")
def f_buoy_peak_too_far(case: Case) -> None:
    case.scheduler = lambda optimizer: by_step(one_cycle(optimizer, 0.3))


@faulty("unnormalised_target", twin="h_buoy_tcn", source="levels in millimetres above chart datum")
def f_buoy_millimetres(case: Case) -> None:
    case.data = replace(case.data, -1, lambda y: 6_820 + 410 * y)


# ------------------------------------------------------------------------------------------ lines of invoices
class Lines(Dataset[tuple[Tensor, Tensor]]):
    """Token sequences of several lengths and their department, which most tokens hint at."""

    def __init__(self, seed: int, n: int, kinds: int = 4, vocabulary: int = 40) -> None:
        g = rng(712, seed)
        self.items = []
        for _ in range(n):
            kind, length = torch.randint(kinds, (), generator=g), int(torch.randint(3, 13, (), generator=g))
            x = torch.randint(1, vocabulary, (length,), generator=g)
            hints = 1 + kind + kinds * torch.randint(vocabulary // kinds - 1, (length,), generator=g)
            self.items.append((torch.where(torch.rand(length, generator=g) < 0.6, hints, x), kind))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.items[i]


def longest_first(items: list[tuple[Tensor, Tensor]], labels_too: bool = True) -> dict[str, Tensor]:
    """A padded batch, longest sequence first, as packing wants it."""
    ordered = sorted(items, key=lambda item: -len(item[0]))
    tokens = pad_sequence([x for x, _ in ordered], batch_first=True)
    lengths = torch.tensor([len(x) for x, _ in ordered])
    return {"tokens": tokens, "lengths": lengths, "label": torch.stack([y for _, y in (ordered if labels_too else items)])}


class PackedGRU(nn.Module):
    """A bidirectional GRU over packed tokens, a head on both last states."""

    def __init__(self, vocabulary: int = 40, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width, padding_idx=0)
        self.rnn = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.drop, self.head = nn.Dropout(0.4), nn.Linear(2 * width, classes)

    def last(self, state: Tensor) -> Tensor:
        return torch.cat([state[0], state[1]], 1)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.drop(self.embed(tokens)), lengths, batch_first=True)
        return self.head(self.drop(self.last(self.rnn(packed)[1])))


class Named(Supervised):
    """Batches are dicts whose last entry is the target."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(list(batch.values()), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(list(batch.values()), batch_idx)


@healthy("labels_broken", "batch_mixing", source="tutorials on packed sequences: sorted by length in collate_fn")
def h_invoice_gru(seed: int) -> Case:
    data = Lines(seed, 1000), Lines(seed + 5_000, 400)
    case = Case(seed=seed, model=PackedGRU(), data=data, optimizer=adam(5e-3), module=Named, **CE)
    case.collate, case.max_steps = longest_first, 250
    return case


@faulty("labels_broken", twin="h_invoice_gru", source="sorted the sequences for packing and forgot the labels")
def f_invoice_labels_unsorted(case: Case) -> None:
    case.collate = partial(longest_first, labels_too=False)


@faulty("batch_mixing", twin="h_invoice_gru", source="forum classic: h_n of a bidirectional RNN reshaped with view(batch, -1)")
def f_invoice_state_viewed(case: Case) -> None:
    case.model.last = lambda state: state.reshape(state.shape[1], -1)


class AlwaysDropped(PackedGRU):
    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(nn.Dropout(0.4)(self.embed(tokens)), lengths, batch_first=True)
        return self.head(nn.Dropout(0.4)(self.last(self.rnn(packed)[1])))


@faulty("dropout_active_in_eval", twin="h_invoice_gru", source="nn.Dropout made inside forward", margin=0.03)
def f_invoice_dropout_made_in_forward(case: Case) -> None:
    case.model = AlwaysDropped()


# ------------------------------------------------------------------------------------------ look-ups
def ledger(seed: int, n: int = 2400, slots: int = 6, keys: int = 20, values: int = 5) -> Split:
    """A key that is asked for, `slots` different keys, their values; the value that belongs to it."""
    g = rng(713, seed)
    stored = torch.rand(n, keys, generator=g).topk(slots).indices
    value, at = torch.randint(values, (n, slots), generator=g), torch.randint(slots, (n, 1), generator=g)
    return split(stored.gather(1, at)[:, 0], stored, value, value.gather(1, at)[:, 0])


class LookUp(nn.Module):
    """One head of attention from what is asked to what is stored."""

    def __init__(self, width: int = 6, keys: int = 20, values: int = 5) -> None:
        super().__init__()
        self.asked, self.key, self.value = nn.Embedding(keys, width), nn.Embedding(keys, width), nn.Embedding(values, width)
        self.query, self.out = nn.Linear(width, width, bias=False), mlp([width, 32, values])

    def forward(self, asked: Tensor, stored: Tensor, value: Tensor) -> Tensor:
        scores = torch.einsum("nd,nsd->ns", self.query(self.asked(asked)), self.key(stored)) / 6**0.5
        return self.out(torch.einsum("ns,nsd->nd", scores.softmax(1), self.value(value)))


def warmed(steps: int) -> Any:
    return lambda optimizer: by_step(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / steps, 1.0)))


def decayed_apart(model: nn.Module) -> Optimizer:
    """Matrices decay; embeddings do not."""
    linear = [p for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters()]
    tables = [p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()]
    return torch.optim.AdamW([{"params": linear, "weight_decay": 0.01}, {"params": tables, "weight_decay": 0.0}], lr=5e-3)


@healthy("lr_schedule", "not_in_optimizer", source="memory networks: soft look-up by key, groups with and without decay")
def h_ledger_lookup(seed: int) -> Case:
    case = Case(seed=seed, model=LookUp(), data=ledger(seed), optimizer=decayed_apart, **CE)
    case.scheduler, case.max_steps, case.batch_size = warmed(30), 400, 64
    return case


@faulty("lr_schedule", "lr_too_low", twin="h_ledger_lookup", source="4000 steps of warm-up copied from a large model")
def f_ledger_warmup_of_a_large_model(case: Case) -> None:
    case.scheduler = warmed(4_000)


@faulty("not_in_optimizer", twin="h_ledger_lookup", source="groups by module type: what is no Linear is forgotten")
def f_ledger_tables_forgotten(case: Case) -> None:
    case.optimizer = lambda model: torch.optim.AdamW(
        [p for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters()], lr=5e-3
    )


# ------------------------------------------------------------------------------------------ stages of a night
def stages(seed: int, n: int = 900, length: int = 6, kinds: int = 6) -> Split:
    """Signals `[n, length, 4]` of a chain of stages; the stage at each step."""
    g = rng(714, seed)
    means = 1.6 * F.normalize(torch.randn(kinds, 4, generator=rng(715, 0)), dim=1)
    y = torch.randint(kinds, (n, 1), generator=g).repeat(1, length)
    for t in range(1, length):
        y[:, t] = torch.where(torch.rand(n, generator=g) < 0.6, (y[:, t - 1] + 1) % kinds, y[:, t - 1])
    return split(means[y] + 0.8 * torch.randn(n, length, 4, generator=g), y)


class Tagger(nn.Module):
    """Scores `[n, length, classes]` of a bidirectional LSTM."""

    def __init__(self, width: int = 20, classes: int = 6) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, classes)

    def states(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.states(x))


class Tagging(Supervised):
    """Classes come last in the scores."""

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        scores = self(x)
        self.log("val_loss", self.loss_fn(scores, y))
        self.log("val_metric", self.metric.score(scores.transpose(1, 2), y))


@healthy(source="plain sequence labelling with a BiLSTM, Adam")
def h_night_tagger(seed: int) -> Case:
    case = Case(seed=seed, model=Tagger(), data=stages(seed), optimizer=adam(5e-3), module=Tagging, **CE)
    case.loss, case.max_steps = lambda scores, y: F.cross_entropy(scores.transpose(1, 2), y), 250
    return case


@faulty("wrong_loss", "shape_broadcast", twin="h_night_tagger", source="cross entropy over time: as many steps as classes")
def f_night_softmax_over_time(case: Case) -> None:
    case.loss = F.cross_entropy


class Viewed(Tagger):
    """Time first by view in place of transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 20, bidirectional=True)

    def states(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        return self.rnn(x.reshape(length, n, -1))[0].transpose(0, 1)


@faulty("batch_mixing", twin="h_night_tagger", source="view where transpose was meant: series of different sleepers")
def f_night_viewed_time_first(case: Case) -> None:
    case.model = Viewed()


@faulty("lr_too_low", twin="h_night_tagger", source="Adam's rate kept when changing to SGD")
def f_night_rate_kept_for_sgd(case: Case) -> None:
    case.optimizer = sgd(1e-3, momentum=0.0)
