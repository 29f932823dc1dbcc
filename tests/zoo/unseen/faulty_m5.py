"""Transfer, several tasks, policies, physics, hand-written loops, small cohorts, and what goes wrong in them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import Split, attributes, blobs, digits, replace, rng, several, split
from tests.zoo.nets import CE, MSE, adam, adamw, init_weights, mlp, normal, sgd, trainable


def pretrained(seed: int) -> nn.Sequential:
    """Features of a small network that was trained on other digits for a moment."""
    trunk, head = (
        nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()),
        nn.Linear(32, 10),
    )
    x, y = digits(seed + 50)[0].tensors
    optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=5e-3)
    for chosen in torch.randperm(len(y), generator=rng(910, seed)).repeat(4).split(64):
        optimizer.zero_grad()
        F.cross_entropy(head(trunk(x[chosen])), y[chosen]).backward()
        optimizer.step()
    trunk.zero_grad()
    return trunk


class Transferred(nn.Module):
    """A pretrained trunk, not trained further and kept in evaluation mode, and a new head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.trunk, self.head = pretrained(seed).requires_grad_(False), nn.Linear(32, 10)

    def train(self, mode: bool = True) -> "Transferred":
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


@healthy("frozen_by_accident", "not_in_optimizer", "bn_eval_in_train", source="a new head on frozen pretrained features")
def h_numeral_transfer(seed: int) -> Case:
    return Case(
        seed=seed, model=Transferred(seed), data=digits(seed), optimizer=trainable(torch.optim.Adam, lr=1e-2), max_steps=150,
        frozen=[f"model.trunk.{i}.{what}" for i in (0, 1, 3) for what in ("weight", "bias")], **CE,
    )  # fmt: skip


@faulty("not_in_optimizer", "no_update", twin="h_numeral_transfer", source="optimiser made before the head was replaced")
def f_numeral_head_after_optimizer(case: Case) -> None:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        old = torch.optim.Adam(model.head.parameters(), lr=1e-2)
        model.head = nn.Linear(32, 10)
        return old

    case.optimizer = optimizer


# ------------------------------------------------------------------------------------------ several tasks
class Plant(nn.Module):
    """Three quantities of one plant: a shared trunk, a head for each."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = mlp([8, 64, 64])
        self.heads = nn.ModuleList(mlp([64, 16, 1]) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.trunk(x))
        return torch.cat([head(h) for head in self.heads], 1)


@healthy(source="multi-task regression, one head per quantity, losses added")
def h_plant_heads(seed: int) -> Case:
    return Case(
        seed=seed, model=Plant(), data=several(seed), loss=lambda o, t: (o - t).square().mean(0).sum(), metric="each_r2",
        optimizer=adam(3e-3), max_steps=250,
    )  # fmt: skip


@faulty("unnormalised_target", twin="h_plant_heads", source="one of three targets in other units rules the sum of the losses")
def f_plant_other_units(case: Case) -> None:
    case.data = replace(case.data, -1, lambda y: y * torch.tensor([1.0, 500.0, 1.0]))  # type: ignore[arg-type]


@faulty(
    "not_in_optimizer", twin="h_plant_heads", source="parameter groups listed by hand, the heads forgotten but one", margin=0.08
)
def f_plant_forgotten_groups(case: Case) -> None:
    case.optimizer = lambda model: torch.optim.Adam(
        [{"params": model.heads[0].parameters()}, {"params": model.heads[1].parameters()}], 3e-3
    )


@faulty("loss_sign", "wrong_loss", twin="h_plant_heads", source="one task of three enters with a minus")
def f_plant_minus_task(case: Case) -> None:
    case.loss = lambda o, t: ((o - t).square().mean(0) * torch.tensor([1.0, -1.0, 1.0])).sum()


@faulty("init_exploding", "bad_gain", twin="h_plant_heads", source="torch.randn for weights, no scaling by fan-in")
def f_plant_unscaled_normal(case: Case) -> None:
    init_weights(case.model, normal(1.0))


# ------------------------------------------------------------------------------------------ labels, many at once
@healthy(source="multi-label tagging, a logit per label")
def h_tag_many(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([10, 64, 64, 6]), data=attributes(seed), loss=F.binary_cross_entropy_with_logits,
        metric="binary_accuracy", optimizer=sgd(0.3), max_steps=300,
    )  # fmt: skip


@faulty(
    "wrong_loss",
    "wrong_last_activation",
    twin="h_tag_many",
    margin=0.06,
    source="forum: softmax cross-entropy for several labels at once",
)
def f_tag_one_of_many(case: Case) -> None:
    case.loss = lambda output, target: F.cross_entropy(output, target / target.sum(1, keepdim=True).clamp_min(1))


@faulty("loss_reduction", "lr_too_low", twin="h_tag_many", source="mean taken, then divided by batch and labels once more")
def f_tag_divided_twice(case: Case) -> None:
    case.loss = lambda o, t: F.binary_cross_entropy_with_logits(o, t) / (t.numel() * len(t))


# ------------------------------------------------------------------------------------------ policies
class Bandit(Supervised):
    """REINFORCE with a batch baseline on a contextual bandit: an arm is drawn, the reward tells whether it was right."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, right = batch
        policy = torch.distributions.Categorical(logits=self(x))
        arm = policy.sample()
        reward = (arm == right).float()
        loss = self.objective(policy.log_prob(arm), reward - reward.mean()) - 0.01 * policy.entropy().mean()
        self.log("train_loss", loss)
        return loss

    def objective(self, log_prob: Tensor, advantage: Tensor) -> Tensor:
        return -(log_prob * advantage).mean()


