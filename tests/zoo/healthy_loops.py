"""Healthy: training loops, from accumulation to manual optimisation and two networks that compete."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.metrics import accuracy, r2
from tests.zoo.nets import CE, MSE, WordBag, adam, convnet, he, init_weights, mlp, sgd


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


class Mixup(Supervised):
    """Zhang et al. 2018: convex combinations of samples and of their labels."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        share, other = torch.distributions.Beta(0.3, 0.3).sample(), torch.randperm(len(x))
        output = self(share * x + (1 - share) * x[other])
        return share * self.loss_fn(output, y) + (1 - share) * self.loss_fn(output, y[other])


@healthy("batch_mixing", "labels_broken", source="mixup: the loop mixes samples, the network does not")
def h_mixup(seed: int) -> Case:
    return Case(seed=seed, model=mlp([64, 96, 10]), data=data.digits(seed), optimizer=adam(4e-3), module=Mixup, **CE)


class TwoInputs(nn.Module):
    """A picture and a vector in one head."""

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.rest, self.head = convnet(classes=16), nn.Linear(5, 16), nn.Linear(32, 4)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return self.head(torch.cat([self.eye(x), self.rest(features)], 1).relu())


@healthy("unnormalised_input", "bad_data", source="two inputs of different shape and scale")
def h_two_inputs(seed: int) -> Case:
    train, val = data.gratings(seed)
    x, y = (torch.cat([a, b]) for a, b in zip(train.tensors, val.tensors, strict=True))
    features = 3 * torch.randn(len(x), 5, generator=data.rng(95, seed)) + 2
    return Case(seed=seed, model=TwoInputs(), data=data.split(x, features, y), optimizer=adam(4e-3), max_steps=160, **CE)


