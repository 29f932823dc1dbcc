"""A reward that falls while a loss is minimised."""

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lit_training.callbacks import Diagnostics
from lit_training.diagnosis.rules.rewards import reward_fell, reward_name
from tests.diagnosis.rules.looking import mlp


class Bandit(pl.LightningModule):
    """A policy gradient for five arms, whose rewards depend on what is seen."""

    def __init__(self, sign: int, logged: str, manual: bool) -> None:
        super().__init__()
        self.policy, self.sign, self.logged, self.automatic_optimization = mlp(6, 32, 5), sign, logged, not manual

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        seen, rewards = batch
        policy = torch.distributions.Categorical(logits=self.policy(seen))
        arm = policy.sample()
        reward = rewards.gather(1, arm[:, None])[:, 0]
        loss = self.sign * (policy.log_prob(arm) * (reward - rewards.mean(1))).mean() - 0.01 * policy.entropy().mean()
        self.log(self.logged, reward.mean())
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize(
    ("sign", "logged", "said"), [(1, "train/reward", ["loss_sign"]), (-1, "train/reward", []), (1, "train/regret", [])]
)
def test_a_policy_that_learns_the_worst_arm_is_named(sign: int, logged: str, said: list[str], manual: bool) -> None:
    torch.manual_seed(0)
    seen = torch.randn(512, 6)
    watch = Diagnostics(verbose=False, select=["loss_sign"])
    trainer = pl.Trainer(max_epochs=12, accelerator="cpu", logger=False, enable_checkpointing=False,
                         callbacks=[watch], enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    data = DataLoader(TensorDataset(seen, (seen @ torch.randn(6, 5)).tanh()), 32, shuffle=True)
    trainer.fit(Bandit(sign, logged, manual), data)
    assert [finding.rule for finding in watch.findings] == said


@pytest.mark.parametrize(
    ("means", "falls"),
    [
        ([*[0.1 * i for i in range(20)], *[2 - 0.15 * i for i in range(10)]], False),  # rose first
        ([*[0.1 * i for i in range(15)], *[1.4 - 0.2 * i for i in range(15)]], False),  # and came to less than at first
        ([(-1) ** i - 0.01 * i for i in range(30)], False),  # noise
        ([-0.1 * i + 0.02 * (-1) ** i for i in range(30)], True),
        ([-float(i) for i in range(8)], False),
        ([*[-float(i) for i in range(29)], float("nan")], False),
    ],
)
def test_only_a_reward_that_falls_throughout_tells(means: list[float], falls: bool) -> None:
    assert bool(reward_fell(means, 300)) == falls


@pytest.mark.parametrize("name", ["rewards/rejected", "intrinsic_reward", "reward_std", "loss", "rewards/margins"])
def test_other_numbers_are_no_reward(name: str) -> None:
    assert reward_name([name]) is None
