"""Clipping by the user's own code, behind the backward pass."""

from collections.abc import Callable

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics
from tests.diagnosis.rules.looking import mlp

RULES = ["lr_too_high", "lr_too_low", "clip_too_small", "dropout_too_high", "bad_data"]


@pytest.mark.parametrize(("most", "rules"), [(1e-5, ["clip_too_small"]), (10.0, [])])
def test_clipping_by_the_users_own_code_counts(most: float, rules: list[str]) -> None:
    class Clips(LitModule):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), most)

        def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
            self.trainer.should_stop = self.global_step > 5

    torch.manual_seed(0)
    x = torch.randn(256, 8)
    data = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), 32, shuffle=True)
    watch = Diagnostics(verbose=False, select=RULES)
    trainer = pl.Trainer(max_steps=300, min_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, callbacks=[watch])  # fmt: skip
    trainer.fit(Clips(mlp(8, 32, 2), lr=0.05, metrics=[]), data)
    assert [finding.rule for finding in watch.findings if finding.severity != "note"] == rules


class ByHand(LitModule):
    """A loop by hand, in which something changes the gradients before the step."""

    def __init__(self, change: Callable[[list[nn.Parameter]], object], lr: float) -> None:
        super().__init__(mlp(8, 32, 2), lr=lr, metrics=[])
        self.change, self.automatic_optimization = change, False

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        self.change(list(self.parameters()))
        self.optimizers().step()

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        self.trainer.should_stop = self.global_step > 5


def scaled(parameters: list[nn.Parameter], by: float) -> None:
    for parameter in parameters:
        parameter.grad.mul_(by)


@pytest.mark.parametrize(
    ("change", "lr", "rules"),
    [
        (lambda ps: nn.utils.clip_grad_norm_(ps, 1e-5), 0.05, ["clip_too_small"]),
        (lambda ps: nn.utils.clip_grad_value_(ps, 1e-5), 0.05, ["clip_too_small"]),
        (lambda ps: nn.utils.clip_grad_value_(ps, 0.01), 0.05, []),
        (lambda ps: nn.utils.clip_grad_norm_(ps, 10.0), 0.05, []),
        (lambda ps: None, 1e-6, ["lr_too_low"]),
        (lambda ps: scaled(ps, 2.0**-16), 0.05, ["lr_too_low"]),
        (lambda ps: scaled(ps, 2.0**-16), 0.05 * 2**16, []),
    ],
)
def test_clipping_in_a_loop_by_hand_counts(change, lr: float, rules: list[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    data = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), 32, shuffle=True)
    watch = Diagnostics(verbose=False, select=[*RULES, "no_update"])
    trainer = pl.Trainer(max_steps=300, min_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, callbacks=[watch])  # fmt: skip
    trainer.fit(ByHand(change, lr), data)
    assert [finding.rule for finding in watch.findings if finding.severity != "note"] == rules