@healthy("wrong_loss", "loss_sign", source="contextual bandit, REINFORCE with baseline and a little entropy bonus")
def h_advert_bandit(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([8, 64, 64, 4]),
        data=blobs(seed),
        optimizer=adam(5e-3),
        max_steps=350,
        batch_size=128,
        module=Bandit,
        **CE,
    )


class Broadcast(Bandit):
    def objective(self, log_prob: Tensor, advantage: Tensor) -> Tensor:
        return -(log_prob * advantage[:, None]).mean()


@faulty("shape_broadcast", twin="h_advert_bandit", source="Stable Baselines FAQ: log-probs [n] times advantages [n, 1]")
def f_advert_outer_product(case: Case) -> None:
    case.module = Broadcast


# ------------------------------------------------------------------------------------------ physics
def oscillator(seed: int, n: int = 900) -> Split:
    """Times in [0, 2]; the swing x'' = -4 x with x(0) = 1, x'(0) = 0 at them."""
    t = 2 * torch.rand(n, 1, generator=rng(911, seed))
    return split(t, (2 * t).cos())


class Residual(Supervised):
    """A physics-informed network: the residual of the equation and the initial conditions, no measurements."""

    keep = True

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        t = batch[0].requires_grad_()
        x = self(t)
        speed = torch.autograd.grad(x.sum(), t, create_graph=True)[0]
        force = torch.autograd.grad(speed.sum(), t, create_graph=self.keep, retain_graph=True, allow_unused=True)[0]
        start = torch.zeros(1, 1, requires_grad=True)
        x0 = self(start)
        v0 = torch.autograd.grad(x0.sum(), start, create_graph=True)[0]
        residual = (force if force is not None else 0) + 4 * x
        loss = residual.square().mean() + 20 * ((x0 - 1).square() + v0.square()).mean()
        self.log("train_loss", loss)
        return loss


@healthy("wrong_loss", source="PINN of an oscillator: tanh network, residual and initial conditions")
def h_spring_pinn(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([1, 32, 32, 1], act=nn.Tanh), data=oscillator(seed), loss=F.mse_loss, metric="r2",
        optimizer=adam(5e-3), max_steps=600, module=Residual,
    )  # fmt: skip


@faulty("wrong_hidden_activation", twin="h_spring_pinn", source="ReLU in a PINN: the second derivative is zero everywhere")
def f_spring_relu(case: Case) -> None:
    case.model = mlp([1, 32, 32, 1])


class Dropped(Residual):
    keep = False


@faulty(
    "detached_subgraph",
    twin="h_spring_pinn",
    source="retain_graph=True where create_graph=True was meant, in the second derivative",
)
def f_spring_no_graph(case: Case) -> None:
    case.module = Dropped


# ------------------------------------------------------------------------------------------ loops by hand
class ByHand(Supervised):
    """Manual optimisation with a clip of the gradient's norm."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def update(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.parameters(), 5.0)
        optimizer.step()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.update(self.optimizers(), super().training_step(batch, batch_idx))


@healthy(source="manual optimisation written like a plain PyTorch loop")
def h_own_loop(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 4]), data=blobs(seed), optimizer=sgd(0.1), max_steps=250, module=ByHand, **CE)


class Hoarder(ByHand):
    def update(self, optimizer: Any, loss: Tensor) -> None:
        self.manual_backward(loss)
        optimizer.step()


@faulty("gradients_not_zeroed", twin="h_own_loop", source="forum: zero_grad forgotten")
def f_own_loop_hoards(case: Case) -> None:
    case.module = Hoarder


class Eraser(ByHand):
    def update(self, optimizer: Any, loss: Tensor) -> None:
        self.manual_backward(loss)
        optimizer.zero_grad()
        optimizer.step()


@faulty("no_update", twin="h_own_loop", source="zero_grad between backward and step")
def f_own_loop_erases(case: Case) -> None:
    case.module = Eraser


@faulty("bad_gain", "init_vanishing", twin="h_own_loop", source="PPO's gain of 0.01 for the policy head given to every layer")
def f_own_loop_head_gain(case: Case) -> None:
    init_weights(case.model, lambda weight: nn.init.orthogonal_(weight, gain=0.01))


@faulty("missing_activation", twin="h_own_loop", source="DeepCrime: activation functions removed")
def f_own_loop_all_linear(case: Case) -> None:
    case.model = mlp([8, 64, 64, 4], act=None)


# ------------------------------------------------------------------------------------------ small cohorts
def cohort(seed: int, n: int = 160, val: int = 600, dim: int = 12) -> Split:
    """Few patients, many markers, of which some make the noisy score, `[n, 1]`."""
    g = rng(912, seed)
    x = torch.randn(n + val, dim, generator=g)
    y = (x[:, :8].sum(1, keepdim=True) + 2.0 * torch.randn(n + val, 1, generator=g)) / 3.5
    return TensorDataset(x[:n], y[:n]), TensorDataset(x[n:], y[n:])


@healthy("overfit_no_regularisation", source="a small cohort: linear regression with decay")
def h_cohort_small(seed: int) -> Case:
    return Case(
        seed=seed, model=nn.Linear(12, 1), data=cohort(seed), optimizer=adamw(1e-2, weight_decay=0.1), max_steps=400, **MSE
    )  # fmt: skip


@faulty("overfit_no_regularisation", twin="h_cohort_small", source="a large MLP, no dropout, no decay, trained on and on")
def f_cohort_memorised(case: Case) -> None:
    case.model, case.optimizer = mlp([12, 256, 256, 1]), adam(3e-3)
