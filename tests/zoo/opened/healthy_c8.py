"""Held-out healthy cases: what was learnt before, elsewhere or by another network."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import TensorDataset

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import Split, digits, rng
from tests.zoo.nets import CE, adam, adamw, conv_block, mlp, sgd, trainable


def some(seed: int, low: int, high: int, flat: bool = False) -> Split:
    """The digits from `low` to below `high`, numbered from 0."""
    parts = []
    for part in digits(seed, flat, 1790):
        x, y = part.tensors
        chosen = (y >= low) & (y < high)
        parts.append(TensorDataset(x[chosen], y[chosen] - low))
    return parts[0], parts[1]


def taught(model: nn.Module, data: Split, steps: int = 150, lr: float = 3e-3) -> nn.Module:
    """The model after some training of its own."""
    x, y = data[0].tensors
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        i = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[i]), y[i]).backward()
        optimizer.step()
    return model


def sketched(seed: int) -> Split:
    """Digits mirrored and in other light: related to digits, yet not the same."""
    return tuple(  # type: ignore[return-value]
        TensorDataset(0.8 * part.tensors[0].flip(-1), part.tensors[1]) for part in digits(seed, flat=False)
    )


def features(norm: Callable[[int], nn.Module] = nn.BatchNorm2d, width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        *conv_block(1, width, norm, nn.ReLU, False), nn.MaxPool2d(2),
        *conv_block(width, 2 * width, norm, nn.ReLU, False), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
    )  # fmt: skip


def names_of(model: nn.Module, *starts: str) -> list[str]:
    """Names, as the LightningModule has them, of the parameters below."""
    return [f"model.{name}" for name, _ in model.named_parameters() if name.startswith(starts)]


# ------------------------------------------------------------------------------------------ frozen, all or in part
class LowRank(nn.Module):
    """A frozen layer and a product of two thin matrices, the second from zero."""

    def __init__(self, base: nn.Linear, rank: int = 6) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * F.linear(F.linear(x, self.a), self.b)


@healthy("init_symmetry", "frozen_by_accident", "init_vanishing", source="Hu 2022: LoRA on each layer of a taught network")
def h_low_rank_updates_uc(seed: int) -> Case:
    base = taught(mlp([64, 64, 64, 10]), digits(seed))
    model = nn.Sequential(*(LowRank(layer) if isinstance(layer, nn.Linear) else layer for layer in base))
    train, val = (TensorDataset(part.tensors[0].flatten(1), part.tensors[1]) for part in sketched(seed))
    return Case(
        seed=seed, model=model, data=(train, val), optimizer=trainable(torch.optim.AdamW, lr=4e-3), max_steps=250,
        frozen=[name for name in names_of(model, "") if ".base." in name], **CE,
    )  # fmt: skip


class OnTop(nn.Module):
    """A head on features that stay as they are, running statistics too."""

    def __init__(self, body: nn.Module, classes: int) -> None:
        super().__init__()
        self.body, self.head = body.requires_grad_(False), nn.Linear(128, classes)

    def train(self, mode: bool = True) -> "OnTop":
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@healthy("bn_eval_in_train", "frozen_by_accident", source="Keras' guide to transfer: body frozen and in inference mode")
def h_head_on_top_uc(seed: int) -> Case:
    body = taught(nn.Sequential(features(), nn.Linear(128, 5)), some(seed, 0, 5))[0]
    model = OnTop(body, 5)
    return Case(
        seed=seed, model=model, data=some(seed, 5, 10), optimizer=trainable(torch.optim.Adam, lr=3e-3), max_steps=200,
        frozen=names_of(model, "body"), **CE,
    )  # fmt: skip


class Thaw(BaseFinetuning):
    """The head first; the second half of the body from the third epoch; the first never."""

    def __init__(self) -> None:
        super().__init__()

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.model[0], train_bn=False)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Optimizer) -> None:
        if epoch == 3:
            self.unfreeze_and_add_param_group(pl_module.model[0][4:], optimizer, lr=5e-4)


@healthy("frozen_by_accident", "not_in_optimizer", source="Lightning's BaseFinetuning: thawed in stages, the first layer never")
def h_thawed_in_stages_uc(seed: int) -> Case:
    body = taught(nn.Sequential(features(lambda n: nn.GroupNorm(4, n)), nn.Linear(128, 5)), some(seed, 0, 5))[0]
    model = nn.Sequential(body, nn.Linear(128, 5))
    return Case(
        seed=seed, model=model, data=some(seed, 5, 10), optimizer=trainable(torch.optim.Adam, lr=2e-3), max_steps=220,
        trainer={"callbacks": [Thaw()]}, frozen=names_of(model, "0.0.", "0.1."), **CE,
    )  # fmt: skip


@healthy(source="any tutorial: load weights, replace the head, train everything at a small rate")
def h_new_head_all_trained_uc(seed: int) -> Case:
    body = taught(nn.Sequential(features(), nn.Linear(128, 5)), some(seed, 0, 5))[0]
    return Case(
        seed=seed, model=nn.Sequential(body, nn.Linear(128, 5)), data=some(seed, 5, 10), optimizer=adamw(1e-3), max_steps=160,
        **CE,
    )  # fmt: skip


@healthy("frozen_by_accident", "lr_too_high", source="Ben Zaken 2022: BitFit, only biases and the new head learn")
def h_only_biases_uc(seed: int) -> Case:
    model = taught(mlp([64, 96, 96, 10], act=nn.GELU), digits(seed))
    model[-1].reset_parameters()
    for name, p in model.named_parameters():
        p.requires_grad_("bias" in name or name.startswith("4."))
    train, val = (TensorDataset(1.2 * part.tensors[0] + 0.3, part.tensors[1]) for part in digits(seed))
    return Case(
        seed=seed, model=model, data=(train, val), optimizer=trainable(torch.optim.Adam, lr=5e-3), max_steps=220,
        frozen=["model.0.weight", "model.2.weight"], **CE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ teachers
class Pupil(nn.Module):
    """A small network that is used, and a large one that it learns from."""

    def __init__(self, small: nn.Module, large: nn.Module) -> None:
        super().__init__()
        self.small, self.large = small, large.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.small(x)


class Distilled(Supervised):
    """Hard labels and what a teacher says at a temperature of 3."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        x, y = batch
        self.model.large.eval()
        output, soft = self(x), (self.model.large(x) / 3).log_softmax(1)
        told = F.kl_div((output / 3).log_softmax(1), soft, log_target=True, reduction="batchmean")
        loss = 0.3 * self.loss_fn(output, y) + 0.7 * 9 * told
        self.log("train_loss", loss)
        return loss


