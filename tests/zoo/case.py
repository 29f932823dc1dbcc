"""What a case of the zoo is, how it is registered and trained, and which cases are held out.

A healthy case is a function from a seed to a `Case`. A faulty case is a function that damages the freshly built `Case` of its
healthy twin, so that the two differ in the fault and in nothing else:

    @healthy("lr_too_high", source="plain MLP, SGD with momentum at a high but stable rate")
    def h_brisk(seed: int) -> Case: ...

    @faulty("lr_too_high", "nan_loss", twin="h_brisk", source="DeepFD: learning rate out of range")
    def f_brisk_too_fast(case: Case) -> None:
        case.optimizer = sgd(30.0)
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from tests.zoo.metrics import METRICS

ROOTS = frozenset(
    [
        "init_vanishing",
        "init_exploding",
        "init_symmetry",
        "bad_gain",
        "bad_bias_init",
        "dead_relu",
        "saturation",
        "lr_too_high",
        "lr_too_low",
        "lr_schedule",
        "clip_too_small",
        "missing_activation",
        "wrong_hidden_activation",
        "wrong_last_activation",
        "wrong_loss",
        "loss_sign",
        "loss_reduction",
        "shape_broadcast",
        "unnormalised_input",
        "unnormalised_target",
        "labels_broken",
        "bad_data",
        "train_val_mismatch",
        "data_not_shuffled",
        "class_imbalance",
        "batch_mixing",
        "frozen_by_accident",
        "not_in_optimizer",
        "no_update",
        "detached_subgraph",
        "gradients_not_zeroed",
        "bn_eval_in_train",
        "bn_stats",
        "dropout_too_high",
        "dropout_active_in_eval",
        "bias_before_bn",
        "weight_decay_too_strong",
        "overfit_no_regularisation",
        "nan_loss",
    ]
)
"""The ids of root causes, as in the design; each has faulty cases of its own and healthy near misses."""

HELD_OUT = "tests.zoo.unseen"
"""The package of the cases that no threshold may be tuned on."""


# ------------------------------------------------------------------------------------------ one case
@dataclass(kw_only=True)
class Case:
    """One training set-up: all that the diagnosis may know. The answer is in its `Entry`."""

    seed: int
    model: nn.Module
    data: tuple[Dataset[Any], Dataset[Any]]
    loss: Callable[..., Tensor]
    metric: str
    optimizer: Callable[[nn.Module], Optimizer]
    scheduler: Callable[[Optimizer], Any] | None = None
    module: "Callable[[Case], LightningModule]" = field(default_factory=lambda: Supervised)
    batch_size: int = 32
    val_batch_size: int = 128
    max_steps: int = 200
    shuffle: bool = True
    collate: Callable[[list[Any]], Any] | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    frozen: Sequence[str] = ()
    """Names, as the LightningModule has them, of parameters that are meant not to learn."""


class Supervised(LightningModule):
    """The plain supervised module that a case is trained with unless it brings its own."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model = case.model
        self.loss_fn = case.loss
        self.make_optimizer = case.optimizer
        self.make_scheduler = case.scheduler
        self.metric = METRICS[case.metric]

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(*inputs)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        *inputs, target = batch
        loss = self.loss_fn(self(*inputs), target)
        self.log("train_loss", loss, batch_size=len(target))
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        *inputs, target = batch
        output = self(*inputs)
        self.log("val_loss", self.loss_fn(output, target), batch_size=len(target))
        self.log("val_metric", self.metric.score(output, target), batch_size=len(target))

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.model)
        if self.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}


# ------------------------------------------------------------------------------------------ training
def loaders(case: Case) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """The training and the validation loader of a case."""
    train, val = case.data
    generator = torch.Generator().manual_seed(case.seed)
    return (
        DataLoader(train, case.batch_size, shuffle=case.shuffle, generator=generator, collate_fn=case.collate),
        DataLoader(val, case.val_batch_size, collate_fn=case.collate),
    )


def quiet() -> None:
    """One thread, no chatter: a zoo is run by the hundred."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def fit(case: Case, callbacks: Sequence[Callback] = (), max_steps: int | None = None) -> tuple[LightningModule, Trainer]:
    """Train `case` on one CPU process, without logger, bar or files."""
    torch.manual_seed(10_000 + case.seed)
    settings: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": -1, "logger": False}
    settings |= {f"enable_{what}": False for what in ("progress_bar", "checkpointing", "model_summary")}
    settings |= {"max_steps": case.max_steps if max_steps is None else max_steps} | case.trainer
    trainer = Trainer(**settings | {"callbacks": [*settings.get("callbacks", ()), *callbacks]})
    module = case.module(case)
    trainer.fit(module, *loaders(case))
    return module, trainer


# ------------------------------------------------------------------------------------------ the registry
@dataclass(frozen=True, kw_only=True)
class Entry:
    """A registered case: how to build it, and what is true of it."""

    name: str
    source: str
    make: Callable[[int], Case]
    expected: tuple[str, ...] = ()
    """Accepted root causes, the one that the case stands for first; none if the case is healthy."""
    near_miss: tuple[str, ...] = ()
    """Of a healthy case: the ids that a naive rule would raise here."""
    twin: str | None = None
    margin: float = 0.0
    """By how much the metric of the healthy twin is better, at least, on average over seeds."""
    note: bool = False
    """Whether the fault is only worth a note: it wastes something, and hurts no metric."""
    held_out: bool = False
    """Whether the case belongs to the part that no threshold may be tuned on."""

    def build(self, seed: int = 0) -> Case:
        """The case, from a seeded generator."""
        torch.manual_seed(seed)
        return self.make(seed)


CASES: dict[str, Entry] = {}


def _add(entry: Entry) -> None:
    unknown = {*entry.expected, *entry.near_miss} - ROOTS
    if unknown or entry.name in CASES:
        raise ValueError(f"{entry.name}: registered twice, or unknown ids {sorted(unknown)}")
    CASES[entry.name] = entry


def _is_held_out(function: Callable[..., Any]) -> bool:
    return function.__module__.startswith(HELD_OUT)


def healthy(*near_miss: str, source: str) -> Callable[[Callable[[int], Case]], Callable[[int], Case]]:
    """Register a healthy case that naive rules for the ids `near_miss` would flag."""

    def register(make: Callable[[int], Case]) -> Callable[[int], Case]:
        _add(Entry(name=make.__name__, source=source, make=make, near_miss=near_miss, held_out=_is_held_out(make)))
        return make

    return register


def faulty(
    *expected: str, twin: str, source: str, margin: float = 0.1, note: bool = False
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a fault: a function that damages the `Case` of the healthy `twin` in place."""

    def register(damage: Callable[[Case], None]) -> Callable[[Case], None]:
        def make(seed: int) -> Case:
            case = CASES[twin].make(seed)
            damage(case)
            return case

        name, apart = damage.__name__, _is_held_out(damage)
        _add(Entry(name=name, source=source, make=make, expected=expected, twin=twin, margin=margin, note=note, held_out=apart))
        return damage

    return register
