"""Healthy, held out: metric learning, self-supervision and generative models."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import bars, digits, manifold, pairs, rng
from tests.zoo.nets import MSE, adam, mlp
from tests.zoo.unseen.healthy_h2 import warm_cosine


# ------------------------------------------------------------------------------------------ distances
class Towers(nn.Module):
    """Both views through the same tower; how much nearer than one they are."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = mlp([8, 48, 48, 8])

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return 1 - (self.tower(a) - self.tower(b)).square().sum(1, keepdim=True).add(1e-6).sqrt()


def contrastive(output: Tensor, same: Tensor) -> Tensor:
    """Hadsell 2006 with margin 2: the same come together, others go apart."""
    distance = 1 - output
    return (same * distance.square() + (1 - same) * (2 - distance).clamp_min(0).square()).mean()


@healthy("wrong_loss", "wrong_last_activation", source="Hadsell 2006: shared towers, a contrastive loss on distances")
def h_towers_of_hadsell(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Towers(),
        data=pairs(seed, 2400),
        loss=contrastive,
        metric="binary_accuracy",
        optimizer=adam(3e-3),
        max_steps=280,
    )


class Episodes(Dataset[Any]):
    """Five new classes each time, three examples of each and five to name."""

    def __init__(self, count: int, part: int, seed: int) -> None:
        g = rng(901, seed)
        mix, codes = torch.randn(2, 4, 16, generator=g), torch.randn(160, 4, generator=g)
        g = rng(902 + part, seed)
        chosen = torch.stack([torch.randperm(120 - 80 * part, generator=g)[:5] for _ in range(count)]) + 120 * part
        hidden = codes[chosen][:, :, None] + 0.25 * torch.randn(count, 5, 8, 4, generator=g)
        self.x = (hidden @ mix[0]).sin() + 0.5 * hidden @ mix[1] + 0.3 * torch.randn(count, 5, 8, 16, generator=g)
        self.y = torch.arange(5).repeat_interleave(5)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.x[i, :, :3], self.x[i, :, 3:].flatten(0, 1), self.y


class Prototypes(nn.Module):
    """Minus the distance to the mean of each class."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = mlp([16, 64, 64, 16])

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        centres = self.tower(support).mean(1)
        return -(self.tower(query)[:, None] - centres).square().sum(2)


@healthy(
    "data_not_shuffled",
    "train_val_mismatch",
    source="Snell 2017: one episode is a step; its labels are always in the same order",
)
def h_prototypes_by_episode(seed: int) -> Case:
    case = Case(
        seed=seed, model=Prototypes(), data=(Episodes(400, 0, seed), Episodes(60, 1, seed)), loss=F.cross_entropy,
        metric="accuracy", optimizer=adam(2e-3), max_steps=400,
    )  # fmt: skip
    case.batch_size = case.val_batch_size = None  # type: ignore[assignment]
    return case


# ------------------------------------------------------------------------------------------ two views
class TwoViews(nn.Module):
    """A convolutional encoder, a projector, and a linear probe that the encoder does not feel."""

    def __init__(self, out: int = 24) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 48)),
        )
        self.projector = mlp([48, 48, out], norm=nn.BatchNorm1d, bias=False)
        self.probe = nn.Sequential(nn.BatchNorm1d(48, affine=False), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.probe(self.encoder(x).detach())


def seen(x: Tensor) -> Tensor:
    """A view: moved by up to a pixel, weaker or stronger, with noise and a patch cut out."""
    down, right = torch.randint(-1, 2, (2,)).tolist()
    x = x.roll((down, right), (2, 3)) * (0.8 + 0.4 * torch.rand(len(x), 1, 1, 1)) + 0.2 * torch.randn_like(x)
    keep = F.interpolate((torch.rand(len(x), 1, 4, 4) > 0.15).float(), scale_factor=2)
    return x * keep


class Views(Supervised):
    """What the ways of learning from two views share: the probe learns beside."""

    def unlabelled(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        own, probe = self.unlabelled(x), self.loss_fn(self(x), y)
        self.log_dict({"own_loss": own, "train_loss": own + probe})
        return own + probe


class SimCLR(Views):
    """NT-Xent at temperature 0.2."""

    def unlabelled(self, x: Tensor) -> Tensor:
        z = F.normalize(self.model.projector(self.model.encoder(torch.cat([seen(x), seen(x)]))), dim=1)
        logits = (z @ z.T / 0.2).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9)
        return F.cross_entropy(logits, torch.arange(len(z)).roll(len(x)))


@healthy(
    "detached_subgraph", "batch_mixing", source="Chen 2020, SimCLR: rows of a batch meet in the loss, the probe is cut off"
)
def h_simclr_and_probe(seed: int) -> Case:
    return Case(
        seed=seed, model=TwoViews(), data=digits(seed, flat=False), loss=F.cross_entropy, metric="accuracy", module=SimCLR,
        optimizer=adam(4e-3), scheduler=warm_cosine(20, 240), batch_size=64, max_steps=240,
    )  # fmt: skip


class SimSiam(Views):
    """A predictor, and no gradient through the other view."""

    def unlabelled(self, x: Tensor) -> Tensor:
        z1, z2 = (self.model.projector(self.model.encoder(seen(x))) for _ in range(2))
        p1, p2 = self.model.predictor(z1), self.model.predictor(z2)
        return -(F.cosine_similarity(p1, z2.detach()).mean() + F.cosine_similarity(p2, z1.detach()).mean()) / 2


@healthy("detached_subgraph", "loss_sign", source="Chen 2021, SimSiam: the loss is negative and stops gradients")
def h_simsiam_stops(seed: int) -> Case:
    model = TwoViews(32)
    model.projector.append(nn.BatchNorm1d(32, affine=False))
    model.predictor = mlp([32, 16, 32], norm=nn.BatchNorm1d, bias=False)
    return Case(
        seed=seed, model=model, data=digits(seed, flat=False), loss=F.cross_entropy, metric="accuracy", module=SimSiam,
        optimizer=adam(4e-3), scheduler=warm_cosine(20, 240), batch_size=64, max_steps=240,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ reconstruction
@healthy(source="an autoencoder of a table with a narrow middle, everyday")
def h_autoencoder_everyday(seed: int) -> Case:
    model = nn.Sequential(mlp([20, 64, 4]), mlp([4, 64, 20]))
    return Case(seed=seed, model=model, data=manifold(seed, 2400), **MSE, optimizer=adam(3e-3), max_steps=300)


class Denoise(Supervised):
    """Sees pixels flipped at random and says what was there."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        flipped = torch.where(torch.rand_like(x) < 0.1, 1 - x, x)
        loss = self.loss_fn(self(flipped), y)
        self.log("train_loss", loss)
        return loss


