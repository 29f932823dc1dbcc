"""Held-out healthy cases: survival, epidemics, physics, weather, energy, geography."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import Split, rng, split, standardise
from tests.zoo.nets import MSE, adam, adamw, init_weights, lecun, mlp
from tests.zoo.unseen.healthy_g1 import per_step


# ------------------------------------------------------------------------------------------ survival and epidemics
def patients(seed: int, n: int = 2100, dim: int = 8) -> Split:
    """Standardised findings; the columns time, whether the event was seen, and the true log hazard, standardised."""
    g = rng(7101, seed)
    x = torch.randn(n, dim, generator=g)
    risk = standardise(x[:, 0] + 0.8 * x[:, 1] * x[:, 2] + (1.5 * x[:, 3]).sin() - 0.7 * x[:, 4])
    time = torch.empty(n).exponential_(generator=g) * (-risk).exp()
    end = 3 * torch.rand(n, generator=g) + 0.3
    return split(x, torch.stack([torch.minimum(time, end), (time <= end).float(), risk], 1))


def cox(output: Tensor, target: Tensor) -> Tensor:
    """Negative partial log likelihood of the batch (Breslow)."""
    order = target[:, 0].argsort(descending=True)
    score, event = output[order, 0], target[order, 1]
    return -((score - score.logcumsumexp(0)) * event).sum() / event.sum().clamp_min(1)


def exponential_survival(output: Tensor, target: Tensor) -> Tensor:
    """Censored negative log likelihood of a constant hazard, given its logarithm."""
    return (output[:, 0].exp() * target[:, 0] - target[:, 1] * output[:, 0]).mean()


class Centred(Supervised):
    """A score that is only known up to a constant is judged after both means are taken off."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, target = batch
        score = self(x)
        self.log("val_loss", self.loss_fn(score, target), batch_size=len(x))
        centred = score - score.mean() + target[:, 2].mean()
        self.log("val_metric", self.metric.score(centred, target), batch_size=len(x))


def districts(seed: int, n: int = 1800) -> Split:
    """Features and the log of the population (in ten thousands); cases, overdispersed, about 20 per ten thousand."""
    g = rng(7102, seed)
    x, people = torch.randn(n, 6, generator=g), (0.4 * torch.randn(n, 1, generator=g))
    rate = 3 + 0.5 * x[:, :1] + 0.4 * (2 * x[:, 1:2]).sin() - 0.3 * x[:, 2:3].abs() + 0.2 * x[:, 3:4]
    return split(x, people, torch.poisson((rate + people + 0.1 * torch.randn(n, 1, generator=g)).exp(), generator=g))


class Exposed(nn.Module):
    """A log rate plus the log exposure; the bias starts at the log of the mean rate."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.rate = mlp([6, 32, 32, 1], nn.Tanh)
        nn.init.constant_(self.rate[-1].bias, start)

    def forward(self, x: Tensor, people: Tensor) -> Tensor:
        return self.rate(x) + people


class Dispersed(Exposed):
    """The mean, and a learnt log dispersion that all share."""

    def __init__(self, start: float) -> None:
        super().__init__(start)
        self.dispersion = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor, people: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x, people).exp(), self.dispersion


def negative_binomial(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    mean, size = output[0], (-output[1]).exp()
    chance = torch.lgamma(target + size) - torch.lgamma(size) - torch.lgamma(target + 1)
    return -(chance + size * (size / (size + mean)).log() + target * (mean / (size + mean)).log()).mean()


@healthy(
    "loss_reduction",
    "wrong_loss",
    "overfit_no_regularisation",
    source="DeepSurv (Katzman 2018): Cox likelihood over each batch",
)
def h_patient_cox(seed: int) -> Case:
    model = mlp([8, 32, 32, 1], nn.SELU)
    init_weights(model, lecun)
    return Case(
        seed=seed, model=model, data=patients(seed), loss=cox, metric="hazard_r2", module=Centred, batch_size=128,
        val_batch_size=700, optimizer=adamw(3e-3, weight_decay=1e-2), max_steps=200,
    )  # fmt: skip


@healthy("wrong_loss", "wrong_last_activation", source="parametric survival: censored exponential likelihood of the log hazard")
def h_patient_hazard(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 32, 32, 1], nn.GELU), data=patients(seed), loss=exponential_survival, metric="hazard_r2",
        batch_size=64, val_batch_size=700, optimizer=adam(3e-3), max_steps=250,
    )  # fmt: skip


@healthy(
    "bad_bias_init", "unnormalised_target", source="disease counts per district: Poisson regression with a population offset"
)
def h_district_poisson(seed: int) -> Case:
    loss = nn.PoissonNLLLoss(log_input=True)
    data = districts(seed)
    start = data[0].tensors[2].mean().log().item()
    return Case(
        seed=seed, model=Exposed(start), data=data, loss=loss, metric="log_r2", optimizer=adam(5e-3), batch_size=64,
        max_steps=300,
    )  # fmt: skip


@healthy(
    "bad_bias_init", "unnormalised_target", source="overdispersed disease counts: negative binomial with a learnt dispersion"
)
def h_district_negbin(seed: int) -> Case:
    data = districts(seed)
    model = Dispersed(data[0].tensors[2].mean().log().item())
    return Case(
        seed=seed, model=model, data=data, loss=negative_binomial, metric="mean_r2", optimizer=adam(5e-3), batch_size=64,
        max_steps=300,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ physics
def oscillators(seed: int, n: int = 1500) -> Split:
    """Time in [-1, 1] and a damping, scaled; where a damped oscillator is."""
    g = rng(7103, seed)
    t, damping = 2 * torch.rand(n, 1, generator=g) - 1, 2 * torch.rand(n, 1, generator=g) - 1
    y = (-(0.4 + 0.2 * damping) * (t + 1)).exp() * (4 * (t + 1)).cos()
    return split(torch.cat([t, damping], 1), y)


class Informed(Supervised):
    """The data term and the residual of `y'' + 2 d y' + (16 + d^2) y = 0`, taken with autograd."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        x = x.clone().requires_grad_()
        out = self(x)
        first = torch.autograd.grad(out.sum(), x, create_graph=True)[0][:, :1]
        second = torch.autograd.grad(first.sum(), x, create_graph=True)[0][:, :1]
        d = 0.4 + 0.2 * x[:, 1:]
        residual = (second + 2 * d * first + (16 + d.square()) * out) / 16
        loss = self.loss_fn(out, y) + 0.05 * residual.square().mean()
        self.log("train_loss", loss, batch_size=len(x))
        return loss


