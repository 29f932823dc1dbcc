"""Labels of which some are rare."""

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from lit_training import LitModule
from lit_training.callbacks import Diagnostics
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rules.imbalance import learned_anyway
from tests.diagnosis.rules.fitting import RULES, found
from tests.diagnosis.rules.looking import findings, mlp


@pytest.mark.parametrize(("weight", "said"), [([1.0, 1.0], ["class_imbalance"]), ([1.0, 30.0], [])])
def test_weights_that_are_all_alike_are_none(weight: list[float], said: list[str]) -> None:
    torch.manual_seed(1)
    y = (torch.rand(512) < 0.04).long()
    loss = nn.CrossEntropyLoss(torch.tensor(weight))
    assert found(torch.randn(512, 6) + y[:, None], y, loss=loss, outputs=2) == said


@pytest.mark.parametrize(("power", "said"), [(1.0, ["class_imbalance"]), (-1.0, []), (0.0, []), (0.3, [])])
def test_class_weights_that_grow_with_the_labels_are_named(power: float, said: list[str]) -> None:
    torch.manual_seed(1)
    counts = torch.tensor([5.0, 2.0, 1.0])
    y = torch.multinomial(counts, 512, replacement=True)
    loss = nn.CrossEntropyLoss(counts**power)
    assert found(torch.randn(512, 6) + y[:, None], y, loss=loss, outputs=3) == said


def test_imbalance_is_named_unless_something_makes_up_for_it(data) -> None:
    x, _ = data
    y = (torch.rand(512) < 0.05).long()
    assert found(x, y, outputs=2) == ["class_imbalance"]
    assert found(x, y, outputs=2, loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 19.0]))) == []
    weights = torch.where(y == 1, 19.0, 1.0)
    assert found(x, y, outputs=2, sampler=WeightedRandomSampler(weights, 512)) == []
    assert found(x, (torch.rand(512) < 0.25).long(), outputs=2) == []


@pytest.mark.parametrize(("outputs", "said"), [(2, []), (3, ["class_imbalance"])])
def test_one_in_eleven_of_two_is_a_usual_scorecard(outputs: int, said: list[str]) -> None:
    rows = torch.arange(902)
    y = torch.where(rows % 11 == 0, 1 + rows % (outputs - 1), 0)
    assert found(torch.randn(902, 6), y, outputs=outputs, shuffle=False) == said


def test_rare_labels_that_are_learnt_all_the_same_are_a_note() -> None:
    found = [Finding("bad_data", "error"), Finding("class_imbalance", "warning"), Finding("labels_broken", "note")]
    assert [(f.rule, f.severity) for f in learned_anyway(found)] == [
        ("bad_data", "error"),
        ("class_imbalance", "note"),
        ("labels_broken", "note"),
    ]


def of_pixels(share: float, loss, *, classes: int = 1) -> list[str]:
    torch.manual_seed(0)
    x = torch.randn(64, 1, 16, 16)
    y = (torch.rand(64, 1, 16, 16) < share).float()
    data = TensorDataset(x, y if classes == 1 else y[:, 0].long())
    watch = Diagnostics(verbose=False, select=RULES)
    trainer = pl.Trainer(max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[watch])  # fmt: skip
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, classes, 3, padding=1))
    trainer.fit(LitModule(net, loss=loss, lr=0.01, metrics=[]), DataLoader(data, 16, shuffle=True))
    return [finding.rule for finding in watch.findings if finding.severity != "note"]


def weighted(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(output, target, pos_weight=torch.tensor(40.0))


def with_dice(output: Tensor, target: Tensor) -> Tensor:
    p = output.sigmoid()
    overlap = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    return nn.functional.binary_cross_entropy_with_logits(output, target) + overlap


def test_pixels_that_are_nearly_all_background_are_imbalanced_unless_the_loss_makes_up_for_it() -> None:
    plain = lambda output, target: nn.functional.binary_cross_entropy_with_logits(output, target)  # noqa: E731
    by_class = lambda output, target: nn.functional.cross_entropy(output, target)  # noqa: E731
    assert of_pixels(0.02, plain) == ["class_imbalance"]
    assert of_pixels(0.02, by_class, classes=2) == ["class_imbalance"]
    assert of_pixels(0.1, plain) == of_pixels(0.1, by_class, classes=2) == []
    assert of_pixels(0.02, weighted) == of_pixels(0.02, with_dice) == []


@pytest.mark.parametrize(("weight", "said"), [(1 / 19, True), (19.0, False)])
def test_rare_positives_are_not_to_weigh_less(weight: float, said: bool) -> None:
    x, y = torch.randn(200, 16), (torch.arange(200) % 20 == 0).float()[:, None]
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([weight]))
    told = [f for f in findings(mlp(16, 32, 1), (x, y), loss) if f.rule == "class_imbalance"]
    assert [f.severity for f in told] == (["error"] if said else [])


@pytest.mark.parametrize(("weight", "said"), [(0.2, []), (0.0, ["class_imbalance"])])
def test_a_rank_loss_of_the_same_logits_makes_up_for_imbalance(weight: float, said: list[str]) -> None:
    torch.manual_seed(1)
    y = (torch.rand(512) < 0.06).float()[:, None]

    def loss(z: Tensor, y: Tensor) -> Tensor:
        apart = z[y > 0.5][:, None] - z[y < 0.5][None]
        other = nn.functional.softplus(-apart).mean() if weight and apart.numel() else z.square().mean()
        return nn.functional.binary_cross_entropy_with_logits(z, y) + max(weight, 0.01) * other

    assert found(torch.randn(512, 6) + y, y, loss=lambda z, y: loss(z[:, None], y), outputs=1) == said
