"""Rates, schedules, clipping, decay and loops by hand, each right and then damaged."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, StepLR

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import manifold, mirrored
from tests.zoo.more_data import customers, regimes, tidy
from tests.zoo.nets import BCE, CE, adam, adamw, mlp, sgd


# ------------------------------------------------------------------------------------------ a table with codes
class Buyers(nn.Module):
    """Embedded codes beside a layer of numbers, joined by an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(k, 6) for k in (12, 7, 5))
        self.numbers = nn.Sequential(nn.Linear(4, 24), nn.ReLU())
        self.top = mlp([42, 48, 1])

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        parts = [table(codes[:, i]) for i, table in enumerate(self.tables)]
        return self.top(torch.cat([*parts, self.numbers(numbers)], 1))


@healthy(
    "overfit_no_regularisation",
    source="tabular tutorial: entity embeddings joined with numeric columns (Guo and Berkhahn 2016)",
)
def h_buyers_joined(seed: int) -> Case:
    return Case(
        seed=seed, model=Buyers(), data=tidy(customers(seed)), **BCE, optimizer=adam(3e-3), batch_size=64, max_steps=200
    )


@faulty(
    "lr_too_high", twin="h_buyers_joined", source="forum: Adam with the 0.1 ... 1 that was meant for SGD, loss never settles"
)
def f_buyers_adam_at_sgd_rate(case: Case) -> None:
    case.optimizer = adam(1.0)


@faulty("weight_decay_too_strong", twin="h_buyers_joined", source="code review: weight_decay copied from AdamW into Adam as L2")
def f_buyers_decay_as_l2(case: Case) -> None:
    case.optimizer = adam(3e-3, weight_decay=0.2)


# ------------------------------------------------------------------------------------------ a tagger
class Tagger(nn.Module):
    """A class for every step, from a GRU that reads both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0]).transpose(1, 2)


@healthy("clip_too_small", "lr_too_high", source="sequence tagging recipe: GRU, SGD with momentum, gradients clipped at norm 1")
def h_regime_tagger_f(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Tagger(),
        data=regimes(seed),
        **CE,
        optimizer=sgd(0.2),
        max_steps=240,
        trainer={"gradient_clip_val": 1.0},
    )


@faulty("clip_too_small", twin="h_regime_tagger_f", source="bug report: clip norm of 1e-4, taken for a tolerance")
def f_tagger_clip_as_tolerance(case: Case) -> None:
    case.trainer = {"gradient_clip_val": 1e-4}


@faulty(
    "lr_schedule",
    "lr_too_low",
    twin="h_regime_tagger_f",
    source="Lightning forum: StepLR with interval 'step' instead of 'epoch'",
)
def f_tagger_decays_by_the_batch(case: Case) -> None:
    case.scheduler = lambda optimizer: {"scheduler": StepLR(optimizer, 1, 0.1), "interval": "step"}


@faulty(
    "not_in_optimizer",
    twin="h_regime_tagger_f",
    source="code review: of the decay and no-decay groups only the latter is passed on",
)
def f_tagger_second_group_only(case: Case) -> None:
    def optimizer(model: nn.Module) -> Optimizer:
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for p in model.parameters():
            groups[p.ndim > 1].append(p)
        return torch.optim.SGD(groups[False], lr=0.2, momentum=0.9)

    case.optimizer = optimizer


@faulty("lr_too_high", twin="h_regime_tagger_f", source="clipping trusted to tame any rate: 10 instead of 0.1")
def f_tagger_rate_of_ten(case: Case) -> None:
    case.optimizer = sgd(10.0)


# ------------------------------------------------------------------------------------------ attention
class Block(nn.Module):
    """Attention and an MLP, each behind a norm and beside a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Reader(nn.Module):
    """Tokens in, a token for each place out; the blocks are registered or, wrongly, not."""

    def __init__(self, width: int = 32, depth: int = 2, registered: bool = True) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(8, width), nn.Parameter(0.5 * torch.randn(6, width))
        blocks = [Block(width) for _ in range(depth)]
        self.blocks: Sequence[nn.Module] = nn.ModuleList(blocks) if registered else blocks  # type: ignore[assignment]
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(x).transpose(1, 2)


