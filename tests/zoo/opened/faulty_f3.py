"""Batch norm, dropout, what mixes a batch and what is fitted too well, each right and then damaged."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import Split, gratings, mirrored, replace, rng, split, standardise, surface
from tests.zoo.more_data import openings
from tests.zoo.nets import CE, MSE, adam, adamw, mlp, plain_deep

# ------------------------------------------------------------------------------------------ a norm at the entrance
SCALES = torch.tensor([1.0, 30.0, 0.2, 12.0, 400.0, 0.05, 3.0, 90.0])
OFFSETS = torch.tensor([5.0, 200.0, 1.0, 40.0, 1500.0, 0.3, 0.0, 800.0])


class EvalAtTheStart(Supervised):
    """Puts the model into evaluation mode for the whole training."""

    def on_train_epoch_start(self) -> None:
        self.model.eval()


@healthy("unnormalised_input", source="batch norm as first layer of a table network, which standardises raw columns")
def h_raw_columns_behind_norm(seed: int) -> Case:
    return Case(
        seed=seed,
        model=nn.Sequential(nn.BatchNorm1d(8), *mlp([8, 64, 64, 1], act=nn.SiLU)),
        data=replace(surface(seed), 0, lambda x: OFFSETS + SCALES * x),
        **MSE,
        optimizer=adam(3e-3),
        batch_size=64,
        max_steps=400,
    )


@faulty("bn_eval_in_train", twin="h_raw_columns_behind_norm", source="model.eval() of a loading function never taken back")
def f_raw_columns_eval_kept(case: Case) -> None:
    case.module = EvalAtTheStart


@faulty(
    "bn_stats", twin="h_raw_columns_behind_norm", source="momentum of 1e-4, meant as Keras' 0.9999: averages stay at the start"
)
def f_raw_columns_slow_averages(case: Case) -> None:
    case.model[0].momentum = 1e-4  # type: ignore[index, union-attr]


# ------------------------------------------------------------------------------------------ a deep stack with norm
class ForgetsTrain(Supervised):
    """Looks at the training accuracy in evaluation mode now and then, and stays there."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.model.eval()
        with torch.no_grad():
            self.log("train_metric", self.metric.score(self(batch[0]), batch[1]), batch_size=len(batch[1]))
        return loss


@healthy(source="VGG-like stack of 3 x 3 convolutions with batch norm, Adam")
def h_stacked_with_norm(seed: int) -> Case:
    model = plain_deep(9, norm=nn.BatchNorm2d)
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        conv.register_parameter("bias", None)
    return Case(seed=seed, model=model, data=gratings(seed, n=1200), **CE, optimizer=adam(1e-3), max_steps=240)


@faulty(
    "bn_eval_in_train",
    twin="h_stacked_with_norm",
    source="accuracy function that calls eval() and not train() again",
    margin=0.08,
)
def f_stacked_forgets_train(case: Case) -> None:
    case.module = ForgetsTrain


