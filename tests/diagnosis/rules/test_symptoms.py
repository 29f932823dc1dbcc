"""Gradients that vanish or explode without a cause."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.diagnosis.rules.looking import adam, alarms, mlp, notes, numbers


def test_a_gradient_that_vanishes_without_a_cause_is_said() -> None:
    class Shrinking(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return 1e-8 * gradient

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = mlp(16, 64), mlp(64, 64), mlp(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(Shrinking.apply(self.a(x).relu())).relu())

    assert alarms(Net()) == ["vanishing_gradient"]


def test_a_long_gradient_is_a_note() -> None:
    x, y = numbers()
    assert "exploding_gradient" in notes(mlp(16, 64, 1), (x, 1e6 * y), F.mse_loss, optimizer=adam, steps=1)
