"""Held-out healthy cases: representations learnt from views, pairs and episodes."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import Split, digits, rng, split
from tests.zoo.nets import adam, adamw, conv_block, mlp, sgd, trainable


def encoder(out: int = 48) -> nn.Sequential:
    return nn.Sequential(
        *conv_block(1, 16, nn.BatchNorm2d, nn.ReLU, False), nn.MaxPool2d(2),
        *conv_block(16, 32, nn.BatchNorm2d, nn.ReLU, False), nn.Flatten(), nn.Linear(512, out),
    )  # fmt: skip


def view(x: Tensor) -> Tensor:
    """Each picture moved by up to a pixel, in other light and noise."""
    moves = torch.randint(-1, 2, (len(x), 2)).tolist()
    moved = torch.stack([p.roll((a, b), (1, 2)) for p, (a, b) in zip(x, moves, strict=True)])
    return moved * (0.8 + 0.4 * torch.rand(len(x), 1, 1, 1)) + 0.3 * torch.randn_like(x)


class Encoded(nn.Module):
    """An encoder and what else is learnt with it; the probe sees features that carry no gradient."""

    def __init__(self, out: int = 48, classes: int = 10, **parts: nn.Module) -> None:
        super().__init__()
        self.encoder, self.probe = encoder(out), nn.Sequential(nn.BatchNorm1d(out, affine=False), nn.Linear(out, classes))
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.probe(self.encoder(x).detach())


class Probed(Supervised):
    """A self-supervised loss of two views, and a probe on top that the encoder does not feel."""

    def own_loss(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        x, y = batch
        own, probe = self.own_loss(view(x), view(x)), self.loss_fn(self(x), y)
        self.log_dict({"own_loss": own, "probe_loss": probe, "train_loss": own + probe})
        return own + probe


class Contrasted(Probed):
    """NT-Xent: of all other views in the batch, which is the one of the same picture."""

    def own_loss(self, a: Tensor, b: Tensor) -> Tensor:
        z = F.normalize(self.model.projector(self.model.encoder(torch.cat([a, b]))), dim=1)
        likeness = (z @ z.T / 0.3).fill_diagonal_(-1e9)
        return F.cross_entropy(likeness, torch.arange(len(z)).roll(len(a)))


@healthy("detached_subgraph", "batch_mixing", source="Chen 2020: SimCLR with an online linear probe")
def h_contrasted_views_uc(seed: int) -> Case:
    model = Encoded(projector=mlp([48, 48, 24], norm=nn.BatchNorm1d, bias=False))
    return Case(
        seed=seed, model=model, data=digits(seed, flat=False), loss=F.cross_entropy, metric="accuracy", module=Contrasted,
        optimizer=adam(2e-3), batch_size=96, max_steps=200,
    )  # fmt: skip


class Bootstrapped(Probed):
    """BYOL: predict what a slow copy makes of the other view."""

    def own_loss(self, a: Tensor, b: Tensor) -> Tensor:
        m = self.model
        with torch.no_grad():
            aims = [m.slow(v) for v in (b, a)]
        guesses = [m.predictor(m.projector(m.encoder(v))) for v in (a, b)]
        return sum(2 - 2 * F.cosine_similarity(p, t, dim=1).mean() for p, t in zip(guesses, aims, strict=True)) / 2

    def on_train_batch_end(self, *args: Any) -> None:
        fast = [*self.model.encoder.parameters(), *self.model.projector.parameters()]
        with torch.no_grad():
            for slow, p in zip(self.model.slow.parameters(), fast, strict=True):
                slow.lerp_(p, 0.03)


@healthy(
    "frozen_by_accident", "not_in_optimizer", "detached_subgraph", source="Grill 2020: BYOL, the target is a moving average"
)
def h_bootstrapped_views_uc(seed: int) -> Case:
    model = Encoded(projector=mlp([48, 64, 24], norm=nn.BatchNorm1d, bias=False))
    model.predictor = mlp([24, 48, 24], norm=nn.BatchNorm1d, bias=False)
    model.slow = deepcopy(nn.Sequential(model.encoder, model.projector)).requires_grad_(False)
    return Case(
        seed=seed, model=model, data=digits(seed, flat=False), loss=F.cross_entropy, metric="accuracy", module=Bootstrapped,
        optimizer=trainable(torch.optim.AdamW, lr=2e-3), batch_size=64, max_steps=220,
        frozen=[f"model.slow.{name}" for name, _ in model.slow.named_parameters()],
    )  # fmt: skip


def turned(seed: int) -> Split:
    """Digits turned by a multiple of 90 degrees, which is the class; 0, 1 and 8 are left out as they look alike."""
    parts = []
    for part in digits(seed, flat=False, n=1700):
        x, y = part.tensors
        x = x[(y != 0) & (y != 1) & (y != 8)]
        k = torch.randint(4, (len(x),), generator=rng(720, seed))
        parts.append(TensorDataset(torch.stack([p.rot90(int(i), (1, 2)) for p, i in zip(x, k, strict=True)]), k))
    return parts[0], parts[1]


@healthy(source="Gidaris 2018: which way up, the plain pretext task")
def h_turned_digits_uc(seed: int) -> Case:
    model = nn.Sequential(encoder(32), nn.LeakyReLU(0.1), nn.Dropout(0.3), nn.Linear(32, 4))
    return Case(
        seed=seed, model=model, data=turned(seed), loss=F.cross_entropy, metric="accuracy",
        optimizer=adamw(1e-3, weight_decay=0.05), max_steps=140,
    )  # fmt: skip


class Prototyped(Supervised):
    """Triplets in a batch; validated by the nearest of the classes' running mean embeddings."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.register_buffer("means", torch.zeros(10, 16))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        x, y = batch
        z = self(x)
        apart, same = torch.cdist(z, z), y[:, None] == y
        far = apart.masked_fill(~same, -1).max(1).values
        near = apart.masked_fill(same, 1e9).min(1).values
        with torch.no_grad():
            for c in y.unique():
                self.means[c] = F.normalize(self.means[c].lerp(z[y == c].mean(0), 0.1), dim=0)
        loss = F.softplus(far - near).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        score = -torch.cdist(self(batch[0]), self.means)
        self.log("val_loss", self.loss_fn(score, batch[1]))
        self.log("val_metric", self.metric.score(score, batch[1]))