@healthy("not_in_optimizer", "frozen_by_accident", "wrong_loss", source="Hinton 2015: distillation from a frozen teacher")
def h_told_by_teacher_uc(seed: int) -> Case:
    data = digits(seed)
    model = Pupil(mlp([64, 32, 10]), taught(mlp([64, 128, 128, 10]), data, 250))
    return Case(
        seed=seed, model=model, data=data, module=Distilled, optimizer=trainable(torch.optim.Adam, lr=2e-3), max_steps=280,
        frozen=names_of(model, "large"), **CE,
    )  # fmt: skip


class Averaged(Supervised):
    """Validated with a moving average of the weights in place of the weights."""

    def on_fit_start(self) -> None:
        self.mean = [p.detach().clone() for p in self.model.parameters()]

    def swap(self) -> None:
        for p, m in zip(self.model.parameters(), self.mean, strict=True):
            p.data, m.data = m.data, p.data

    def on_train_batch_end(self, *args: Any) -> None:
        for p, m in zip(self.model.parameters(), self.mean, strict=True):
            m.lerp_(p.detach(), 0.05)

    on_validation_start = on_validation_end = swap


@healthy("train_val_mismatch", "lr_too_high", source="Polyak 1992, Karras 2024: averaged weights under a high constant rate")
def h_averaged_weights_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([64, 64, 64, 10], norm=nn.LayerNorm), data=digits(seed), module=Averaged, optimizer=sgd(0.1),
        max_steps=220, **CE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ two domains
class Reverse(torch.autograd.Function):
    """The identity, whose gradient has the other sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -0.3 * gradient


class Domains(nn.Module):
    """Features that tell the class and, as far as possible, not the domain."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU())
        self.kind, self.domain = nn.Linear(64, 10), mlp([64, 32, 1], act=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        return self.kind(self.body(x))


class Confused(Supervised):
    """Labels of the first domain only; the second is darker and noisier, and what gets validated."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        x, other, y = batch
        z = self.model.body(torch.cat([x, other]))
        where = torch.arange(len(z))[:, None] >= len(x)
        told = F.binary_cross_entropy_with_logits(self.model.domain(Reverse.apply(z)), where.float())
        return self.loss_fn(self.model.kind(z[: len(x)]), y) + told


@healthy("loss_sign", "train_val_mismatch", "no_update", source="Ganin 2016: domain adversaries by a reversed gradient")
def h_reversed_gradient_uc(seed: int) -> Case:
    (a, b), g = digits(seed), rng(782, seed)
    x, y = a.tensors
    other = 0.7 * x[torch.randperm(len(x), generator=g)] + 0.3 * torch.randn(x.shape, generator=g)
    val = TensorDataset(0.7 * b.tensors[0] + 0.3 * torch.randn(b.tensors[0].shape, generator=g), b.tensors[1])
    return Case(
        seed=seed, model=Domains(), data=(TensorDataset(x, other, y), val), module=Confused, optimizer=adam(2e-3),
        max_steps=220, **CE,
    )  # fmt: skip
