"""Loops by hand, averaging, fine-tuning, and the steps that are never taken."""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import Split, blobs, replace, rings, rng, several, spirals
from tests.zoo.more_data import arcs
from tests.zoo.nets import CE, MSE, adam, mlp, trainable


# ------------------------------------------------------------------------------------------ accumulation by hand
class Windows(Supervised):
    """Manual optimisation: a step after every `window` batches of an epoch."""

    window = 2

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def act(self, optimizer: Any) -> None:
        optimizer.step()
        optimizer.zero_grad()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx) / self.window
        self.manual_backward(loss)
        if (batch_idx + 1) % self.window == 0:
            self.act(self.optimizers())


class WideWindows(Windows):
    window = 64


class ClearedWindows(Windows):
    def act(self, optimizer: Any) -> None:
        optimizer.zero_grad()
        optimizer.step()


@healthy("gradients_not_zeroed", source="gradients accumulated over two batches by hand")
def h_windows_by_hand(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([5, 48, 48, 3]), data=arcs(seed), module=Windows, optimizer=adam(5e-3), max_steps=200,
        trainer={"max_epochs": 13}, **CE,
    )  # fmt: skip


@faulty("no_update", twin="h_windows_by_hand", source="a window that is longer than an epoch and counted by batch_idx")
def f_windows_beyond_epoch(case: Case) -> None:
    case.module = WideWindows


@faulty("no_update", twin="h_windows_by_hand", source="StackOverflow: zero_grad between backward and step")
def f_windows_cleared_first(case: Case) -> None:
    case.module = ClearedWindows


# ------------------------------------------------------------------------------------------ warmup by hand
class Warming(Supervised):
    """The rate raised by hand in `optimizer_step`."""

    def move(self, optimizer: Any, closure: Any) -> None:
        optimizer.step(closure=closure)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        self.move(optimizer, optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (self.trainer.global_step + 1) / 40)


class Unmoved(Warming):
    def move(self, optimizer: Any, closure: Any) -> None:
        closure()


@healthy("lr_schedule", source="Lightning's documentation: learning rate warmup in optimizer_step")
def h_warmup_in_step(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 48, 48, 3], act=nn.Tanh), data=several(seed), module=Warming, optimizer=adam(1e-4),
        batch_size=64, trainer={"max_epochs": 14}, **MSE,
    )  # fmt: skip


@faulty("no_update", twin="h_warmup_in_step", source="optimizer_step overridden for warmup: closure called, step forgotten")
def f_warmup_without_step(case: Case) -> None:
    case.module = Unmoved


