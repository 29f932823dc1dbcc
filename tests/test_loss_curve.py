"""The loss of a whole run in little memory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_training.loss_curve import LossCurve, validation_loss


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(1, 1500), looks=st.lists(st.integers(1, 1500), max_size=3))
def test_means_of_equal_stretches_whenever_one_looks(steps: int, looks: list[int]) -> None:
    losses = torch.rand(steps, generator=torch.Generator().manual_seed(steps))
    curve = LossCurve()
    for step, loss in enumerate(losses, 1):
        curve.note(loss)
        if step in looks:
            curve.means()
    stretch = 1
    while math.ceil(steps / stretch) > 64:
        stretch *= 2
    expected = [float(part.mean()) for part in losses.split(stretch)]
    assert curve.means() == pytest.approx(expected, rel=1e-4)
    assert curve.first() == float(losses[0])
    assert curve.first_broken() is None


@pytest.mark.parametrize("broken", [0, 5, 63, 64, 130])
def test_the_first_step_that_broke_is_remembered(broken: int) -> None:
    curve = LossCurve()
    for step in range(200):
        curve.note(torch.tensor(math.inf if step == broken else math.nan if step > broken + 3 else 1.0))
        if step == 100:
            curve.means()
    assert curve.first_broken() == broken


@pytest.mark.parametrize(
    ("logged", "name"),
    [
        (["val_loss"], "val_loss"),
        (["train/loss", "valid/loss"], "valid/loss"),
        (["valLoss"], "valLoss"),
        (["loss_eval"], "loss_eval"),
        (["valloss"], "valloss"),
        (["val_kl_loss", "val_loss_epoch"], "val_loss_epoch"),
        (["val_mse_loss"], "val_mse_loss"),
        (["val_mse_loss/dataloader_idx_0", "val_mse_loss/dataloader_idx_1"], "val_mse_loss/dataloader_idx_0"),
        (["val_box_loss", "val_class_loss"], None),  # which is the whole, if any is?
        (["policy_loss", "value_loss", "survival_loss", "retrieval_loss", "val_accuracy"], None),
    ],
)
def test_the_validation_loss_is_known_by_its_name(logged: list[str], name: str | None) -> None:
    assert validation_loss(logged) == name
