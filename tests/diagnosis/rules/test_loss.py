"""What the loss is made for: log-probabilities, several labels, all outputs."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.diagnosis.rules.looking import Loss, adam, alarms, mlp, vectors


def connectionist(last: Callable[[Tensor], Tensor], padded: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        steps = last(output.view(len(y), 10, 4)).transpose(0, 1)
        if padded:
            steps = torch.cat([steps, torch.zeros_like(steps)])
        lengths = torch.full((len(y),), 10)
        return F.ctc_loss(steps, 1 + y[:, None] % 3, lengths, torch.ones_like(lengths))

    return loss


def test_ctc_takes_log_probabilities() -> None:
    model = mlp(16, 32, 40)
    assert alarms(model, loss=connectionist(lambda z: z.softmax(-1)), optimizer=adam) == ["wrong_loss"]
    assert alarms(model, loss=connectionist(lambda z: z), optimizer=adam) == ["wrong_loss"]
    assert alarms(model, loss=connectionist(lambda z: z.log_softmax(-1)), optimizer=adam) == []
    assert alarms(model, loss=connectionist(lambda z: z.log_softmax(-1), padded=True), optimizer=adam) == []


@pytest.mark.parametrize(("heard", "said"), [(slice(2, 3), ["wrong_loss"]), (slice(None), [])])
def test_outputs_that_the_loss_leaves_out_are_found(heard: slice, said: list[str]) -> None:
    x, _ = vectors()
    y = (x[:, :3] > 0).float()
    assert alarms(mlp(16, 32, 3), (x, y), lambda z, y: F.binary_cross_entropy_with_logits(z[:, heard], y[:, heard])) == said


@pytest.mark.parametrize(
    ("loss", "said"),
    [(F.cross_entropy, ["wrong_loss"]), (lambda z, y: -(z.log_softmax(1) * y).sum(1).mean(), [])],
)
def test_a_multinomial_likelihood_that_is_written_out_is_meant(loss: Loss, said: list[str]) -> None:
    x, _ = vectors()
    assert alarms(mlp(16, 32, 8), (x, (x[:, :8] > 0).float()), loss) == said