def wing(seed: int, n: int = 1800) -> Split:
    """Six design variables; lift, drag and moment of a made-up simulator, standardised."""
    g = rng(7104, seed)
    x = 2 * torch.rand(n, 6, generator=g) - 1
    lift = (2 * x[:, 0]).sin() + 0.5 * x[:, 1] * x[:, 0]
    drag = 0.3 * lift.square() + x[:, 2].square() + 0.3 * x[:, 3]
    moment = lift * x[:, 4] - 0.4 * x[:, 5]
    return split(standardise(x), standardise(torch.stack([lift, drag, moment], 1) + 0.03 * torch.randn(n, 3, generator=g)))


def operators(seed: int, n: int = 2400, sensors: int = 16) -> Split:
    """A random smooth source seen by 16 sensors, a place in [-1, 1]; the integral of the source up to there."""
    g = rng(7105, seed)
    c, place = torch.randn(n, 4, generator=g), 2 * torch.rand(n, 1, generator=g) - 1
    k, at = torch.arange(1, 5) * 1.2, torch.linspace(-1, 1, sensors)
    u = torch.einsum("nk,ks->ns", c, (k[:, None] * at).cos())
    y = (c / k * ((k * place).sin() + k.sin())).sum(1, keepdim=True)
    return split(standardise(u, None), place, standardise(y))


class DeepONet(nn.Module):
    """The inner product of a branch (of the source) and a trunk (of the place)."""

    def __init__(self, sensors: int = 16, width: int = 48) -> None:
        super().__init__()
        self.branch, self.trunk = mlp([sensors, width, 24], nn.GELU), mlp([1, width, 24], nn.GELU)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, u: Tensor, place: Tensor) -> Tensor:
        return (self.branch(u) * self.trunk(place)).sum(1, keepdim=True) / 24**0.5 + self.bias


def orbits(seed: int, n: int = 1200, steps: int = 8) -> Split:
    """Where a pendulum starts `[n, 2]` and its next eight states, flat."""
    g = rng(7106, seed)
    state = 2.5 * (2 * torch.rand(n, 2, generator=g) - 1) * torch.tensor([0.8, 0.6])
    path = [state]
    for _ in range(steps):
        for _ in range(10):
            swing = state[:, 1] - 0.02 * state[:, 0].sin()
            state = torch.stack([state[:, 0] + 0.02 * swing, swing], 1)
        path.append(state)
    return split(path[0], torch.cat(path[1:], 1) + 0.01 * torch.randn(n, 2 * steps, generator=g))


class Rollout(nn.Module):
    """Euler steps of a learnt vector field."""

    def __init__(self) -> None:
        super().__init__()
        self.field = mlp([2, 32, 32, 2], nn.Tanh)

    def forward(self, state: Tensor) -> Tensor:
        path = []
        for _ in range(8):
            state = state + 0.2 * self.field(state)
            path.append(state)
        return torch.cat(path, 1)


@healthy("wrong_hidden_activation", "saturation", source="PINN (Raissi 2019): data and differential equation in one loss, tanh")
def h_oscillator_informed(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([2, 32, 32, 1], nn.Tanh), data=oscillators(seed), module=Informed, optimizer=adam(1e-2),
        scheduler=per_step(lambda o: ExponentialLR(o, 0.995)), batch_size=64, max_steps=400, **MSE,
    )  # fmt: skip


@healthy(source="surrogate of a simulator, three outputs at once: layer norm, SiLU, Adam, exponential decay")
def h_wing_surrogate(seed: int) -> Case:
    decay = per_step(lambda o: ExponentialLR(o, 0.993))
    model = mlp([6, 48, 48, 3], nn.SiLU, norm=nn.LayerNorm)
    case = Case(seed=seed, model=model, data=wing(seed), optimizer=adam(1e-2), scheduler=decay, max_steps=300, **MSE)
    case.metric = "each_r2"
    return case


@healthy("lr_too_high", "no_update", source="full-batch L-BFGS with line search on a small surrogate, learning rate 1")
def h_wing_lbfgs(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 24, 24, 3], nn.Tanh), data=wing(seed, 1500), batch_size=1000, max_steps=20,
        optimizer=lambda m: torch.optim.LBFGS(m.parameters(), max_iter=10, line_search_fn="strong_wolfe"), **MSE,
    )  # fmt: skip


@healthy("missing_activation", "shape_broadcast", source="DeepONet (Lu 2021): two networks meet in an inner product")
def h_source_operator(seed: int) -> Case:
    model = DeepONet()
    return Case(seed=seed, model=model, data=operators(seed), optimizer=adam(5e-3), batch_size=64, max_steps=350, **MSE)


@healthy("unnormalised_target", source="learning dynamics by unrolling a vector field over eight Euler steps (neural ODE)")
def h_pendulum_rollout(seed: int) -> Case:
    return Case(seed=seed, model=Rollout(), data=orbits(seed), optimizer=adam(5e-3), max_steps=200, **MSE)
