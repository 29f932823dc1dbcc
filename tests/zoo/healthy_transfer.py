"""Healthy: weights that are not fresh, and parameters that are meant not to learn."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, healthy
from tests.zoo.nets import CE, adam, convnet, mlp, sgd, trainable


def pretrain(model: nn.Module, split: data.Split, steps: int = 60, loss: Callable[..., Tensor] = F.cross_entropy) -> nn.Module:
    """Train `model` for a moment in a plain loop."""
    x, y = split[0].tensors
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    model.train()
    for step in range(steps):
        rows = torch.arange(32 * step, 32 * (step + 1)) % len(x)
        optimizer.zero_grad()
        loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


class Backbone(nn.Module):
    """A conv net in two parts, `body` and `head`."""

    def __init__(self, norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d) -> None:
        super().__init__()
        layers = convnet(norm=norm)
        self.body, self.head = layers[:-1], layers[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def transferred(seed: int) -> Backbone:
    """A backbone trained on other stripes, with a fresh head."""
    model = pretrain(Backbone(), data.gratings(seed + 500))
    model.head = nn.Linear(model.head.in_features, 4)
    return model


@healthy("frozen_by_accident", "not_in_optimizer", source="transfer learning: a pretrained body frozen and declared")
def h_frozen_backbone(seed: int) -> Case:
    model = transferred(seed)
    model.body.requires_grad_(False)
    frozen = [f"model.body.{name}" for name, _ in model.body.named_parameters()]
    return Case(
        seed=seed,
        model=model,
        data=data.gratings(seed),
        optimizer=trainable(torch.optim.Adam, lr=1e-2),
        frozen=frozen,
        max_steps=140,
        **CE,
    )


@healthy(
    "frozen_by_accident", "not_in_optimizer", source="transfer learning: the whole pretrained body frozen, nobody declares it"
)
def h_frozen_undeclared(seed: int) -> Case:
    model = transferred(seed)
    model.body.requires_grad_(False)
    return Case(
        seed=seed, model=model, data=data.gratings(seed), optimizer=trainable(torch.optim.Adam, lr=1e-2), max_steps=140, **CE
    )


@healthy("bn_eval_in_train", "frozen_by_accident", source="frozen batch norm kept in evaluation mode, as fine-tuning wants")
def h_frozen_norm_eval(seed: int) -> Case:
    class KeptInEval(Backbone):
        def train(self, mode: bool = True) -> "KeptInEval":
            super().train(mode)
            self.body.eval()
            return self

    model = KeptInEval()
    model.load_state_dict(transferred(seed).state_dict())
    model.body.requires_grad_(False)
    frozen = [f"model.body.{name}" for name, _ in model.body.named_parameters()]
    return Case(
        seed=seed,
        model=model,
        data=data.gratings(seed),
        optimizer=trainable(torch.optim.Adam, lr=1e-2),
        frozen=frozen,
        max_steps=140,
        **CE,
    )


@healthy("lr_too_low", "no_update", source="fine-tuning a net that has converged already: nothing left to gain")
def h_converged(seed: int) -> Case:
    model = pretrain(mlp([8, 64, 64, 4]), data.blobs(seed), steps=240)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(1e-3), max_steps=120, **CE)


@healthy("lr_too_low", "wrong_loss", source="pretrained digits, fine-tuned gently: loss far below log C at step 0")
def h_gentle_fine_tuning(seed: int) -> Case:
    model = pretrain(convnet(size=8, width=12, classes=10), data.digits(seed, flat=False), steps=100)
    return Case(seed=seed, model=model, data=data.digits(seed, flat=False), optimizer=adam(1e-4), max_steps=120, **CE)


@healthy(
    "lr_too_low", "frozen_by_accident", source="fine-tuning at two rates: the pretrained body at a thousandth of the head's"
)
def h_body_far_below_head(seed: int) -> Case:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        groups = [{"params": model.body.parameters(), "lr": 1e-5}, {"params": model.head.parameters(), "lr": 1e-2}]
        return torch.optim.AdamW(groups)

    return Case(seed=seed, model=transferred(seed), data=data.gratings(seed), optimizer=optimizer, max_steps=140, **CE)


class LowRankAdapter(nn.Module):
    """Hu et al. 2021: a frozen layer plus `B A x`, with B zero at the start."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.a.t() @ self.b.t()


