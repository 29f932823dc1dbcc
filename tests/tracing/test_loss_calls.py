"""Which losses a step computed: torch's own, and differences written by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_training.diagnosis.evidence import collect
from lit_training.tracing.probe import Probe
from tests.diagnosis.rules.looking import alarms, mlp, numbers

SQUARES = {
    "mse_loss": F.mse_loss,
    "pow": lambda output, target: ((output - target) ** 2).mean(),
    "square": lambda output, target: (target - output).square().sum() / 32,
    "product": lambda output, target: (lambda away: (away * away).mean())(output - target),
    "reshaped": lambda output, target: ((output.squeeze(1) - target[:, 0]) ** 2).mean(),
}
SIZES = {"l1_loss": F.l1_loss, "abs": lambda output, target: (output - target).abs().mean()}


def calls(loss, net: nn.Module | None = None):
    net, (x, y) = net or mlp(16, 8, 1), numbers()
    with Probe(net, len(x), (x, y)) as probe:
        loss(net(x), y).backward()
    return collect(probe).losses, net(x).detach(), y


@pytest.mark.parametrize("name", [*SQUARES, *SIZES])
def test_differences_from_the_targets_are_losses(name: str) -> None:
    found, output, y = calls((SQUARES | SIZES)[name])
    op = "mse_loss" if name in SQUARES else "l1_loss"
    reference = getattr(F, op)
    assert [call.op for call in found] == [op]
    assert found[0].value == pytest.approx(float(reference(output, y)))
    assert found[0].constant == pytest.approx(float(reference(y.mean(0).expand_as(y), y)))
    assert found[0].target_range == pytest.approx((float(y.min()), float(y.max())))


@pytest.mark.parametrize(
    "loss",
    [
        F.huber_loss,
        lambda output, target: F.huber_loss(output, target, delta=0.3),
        F.smooth_l1_loss,
        lambda output, target: F.smooth_l1_loss(output, target, beta=0.3),
    ],
)
def test_what_the_mean_would_cost_is_known_of_losses_that_bend(loss) -> None:
    found, _, y = calls(loss)
    assert found[0].constant == pytest.approx(float(loss(y.mean(0).expand_as(y), y)))


def test_a_difference_that_the_network_goes_on_with_is_no_loss() -> None:
    class Residue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.head = mlp(16, 8, 16), nn.Linear(16, 1)

        def forward(self, x):
            return self.head((x - self.model(x)).abs())

    assert [call.op for call in calls(F.mse_loss, Residue())[0]] == ["mse_loss"]


def test_what_is_not_compared_with_the_batch_is_no_loss_of_its_own() -> None:
    found, *_ = calls(lambda output, target: ((output.norm() - 1) ** 2) + ((output - output.mean()) ** 2).mean())
    assert found == ()


@pytest.mark.parametrize("name", [*SQUARES, *SIZES])
def test_an_end_that_cannot_reach_the_targets_is_seen_however_the_loss_is_written(name: str) -> None:
    assert alarms(mlp(16, 8, 1).append(nn.Sigmoid()), numbers(), (SQUARES | SIZES)[name]) == ["wrong_last_activation"]
    assert alarms(mlp(16, 8, 1), numbers(), (SQUARES | SIZES)[name]) == []
    assert "loss_sign" in alarms(mlp(16, 8, 1), numbers(), lambda output, target: -(SQUARES | SIZES)[name](output, target))


def test_an_empty_target_is_described() -> None:
    net = nn.Linear(3, 2)
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    with Probe(net, 4, (x, y)) as probe:
        F.mse_loss(net(x)[:0], y[:0], reduction="sum").backward()
    assert collect(probe).losses[0].target_range == (0.0, 0.0)


BLANKS = [
    ((1, 2), {}, None),
    ((0, 2), {}, 0),
    ((4, 2), {"blank": 4}, 4),
    ((0, 2), {"blank": 4}, None),
    ((0, 2), {"zero_infinity": True}, 0),
]


@pytest.mark.parametrize("tensors", [True, False])
@pytest.mark.parametrize("in_a_row", [True, False])
@pytest.mark.parametrize(("labels", "options", "blank"), BLANKS)
def test_a_label_that_is_the_blank_of_ctc_is_seen(labels, options, blank, tensors: bool, in_a_row: bool) -> None:
    """Of the second sample one label counts, what pads it is the blank."""
    net, x = nn.Linear(3, 5), torch.randn(6, 2, 3)
    rows = torch.tensor([labels, (3, options.get("blank", 0))])
    targets = rows.flatten()[:3] if in_a_row else rows
    lengths = [[6, 6], [2, 1]]
    with Probe(net, 2, (x, targets)) as probe:
        F.ctc_loss(net(x).log_softmax(2), targets, *(map(torch.tensor, lengths) if tensors else lengths), **options).backward()
    assert [call.blank for call in collect(probe).losses] == [blank]