class Unit(nn.Module):
    """Vectors of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


@healthy("batch_mixing", "wrong_loss", source="Hermans 2017: batch-hard triplets with a soft margin")
def h_hard_triplets_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=nn.Sequential(encoder(16), Unit()), data=digits(seed, flat=False), loss=F.cross_entropy,
        metric="accuracy", module=Prototyped, optimizer=adam(1e-3), batch_size=60, max_steps=200,
    )  # fmt: skip


def episodes(seed: int, n: int, part: TensorDataset, ways: int = 5, shots: int = 3, queries: int = 4) -> TensorDataset:
    """Five of the classes each: three examples that are named, and four questions of each."""
    g, (x, y) = rng(721, seed), part.tensors
    support, asked = [], []
    for _ in range(n):
        picks = [(y == c).nonzero()[:, 0] for c in torch.randperm(10, generator=g)[:ways]]
        picks = torch.stack([p[torch.randperm(len(p), generator=g)[: shots + queries]] for p in picks])
        support.append(x[picks[:, :shots]])
        asked.append(x[picks[:, shots:]].flatten(0, 1))
    answer = torch.arange(ways).repeat_interleave(queries).expand(n, -1)
    return TensorDataset(torch.stack(support), torch.stack(asked), answer.contiguous())


class Prototypes(nn.Module):
    """Scores each question by its distance to the mean of the named examples of each class."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = encoder(24)

    def forward(self, support: Tensor, asked: Tensor) -> Tensor:
        centres = self.embed(support.flatten(0, 2)).view(*support.shape[:3], -1).mean(2)
        z = self.embed(asked.flatten(0, 1)).view(*asked.shape[:2], -1)
        return -torch.cdist(z, centres).square().transpose(1, 2) / 8


