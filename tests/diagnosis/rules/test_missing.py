"""Layers that nothing nonlinear stands between."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.diagnosis.rules.looking import alarms, findings, mlp


def test_linear_layers_in_a_row_are_found() -> None:
    found = findings(mlp(16, 64, 64, 4, act=nn.Identity))
    assert [f.rule for f in found if f.severity != "note"] == ["missing_activation"]


def behind(*between: nn.Module | int) -> nn.Sequential:
    """Return a network with one nonlinearity, and then layers of these widths with these modules in between."""
    parts: list[nn.Module] = [nn.Linear(16, 64), nn.ReLU()]
    width = 64
    for part in between:
        parts.append(nn.Linear(width, part) if isinstance(part, int) else part)
        width = part if isinstance(part, int) else width
    return nn.Sequential(*parts)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (behind(32, 32, 4), ["missing_activation"]),
        (behind(32, nn.Dropout(0.2), 32, nn.Flatten(), 4), ["missing_activation"]),
        (behind(32, 4), []),
        (behind(32, nn.Tanh(), 32, 4), []),
        (behind(32, nn.LayerNorm(32), 32, 4), []),
        (behind(2, 32, 4), []),
    ],
)
def test_three_dense_layers_in_a_row_are_found_whatever_else_there_is(model: nn.Module, said: list[str]) -> None:
    assert alarms(model) == said


class Pooled(nn.Module):
    """Attention pools what a layer made; linear layers follow."""

    def __init__(self, behind: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.query = nn.Linear(4, 32), nn.Parameter(torch.randn(1, 1, 32))
        self.pool = nn.MultiheadAttention(32, 4, batch_first=True)
        self.rest = nn.Sequential(*(nn.Linear(32, 32) for _ in range(behind - 1)), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.view(-1, 4, 4)).relu()
        return self.rest(self.pool(self.query.expand(len(x), -1, -1), x, x, need_weights=False)[0][:, 0])


@pytest.mark.parametrize(("layers", "said"), [(2, []), (3, ["missing_activation"])])
def test_the_output_projection_of_attention_is_none_of_the_layers_in_a_row(layers: int, said: list[str]) -> None:
    assert alarms(Pooled(layers)) == said


@pytest.mark.parametrize("model", [nn.Linear(16, 4), mlp(16, 2, 4, act=nn.Identity)])
def test_one_layer_and_a_bottleneck_are_silent(model: nn.Module) -> None:
    assert alarms(model) == []


class ThrownAway(nn.Module):
    """Three layers; a result of an activation may be lost."""

    def __init__(self, lost: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)])
        self.lost = lost

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            if self.lost == "in_place":
                F.relu(x, inplace=True)
            elif self.lost == "both" or (self.lost == "second" and i == 1):
                F.relu(x)
            elif self.lost == "told":
                self.firing = (F.relu(x) > 0).float().mean()
                x = x.tanh()
            else:
                x = F.relu(x)
        return self.layers[-1](x)


@pytest.mark.parametrize("lost", ["both", "second"])
def test_an_activation_whose_result_is_thrown_away_is_missing(lost: str) -> None:
    assert alarms(ThrownAway(lost)) == ["missing_activation"]


@pytest.mark.parametrize("lost", ["", "in_place", "told"])
def test_an_activation_in_place_or_for_a_log_is_not(lost: str) -> None:
    assert alarms(ThrownAway(lost)) == []


@pytest.mark.parametrize(("act", "said"), [(nn.Identity, ["missing_activation"]), (nn.ReLU, [])])
def test_a_mean_over_a_set_does_not_bend_a_row_of_layers(act: type[nn.Module], said: list[str]) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.each = nn.Sequential(nn.Linear(4, 32), act(), nn.Linear(32, 32), act())
            self.all = mlp(32, 32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.all(self.each(x.unflatten(1, (4, 4))).mean(1))

    assert alarms(Pooled()) == said
