"""CTC's lengths are where its log-probabilities are while operations are recorded, and nowhere else."""

import pytest
import torch
import torch.nn.functional as F

from lit_training.tracing.trace import Tracer


def test_lengths_are_brought_to_the_log_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(torch, "ctc_loss", lambda *args: given.append([x.device.type for x in args[:4]]))
    arguments = torch.zeros(4, 1, 3, device="meta"), torch.ones(1, 2), torch.tensor([4]), torch.tensor([2])
    with Tracer(torch.nn.Identity()):
        F.ctc_loss(*arguments)
    F.ctc_loss(*arguments)
    assert given == [["meta", "cpu", "meta", "meta"], ["meta", "cpu", "cpu", "cpu"]]


@pytest.mark.parametrize("kind", [torch.tensor, list])
def test_the_loss_is_the_same_while_it_is_watched(kind) -> None:
    scores = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    arguments = scores, torch.tensor([[1, 2], [3, 1]]), kind([6, 5]), kind([2, 1])
    with Tracer(torch.nn.Identity()) as tracer:
        watched = F.ctc_loss(*arguments)
    assert torch.equal(watched, F.ctc_loss(*arguments))
    assert "_ctc_loss" in {node.op for node in tracer.graph.nodes}
