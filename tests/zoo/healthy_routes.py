"""Healthy, second set: gradients on unusual routes - estimated, straight through, reversed, frozen, generated, shared."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tests.zoo import more_data as data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.nets import CE, adam, mlp


def arcs(seed: int, model: nn.Module, lr: float = 8e-3, **settings: Any) -> Case:
    """The arcs, by Adam."""
    return Case(seed=seed, model=model, data=data.arcs(seed), optimizer=adam(lr), **CE | {"max_steps": 250} | settings)


# ------------------------------------------------------------------------------------------ estimated
class Bandit(Supervised):
    """Williams 1992: an action is drawn, its reward (1 if it is the class) less a running mean weighs its log-probability."""

    baseline = 0.3

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        policy = torch.distributions.Categorical(logits=self(x))
        action = policy.sample()
        reward = (action == y).float()
        loss = -(policy.log_prob(action) * (reward - self.baseline)).mean()
        self.baseline = 0.9 * self.baseline + 0.1 * reward.mean().item()
        return loss


@healthy("loss_sign", "wrong_loss", "labels_broken", source="Williams 1992: REINFORCE, a loss around zero that says nothing")
def h_reinforce(seed: int) -> Case:
    return arcs(seed, mlp([5, 64, 64, 3], nn.Tanh), lr=1e-2, module=Bandit, batch_size=64, max_steps=300)


class ActorCritic(Supervised):
    """Mnih et al. 2016: policy, value and entropy terms from one body."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.value = nn.Linear(64, 1)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        hidden = self.model[:-1](x)
        policy = torch.distributions.Categorical(logits=self.model[-1](hidden))
        action, value = policy.sample(), self.value(hidden)[:, 0]
        reward = (action == y).float()
        actor = -(policy.log_prob(action) * (reward - value.detach())).mean()
        return actor + 0.5 * F.mse_loss(value, reward) - 0.01 * policy.entropy().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@healthy("loss_sign", "wrong_loss", "detached_subgraph", source="Mnih et al. 2016: advantage actor-critic")
def h_actor_critic(seed: int) -> Case:
    return arcs(seed, mlp([5, 64, 64, 3]), module=ActorCritic, batch_size=64, max_steps=300)


class ValueLearning(Supervised):
    """Mnih et al. 2015: the value of the action taken, towards a target that a slow copy computes."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.slow = copy.deepcopy(case.model).requires_grad_(False)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        values = self(x)
        action = torch.where(torch.rand(len(x)) < 0.5, torch.randint(3, y.shape), values.argmax(1))
        with torch.no_grad():
            target = (action == y).float() + 0.3 * self.slow(x).amax(1)
            for slow, fast in zip(self.slow.parameters(), self.model.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
        return F.smooth_l1_loss(values.gather(1, action[:, None])[:, 0], target)


@healthy("frozen_by_accident", "not_in_optimizer", "wrong_loss", source="Mnih et al. 2015: Q-values and a slow copy as target")
def h_value_learning(seed: int) -> Case:
    frozen = [f"slow.{name}" for name, _ in mlp([5, 64, 64, 3]).named_parameters()]
    return arcs(seed, mlp([5, 64, 64, 3]), module=ValueLearning, frozen=frozen, batch_size=64, max_steps=300)


# ------------------------------------------------------------------------------------------ straight through
class Quantised(nn.Module):
    """van den Oord et al. 2017: each of four pieces becomes the nearest of sixteen codes; gradients pass straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.loss = nn.Parameter(0.5 * torch.randn(16, 4)), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        pieces = x.view(len(x), -1, 4)
        nearest = self.codes[torch.cdist(pieces, self.codes).argmin(2)]
        self.loss = F.mse_loss(nearest, pieces.detach()) + 0.25 * F.mse_loss(pieces, nearest.detach())
        return (pieces + (nearest - pieces).detach()).flatten(1)


