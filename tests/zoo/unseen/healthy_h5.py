"""Healthy, held out: densities, energies, adversaries, implicit layers and unusual units."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import blobs, digits, manifold, masks, several, spirals, surface
from tests.zoo.more_data import arcs
from tests.zoo.nets import CE, MSE, adam, adamw, mlp, sgd
from tests.zoo.unseen.healthy_h1 import cbr


# ------------------------------------------------------------------------------------------ densities
class Coupling(nn.Module):
    """An affine step of one half of y given the other half and x; it starts as the identity."""

    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.net, self.flip = mlp([10, 48, 4], act=nn.SiLU), flip
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def terms(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.net(torch.cat([x, kept], 1)).chunk(2, 1)
        return scale.tanh() * 3, shift

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = (y[:, 2:], y[:, :2]) if self.flip else (y[:, :2], y[:, 2:])
        scale, shift = self.terms(x, kept)
        moved = moved * scale.exp() + shift
        return torch.cat([moved, kept] if self.flip else [kept, moved], 1), scale.sum(1)

    def inverse(self, x: Tensor, z: Tensor) -> Tensor:
        kept, moved = (z[:, 2:], z[:, :2]) if self.flip else (z[:, :2], z[:, 2:])
        scale, shift = self.terms(x, kept)
        moved = (moved - shift) * (-scale).exp()
        return torch.cat([moved, kept] if self.flip else [kept, moved], 1)


class Flow(Supervised):
    """Maximum likelihood of y given x; the prediction is the image of zero."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, z = batch
        log_det = torch.zeros(len(x))
        for step in self.model:
            z, more = step(x, z)
            log_det = log_det + more
        loss = (z.square().sum(1) / 2 - log_det).mean() + 2 * math.log(2 * math.pi)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        z = torch.zeros_like(y)
        for step in reversed(self.model):
            z = step.inverse(x, z)
        self.log("val_metric", self.metric.score(z, y), batch_size=len(y))


@healthy(
    "init_symmetry", "loss_sign", source="Dinh 2017, Real NVP given x: couplings start as the identity, the loss turns negative"
)
def h_flow_given_x(seed: int) -> Case:
    return Case(
        seed=seed, model=nn.ModuleList(Coupling(i % 2 == 0) for i in range(4)), data=several(seed, 2400, outputs=4),
        **MSE, module=Flow, optimizer=adam(2e-3), trainer={"gradient_clip_val": 10.0}, batch_size=64, max_steps=400,
    )  # fmt: skip


