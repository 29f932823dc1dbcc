"""Held-out: training loops by hand, adapters, pairs, students, several heads, with their healthy twins."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import Split, blobs, replace, rng, split, standardise
from tests.zoo.metrics import binary_accuracy, r2
from tests.zoo.nets import CE, MSE, adam, adamw, mlp, sgd


# ------------------------------------------------------------------------------------------ a conditional GAN
def sketches(seed: int, n: int = 1500, dim: int = 10) -> Split:
    """A sketch of ten numbers and what it looks like when finished."""
    g = rng(741, seed)
    x = torch.randn(n, dim, generator=g)
    mix = torch.randn(dim, dim, generator=g) / dim**0.5
    return split(x, standardise((1.5 * x @ mix).tanh() + 0.3 * x.roll(1, 1) + 0.05 * torch.randn(n, dim, generator=g)))


class Painter(nn.Module):
    """Encoder and decoder of the generator; a critic of pairs."""

    def __init__(self, dim: int = 10) -> None:
        super().__init__()
        self.encode, self.decode = mlp([dim, 48, 24]), mlp([24, 48, dim])
        self.critic = mlp([2 * dim, 48, 1], lambda: nn.LeakyReLU(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class Pix2Pix(Supervised):
    """The critic and the painter take turns; the painter also minimises the absolute error."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def painted(self) -> list[nn.Parameter]:
        return [*self.model.encode.parameters(), *self.model.decode.parameters()]

    def configure_optimizers(self) -> Any:
        painter = torch.optim.Adam(self.painted(), lr=2e-3, betas=(0.5, 0.999))
        return painter, torch.optim.Adam(self.model.critic.parameters(), lr=1e-3, betas=(0.5, 0.999))

    def clear(self, painter: Any, critic: Any) -> None:
        painter.zero_grad()

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        painter, critic = self.optimizers()
        fake = self(x)
        real, unreal = self.model.critic(torch.cat([x, y], 1)), self.model.critic(torch.cat([x, fake.detach()], 1))
        doubt = F.softplus(-real).mean() + F.softplus(unreal).mean()
        critic.zero_grad()
        self.manual_backward(doubt)
        critic.step()
        loss = F.softplus(-self.model.critic(torch.cat([x, fake], 1))).mean() + 20 * self.loss_fn(fake, y)
        self.clear(painter, critic)
        self.manual_backward(loss)
        painter.step()
        self.log("train_loss", loss)


class ClearsTheOther(Pix2Pix):
    def clear(self, painter: Any, critic: Any) -> None:
        critic.zero_grad()


class DecoderOnly(Pix2Pix):
    def painted(self) -> list[nn.Parameter]:
        return [*self.model.decode.parameters()]


@healthy("loss_sign", "gradients_not_zeroed", source="pix2pix: adversarial loss and L1, two optimisers by hand")
def h_sketch_painter(seed: int) -> Case:
    case = Case(
        seed=seed, model=Painter(), data=sketches(seed), loss=F.l1_loss, metric="r2", optimizer=adam(2e-3), module=Pix2Pix
    )
    case.max_steps = 800
    return case


@faulty("gradients_not_zeroed", twin="h_sketch_painter", source="copied lines: the critic's gradients are cleared twice")
def f_sketch_clears_the_critic_twice(case: Case) -> None:
    case.module = ClearsTheOther


@faulty("not_in_optimizer", twin="h_sketch_painter", source="optimiser of the decoder only", margin=0.05)
def f_sketch_encoder_left_out(case: Case) -> None:
    case.module = DecoderOnly


# ------------------------------------------------------------------------------------------ gradients added up by hand
class AddsUp(Supervised):
    """A step for every four batches."""

    cleared = "after each step"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def on_train_epoch_start(self) -> None:
        self.optimizers().zero_grad()

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        *inputs, target = batch
        loss = self.loss_fn(self(*inputs), target)
        self.manual_backward(loss / 4)
        if batch_idx % 4 == 3:
            optimizer.step()
            if self.cleared == "after each step":
                optimizer.zero_grad()
        self.log("train_loss", loss)


class AddsUpForEver(AddsUp):
    cleared = "each epoch"


@healthy("gradients_not_zeroed", "no_update", source="gradient accumulation in a loop by hand")
def h_pebbles_added_up(seed: int) -> Case:
    data = blobs(seed, n=3072, dim=6, per_class=8)
    case = Case(seed=seed, model=mlp([6, 64, 64, 4]), data=data, optimizer=sgd(0.1), module=AddsUp, **CE)
    case.max_steps, case.batch_size = 250, 16
    return case


@faulty("gradients_not_zeroed", twin="h_pebbles_added_up", source="accumulation by hand, cleared only as an epoch begins")
def f_pebbles_cleared_once_an_epoch(case: Case) -> None:
    case.module = AddsUpForEver


class Keeps(Supervised):
    """Never clears: a tip on speed half copied."""

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if not optimizer.state:
            optimizer.zero_grad(set_to_none=True)


@healthy(source="everyday regression: MLP, Adam")
def h_kiln_plain(seed: int) -> Case:
    g = rng(742, seed)
    x = torch.randn(1500, 7, generator=g)
    y = x[:, 0] * x[:, 1] + (1.5 * x[:, 2]).cos() + 0.5 * x[:, 3] + 0.1 * torch.randn(1500, generator=g)
    data = split(x, standardise(y)[:, None])
    return Case(seed=seed, model=mlp([7, 64, 64, 1]), data=data, optimizer=adam(2e-3), max_steps=400, **MSE)


