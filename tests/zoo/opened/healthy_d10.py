"""Bandits, policies, values and preferences."""

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tests.zoo.case import Case, healthy
from tests.zoo.data import Split, rng, split
from tests.zoo.metrics import r2
from tests.zoo.nets import CE, MSE, adam, adamw, mlp


# ------------------------------------------------------------------------------------------ bandits, policies
def logged(seed: int, n: int = 3000, arms: int = 4) -> Split:
    """Context, drawn arm, its propensity, its reward, and the best arm."""
    g = rng(804, seed)
    x = torch.randn(n, 5, generator=g)
    value = torch.stack([x[:, 0] * x[:, 1], x[:, 2], -x[:, 2] + 0.3, x[:, 3].abs() - 1], 1)
    policy = (0.5 * torch.randn(n, arms, generator=g)).softmax(1).clamp_min(0.1)
    policy = policy / policy.sum(1, keepdim=True)
    arm = torch.multinomial(policy, 1, generator=g)[:, 0]
    reward = value.gather(1, arm[:, None])[:, 0] + 0.1 * torch.randn(n, generator=g)
    return split(x, arm, policy.gather(1, arm[:, None])[:, 0], reward, value.argmax(1))


class Logged(LightningModule):
    """The gain that a policy would have had, by inverse propensities and less a running mean, is raised."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.policy, self.build = case.model, case.optimizer
        self.register_buffer("usual", torch.zeros(()))

    def gain(self, batch: Any) -> Tensor:
        x, arm, chance, reward, _ = batch
        share = self.policy(x).softmax(1)
        entropy = -(share * share.clamp_min(1e-8).log()).sum(1)
        ratio = share.gather(1, arm[:, None])[:, 0] / chance
        return (ratio * (reward - self.usual)).mean() + 0.02 * entropy.mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.usual.lerp_(batch[3].mean(), 0.05)
        return -self.gain(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        right = (self.policy(batch[0]).argmax(1) == batch[-1]).float().mean()
        self.log_dict({"val_loss": -self.gain(batch), "val_metric": right}, batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        return self.build(self)


@healthy("loss_sign", "wrong_loss", source="off-policy learning from logged bandit feedback: the loss is below 0 and falls on")
def h_logged_bandit(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([5, 48, 48, 4]), data=logged(seed), module=Logged, optimizer=adam(2e-3), max_steps=400,
        batch_size=64, **CE,
    )  # fmt: skip


class Clipped(LightningModule):
    """PPO on one-step episodes: every few batches the behaviour is renewed; the ratio is clipped."""

    automatic_optimization = False

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.policy, self.critic, self.build = case.model, mlp([5, 32, 1], nn.Tanh), case.optimizer

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, value = batch[0], batch[1]
        with torch.no_grad():
            behaviour = self.policy(x).log_softmax(1)
            arm = torch.multinomial(behaviour.exp(), 1)
            reward = value.gather(1, arm)
            advantage = reward - self.critic(x)
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        optimizer = self.optimizers()
        for _ in range(3):
            log_share = self.policy(x).log_softmax(1)
            ratio = (log_share - behaviour).gather(1, arm).exp()
            gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            entropy = -(log_share.exp() * log_share).sum(1).mean()
            loss = -gain + 0.5 * F.mse_loss(self.critic(x), reward) - 0.01 * entropy
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, 0.5, "norm")
            optimizer.step()
        self.log("train_loss", loss)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        share = self.policy(batch[0]).softmax(1)
        right = (share.argmax(1) == batch[-1]).float().mean()
        self.log_dict({"val_loss": -(share * batch[1]).sum(1).mean(), "val_metric": right}, batch_size=len(share))

    def configure_optimizers(self) -> Any:
        return self.build(self)


@healthy("loss_sign", "clip_too_small", source="PPO with a critic: clipped ratio, entropy, three passes over each batch")
def h_clipped_ratio(seed: int) -> Case:
    g = rng(805, seed)
    x = torch.randn(3000, 5, generator=g)
    value = torch.stack([x[:, 0] + 0.5, x[:, 2], -x[:, 2] + 0.3, x[:, 3].abs() - 0.5], 1)
    return Case(
        seed=seed, model=mlp([5, 32, 32, 4], nn.Tanh), data=split(x, value, value.argmax(1)), module=Clipped,
        optimizer=adam(3e-3), max_steps=600, batch_size=64, **CE,
    )  # fmt: skip


class FittedQ(LightningModule):
    """Q-learning from a log of a corridor's steps; the target network follows slowly."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.online, self.target = case.model, deepcopy(case.model).requires_grad_(False)
        self.build = case.optimizer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        state, action, reward, following, done = batch[:5]
        with torch.no_grad():
            best = self.online(following).argmax(1, keepdim=True)
            goal = reward + 0.9 * (1 - done) * self.target(following).gather(1, best)[:, 0]
        return F.smooth_l1_loss(self.online(state).gather(1, action[:, None])[:, 0], goal)

    def on_train_batch_end(self, *_: Any) -> None:
        for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
            slow.data.lerp_(fast.data, 0.05)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        value, truth = self.online(batch[0]), batch[-1]
        self.log_dict({"val_loss": F.mse_loss(value, truth), "val_metric": r2(value, truth)}, batch_size=len(truth))

    def configure_optimizers(self) -> Any:
        return self.build(self.online)


