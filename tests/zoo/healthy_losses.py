"""Healthy: losses beyond cross-entropy and squared error, on networks that are plain."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo import data
from tests.zoo.case import Case, healthy
from tests.zoo.nets import MSE, adam, adamw, convnet, mlp, sgd


@healthy("wrong_loss", "loss_sign", source="Poisson NLL of a log rate: negative without its constant term")
def h_poisson(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([6, 64, 64, 1]),
        data=data.counts(seed),
        optimizer=adam(4e-3),
        loss=F.poisson_nll_loss,
        metric="log_r2",
    )


@healthy("loss_sign", "wrong_last_activation", source="Poisson NLL of a rate from a softplus")
def h_counts_softplus(seed: int) -> Case:
    model = nn.Sequential(mlp([6, 64, 64, 1]), nn.Softplus())
    loss = nn.PoissonNLLLoss(log_input=False)
    return Case(seed=seed, model=model, data=data.counts(seed), optimizer=adam(4e-3), loss=loss, metric="r2")


class MeanAndVariance(nn.Module):
    """Nix and Weigend 1994: a mean and a positive variance per input."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.raw = mlp([8, 64, 64]), nn.Linear(64, 1), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x).relu()
        return self.mean(hidden), F.softplus(self.raw(hidden)) + 1e-3


@healthy("loss_sign", "wrong_loss", source="Gaussian NLL: goes below zero as it learns")
def h_gaussian_nll(seed: int) -> Case:
    return Case(
        seed=seed, model=MeanAndVariance(), data=data.surface(seed), optimizer=adam(4e-3), metric="mean_r2",
        loss=lambda output, target: F.gaussian_nll_loss(output[0], target, output[1]),
    )  # fmt: skip


@healthy("loss_sign", source="cosine similarity maximised: a loss in [-1, 1]")
def h_cosine(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 3]), data=data.several(seed), optimizer=adam(5e-3), metric="cosine",
        loss=lambda output, target: -F.cosine_similarity(output, target, dim=1).mean(),
    )  # fmt: skip


def pinball(output: Tensor, target: Tensor) -> Tensor:
    error = target - output
    return torch.maximum(0.5 * error, -0.5 * error).mean()


@healthy("wrong_loss", "shape_broadcast", source="Koenker and Bassett 1978: quantile regression, here of the median")
def h_quantile(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 1]), data=data.surface(seed), optimizer=adam(5e-3), loss=pinball, metric="r2")


@healthy("nan_loss", source="the root of the mean squared error")
def h_rmse(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 1]), data=data.surface(seed), optimizer=adam(4e-3), metric="r2",
        loss=lambda output, target: (F.mse_loss(output, target) + 1e-8).sqrt(),
    )  # fmt: skip


@healthy("wrong_loss", "wrong_last_activation", source="autoencoder of pictures in {0, 1}: sigmoid and BCE on probabilities")
def h_autoencoder_bce(seed: int) -> Case:
    model = mlp([64, 96, 20, 96, 64], last=nn.Sigmoid())
    return Case(
        seed=seed,
        model=model,
        data=data.bars(seed),
        optimizer=adam(5e-3),
        loss=F.binary_cross_entropy,
        metric="r2",
        max_steps=300,
    )


@healthy("init_vanishing", "missing_activation", source="control: autoencoder with a narrow code")
def h_autoencoder(seed: int) -> Case:
    return Case(seed=seed, model=mlp([20, 48, 6, 48, 20]), data=data.manifold(seed), optimizer=adam(4e-3), **MSE)


@healthy("lr_too_high", source="autoencoder by SGD")
def h_autoencoder_sgd(seed: int) -> Case:
    return Case(seed=seed, model=mlp([20, 64, 6, 64, 20]), data=data.manifold(seed), optimizer=sgd(0.1), max_steps=260, **MSE)


def focal(output: Tensor, target: Tensor) -> Tensor:
    ce = F.cross_entropy(output, target, reduction="none")
    return ((1 - (-ce).exp()).square() * ce).mean()


@healthy("wrong_loss", "class_imbalance", source="Lin et al. 2017: focal loss, far below log C at step 0")
def h_focal(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=adam(5e-3), loss=focal, metric="accuracy"
    )


