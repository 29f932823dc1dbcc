"""What a GPU would only assert is refused as the CPU does."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from lit_training.tracing.device_asserts import Refusing

SCORES, PIXELS = torch.zeros(3, 4).log_softmax(1), torch.zeros(1, 4, 2, 2).log_softmax(1)


@pytest.fixture(params=["grad", "inference"], autouse=True)
def _refusing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    with torch.inference_mode(request.param == "inference"), Refusing():
        yield


@pytest.mark.parametrize(
    ("call", "bad"),
    [
        (lambda i: F.embedding(torch.tensor([0, i]), torch.zeros(5, 2)), 5),
        (lambda i: F.embedding(torch.tensor([0, i]), torch.zeros(5, 2)), -1),
        (lambda i: F.embedding_bag(torch.tensor([[0, i]]), torch.zeros(5, 2)), 5),
        (lambda i: F.nll_loss(SCORES, torch.tensor([0, i, 1])), 4),
        (lambda i: F.nll_loss(SCORES[0], torch.tensor(i)), 4),
        (lambda i: F.cross_entropy(SCORES, torch.tensor([0, i, 1])), -1),
        (lambda i: F.nll_loss(PIXELS, torch.tensor([[[0, i], [1, 2]]])), 7),
    ],
)
def test_what_is_out_of_range_is_refused_and_named(call, bad: int) -> None:
    call(3)
    with pytest.raises(IndexError, match=rf"{bad} is out of (range|bounds): .* (5 rows|4 classes)"):
        call(bad)


def test_an_ignored_label_may_be_any_number() -> None:
    F.cross_entropy(SCORES, torch.tensor([0, -100, 1]))
    F.cross_entropy(SCORES, torch.tensor([0, 255, 1]), ignore_index=255)
    with pytest.raises(IndexError, match="-100 is out of bounds"):
        F.cross_entropy(SCORES, torch.tensor([0, -100, 1]), ignore_index=255)


def test_probabilities_are_no_labels() -> None:
    F.cross_entropy(SCORES, torch.full((3, 4), 7.0))