@healthy("not_in_optimizer", "frozen_by_accident", source="double DQN with a softly updated target network, offline corridor")
def h_fitted_corridor(seed: int) -> Case:
    """Steps of 0.2 left or right on [-1, 1]; 1 for reaching the right end, which ends it, a cost of 0.05 per step."""
    g = rng(806, seed)

    def act(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        following = (state + 0.2 * (2 * action - 1)).clamp_min(-1)
        done = (following >= 1).float()
        return done - 0.05, following, done

    def value(state: Tensor, depth: int = 14) -> Tensor:
        each = []
        for a in (0, 1):
            reward, following, done = act(state, torch.full_like(state, a))
            ahead = (1 - following - 1e-6).div(0.2).ceil().clamp_min(1)
            later = 0.9 ** (ahead - 1) - 0.05 * (1 - 0.9**ahead) / 0.1
            each.append(reward + 0.9 * (1 - done) * later)
        return torch.stack(each, 1)

    state, action = 2 * torch.rand(3000, generator=g) - 1, torch.randint(2, (3000,), generator=g)
    reward, following, done = act(state, action)
    data = split(state[:, None] * 1.7, action, reward, following[:, None] * 1.7, done, value(state))
    return Case(
        seed=seed, model=mlp([1, 64, 64, 2], nn.Tanh), data=data, module=FittedQ, optimizer=adam(2e-3),
        max_steps=500, batch_size=64, frozen=[f"target.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")], **MSE,
    )  # fmt: skip


class Preferred(LightningModule):
    """DPO: a policy over answers is moved from a frozen reference towards what was preferred."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.policy, self.reference = case.model, deepcopy(case.model).requires_grad_(False).eval()
        self.build = case.optimizer

    def margin(self, batch: Any) -> Tensor:
        x, better, worse = batch[:3]
        with torch.no_grad():
            before = self.reference(x).log_softmax(1)
        moved = self.policy(x).log_softmax(1) - before
        return 0.5 * (moved.gather(1, better[:, None]) - moved.gather(1, worse[:, None]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return -F.logsigmoid(self.margin(batch)).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        right = (self.policy(batch[0]).argmax(1) == batch[-1]).float().mean()
        self.log_dict({"val_loss": F.softplus(-self.margin(batch)).mean(), "val_metric": right}, batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        return self.build(self.policy)


@healthy("frozen_by_accident", "not_in_optimizer", source="Rafailov et al. 2023: direct preference optimisation")
def h_preferred_answers(seed: int) -> Case:
    g = rng(807, seed)
    x = torch.randn(3000, 6, generator=g)
    worth = torch.stack([x[:, 0] * x[:, 1], x[:, 2], -x[:, 3], x[:, 4].abs() - 0.8, x[:, 5] - 0.2], 1)
    two = torch.rand(3000, 5, generator=g).topk(2).indices
    order = worth.gather(1, two).argsort(1, descending=True)
    better, worse = two.gather(1, order).T
    return Case(
        seed=seed, model=mlp([6, 64, 64, 5]), data=split(x, better, worse, worth.argmax(1)), module=Preferred,
        optimizer=adamw(2e-3), max_steps=350, batch_size=64, **CE,
        frozen=[f"reference.{name}" for name, _ in mlp([6, 64, 64, 5]).named_parameters()],
    )  # fmt: skip
