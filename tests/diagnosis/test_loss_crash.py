"""A first step that raises in its loss, or in the backward pass, is explained."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lit_training.callbacks import Diagnostics
from lit_training.diagnosis.loss_crash import explain_loss_crash
from tests.diagnosis.rules.looking import mlp

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 4


class Fit(pl.LightningModule):
    def __init__(self, loss, outputs: int) -> None:
        super().__init__()
        self.model, self.loss = mlp(16, 8, outputs), loss

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return self.loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def crash(loss, y: Tensor = Y, outputs: int = 4) -> list[tuple[str, str]]:
    watch = Diagnostics(verbose=False)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[watch])  # fmt: skip
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        trainer.fit(Fit(loss, outputs), DataLoader(TensorDataset(X, y), 16))
    return [(finding.rule, finding.message) for finding in watch.findings if finding.severity != "note"]


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (Y + 1, "go from 1 to 4, cross_entropy of 4 classes takes 0 to 3"),
        (Y - 1, "go from -1 to 2"),
        (Y.float(), "labels of type torch.float32"),
        (F.one_hot(Y, 4), "of the outputs' own shape"),
        (Y[:, None], "it takes (16,)"),
    ],
)
def test_labels_that_cross_entropy_cannot_take_are_broken(y: Tensor, said: str) -> None:
    ((rule, message),) = crash(F.cross_entropy, y)
    assert rule == "labels_broken"
    assert said in message


def test_a_bad_label_in_a_later_batch_is_explained_too() -> None:
    ((rule, message),) = crash(F.cross_entropy, torch.where(torch.arange(64) == 50, 7, Y))
    assert rule == "labels_broken"
    assert "go from 0 to 7" in message


@pytest.mark.parametrize(
    ("loss", "y", "rule"),
    [
        (F.binary_cross_entropy_with_logits, (Y > 1).long()[:, None], "labels_broken"),
        (F.binary_cross_entropy_with_logits, (Y > 1).float(), "shape_broadcast"),
        (F.binary_cross_entropy, (Y > 1).float()[:, None], "wrong_loss"),
    ],
)
def test_what_binary_cross_entropy_cannot_take_is_named(loss, y: Tensor, rule: str) -> None:
    assert [found for found, _ in crash(loss, y, outputs=1)] == [rule]


def test_a_loss_of_several_numbers_is_not_reduced() -> None:
    assert [rule for rule, _ in crash(lambda output, y: F.cross_entropy(output, y, reduction="none"))] == ["loss_reduction"]


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (lambda output, y: F.cross_entropy(output.detach(), y), "is cut off by .detach()"),
        (lambda output, y: F.mse_loss(output.argmax(1).float(), y.float()), "goes through argmax"),
        (lambda output, y: F.cross_entropy(output, y).detach(), "is cut off by .detach()"),
        (lambda output, y: torch.tensor(F.cross_entropy(output, y).item()), "a new tensor without a history"),
    ],
)
def test_a_loss_without_a_gradient_is_cut_off_somewhere(cut, said: str) -> None:
    ((rule, message),) = crash(cut)
    assert rule == "detached_subgraph"
    assert said in message


@pytest.mark.parametrize(("output", "said"), [((3, 5, 4), "movedim"), ((2, 4, 5), "(N, classes, ...)")])
def test_classes_in_the_wrong_dimension_are_named(output: tuple[int, ...], said: str) -> None:
    with pytest.raises((RuntimeError, ValueError)) as error:
        F.cross_entropy(torch.zeros(output), torch.zeros(3, 5, dtype=torch.long))
    (found,) = explain_loss_crash(error.value)
    assert found.rule == "shape_broadcast"
    assert said in found.advice


def test_errors_that_have_nothing_to_do_with_a_loss_are_left_alone() -> None:
    assert explain_loss_crash(ValueError("mine")) == []
    with pytest.raises(ValueError, match="not a valid value") as error:
        F.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), reduction="average")
    assert explain_loss_crash(error.value) == []