# ------------------------------------------------------------------------------------------ averaged weights
class Averaged(Supervised):
    """An average of the weights beside the model, which is what is validated."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.average = copy.deepcopy(case.model).requires_grad_(False)

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        for slow, fast in zip(self.average.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(fast, 0.05)

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(*inputs) if self.training else self.average(*inputs)


class Reset(Averaged):
    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        for slow, fast in zip(self.average.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(fast, 0.001)
            fast.copy_(slow)


@healthy("frozen_by_accident", "not_in_optimizer", source="Polyak averaging: the average is validated")
def h_polyak_rings(seed: int) -> Case:
    model = mlp([2, 32, 32, 3])
    return Case(
        seed=seed, model=model, data=rings(seed), module=Averaged, optimizer=adam(5e-3), max_steps=250,
        frozen=[f"average.{name}" for name, _ in model.named_parameters()], **CE,
    )  # fmt: skip


@faulty("no_update", twin="h_polyak_rings", source="the average copied back after each step: what was learnt is undone")
def f_polyak_copied_back(case: Case) -> None:
    case.module = Reset


# ------------------------------------------------------------------------------------------ low-rank adapters
class LowRank(nn.Module):
    """A frozen linear layer and a low-rank update that starts at zero (LoRA)."""

    def __init__(self, base: nn.Linear, rank: int = 6) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.lora_a), self.lora_b)


def pretrained(data: Split, sizes: list[int], steps: int = 250) -> nn.Sequential:
    """An MLP trained on `data`."""
    model = mlp(sizes)
    optimizer, (x, y) = torch.optim.Adam(model.parameters(), 5e-3), data[0].tensors
    for _ in range(steps):
        pick = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[pick]), y[pick]).backward()
        optimizer.step()
    return model


@healthy("init_symmetry", "frozen_by_accident", "init_vanishing", source="LoRA on a pretrained MLP whose inputs have turned")
def h_lora_turned(seed: int) -> Case:
    data = blobs(seed)
    model = pretrained(data, [8, 64, 64, 4])
    turn = torch.linalg.qr(torch.randn(8, 8, generator=rng(921, seed)))[0]
    for i in (0, 2, 4):
        model[i] = LowRank(model[i])
    frozen = [f"model.{name}" for name, p in model.named_parameters() if not p.requires_grad]
    return Case(
        seed=seed, model=model, data=replace(data, 0, lambda x: x @ turn), optimizer=trainable(torch.optim.Adam, lr=1e-2),
        frozen=frozen, max_steps=300, **CE,
    )  # fmt: skip


@faulty("init_symmetry", "init_vanishing", "no_update", twin="h_lora_turned", source="both factors of LoRA at zero")
def f_lora_both_zero(case: Case) -> None:
    for i in (0, 2, 4):
        nn.init.zeros_(case.model[i].lora_a)


@faulty("frozen_by_accident", twin="h_lora_turned", source="requires_grad set by a name that matches one factor only")
def f_lora_only_one_named(case: Case) -> None:
    for name, p in case.model.named_parameters():
        p.requires_grad_("lora_a" in name)


# ------------------------------------------------------------------------------------------ thawing
class Thaw(Callback):
    """Freezes the body of the model before the fit and thaws it at an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            pl_module.model.body.requires_grad_(False)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            pl_module.model.body.requires_grad_(True)


class BodyAndHead(nn.Module):
    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@healthy("frozen_by_accident", source="a new head warmed up on a pretrained body for two epochs, then both")
def h_thaw_in_time(seed: int) -> Case:
    data = blobs(seed)
    body = pretrained(data, [8, 64, 32, 4])[:4]
    turn = torch.linalg.qr(torch.randn(8, 8, generator=rng(922, seed)))[0]
    return Case(
        seed=seed, model=BodyAndHead(body, nn.Linear(32, 4)), data=replace(data, 0, lambda x: x @ turn), optimizer=adam(5e-3),
        max_steps=320, trainer={"callbacks": [Thaw(2)], "max_epochs": 10}, **CE,
    )  # fmt: skip


@faulty("frozen_by_accident", twin="h_thaw_in_time", source="the epoch of thawing lies beyond the last epoch")
def f_thaw_too_late(case: Case) -> None:
    case.trainer["callbacks"] = [Thaw(10)]


# ------------------------------------------------------------------------------------------ two optimisers
class TwoRates(Supervised):
    """The body and the head with optimisers of their own, by hand."""

    parts = ("body", "head")

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def configure_optimizers(self) -> list[Optimizer]:
        first, second = (getattr(self.model, part) for part in self.parts)
        return [torch.optim.Adam(first.parameters(), 5e-3), torch.optim.SGD(second.parameters(), 0.05, momentum=0.9)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()


class SamePart(TwoRates):
    parts = ("head", "head")


@healthy("not_in_optimizer", source="Adam for the body, SGD for the head, manual optimisation")
def h_two_rates(seed: int) -> Case:
    model = BodyAndHead(mlp([2, 24, 24], last=nn.ReLU()), nn.Linear(24, 2))
    return Case(
        seed=seed, model=model, data=spirals(seed), module=TwoRates, optimizer=adam(5e-3), max_steps=500, **CE
    )  # fmt: skip


@faulty("not_in_optimizer", twin="h_two_rates", source="copy and paste: both optimisers are given the head")
def f_two_rates_same_part(case: Case) -> None:
    case.module = SamePart