class Siamese(nn.Module):
    """One tower applied to two views; the logit falls with their distance."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.scale = mlp([8, 64, 16]), nn.Linear(1, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.scale((self.tower(a) - self.tower(b)).square().mean(1, keepdim=True))


@healthy("bad_gain", "batch_mixing", source="Bromley et al. 1993: one tower called twice per step")
def h_siamese(seed: int) -> Case:
    return Case(
        seed=seed, model=Siamese(), data=data.pairs(seed), optimizer=adam(1e-2), max_steps=300,
        loss=F.binary_cross_entropy_with_logits, metric="binary_accuracy",
    )  # fmt: skip


class TwoTasks(LightningModule):
    """A class and a number from one body, two weighted losses, a dictionary batch."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.body, self.classify, self.measure = mlp([8, 64, 64]), nn.Linear(64, 2), nn.Linear(64, 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hidden = self.body(batch["x"]).relu()
        number = F.mse_loss(self.measure(hidden), batch["number"])
        return number + 0.3 * F.cross_entropy(self.classify(hidden), batch["label"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        guess = self.measure(self.body(batch["x"]).relu())
        self.log("val_metric", r2(guess, batch["number"]), batch_size=len(guess))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Rows as dictionaries."""

    def __init__(self, part: torch.utils.data.TensorDataset) -> None:
        self.x, self.y = part.tensors

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "label": (self.y[index, 0] > 0).long(), "number": self.y[index]}


@healthy("wrong_loss", "shape_broadcast", source="two tasks, dictionary batches, two losses")
def h_two_tasks(seed: int) -> Case:
    train, val = data.surface(seed)
    return Case(seed=seed, model=nn.Identity(), data=(Rows(train), Rows(val)), optimizer=adam(5e-3), module=TwoTasks, **MSE)


@healthy("lr_schedule", "bn_stats", source="stochastic weight averaging over the last third")
def h_weight_averaging(seed: int) -> Case:
    averaging = StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=3, annealing_epochs=1)
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.05), max_steps=-1,
        trainer={"callbacks": [averaging], "max_epochs": 6}, **CE,
    )  # fmt: skip


@healthy("lr_schedule", "lr_too_low", source="cosine decay to zero at the last step")
def h_cosine_decay(seed: int) -> Case:
    def schedule(optimizer: torch.optim.Optimizer) -> object:
        return {"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200), "interval": "step"}

    return Case(seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.1), scheduler=schedule, **CE)


@healthy("lr_schedule", "lr_too_high", source="Smith 2018: one-cycle schedule, high in the middle")
def h_one_cycle(seed: int) -> Case:
    def schedule(optimizer: torch.optim.Optimizer) -> object:
        return {"scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=202), "interval": "step"}

    return Case(
        seed=seed, model=convnet(norm=nn.BatchNorm2d), data=data.gratings(seed), optimizer=sgd(0.01), scheduler=schedule, **CE
    )


@healthy("lr_schedule", source="the rate halved when the validation loss stalls")
def h_reduce_on_plateau(seed: int) -> Case:
    def schedule(optimizer: torch.optim.Optimizer) -> object:
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
        return {"scheduler": scheduler, "monitor": "val_loss"}

    return Case(
        seed=seed, model=mlp([64, 64, 10]), data=data.digits(seed), optimizer=sgd(0.1), scheduler=schedule, max_steps=240, **CE
    )


@healthy("clip_too_small", source="a tiny clipping norm under Adam, which divides it out again")
def h_tiny_clip_adam(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([8, 64, 64, 4]),
        data=data.blobs(seed),
        optimizer=adam(4e-3, eps=1e-12),
        trainer={"gradient_clip_val": 1e-3},
        **CE,
    )


@healthy("clip_too_small", source="clipping by value at 0.05 under SGD, which binds only at first")
def h_clip_by_value(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.05),
        trainer={"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}, **CE,
    )  # fmt: skip


@healthy("data_not_shuffled", source="not shuffled, and in no order either")
def h_unshuffled_random(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.05), shuffle=False, **CE)


@healthy("data_not_shuffled", source="a time series in its order: neighbouring targets are alike, the loader must not care")
def h_slow_drift(seed: int) -> Case:
    g = data.rng(96, seed)
    t = torch.arange(1536.0)
    season = torch.stack([(t / 25).sin(), (t / 25).cos()], 1)
    x = torch.cat([season, torch.randn(1536, 4, generator=g)], 1)
    y = season[:, 0] * x[:, 2] + x[:, 3].abs() + 0.3 * season[:, 1]
    return Case(
        seed=seed,
        model=mlp([6, 64, 64, 1]),
        data=data.split(x, data.standardise(y)[:, None]),
        optimizer=adam(5e-3),
        shuffle=False,
        **MSE,
    )


@healthy("data_not_shuffled", source="not shuffled, the rows interleaved with a stride of seven")
def h_interleaved_rows(seed: int) -> Case:
    split = data.reorder(data.blobs(seed), lambda y: torch.arange(len(y)) % 7)
    return Case(seed=seed, model=mlp([8, 64, 64, 4]), data=split, optimizer=sgd(0.05), shuffle=False, **CE)


@healthy("class_imbalance", source="ten balanced classes; the twin of a training set that lost most of eight")
def h_balanced_digits(seed: int) -> Case:
    return Case(seed=seed, model=mlp([64, 64, 10]), data=data.digits(seed), optimizer=adam(4e-3), **CE)


@healthy("unnormalised_target", source="three standardised outputs by SGD")
def h_several_outputs_sgd(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 3]), data=data.several(seed), optimizer=sgd(0.05), **MSE)


@healthy("weight_decay_too_strong", source="SGD with the usual decay of 5e-4 on everything")
def h_usual_decay(seed: int) -> Case:
    return Case(
        seed=seed,
        model=convnet(norm=nn.BatchNorm2d),
        data=data.gratings(seed),
        optimizer=sgd(0.05, weight_decay=5e-4),
        max_steps=160,
        **CE,
    )


class Penalised(Supervised):
    """An L1 penalty of the first layer in the loss."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = super().training_step(batch, batch_idx)
        return loss + 1e-4 * next(self.model.parameters()).abs().sum()


@healthy("weight_decay_too_strong", "loss_reduction", source="an L1 penalty in the loss: step-0 loss above log C")
def h_penalised(seed: int) -> Case:
    return Case(seed=seed, model=mlp([64, 96, 10]), data=data.digits(seed), optimizer=adam(4e-3), module=Penalised, **CE)


def penalised(factor: float) -> type[Supervised]:
    """Add a factor times the sum of all squared weights to the loss."""

    class Squares(Supervised):
        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
            loss: Tensor = super().training_step(batch, batch_idx)
            return loss + factor * sum(p.square().sum() for p in self.parameters())

    return Squares


@healthy("weight_decay_too_strong", "loss_reduction", source="L2 by hand in a wide net: at first most of the loss, and mild")
def h_wide_penalty(seed: int) -> Case:
    model = init_weights(mlp([64, 768, 768, 10]), he)
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=sgd(0.02), module=penalised(1e-3), **CE)


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
