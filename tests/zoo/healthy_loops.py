"""Healthy: training loops, from accumulation to manual optimisation and two networks that compete."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.metrics import accuracy
from tests.zoo.nets import CE, MSE, WordBag, adam, convnet, mlp, sgd


@healthy("gradients_not_zeroed", "loss_reduction", source="four batches accumulated per step")
def h_accumulation(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.1), batch_size=8, max_steps=160,
        trainer={"accumulate_grad_batches": 4}, **CE,
    )  # fmt: skip


@healthy("lr_too_high", "batch_mixing", "shape_broadcast", source="batch size 1: noisy, and fine")
def h_batch_of_one(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([8, 48, 48, 4]),
        data=data.blobs(seed),
        optimizer=sgd(5e-3, momentum=0.9),
        batch_size=1,
        max_steps=600,
        **CE,
    )


@healthy("shape_broadcast", "batch_mixing", source="batch size 1 in a regression")
def h_regression_batch_of_one(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 48, 1]), data=data.surface(seed), optimizer=adam(2e-3), batch_size=1, max_steps=800, **MSE
    )


class Manual(Supervised):
    """Manual optimisation, returning nothing."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


@healthy("no_update", "gradients_not_zeroed", source="manual optimisation that returns None")
def h_manual_optimisation(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.05), module=Manual, **CE)


class ManualAccumulation(Supervised):
    """Manual optimisation with a step every second batch."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx) / 2)
        if batch_idx % 2:
            self.clip_gradients(optimizer, 1.0, "norm")
            optimizer.step()
            optimizer.zero_grad()


@healthy(
    "gradients_not_zeroed",
    "clip_too_small",
    "no_update",
    source="manual accumulation and clipping: gradients grow over two batches on purpose",
)
def h_manual_accumulation(seed: int) -> Case:
    return Case(
        seed=seed,
        model=convnet(),
        data=data.gratings(seed),
        optimizer=sgd(0.05),
        batch_size=16,
        module=ManualAccumulation,
        max_steps=140,
        **CE,
    )


class Alternating(Supervised):
    """Body and head learn in turn, each with its own optimiser."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()[batch_idx % 2]
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()
        self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        layers = list(self.model.children())
        return [torch.optim.Adam(nn.Sequential(*part).parameters(), lr=5e-3) for part in (layers[:2], layers[2:])]


@healthy(
    "frozen_by_accident",
    "no_update",
    "not_in_optimizer",
    source="two optimisers that take turns: half of the net has no gradient at any step",
)
def h_alternating(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([8, 64, 64, 4]),
        data=data.blobs(seed),
        optimizer=adam(5e-3),
        module=Alternating,
        max_steps=260,
        **CE,
    )


@healthy("no_update", "lr_too_high", source="LBFGS on full batches: several passes a step")
def h_lbfgs(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([64, 10]), data=data.digits(seed), batch_size=960, max_steps=6,
        optimizer=lambda model: torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=8), **CE,
    )  # fmt: skip


class Inline(LightningModule):
    """The loss called in `training_step`, a dictionary returned, the net built in `configure_model`, named otherwise."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.seed = case.seed
        self.backbone: nn.Module | None = None

    def configure_model(self) -> None:
        if self.backbone is None:
            self.backbone, self.classifier = mlp([64, 64]), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.backbone(x)))

    def training_step(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        images, digit = batch
        return {"loss": F.cross_entropy(self(images), digit)}

    def validation_step(self, batch: Sequence[Tensor]) -> None:
        self.log("val_metric", accuracy(self(batch[0]), batch[1]), batch_size=len(batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@healthy(
    "not_in_optimizer", "detached_subgraph", source="a net built in configure_model; loss inline, returned in a dictionary"
)
def h_configure_model(seed: int) -> Case:
    return Case(seed=seed, model=nn.Identity(), data=data.digits(seed), optimizer=adam(4e-3), module=Inline, **CE)


class TwoRates(Supervised):
    """Embedding and body with two optimisers of their own, as sparse embeddings want."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        sparse = torch.optim.SparseAdam(list(self.model.embed.parameters()), lr=1e-2)
        return [sparse, torch.optim.Adam(self.model.top.parameters(), lr=5e-3)]


@healthy("not_in_optimizer", "frozen_by_accident", source="SparseAdam for the embedding, Adam for the rest")
def h_two_optimisers(seed: int) -> Case:
    return Case(
        seed=seed, model=WordBag(sparse=True), data=data.words(seed), optimizer=adam(5e-3), module=TwoRates, max_steps=400, **CE
    )


class Adversarial(LightningModule):
    """Two networks that compete (Goodfellow et al. 2014): points on a ring; validated by the share that falls near it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = mlp([4, 48, 48, 2], nn.LeakyReLU), mlp([2, 48, 48, 1], nn.LeakyReLU)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        real = batch[0]
        of_generator, of_discriminator = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4))
        self.toggle_optimizer(of_discriminator)
        score_real, score_fake = self.discriminator(real), self.discriminator(fake.detach())
        of_discriminator.zero_grad()
        self.manual_backward(F.softplus(-score_real).mean() + F.softplus(score_fake).mean())
        of_discriminator.step()
        self.untoggle_optimizer(of_discriminator)
        self.toggle_optimizer(of_generator)
        of_generator.zero_grad()
        self.manual_backward(F.softplus(-self.discriminator(fake)).mean())
        of_generator.step()
        self.untoggle_optimizer(of_generator)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        radius = self.generator(torch.randn(len(batch[0]), 4, generator=torch.Generator().manual_seed(batch_idx))).norm(dim=1)
        self.log("val_metric", ((radius - 2**0.5).abs() < 0.3).float().mean(), batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        settings = {"lr": 2e-3, "betas": (0.5, 0.9)}
        return [torch.optim.Adam(net.parameters(), **settings) for net in (self.generator, self.discriminator)]


@healthy(
    "frozen_by_accident",
    "no_update",
    "not_in_optimizer",
    "loss_sign",
    source="a small GAN, manual optimisation, two optimisers",
)
def h_gan(seed: int) -> Case:
    g = data.rng(97, seed)
    angle = 2 * torch.pi * torch.rand(1536, generator=g)
    ring = data.standardise(torch.stack([angle.cos(), angle.sin()], 1)) + 0.03 * torch.randn(1536, 2, generator=g)
    return Case(
        seed=seed,
        model=nn.Identity(),
        data=data.split(ring, ring),
        optimizer=adam(2e-3),
        module=Adversarial,
        batch_size=64,
        max_steps=800,
        loss=F.mse_loss,
        metric="jaccard",
    )