def _warm(steps: int) -> Any:
    return lambda optimizer: {"scheduler": LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / steps)), "interval": "step"}


@healthy("lr_schedule", "lr_too_low", source="Vaswani 2017: linear warm-up of a small transformer")
def h_reader_warmed(seed: int) -> Case:
    return Case(seed=seed, model=Reader(), data=mirrored(seed), **CE, optimizer=adamw(3e-3), scheduler=_warm(40), max_steps=240)


@faulty("lr_schedule", "lr_too_low", twin="h_reader_warmed", source="warm-up of a large run (10000 steps) left in a short one")
def f_reader_warms_for_ever(case: Case) -> None:
    case.scheduler = _warm(10_000)


@faulty(
    "lr_schedule", "lr_too_high", twin="h_reader_warmed", source="ExponentialLR with gamma above 1, from a range test left in"
)
def f_reader_rate_grows(case: Case) -> None:
    case.scheduler = lambda optimizer: {"scheduler": ExponentialLR(optimizer, 1.03), "interval": "step"}


@faulty("lr_too_low", twin="h_reader_warmed", source="rate of fine-tuning a large pretrained model used from scratch")
def f_reader_at_fine_tuning_rate(case: Case) -> None:
    case.optimizer = adamw(1e-5)


@faulty("lr_too_high", twin="h_reader_warmed", source="post on transformers that only predict marginals: Adam at 0.1")
def f_reader_at_a_tenth(case: Case) -> None:
    case.optimizer = adamw(0.15)


@faulty("not_in_optimizer", twin="h_reader_warmed", source="PyTorch FAQ: layers in a plain Python list are not registered")
def f_reader_blocks_in_a_list(case: Case) -> None:
    case.model = Reader(registered=False)


# ------------------------------------------------------------------------------------------ loops by hand
class ByHand(Supervised):
    """Optimises by hand; `clear` says whether the gradients of the batch before are."""

    def __init__(self, case: Case, clear: bool = True, clip: float | None = 1.0) -> None:
        super().__init__(case)
        self.automatic_optimization = False
        self.clear, self.clip = clear, clip

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        if self.clear:
            optimizer.zero_grad()  # type: ignore[union-attr]
        loss = self.loss_fn(self(batch[0]), batch[1])
        self.manual_backward(loss)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        optimizer.step()  # type: ignore[union-attr]
        self.log("train_loss", loss)


@healthy("gradients_not_zeroed", "clip_too_small", source="bottleneck autoencoder trained in a loop by hand")
def h_squeezer_by_hand(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([20, 48, 6, 48, 20], act=nn.ELU),
        data=manifold(seed),
        loss=F.mse_loss,
        metric="r2",
        optimizer=sgd(0.15),
        module=ByHand,
        max_steps=400,
    )


@faulty("clip_too_small", twin="h_squeezer_by_hand", source="clip_grad_norm_ given the eps instead of the norm")
def f_squeezer_clipped_away(case: Case) -> None:
    case.module = lambda c: ByHand(c, clip=1e-3)


@faulty(
    "weight_decay_too_strong", twin="h_squeezer_by_hand", source="weight decay taken for learning rate decay in SGD's arguments"
)
def f_squeezer_decay_of_a_tenth(case: Case) -> None:
    case.optimizer = sgd(0.15, weight_decay=0.1)


@healthy("gradients_not_zeroed", source="bottleneck autoencoder trained in a loop by hand, without clipping")
def h_squeezer_unclipped(seed: int) -> Case:
    case = h_squeezer_by_hand(seed)
    case.module = lambda c: ByHand(c, clip=None)
    case.optimizer = adam(3e-3)
    return case


@faulty("gradients_not_zeroed", twin="h_squeezer_unclipped", source="most frequent bug of loops by hand: no zero_grad")
def f_squeezer_never_cleared(case: Case) -> None:
    case.module = lambda c: ByHand(c, clear=False, clip=None)