@healthy("batch_mixing", "data_not_shuffled", source="Snell 2017: prototypical networks, an episode has its classes in order")
def h_few_shots_uc(seed: int) -> Case:
    train, val = digits(seed, flat=False)
    return Case(
        seed=seed, model=Prototypes(), data=(episodes(seed, 300, train), episodes(seed + 50, 60, val)), loss=F.cross_entropy,
        metric="accuracy", optimizer=adam(1e-3), batch_size=4, val_batch_size=20, max_steps=200,
    )  # fmt: skip


class Twins(nn.Module):
    """One encoder for both; the distance of what it says, weighted, is the logit."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.top = encoder(24), nn.Linear(24, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.top((self.encoder(a).sigmoid() - self.encoder(b).sigmoid()).abs())


def couples(seed: int, n: int = 2400) -> Split:
    """Two digits and whether they are the same one, as often as not."""
    x, y = (torch.cat([part.tensors[i] for part in digits(seed, flat=False)]) for i in (0, 1))
    g = rng(722, seed)
    parts = []
    for low, high, count in ((0, 960, n), (960, 1440, n // 3)):
        i = torch.randint(low, high, (count,), generator=g)
        same = torch.rand(count, generator=g) < 0.5
        likes = [((y == y[k]) if s else (y != y[k])).nonzero()[:, 0] for k, s in zip(i, same, strict=True)]
        likes = [p[(p >= low) & (p < high)] for p in likes]
        j = torch.stack([p[torch.randint(len(p), (), generator=g)] for p in likes])
        parts.append(TensorDataset(x[i], x[j], same.float()[:, None]))
    return parts[0], parts[1]


@healthy("saturation", "wrong_hidden_activation", source="Koch 2015: Siamese network for one-shot pictures")
def h_twin_digits_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=Twins(), data=couples(seed), loss=F.binary_cross_entropy_with_logits, metric="binary_accuracy",
        optimizer=adam(2e-3), batch_size=48, max_steps=250,
    )  # fmt: skip


class CosineHead(nn.Module):
    """Scaled cosines between the features and a direction for each class."""

    def __init__(self, dim: int, classes: int, scale: float = 16.0) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(nn.init.xavier_normal_(torch.empty(classes, dim))), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


class Margined(Supervised):
    """The right class must win by a margin while training."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        x, y = batch
        loss = self.loss_fn(self(x) - 0.25 * 16 * F.one_hot(y, 10), y)
        self.log("train_loss", loss)
        return loss


@healthy("bad_gain", "train_val_mismatch", source="Wang 2018: CosFace, a margin on scaled cosines in training only")
def h_cosine_margin_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=nn.Sequential(encoder(32), CosineHead(32, 10)), data=digits(seed, flat=False), loss=F.cross_entropy,
        metric="accuracy", module=Margined, optimizer=sgd(0.02, weight_decay=1e-4), max_steps=220,
    )  # fmt: skip


class TwoTowers(nn.Module):
    """Pictures and signals in one space; a learnt temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.signal = encoder(24), mlp([12, 64, 24], act=nn.GELU)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.15).log())

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        a, b = F.normalize(self.picture(x), dim=1), F.normalize(self.signal(s), dim=1)
        return self.log_scale.exp() * a @ b.T


def matched(seed: int) -> Split:
    """Digits, and a noisy projection of each as its caption; which caption of the batch of 40 is right."""
    x = torch.cat([part.tensors[0] for part in digits(seed, flat=False)])
    g = rng(723, seed)
    caption = (x.flatten(1) @ torch.randn(64, 12, generator=g) / 8).tanh() + 0.05 * torch.randn(len(x), 12, generator=g)
    return split(x, (caption - caption.mean(0)) / caption.std(0), torch.arange(len(x)) % 40)


def both_ways(output: Tensor, target: Tensor) -> Tensor:
    right = torch.arange(len(output))
    return (F.cross_entropy(output, right) + F.cross_entropy(output.T, right)) / 2


@healthy("batch_mixing", "labels_broken", source="Radford 2021: CLIP, the labels are the places in the batch")
def h_two_towers_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=TwoTowers(), data=matched(seed), loss=both_ways, metric="accuracy", optimizer=adamw(2e-3),
        batch_size=64, val_batch_size=40, max_steps=250,
    )  # fmt: skip