@healthy("class_imbalance", "loss_reduction", source="rare class, weighted cross-entropy")
def h_weighted_ce(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 48, 48, 2]), data=data.rare_blobs(seed, rare=0.04, overlap=0.9), optimizer=adam(4e-3),
        loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 24.0])), metric="balanced_accuracy", val_batch_size=512,
    )  # fmt: skip


@healthy("class_imbalance", "loss_reduction", source="rare positives, BCE with pos_weight")
def h_pos_weight(seed: int) -> Case:
    split = data.replace(data.rare_blobs(seed, rare=0.04, overlap=0.9), 1, lambda y: y.float()[:, None])
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(24.0))
    return Case(
        seed=seed,
        model=mlp([6, 48, 48, 1]),
        data=split,
        optimizer=adam(4e-3),
        loss=loss,
        metric="balanced_binary",
        val_batch_size=512,
    )


@healthy("wrong_loss", "labels_broken", source="Szegedy et al. 2016: label smoothing")
def h_label_smoothing(seed: int) -> Case:
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    return Case(seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.05), loss=loss, metric="accuracy")


@healthy("wrong_loss", "labels_broken", source="one-hot targets as floats in cross-entropy")
def h_soft_targets(seed: int) -> Case:
    split = data.replace(data.digits(seed), 1, lambda y: F.one_hot(y, 10).float())
    return Case(
        seed=seed, model=mlp([64, 64, 10]), data=split, optimizer=adam(4e-3), loss=F.cross_entropy, metric="one_hot_accuracy"
    )


@healthy("wrong_loss", "wrong_last_activation", source="Brier score: squared error of softmax probabilities")
def h_brier(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=adam(5e-3), metric="accuracy",
        loss=lambda output, target: (output.softmax(1) - F.one_hot(target, 4)).square().sum(1).mean(),
    )  # fmt: skip


@healthy("wrong_loss", "loss_reduction", source="multi-class hinge loss")
def h_hinge(seed: int) -> Case:
    loss = nn.MultiMarginLoss()
    return Case(seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=adam(5e-3), loss=loss, metric="accuracy")


@healthy(
    "loss_reduction",
    "lr_too_high",
    source="squared error summed over the features and averaged over the batch, the rate lowered to match",
)
def h_sum_over_features(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([20, 48, 6, 48, 20]), data=data.manifold(seed), optimizer=adam(3e-3), metric="r2",
        loss=lambda output, target: (output - target).square().sum(1).mean(),
    )  # fmt: skip


@healthy("loss_reduction", "lr_too_low", source="cross-entropy summed over the batch, the rate lowered to match")
def h_sum_with_small_rate(seed: int) -> Case:
    loss = nn.CrossEntropyLoss(reduction="sum")
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.05 / 32), loss=loss, metric="accuracy"
    )


@healthy("loss_reduction", "lr_too_low", source="a loss scaled by 0.001 under Adam, which does not care")
def h_scaled_loss_adam(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=adamw(4e-3), metric="accuracy",
        loss=lambda output, target: 1e-3 * F.cross_entropy(output, target),
    )  # fmt: skip


@healthy("wrong_loss", "labels_broken", source="ordered classes as cumulative yes-or-no targets")
def h_ordinal(seed: int) -> Case:
    split = data.replace(data.surface(seed), 1, lambda y: (y > torch.tensor([[-0.8, 0.0, 0.8]])).float())
    return Case(
        seed=seed,
        model=mlp([8, 64, 64, 3]),
        data=split,
        optimizer=adam(5e-3),
        loss=F.binary_cross_entropy_with_logits,
        metric="binary_accuracy",
    )


def supervised_contrastive(output: Tensor, target: Tensor) -> Tensor:
    """Khosla et al. 2020, plus a classifier's cross-entropy, so that there is something to validate."""
    z = F.normalize(output, dim=1)
    alike = (target[:, None] == target[None]).float().fill_diagonal_(0)
    own = torch.eye(len(z), dtype=torch.bool)
    log_p = (z @ z.T / 0.3).masked_fill(own, -1e9).log_softmax(1)
    return F.cross_entropy(output, target) - (alike * log_p).sum() / alike.sum().clamp_min(1)