class Committed(Supervised):
    """Adds the commitment loss of the quantiser."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + self.model[1].loss


@healthy("detached_subgraph", "frozen_by_accident", source="van den Oord et al. 2017: vector quantisation, straight through")
def h_quantised(seed: int) -> Case:
    model = nn.Sequential(mlp([5, 64, 16]), Quantised(), mlp([16, 48, 3]))
    return arcs(seed, model, module=Committed)


class Binary(nn.Module):
    """Courbariaux et al. 2016: the sign forward, the identity backward within [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        soft = x.clamp(-1, 1)
        return soft + (x.sign() - soft).detach()


@healthy("wrong_hidden_activation", "saturation", "detached_subgraph", source="Courbariaux et al. 2016: binary activations")
def h_binary_activations(seed: int) -> Case:
    model = nn.Sequential(nn.Linear(5, 128), nn.BatchNorm1d(128), Binary(), nn.Linear(128, 3))
    return arcs(seed, model)


class Chooser(nn.Module):
    """Jang et al. 2017: a hard choice among six experts' outputs by Gumbel softmax, drawn in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.choose, self.experts = nn.Linear(5, 6), nn.Linear(5, 6 * 12)
        self.head = mlp([12, 32, 3])

    def forward(self, x: Tensor) -> Tensor:
        scores = self.choose(x)
        one = F.gumbel_softmax(scores, hard=True) if self.training else F.one_hot(scores.argmax(1), 6).float()
        return self.head((one[:, :, None] * self.experts(x).view(-1, 6, 12)).sum(1))


@healthy("dropout_active_in_eval", "wrong_hidden_activation", source="Jang et al. 2017: Gumbel softmax, hard choices")
def h_gumbel_choice(seed: int) -> Case:
    return arcs(seed, Chooser(), lr=1.5e-2)


# ------------------------------------------------------------------------------------------ reversed, twice, generated
class Reverse(torch.autograd.Function):
    """The identity, whose gradient changes its sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -0.1 * grad


class Domains(Supervised):
    """Ganin and Lempitsky 2015: the body is to fool a head that tells shifted samples from others."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.domain = nn.Linear(48, 1)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        where = (torch.rand(len(x), 1) < 0.5).float()
        hidden = self.model[:-1](x + 0.3 * where)
        guess = self.domain(Reverse.apply(hidden))
        return F.cross_entropy(self.model[-1](hidden), y) + F.binary_cross_entropy_with_logits(guess, where)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


@healthy("loss_sign", "batch_mixing", source="Ganin and Lempitsky 2015: gradient reversal for domains")
def h_gradient_reversal(seed: int) -> Case:
    return arcs(seed, mlp([5, 64, 48, 3]), module=Domains)


class Smooth(Supervised):
    """Drucker and Le Cun 1992: a penalty on the loss's gradient with respect to the inputs."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x.requires_grad_()), y)
        slope = torch.autograd.grad(loss, x, create_graph=True)[0]
        return loss + 5 * slope.square().sum(1).mean() * len(x)


@healthy("gradients_not_zeroed", "wrong_loss", source="Drucker and Le Cun 1992: double backpropagation")
def h_double_backpropagation(seed: int) -> Case:
    return arcs(seed, mlp([5, 64, 64, 3], nn.Tanh), module=Smooth)


class Hyper(nn.Module):
    """Ha et al. 2017: a small net writes the weights of the first layer from a learnt code."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.write = nn.Parameter(torch.randn(1, 8)), nn.Linear(8, 48 * 6)
        self.head = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.write(self.code).view(48, 6)
        return self.head(F.linear(x, weights[:, :5], weights[:, 5]).relu())


@healthy("batch_mixing", "bad_gain", "not_in_optimizer", source="Ha et al. 2017: weights generated by another net")
def h_hypernetwork(seed: int) -> Case:
    return arcs(seed, Hyper())


class InnerStep(Supervised):
    """Finn et al. 2017: the loss after one inner gradient step on the other half of the batch."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        (x, x2), (y, y2) = (t.chunk(2) for t in batch)
        weights = dict(self.model.named_parameters())
        inner = F.cross_entropy(functional_call(self.model, weights, (x,)), y)
        grads = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        moved = {name: w - 0.05 * g for (name, w), g in zip(weights.items(), grads, strict=True)}
        return F.cross_entropy(functional_call(self.model, moved, (x2,)), y2)


@healthy(
    "detached_subgraph", "not_in_optimizer", "batch_mixing", source="Finn et al. 2017: MAML's inner step by functional_call"
)
def h_inner_step(seed: int) -> Case:
    return arcs(seed, mlp([5, 48, 48, 3]), module=InnerStep, batch_size=64)


class FixedPoint(nn.Module):
    """Bai et al. 2019 with one-step gradients: iterate without a graph, then once with it."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.inject, self.turn, self.head = nn.Linear(5, width), nn.Linear(width, width, bias=False), nn.Linear(width, 3)
        nn.init.orthogonal_(self.turn.weight, 0.6)

    def forward(self, x: Tensor) -> Tensor:
        injected = self.inject(x)
        with torch.no_grad():
            state = torch.zeros_like(injected)
            for _ in range(8):
                state = (self.turn(state) + injected).tanh()
        return self.head((self.turn(state) + injected).tanh())


@healthy(
    "detached_subgraph", "frozen_by_accident", source="Bai et al. 2019, Fung et al. 2022: equilibrium, most steps without graph"
)
def h_fixed_point(seed: int) -> Case:
    return arcs(seed, FixedPoint())