@healthy("train_val_mismatch", "unnormalised_input", source="Vincent 2008: binary pixels, flipped in training only")
def h_denoiser_of_bars(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([64, 96, 64]), data=bars(seed, 1536), loss=F.binary_cross_entropy_with_logits,
        metric="binary_accuracy", module=Denoise, optimizer=adam(4e-3), max_steps=240,
    )  # fmt: skip


class Variational(nn.Module):
    """Gaussian code, Bernoulli pixels."""

    def __init__(self, code: int = 12) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp([64, 96, 2 * code]), mlp([code, 96, 64])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, 1)
        code = mean + (log_var / 2).exp() * torch.randn_like(mean) if self.training else mean
        return self.decoder(code), mean, log_var


def elbo(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    logits, mean, log_var = output
    divergence = (mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1) + 0.5 * divergence).mean()


@healthy("loss_reduction", "train_val_mismatch", source="Kingma 2014 with beta of a half: pixels are summed")
def h_variational_bars(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Variational(),
        data=bars(seed, 1536),
        loss=elbo,
        metric="first_binary_accuracy",
        optimizer=adam(3e-3),
        max_steps=400,
    )


class Quantised(nn.Module):
    """Two codes from one book of 32, straight-through; the book follows the codes by gradient."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp([20, 64, 2 * width]), mlp([2 * width, 64, 20])
        self.book, self.extra = nn.Parameter(0.5 * torch.randn(32, width)), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x).unflatten(1, (2, -1))
        q = self.book[torch.cdist(z.flatten(0, 1), self.book).argmin(1)].view_as(z)
        self.extra = (q - z.detach()).square().mean() + 0.25 * (z - q.detach()).square().mean()
        return self.decoder((z + (q - z).detach()).flatten(1))


class WithExtra(Supervised):
    """The loss and what the model itself adds."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss_fn(self(batch[0]), batch[1]) + self.model.extra
        self.log("train_loss", loss)
        return loss


@healthy("detached_subgraph", "no_update", source="van den Oord 2017, VQ-VAE: codes that nobody is near get no gradient")
def h_codebook_straight_through(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Quantised(),
        data=manifold(seed, 2400),
        **MSE,
        module=WithExtra,
        optimizer=adam(4e-3),
        batch_size=64,
        max_steps=400,
    )