@faulty("bn_stats", twin="h_stacked_with_norm", source="momentum=0 where None (a cumulative average) was meant")
def f_stacked_without_momentum(case: Case) -> None:
    for norm in (m for m in case.model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 0.0


# ------------------------------------------------------------------------------------------ attention by function
class Heads(nn.Module):
    """One layer of `scaled_dot_product_attention` on tokens, and an MLP."""

    def __init__(self, width: int = 32, dropout: float = 0.5, always: bool = False, across: bool = False) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(8, width), nn.Parameter(0.5 * torch.randn(6, width))
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.top = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 8))
        self.dropout, self.always, self.across = dropout, always, across

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place
        n, length, width = x.shape
        qkv = self.qkv(self.norm(x))
        if self.across:
            q, k, v = qkv.view(n, length, 3, 4, width // 4).permute(2, 1, 3, 0, 4)
        else:
            q, k, v = qkv.view(n, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training or self.always else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        y = y.permute(2, 0, 1, 3) if self.across else y.transpose(1, 2)
        return self.top(x + self.out(y.reshape(n, length, width))).transpose(1, 2)


@healthy("dropout_active_in_eval", "dropout_too_high", source="nanoGPT-like attention by function, dropout_p only in training")
def h_heads_by_function(seed: int) -> Case:
    return Case(seed=seed, model=Heads(), data=mirrored(seed), **CE, optimizer=adamw(5e-3), max_steps=300)


@faulty(
    "dropout_active_in_eval",
    twin="h_heads_by_function",
    source="PyTorch docs' warning: SDPA applies dropout_p whatever the mode",
    margin=0.05,
)
def f_heads_drop_always(case: Case) -> None:
    case.model = Heads(always=True)


@faulty(
    "batch_mixing", twin="h_heads_by_function", source="code review: permute that leaves the batch where the sequence belongs"
)
def f_heads_attend_across(case: Case) -> None:
    case.model = Heads(across=True)


# ------------------------------------------------------------------------------------------ a recurrent reader
class FromTheStart(nn.Module):
    """The last state of an LSTM, dropout, a head; `way` says how the batch goes in."""

    def __init__(self, way: str = "first", dropout: float = 0.1) -> None:
        super().__init__()
        self.way = way
        self.rnn = nn.LSTM(2, 24, batch_first=way == "first")
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "viewed":
            return self.head(self.drop(self.rnn(x.reshape(x.shape[1], x.shape[0], 2))[0][-1]))
        return self.head(self.drop(self.rnn(x)[0][:, -1]))


@healthy(source="LSTM classifier, last state, dropout before the head")
def h_start_remembered(seed: int) -> Case:
    return Case(seed=seed, model=FromTheStart(), data=openings(seed), **CE, optimizer=adam(1e-2), max_steps=250)


@faulty(
    "batch_mixing", twin="h_start_remembered", source="most frequent LSTM bug: batch_first left out, batch and time swapped"
)
def f_start_batch_second(case: Case) -> None:
    case.model = FromTheStart("second")


@faulty("batch_mixing", twin="h_start_remembered", source="forum: view(length, batch, -1) where transpose(0, 1) was meant")
def f_start_viewed_as_time_first(case: Case) -> None:
    case.model = FromTheStart("viewed")


# ------------------------------------------------------------------------------------------ dropout in a table network
class Dropping(nn.Module):
    """An MLP with functional dropout; `always` forgets the mode."""

    def __init__(self, p: float = 0.2, always: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 96), nn.Linear(96, 96), nn.Linear(96, 1)
        self.p, self.always = p, always

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            x = F.dropout(layer(x).relu(), self.p, self.training or self.always)
        return self.last(x)


@healthy("dropout_active_in_eval", source="functional dropout that is told the mode, regression")
def h_gently_dropped(seed: int) -> Case:
    return Case(
        seed=seed, model=Dropping(), data=surface(seed, n=2400), **MSE, optimizer=adam(2e-3), batch_size=64, max_steps=400
    )


@faulty(
    "dropout_active_in_eval",
    twin="h_gently_dropped",
    source="F.dropout without training=self.training, as in the first FAQ",
    margin=0.06,
)
def f_gently_dropped_without_mode(case: Case) -> None:
    case.model = Dropping(always=True)


@faulty("dropout_too_high", twin="h_gently_dropped", source="p of 0.8 after each hidden layer of a small regression network")
def f_harshly_dropped(case: Case) -> None:
    case.model = Dropping(0.8)


# ------------------------------------------------------------------------------------------ few rows, many columns
def few_rows(seed: int, n: int = 160, dim: int = 60) -> Split:
    """A linear rule of eight of many columns, and noise; 160 rows to train on."""
    g = rng(7311, seed)
    x = torch.randn(n + 600, dim, generator=g)
    y = x[:, :8].sum(1, keepdim=True) + 1.0 * torch.randn(n + 600, 1, generator=g)
    return split(x, standardise(y), val=600 / (n + 600))


@healthy("weight_decay_too_strong", source="ridge regression by AdamW: more columns than is good, hence a strong decay")
def h_ridge_on_few_rows(seed: int) -> Case:
    model = nn.Linear(60, 1)
    nn.init.zeros_(model.weight)
    return Case(seed=seed, model=model, data=few_rows(seed), **MSE, optimizer=adam(1e-2, weight_decay=0.1), max_steps=400)


@faulty(
    "overfit_no_regularisation",
    twin="h_ridge_on_few_rows",
    source="wide MLP without any regularisation on 160 rows of 60 columns",
)
def f_wide_on_few_rows(case: Case) -> None:
    case.model = mlp([60, 256, 256, 1])
    case.optimizer = adam(1e-3)


class Products(nn.Module):
    """The columns and all products of two of them."""

    def forward(self, x: Tensor) -> Tensor:
        i, j = torch.triu_indices(x.shape[1], x.shape[1])
        return torch.cat([x, x[:, i] * x[:, j]], 1)


@faulty("overfit_no_regularisation", twin="h_ridge_on_few_rows", source="all interactions of 60 columns on 160 rows, no decay")
def f_products_on_few_rows(case: Case) -> None:
    case.model = nn.Sequential(Products(), nn.Linear(60 + 60 * 61 // 2, 1))
    case.optimizer = adam(3e-3)