@healthy(
    "frozen_by_accident",
    "init_symmetry",
    "init_vanishing",
    source="LoRA: B is zero, so A has no gradient at step 0; the base is frozen",
)
def h_lora(seed: int) -> Case:
    model = pretrain(mlp([8, 64, 64, 4]), data.blobs(seed + 500), steps=150)
    for i in (0, 2):
        model[i] = LowRankAdapter(model[i])  # type: ignore[index, operator]
    frozen = [f"model.{name}" for name, p in model.named_parameters() if not p.requires_grad]
    return Case(
        seed=seed,
        model=model,
        data=data.blobs(seed),
        optimizer=trainable(torch.optim.Adam, lr=2e-2),
        frozen=frozen,
        max_steps=240,
        **CE,
    )


@healthy(
    "frozen_by_accident", "not_in_optimizer", source="Ben Zaken et al. 2022 (BitFit): only biases and the head learn, declared"
)
def h_bias_tuning(seed: int) -> Case:
    model = pretrain(mlp([8, 64, 64, 4]), data.blobs(seed + 500), steps=150)
    for name, p in model.named_parameters():
        p.requires_grad_("bias" in name or name.startswith("4"))
    frozen = [f"model.{name}" for name, p in model.named_parameters() if not p.requires_grad]
    return Case(
        seed=seed,
        model=model,
        data=data.blobs(seed),
        optimizer=trainable(torch.optim.Adam, lr=3e-2),
        frozen=frozen,
        max_steps=240,
        **CE,
    )


class WithTeacher(nn.Module):
    """A student that carries its frozen teacher along."""

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        super().__init__()
        self.teacher, self.student = teacher.eval().requires_grad_(False), student

    def forward(self, x: Tensor) -> Tensor:
        logits = self.student(x)
        if self.training:
            with torch.no_grad():
                self.taught = self.teacher(x).softmax(1)
        return logits


@healthy(
    "frozen_by_accident",
    "detached_subgraph",
    source="Hinton et al. 2015: distillation from a frozen teacher, declared as a subtree",
)
def h_distillation(seed: int) -> Case:
    teacher = pretrain(mlp([8, 128, 128, 4]), data.blobs(seed), steps=200)
    model = WithTeacher(teacher, mlp([8, 32, 4]))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if not model.training:
            return F.cross_entropy(output, target)
        return 0.5 * F.cross_entropy(output, target) + 0.5 * F.cross_entropy(output, model.taught)

    frozen = [f"model.teacher.{name}" for name, _ in teacher.named_parameters()]
    optimizer = trainable(torch.optim.Adam, lr=8e-3)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=optimizer, loss=loss, metric="accuracy", frozen=frozen)


class AverageInside(nn.Module):
    """A network that keeps a running average of its own weights, and evaluates with it."""

    def __init__(self, model: nn.Module, decay: float = 0.95) -> None:
        super().__init__()
        self.online, self.average, self.decay = model, copy.deepcopy(model).requires_grad_(False), decay

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.average(x)
        with torch.no_grad():
            for mean, p in zip(self.average.parameters(), self.online.parameters(), strict=True):
                mean.lerp_(p, 1 - self.decay)
        return self.online(x)


@healthy(
    "frozen_by_accident",
    "not_in_optimizer",
    source="mean teacher: an averaged copy, never trained, used in evaluation only, declared",
)
def h_mean_teacher(seed: int) -> Case:
    model = AverageInside(mlp([8, 64, 64, 4]))
    frozen = [f"model.average.{name}" for name, _ in model.average.named_parameters()]
    return Case(
        seed=seed, model=model, data=data.blobs(seed), optimizer=trainable(torch.optim.Adam, lr=5e-3), frozen=frozen, **CE
    )


class WithTemperature(nn.Module):
    """A temperature that only evaluation applies: trained elsewhere, later."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.temperature = model, nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.training else self.model(x) / self.temperature


@healthy(
    "frozen_by_accident", "detached_subgraph", source="Guo et al. 2017: a parameter used in evaluation only gets no gradient"
)
def h_evaluation_only_parameter(seed: int) -> Case:
    return Case(seed=seed, model=WithTemperature(mlp([8, 64, 64, 4])), data=data.blobs(seed), optimizer=adam(5e-3), **CE)


class WithSpareHead(nn.Module):
    """A second output that this task does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.spare = mlp([8, 64, 64]), nn.Linear(64, 4), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x).relu()
        self.unused = self.spare(hidden)
        return self.head(hidden)


@healthy("frozen_by_accident", "detached_subgraph", source="an auxiliary head computed and not used: no gradient, no harm")
def h_unused_output(seed: int) -> Case:
    return Case(seed=seed, model=WithSpareHead(), data=data.blobs(seed), optimizer=adam(5e-3), **CE)