class Diffusion(Supervised):
    """Learns the noise at random times; is judged by what it makes of half-noisy points."""

    @staticmethod
    def noisy(x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        clean, dirty = (math.pi / 2 * t).cos(), (math.pi / 2 * t).sin()
        return clean * x + dirty * noise, clean, dirty

    def guess(self, seen: Tensor, t: Tensor) -> Tensor:
        waves = torch.cat([(k * math.pi * t).cos() for k in (1, 2, 4)], 1)
        return self.model(torch.cat([seen, waves], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, noise, t = batch[0], torch.randn_like(batch[0]), 0.02 + 0.96 * torch.rand(len(batch[0]), 1)
        loss = F.mse_loss(self.guess(self.noisy(x, noise, t)[0], t), noise)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, t = batch[0], torch.full((len(batch[0]), 1), 0.5)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(batch_idx))
        seen, clean, dirty = self.noisy(x, noise, t)
        guess = self.guess(seen, t)
        self.log("val_loss", F.mse_loss(guess, noise), batch_size=len(x))
        self.log("val_metric", self.metric.score((seen - dirty * guess) / clean, x), batch_size=len(x))


@healthy(
    "labels_broken", "train_val_mismatch", source="Ho 2020: the target is fresh noise in each step, so the loss has a floor"
)
def h_noise_as_target(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([23, 96, 96, 20], act=nn.SiLU), data=manifold(seed, 3600), **MSE, module=Diffusion,
        optimizer=adam(3e-3), batch_size=64, max_steps=400,
    )  # fmt: skip


class Adversarial(Supervised):
    """Pix2pix in the small: a generator of masks that is near the truth and fools a judge of pairs."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False
        self.judge = nn.Sequential(
            *(nn.Conv2d(2, 8, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(8, 16, 3, stride=2, padding=1)),
            *(nn.LeakyReLU(0.2), nn.Conv2d(16, 1, 3, padding=1)),
        )

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        of_maker, of_judge = self.optimizers()
        logits = self(x)
        fake = torch.cat([x, logits.sigmoid()], 1)
        true, false = self.judge(torch.cat([x, y], 1)), self.judge(fake.detach())
        judged = ((true - 1).square().mean() + false.square().mean()) / 2
        of_judge.zero_grad()
        self.manual_backward(judged)
        of_judge.step()
        made = self.loss_fn(logits, y) + 0.02 * (self.judge(fake) - 1).square().mean()
        of_maker.zero_grad()
        self.manual_backward(made)
        of_maker.step()
        self.log_dict({"train_loss": made.detach(), "judge_loss": judged.detach()})

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.model), torch.optim.Adam(self.judge.parameters(), 5e-4, betas=(0.5, 0.999))


@healthy(
    "gradients_not_zeroed", "detached_subgraph", source="Isola 2017 and Mao 2017: two optimisers by hand, least-squares judge"
)
def h_masks_with_a_judge(seed: int) -> Case:
    model = nn.Sequential(cbr(1, 10), cbr(10, 10), cbr(10, 10), nn.Conv2d(10, 1, 1))
    return Case(
        seed=seed, model=model, data=masks(seed, 600), loss=F.binary_cross_entropy_with_logits, metric="jaccard",
        module=Adversarial, optimizer=adam(2e-3), max_steps=200,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ implicit depth
class Ode(nn.Module):
    """Four Runge-Kutta steps of one vector field in six dimensions."""

    def __init__(self, dim: int = 6, width: int = 32) -> None:
        super().__init__()
        self.stem, self.field, self.head = nn.Linear(5, dim), mlp([dim, width, dim], act=nn.Tanh), nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, h = self.stem(x), 0.5
        for _ in range(4):
            a = self.field(x)
            b = self.field(x + h / 2 * a)
            c = self.field(x + h / 2 * b)
            x = x + h / 6 * (a + 2 * b + 2 * c + self.field(x + h * c))
        return self.head(x)


@healthy("no_update", source="Chen 2018, neural ODE with a fixed grid: sixteen uses of one small net")
def h_runge_kutta_net(seed: int) -> Case:
    return Case(seed=seed, model=Ode(), data=arcs(seed), **CE, optimizer=adam(1e-2), max_steps=200)


class Equilibrium(nn.Module):
    """The fixed point of a contraction, found without gradient; one more step carries it (Fung 2022)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.inject, self.norm = nn.Linear(8, width), nn.LayerNorm(width)
        self.recur, self.head = nn.Linear(width, width, bias=False), nn.Linear(width, 4)
        nn.init.orthogonal_(self.recur.weight, 0.5)

    def step(self, z: Tensor, x: Tensor) -> Tensor:
        return F.relu(self.recur(z) + x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.inject(x))
        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(12):
                z = self.step(z, x)
        return self.head(self.step(z, x))


@healthy("detached_subgraph", source="Bai 2019, deep equilibrium with a Jacobian-free gradient")
def h_fixed_point_layer(seed: int) -> Case:
    return Case(seed=seed, model=Equilibrium(), data=blobs(seed), **CE, optimizer=adam(4e-3), max_steps=260)


# ------------------------------------------------------------------------------------------ unusual units
class Splines(nn.Module):
    """Each edge a sum of Gaussian bumps on a grid and a SiLU (FastKAN)."""

    def __init__(self, a: int, b: int, grid: int = 7) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(-2.5, 2.5, grid))
        self.norm, self.base = nn.LayerNorm(a), nn.Linear(a, b)
        self.bumps = nn.Linear(a * grid, b, bias=False)
        nn.init.normal_(self.bumps.weight, std=0.1 / a**0.5)

    def forward(self, x: Tensor) -> Tensor:
        bumps = (-((self.norm(x)[..., None] - self.centres) / 0.83).square()).exp()
        return self.base(F.silu(x)) + self.bumps(bumps.flatten(1))


@healthy("missing_activation", "init_vanishing", source="Liu 2024, KAN: the activations sit on the edges")
def h_bumps_on_edges(seed: int) -> Case:
    model = nn.Sequential(Splines(8, 12), Splines(12, 1))
    return Case(
        seed=seed, model=model, data=surface(seed, 3000), **MSE, optimizer=adamw(5e-3, weight_decay=1e-3), max_steps=400
    )


class Radial(nn.Module):
    """Gaussians around training points, as of Broomhead 1988, and a linear layer on top."""

    def __init__(self, centres: Tensor, classes: int, width: float) -> None:
        super().__init__()
        self.register_buffer("centres", centres)
        self.log_width, self.head = nn.Parameter(torch.tensor(width).log()), nn.Linear(len(centres), classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((-torch.cdist(x, self.centres).square() / (2 * (2 * self.log_width).exp())).exp())


@healthy("missing_activation", source="Broomhead 1988: a radial basis net, its centres drawn from the training set")
def h_radial_centres(seed: int) -> Case:
    data = spirals(seed)
    return Case(
        seed=seed, model=Radial(data[0].tensors[0][:60].clone(), 2, 0.4), data=data, **CE, optimizer=adam(3e-2), max_steps=240
    )


class Highway(nn.Module):
    """A transform and a carry; the gate starts nearly closed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).sigmoid()
        return gate * F.relu(self.change(x)) + (1 - gate) * x


@healthy("bad_bias_init", "saturation", source="Srivastava 2015, highway net: gate biases of -2")
def h_highway_ten_deep(seed: int) -> Case:
    model = nn.Sequential(nn.Linear(8, 32), *(Highway(32) for _ in range(10)), nn.Linear(32, 4))
    return Case(seed=seed, model=model, data=blobs(seed, 2400), **CE, optimizer=adam(4e-3), max_steps=260)


class Maxout(nn.Module):
    """The largest of three linear maps."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.maps = nn.Linear(a, 3 * b)

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).unflatten(1, (-1, 3)).amax(2)


@healthy("missing_activation", source="Goodfellow 2013, maxout with dropout")
def h_maxout_digits(seed: int) -> Case:
    model = nn.Sequential(Maxout(64, 48), nn.Dropout(0.2), Maxout(48, 32), nn.Dropout(0.2), nn.Linear(32, 10))
    return Case(seed=seed, model=model, data=digits(seed), **CE, optimizer=sgd(0.03, weight_decay=1e-4), max_steps=240)