@faulty("gradients_not_zeroed", twin="h_kiln_plain", source="optimizer_zero_grad overridden, its condition true once")
def f_kiln_cleared_once(case: Case) -> None:
    case.module = Keeps


@faulty("lr_schedule", twin="h_kiln_plain", source="ExponentialLR(0.9) meant for epochs, stepped with each batch")
def f_kiln_cools_by_batch(case: Case) -> None:
    case.scheduler = lambda optimizer: {
        "scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step",
    }  # fmt: skip


# ------------------------------------------------------------------------------------------ adapters
class Adapted(nn.Module):
    """A linear layer that is kept, and a low-rank change of it that is learnt."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T


def pretrained(data: Split) -> nn.Sequential:
    """An MLP that has learnt the task by another numbering and rotation of the features."""
    model, (x, y) = mlp([8, 64, 64, 4]), data[0].tensors
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    turned = x.roll(1, 1)
    for _ in range(250):
        optimizer.zero_grad()
        F.cross_entropy(model(turned), y).backward()
        optimizer.step()
    return model


@healthy(
    "frozen_by_accident", "init_symmetry", "no_update", source="LoRA: pretrained weights kept, low-rank updates begin at zero"
)
def h_dialect_lora(seed: int) -> Case:
    data = blobs(seed, n=1800)
    model = pretrained(data)
    for i in (0, 2, 4):
        model[i] = Adapted(model[i])
    case = Case(seed=seed, model=model, data=data, optimizer=adamw(1e-2), **CE)
    case.max_steps = 250
    case.frozen = [f"model.{i}.layer.{what}" for i in (0, 2, 4) for what in ("weight", "bias")]
    return case


@faulty(
    "not_in_optimizer",
    twin="h_dialect_lora",
    source="only the last layer's adapter in the optimiser",
)
def f_dialect_adapters_not_collected(case: Case) -> None:
    case.optimizer = lambda model: torch.optim.AdamW([model[4].down, model[4].up], lr=1e-2)


@faulty("lr_too_low", twin="h_dialect_lora", source="LoRA at the rate of full fine-tuning")
def f_dialect_rate_of_full_tuning(case: Case) -> None:
    case.optimizer = adamw(2e-5)


# ------------------------------------------------------------------------------------------ pairs
def partners(seed: int, n: int = 2100, dim: int = 8, kinds: int = 5) -> Split:
    """Two views; 1 if they are of one kind, -1 if not."""
    g = rng(743, seed)
    centres = torch.randn(3 * kinds, dim, generator=g)
    first, same = torch.randint(kinds, (n,), generator=g), torch.rand(n, generator=g) < 0.5
    second = torch.where(same, first, (first + torch.randint(1, kinds, (n,), generator=g)) % kinds)
    views = [
        centres[k + kinds * torch.randint(3, (n,), generator=g)] + 0.3 * torch.randn(n, dim, generator=g)
        for k in (first, second)
    ]
    return split(*views, 2.0 * same.float() - 1)


class Twins(nn.Module):
    """One network for both views."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.embed = mlp([dim, 64, 64, 8])

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed(a), self.embed(b)


class Similar(Supervised):
    """Right where the cosine is above one half exactly for pairs of one kind."""

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        a, b, y = batch
        pair = self(a, b)
        self.log("val_loss", self.loss_fn(pair, y))
        self.log("val_metric", binary_accuracy(F.cosine_similarity(*pair) - 0.5, (y > 0).float()))


@healthy("shape_broadcast", source="siamese network, cosine embedding loss")
def h_partners_cosine(seed: int) -> Case:
    case = Case(seed=seed, model=Twins(), data=partners(seed), metric="binary_accuracy", optimizer=adam(3e-3), module=Similar,
                loss=lambda pair, y: F.cosine_embedding_loss(*pair, y))  # fmt: skip
    case.max_steps, case.batch_size = 300, 64
    return case


@faulty(
    "labels_broken",
    "wrong_loss",
    twin="h_partners_cosine",
    source="cosine_embedding_loss with targets of 0 and 1: 0 is no pair at all",
)
def f_partners_zero_and_one(case: Case) -> None:
    case.data = replace(case.data, -1, lambda y: (y > 0).float())


# ------------------------------------------------------------------------------------------ a student
def soft_blobs(seed: int) -> Split:
    """Features, and a teacher's probabilities of four classes."""
    g = rng(744, seed)
    x = torch.randn(1800, 6, generator=g)
    scores = (x @ torch.randn(6, 16, generator=g)).tanh() @ torch.randn(16, 4, generator=g) * 0.5
    return split(x, scores.softmax(1))


class Student(Supervised):
    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        output = self(batch[0])
        self.log("val_loss", self.loss_fn(output, batch[1]))
        self.log("val_metric", r2(output.softmax(1), batch[1]))


@healthy("loss_reduction", "wrong_loss", source="distillation: KL divergence to the teacher's probabilities")
def h_student_distilled(seed: int) -> Case:
    case = Case(seed=seed, model=mlp([6, 48, 48, 4]), data=soft_blobs(seed), metric="r2", optimizer=adam(3e-3), module=Student,
                loss=lambda output, y: F.kl_div(output.log_softmax(1), y, reduction="batchmean"))  # fmt: skip
    case.max_steps = 300
    return case


@faulty("wrong_loss", twin="h_student_distilled", source="kl_div fed with probabilities, not their logarithms")
def f_student_without_logarithm(case: Case) -> None:
    case.loss = lambda output, y: F.kl_div(output.softmax(1), y, reduction="batchmean")