@healthy("batch_mixing", "shape_broadcast", source="a contrastive term couples the samples of a batch, in the loss only")
def h_supervised_contrastive(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([8, 64, 64, 4]),
        data=data.blobs(seed),
        optimizer=adam(4e-3),
        loss=supervised_contrastive,
        metric="accuracy",
    )


@healthy("wrong_loss", "loss_sign", source="survival: exponential hazard with censored times, negative log-likelihood")
def h_survival(seed: int) -> Case:
    g = data.rng(94, seed)
    x = torch.randn(1536, 6, generator=g)
    log_hazard = x[:, 0] + 0.7 * x[:, 1].abs() - 0.5
    time = -(torch.rand(1536, generator=g).log()) / log_hazard.exp()
    observed = time < 2.0
    target = torch.stack([time.clamp_max(2.0), observed.float(), log_hazard], 1)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output[:, 0].exp() * target[:, 0] - target[:, 1] * output[:, 0]).mean()

    return Case(
        seed=seed,
        model=mlp([6, 48, 48, 1]),
        data=data.split(x, target),
        optimizer=adam(4e-3),
        loss=loss,
        metric="hazard_r2",
        max_steps=160,
    )


@healthy(
    "wrong_loss",
    "loss_reduction",
    source="two conv heads' worth of classes: cross-entropy over a hierarchy, weighted sum of two terms",
)
def h_two_granularities(seed: int) -> Case:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        coarse = torch.stack([output[:, :2].logsumexp(1), output[:, 2:].logsumexp(1)], 1)
        return F.cross_entropy(output, target) + 0.5 * F.cross_entropy(coarse, target // 2)

    return Case(
        seed=seed, model=convnet(), data=data.gratings(seed), optimizer=adam(5e-3), loss=loss, metric="accuracy", max_steps=160
    )


@healthy("wrong_loss", source="grades of a disease, 0 to 4, the middle ones common: regressed as integers, rounded when read")
def h_grades_regressed(seed: int) -> Case:
    x = torch.randn(1536, 6, generator=data.rng(61, seed))
    grade = (2 + 0.9 * x[:, 0] + 0.6 * x[:, 1] * x[:, 2]).round().clamp(0, 4).long()
    return Case(
        seed=seed,
        model=nn.Sequential(*mlp([6, 64, 64, 1]), nn.Flatten(0)),
        data=data.split(x, grade),
        optimizer=adam(4e-3),
        loss=lambda output, target: F.mse_loss(output, target.float()),
        metric="integer_r2",
    )


def label_and_picture(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output[:, :10], target[:, 0].long()) + 0.5 * F.mse_loss(output[:, 10:], target[:, 1:])


def label_and_ink(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output[:, :10], target[:, 0].long()) + F.mse_loss(output[:, 10], target[:, 1])


@healthy("unnormalised_target", source="a digit and the ink that it took, standardised: the sum of both losses")
def h_digit_and_ink(seed: int) -> Case:
    train, val = (
        TensorDataset(part.tensors[0], torch.stack([part.tensors[1].float(), data.standardise(part.tensors[0].sum(1))], 1))
        for part in data.digits(seed)
    )
    return Case(
        seed=seed, model=mlp([64, 64, 64, 11]), data=(train, val), optimizer=adam(2e-3), loss=label_and_ink,
        metric="first_column_accuracy", max_steps=240,
    )  # fmt: skip


@healthy("loss_reduction", "clip_too_small", source="a digit told and painted again, both averaged, gradients clipped at 1")
def h_digit_and_picture(seed: int) -> Case:
    train, val = (
        TensorDataset(part.tensors[0], torch.cat([part.tensors[1][:, None].float(), part.tensors[0]], 1))
        for part in data.digits(seed)
    )
    return Case(
        seed=seed,
        model=mlp([64, 64, 64, 74]),
        data=(train, val),
        optimizer=sgd(0.1),
        loss=label_and_picture,
        metric="first_column_accuracy",
        trainer={"gradient_clip_val": 1.0},
        max_steps=300,
    )
