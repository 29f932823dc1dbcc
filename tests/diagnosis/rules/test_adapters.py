"""Factor pairs beside frozen layers, one of which starts at zero."""

import pytest
import torch
from torch import Tensor, nn

from tests.diagnosis.rules.looking import alarms, findings


class Adapted(nn.Module):
    """A frozen layer and a factor pair, one of which starts at zero (Hu et al. 2021)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(0.2 * torch.randn(8, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T


def adapted() -> nn.Sequential:
    return nn.Sequential(Adapted(nn.Linear(16, 32)), nn.ReLU(), Adapted(nn.Linear(32, 4)))


def test_adapters_that_no_optimiser_holds_are_not_taken_for_trained() -> None:
    held = [["2.down", "2.up"], ["0.down", "0.up", "2.down", "2.up"]]
    for names, said in zip(held, [["not_in_optimizer"], []], strict=True):
        model = adapted()
        chosen = [dict(model.named_parameters())[name] for name in names]
        assert alarms(model, optimizer=lambda _: torch.optim.Adam(chosen, lr=1e-2), expect_frozen=("*.layer.*",)) == said  # noqa: B023


@pytest.mark.parametrize("declared", [True, False])
def test_a_frozen_factor_of_zeros_shuts_off_the_other(declared: bool) -> None:
    model = adapted()
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("down"))
    expect = ("*.layer.*", "*.up") if declared else ("*.layer.*",)
    found = findings(model, optimizer=lambda m: torch.optim.Adam([m[0].down, m[2].down]), expect_frozen=expect)
    said = [(f.rule, f.where) for f in found if f.severity == "error"]
    assert (("frozen_by_accident", "0.up") in said) != declared
