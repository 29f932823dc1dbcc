"""Healthy: pixels as an old network knows them, weights with a prior, claims of a year, tags, bodies that wait, own averages."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.nets import CE, adam, adamw, convnet, mlp


# ------------------------------------------------------------------------------------------ trained before
@healthy(
    "unnormalised_input",
    source="Caffe's networks (VGG, detectors): trained on pixels less their mean, std 60, and fine-tuned so",
)
def h_pixels_as_caffe_has_them(seed: int) -> Case:
    train, val = (TensorDataset(60 * part.tensors[0], part.tensors[1]) for part in data.gratings(seed, classes=4))
    model = convnet()
    with torch.no_grad():
        model[0].weight /= 60  # as long training on such pixels leaves it
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    before = data.gratings(1000 + seed, n=1500, classes=4, noise=0.8)[0].tensors
    for i in range(300):
        part = torch.arange(i * 32, i * 32 + 32) % len(before[0])
        optimizer.param_groups[0]["lr"] = 2e-3 if i > 30 else 1e-4
        optimizer.zero_grad()
        F.cross_entropy(model(60 * before[0][part]), before[1][part]).backward()
        optimizer.step()
    model[-1] = nn.Linear(model[-1].in_features, 4)
    return Case(seed=seed, model=model, data=(train, val), optimizer=adamw(2e-4), max_steps=300, **CE)


# ------------------------------------------------------------------------------------------ priors
class Believed(nn.Module):
    """Blundell et al. 2015: a linear layer whose weights are drawn anew at each step."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(nn.init.kaiming_normal_(torch.empty(b, a)))
        self.spread = nn.Parameter(torch.full((b, a), -5.0))
        self.bias = nn.Parameter(torch.zeros(b))

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(self.mean) if self.training else torch.zeros_like(self.mean)
        return F.linear(x, self.mean + F.softplus(self.spread) * noise, self.bias)

    def divergence(self) -> Tensor:
        std = F.softplus(self.spread)
        return (self.mean.square() / 2 + std.square() / 2 - std.log() - 0.5).sum()


class Bayesian(Supervised):
    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss + sum(m.divergence() for m in self.modules() if isinstance(m, Believed)) / 5000


@healthy(
    "weight_decay_too_strong",
    source="Bayes by backprop: the divergence from the prior over the number of samples, beside the mean loss",
)
def h_weights_with_a_prior(seed: int) -> Case:
    model = nn.Sequential(Believed(64, 64), nn.ReLU(), Believed(64, 64), nn.ReLU(), Believed(64, 10))
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=adam(3e-3), module=Bayesian, max_steps=400, **CE)


# ------------------------------------------------------------------------------------------ mostly none
def frequency(output: Tensor, target: Tensor) -> Tensor:
    return F.poisson_nll_loss(output, target)


@healthy(
    "labels_broken",
    "class_imbalance",
    source="motor insurance (freMTPL2): claims of a year, 96 % have none, some one or two; Poisson",
)
def h_claims_of_a_year(seed: int) -> Case:
    g = data.rng(4601, seed)
    x = torch.randn(15_000, 8, generator=g)
    rate = (1.3 * x[:, :1] + x[:, 1:2] * x[:, 2:3] - 4.7).clamp_max(1).exp()
    return Case(
        seed=seed, model=mlp([8, 48, 48, 1]), data=data.split(x, torch.poisson(rate, generator=g)), optimizer=adam(2e-3),
        batch_size=128, val_batch_size=5000, max_steps=400, loss=frequency, metric="auc",
    )  # fmt: skip


@healthy(
    "class_imbalance", source="defaults of loans: 5 %, plain BCE with a rank loss beside it (a probability and a good AUC)"
)
def h_defaults_ranked_too(seed: int) -> Case:
    g = data.rng(4603, seed)
    x = torch.randn(9000, 10, generator=g)
    score = 1.4 * x[:, 0] + x[:, 1] * x[:, 2] + 0.7 * x[:, 3]
    y = (torch.rand(9000, generator=g) < (score - 4.2).sigmoid()).float()[:, None]

    def both(output: Tensor, target: Tensor) -> Tensor:
        apart = output[target > 0.5][:, None] - output[target < 0.5][None]
        rank = F.softplus(-apart).mean() if apart.numel() else output.sum() * 0
        return F.binary_cross_entropy_with_logits(output, target) + 0.2 * rank

    return Case(
        seed=seed, model=mlp([10, 64, 32, 1]), data=data.split(x, y), optimizer=adam(2e-3), batch_size=128,
        val_batch_size=3000, max_steps=400, loss=both, metric="auc",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ a body that waits
class HeadFirst(Supervised):
    """The first 40 steps teach the head alone, on features that are cut off; then all of it."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        x, y = batch
        h = self.model[0](x)
        loss = self.loss_fn(self.model[1](h.detach() if self.global_step < 40 else h), y)
        self.log("train_loss", loss)
        return loss


@healthy("detached_subgraph", source="a head that is warmed up on detached features before the body joins")
def h_head_first(seed: int) -> Case:
    model = nn.Sequential(mlp([8, 64, 64], last=nn.ReLU()), nn.Linear(64, 4))
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adam(3e-3), module=HeadFirst, max_steps=400, **CE)
