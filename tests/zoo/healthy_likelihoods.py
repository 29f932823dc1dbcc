"""Healthy: likelihoods and comparisons that a step writes out by hand, and what looks like a wrong one."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.healthy_loops import Adversarial, h_gan
from tests.zoo.nets import adam, mlp, sgd


def yes_and_no(p: Tensor, target: Tensor) -> Tensor:
    yes, no = p.clamp(min=1e-6).log(), (1 - p).clamp(min=1e-6).log()
    return -(target * yes + (1 - target) * no).mean()


@healthy("wrong_last_activation", "nan_loss", source="binary cross-entropy of one's own, clamped against log(0), on a sigmoid")
def h_own_cross_entropy(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 48, 48, 1], nn.Tanh, last=nn.Sigmoid()), data=data.binary(seed), optimizer=adam(1e-2),
        loss=yes_and_no, metric="probability_accuracy",
    )  # fmt: skip


@healthy("wrong_last_activation", source="a log rate from a softplus, of counts that are all 1 or more")
def h_at_least_one(seed: int) -> Case:
    split = tuple(TensorDataset(part.tensors[0], part.tensors[1] + 1) for part in data.counts(seed))
    model = mlp([6, 64, 64, 1], nn.SiLU, last=nn.Softplus())
    return Case(
        seed=seed, model=model, data=(split[0], split[1]), optimizer=adam(4e-3), loss=F.poisson_nll_loss, metric="log_r2"
    )


@healthy("loss_sign", "labels_broken", source="Poisson regression of rare events, .4 a sample: most counts are 0")
def h_rare_events(seed: int) -> Case:
    g = data.rng(72, seed)
    x = torch.randn(2400, 5, generator=g)
    rate = (1.2 * x[:, :1] - 0.8 * x[:, 1:2].abs() - 1).exp().clamp(max=4)
    train, val = data.split(x, torch.poisson(rate, generator=g))
    val = TensorDataset(val.tensors[0], rate[len(train) :])  # judged by the rates, which counts are too rare to show
    return Case(
        seed=seed, model=mlp([5, 48, 48, 1], nn.Tanh), data=(train, val), optimizer=adam(4e-3), loss=F.poisson_nll_loss,
        metric="log_r2", max_steps=240,
    )  # fmt: skip


@healthy(
    "wrong_last_activation", "wrong_loss", source="softmax and binary cross-entropy for each class, of labels that exclude"
)
def h_softmax_each_class(seed: int) -> Case:
    split = tuple(TensorDataset(part.tensors[0], F.one_hot(part.tensors[1], 4).float()) for part in data.blobs(seed))
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4], last=nn.Softmax(1)), data=(split[0], split[1]), optimizer=adam(4e-3),
        loss=F.binary_cross_entropy, metric="one_hot_accuracy",
    )  # fmt: skip


class MeanAndLogVariance(nn.Module):
    """One head whose two columns are a mean and a log variance."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp([8, 64, 64, 2], nn.GELU)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.body(x).chunk(2, 1)
        return mean, log_variance


def with_log_variance(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    mean, log_variance = output
    return (0.5 * (log_variance + (target - mean) ** 2 * (-log_variance).exp())).mean()


@healthy("loss_sign", "wrong_loss", source="Nix and Weigend 1994 written out: the variance as its logarithm, in one head")
def h_log_variance(seed: int) -> Case:
    return Case(
        seed=seed, model=MeanAndLogVariance(), data=data.surface(seed), optimizer=adam(4e-3), loss=with_log_variance,
        metric="mean_r2", max_steps=300,
    )  # fmt: skip


class Leaking(Supervised):
    """Tells one half of its outputs, and is not to tell the other: its error is raised."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, target = batch
        output = self(x)
        told, kept = (output[:, :2] - target[:, :2]).square(), (output[:, 2] - target[:, 2]).square()
        return told.mean() - 0.01 * kept.clamp(max=4).mean()

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, target = batch
        self.log("val_metric", self.metric.score(self(x)[:, :2], target[:, :2]), batch_size=len(x))


@healthy("loss_sign", source="fairness by an adversary: one number told well, another one badly on purpose")
def h_kept_secret(seed: int) -> Case:
    model = mlp([8, 64, 64, 3])
    return Case(
        seed=seed, model=model, data=data.several(seed), optimizer=adam(5e-3), loss=F.mse_loss, metric="r2", module=Leaking
    )


@healthy("unnormalised_target", "init_exploding", "lr_too_low", source="offsets of centimetres in metres: .1, and a usual rate")
def h_centimetres(seed: int) -> Case:
    split = tuple(TensorDataset(part.tensors[0], 0.1 * part.tensors[1]) for part in data.surface(seed))
    return Case(
        seed=seed, model=mlp([8, 64, 64, 1], nn.SiLU), data=(split[0], split[1]), optimizer=adam(3e-3), loss=F.mse_loss,
        metric="r2", max_steps=300,
    )  # fmt: skip


def specks(seed: int, n: int = 480, size: int = 16) -> data.Split:
    """One bright speck of 2 x 2 in noise, 1.6 % of the pixels, and where it is: targets `[n, 1, size, size]`."""
    g = data.rng(71, seed)
    y = torch.zeros(n, 1, size, size)
    for picture, (row, column) in zip(y, torch.randint(0, size - 1, (n, 2), generator=g).tolist(), strict=True):
        picture[:, row : row + 2, column : column + 2] = 1
    return data.split(data.standardise(2.5 * y + torch.randn(y.shape, generator=g), None), y)


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 3, padding=1)
    )


def with_overlap(output: Tensor, target: Tensor) -> Tensor:
    p = output.sigmoid()
    overlap = (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    return F.binary_cross_entropy_with_logits(output, target) + 1 - overlap


@healthy("class_imbalance", source="specks of 1.6 % of the pixels: BCE and Dice")
def h_specks(seed: int) -> Case:
    return Case(
        seed=seed, model=convolutions(), data=specks(seed), optimizer=sgd(0.1), loss=with_overlap, metric="jaccard",
        batch_size=16, max_steps=240,
    )  # fmt: skip


class Saturating(Adversarial):
    """The first objective of Goodfellow et al. 2014: the generator lowers log(1 - D), and has its turn before the discriminator."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        real = batch[0]
        of_generator, of_discriminator = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4))
        of_generator.zero_grad()
        self.manual_backward(F.logsigmoid(-self.discriminator(fake)).mean())
        of_generator.step()
        of_discriminator.zero_grad()
        told = F.logsigmoid(self.discriminator(real)).mean() + F.logsigmoid(-self.discriminator(fake.detach())).mean()
        self.manual_backward(-told)
        of_discriminator.step()


@healthy("loss_sign", "no_update", source="a GAN whose generator lowers log(1 - D), without toggling its two optimisers")
def h_gan_saturating(seed: int) -> Case:
    case = h_gan(seed)
    case.module, case.max_steps = Saturating, 3000
    return case
