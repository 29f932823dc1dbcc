"""Losses that do not fit, optimisers that miss their network, plateaus read the wrong way; each right and then damaged."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import binary, digits, pairs, spirals, walks
from tests.zoo.more_data import arcs, judgements
from tests.zoo.nets import CE, adam, mlp, sgd


# ------------------------------------------------------------------------------------------ signs
def soft_margin(output: Tensor, target: Tensor) -> Tensor:
    return F.soft_margin_loss(output, 2 * target - 1)


@healthy("wrong_loss", source="soft_margin_loss with 0 and 1 mapped to the signs that it wants")
def h_signs_by_soft_margin(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([6, 48, 48, 1]),
        data=binary(seed),
        loss=soft_margin,
        metric="binary_accuracy",
        optimizer=adam(3e-3),
        max_steps=250,
    )


@faulty("wrong_loss", twin="h_signs_by_soft_margin", source="issue tracker: soft_margin_loss given 0 and 1 instead of -1 and 1")
def f_signs_without_signs(case: Case) -> None:
    case.loss = F.soft_margin_loss


# ------------------------------------------------------------------------------------------ classes by log-probability
def nll(output: Tensor, target: Tensor) -> Tensor:
    return F.nll_loss(F.log_softmax(output, 1), target)


@healthy("wrong_loss", source="log_softmax and nll_loss written out, digits")
def h_digits_by_nll(seed: int) -> Case:
    model = mlp([64, 48, 10], dropout=0.1)
    return Case(seed=seed, model=model, data=digits(seed), loss=nll, metric="accuracy", optimizer=adam(2e-3), max_steps=250)


@faulty("wrong_loss", twin="h_digits_by_nll", source="forum: nll_loss on logits, loss runs off below zero")
def f_digits_nll_of_logits(case: Case) -> None:
    case.loss = F.nll_loss


# ------------------------------------------------------------------------------------------ which of two
class Judge(nn.Module):
    """How well each of two candidates goes with an anchor."""

    def __init__(self) -> None:
        super().__init__()
        self.score = mlp([12, 64, 64, 1])

    def forward(self, anchor: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([self.score(torch.cat([anchor, c], 1)) for c in (first, second)], 1)


def ranking(output: Tensor, target: Tensor) -> Tensor:
    return F.margin_ranking_loss(output[:, 0], output[:, 1], 1.0 - 2.0 * target, margin=1.0)


@healthy("wrong_loss", source="pairwise ranking with a margin, RankSVM style")
def h_judged_by_margin(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Judge(),
        data=judgements(seed, n=2400),
        loss=ranking,
        metric="accuracy",
        optimizer=adam(3e-3),
        batch_size=64,
        max_steps=350,
    )


@faulty(
    "not_in_optimizer",
    "no_update",
    twin="h_judged_by_margin",
    source="model rebuilt (or wrapped by a copy) after the optimiser was made",
)
def f_judged_by_a_stale_copy(case: Case) -> None:
    case.optimizer = lambda model: adam(3e-3)(deepcopy(model))


# ------------------------------------------------------------------------------------------ alike or not
class Alike(nn.Module):
    """The cosine between the embeddings of two views, less the threshold above which they are called alike."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = mlp([8, 64, 64, 16])

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return F.cosine_similarity(self.embed(first), self.embed(second))[:, None] - 0.5


def of_cosine(output: Tensor, target: Tensor) -> Tensor:
    """What `nn.CosineEmbeddingLoss` does, for targets of 1 and -1."""
    cosine = output + 0.5
    return ((target == 1) * (1 - cosine) + (target == -1) * cosine.relu()).mean()


def of_signed_cosine(output: Tensor, target: Tensor) -> Tensor:
    return of_cosine(output, 2 * target - 1)


@healthy("wrong_loss", source="siamese network with the cosine embedding loss, 0 and 1 mapped to -1 and 1")
def h_alike_by_cosine(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Alike(),
        data=pairs(seed, n=2400),
        loss=of_signed_cosine,
        metric="binary_accuracy",
        optimizer=adam(2e-3),
        batch_size=64,
        max_steps=300,
    )


@faulty(
    "wrong_loss", "labels_broken", twin="h_alike_by_cosine", source="cosine embedding loss given 0 for unlike pairs, not -1"
)
def f_alike_without_unlike(case: Case) -> None:
    case.loss = of_cosine


# ------------------------------------------------------------------------------------------ plateaus
def plateau(mode: Any) -> Any:
    return lambda optimizer: {"scheduler": ReduceLROnPlateau(optimizer, mode, factor=0.1, patience=1), "monitor": "val_loss"}


@healthy("lr_schedule", source="ReduceLROnPlateau on the validation loss, spirals")
def h_spiral_on_plateaus(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([2, 64, 64, 2], act=nn.Tanh),
        data=spirals(seed),
        **CE,
        optimizer=sgd(0.1),
        scheduler=plateau("min"),
        max_steps=960,
    )


# ------------------------------------------------------------------------------------------ two optimisers
class Stepwise(nn.Module):
    """An encoder of steps and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(3, 24, batch_first=True)
        self.head = mlp([24, 32, 4])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)[0][:, -1])


class TwoOptimisers(Supervised):
    """One optimiser for the encoder and one for the head; `cleared` says whose gradients are zeroed."""

    def __init__(self, case: Case, cleared: Sequence[int] = (0, 1)) -> None:
        super().__init__(case)
        self.automatic_optimization, self.cleared = False, cleared

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        for i in self.cleared:
            optimizers[i].zero_grad()
        loss = self.loss_fn(self(batch[0]), batch[1])
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        self.log("train_loss", loss)

    def configure_optimizers(self) -> Any:
        return [self.make_optimizer(part) for part in (self.model.encoder, self.model.head)]


@healthy("gradients_not_zeroed", source="encoder and head with an optimiser each, stepped by hand")
def h_steps_two_optimisers(seed: int) -> Case:
    return Case(seed=seed, model=Stepwise(), data=walks(seed), **CE, optimizer=adam(5e-3), module=TwoOptimisers, max_steps=300)


@faulty(
    "gradients_not_zeroed",
    twin="h_steps_two_optimisers",
    source="copy and paste: the head's optimiser zeroed twice",
    margin=0.06,
)
def f_steps_one_zeroed_twice(case: Case) -> None:
    case.module = lambda c: TwoOptimisers(c, cleared=(1, 1))


# ------------------------------------------------------------------------------------------ hooks
class NoZero(Supervised):
    """Switches the zeroing off, for an accumulation that is not there."""

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        pass


@healthy(source="plain MLP on a table, SGD with momentum")
def h_arcs_plain(seed: int) -> Case:
    return Case(seed=seed, model=mlp([5, 48, 48, 3]), data=arcs(seed), **CE, optimizer=sgd(0.03), max_steps=300)


@faulty(
    "gradients_not_zeroed", twin="h_arcs_plain", source="optimizer_zero_grad overridden with pass in a home-made accumulation"
)
def f_arcs_hook_of_nothing(case: Case) -> None:
    case.module = NoZero


@faulty("dropout_too_high", twin="h_arcs_plain", source="dropout on the raw columns as well as everywhere else")
def f_arcs_dropped_columns(case: Case) -> None:
    case.model = nn.Sequential(nn.Dropout(0.8), *mlp([5, 48, 48, 3], dropout=0.8))
