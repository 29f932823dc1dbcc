"""Whether outputs that are maps hold mirror images of their targets."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics
from lit_training.diagnosis.experiments import Call
from lit_training.diagnosis.mirrors import MappedSamples, mirror, turn
from lit_training.diagnosis.rules.mirrored import turned_apart, turned_targets


def blots(n: int = 64, size: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = F.avg_pool2d(torch.randn(n, 1, size, size, generator=generator), 3, 1, 1)
    return (noise > 0.25).float()


@pytest.mark.parametrize(("dims", "way"), [((-1,), "left and right"), ((-2,), "top and bottom"), ((-2, -1), "both ways")])
@pytest.mark.parametrize("part", [0.25, 0.5])
def test_the_share_of_mirrored_targets_is_measured(dims: tuple[int, ...], way: str, part: float) -> None:
    targets = blots()
    found = mirror(3 * ((1 - part) * targets + part * targets.flip(dims)) - 1, targets)
    assert found is not None
    assert found.way == way
    assert found.share == pytest.approx(part / (1 - part))
    assert found.correlation == pytest.approx(1.0)


def test_errors_that_have_nothing_to_do_with_mirrors_are_silent() -> None:
    targets = blots()
    noisy = targets + 0.5 * torch.randn(targets.shape, generator=torch.Generator().manual_seed(1))
    assert turned_apart(mirror(noisy, targets), 1) == []
    assert turned_apart(mirror(torch.randn(targets.shape), targets), 1) == []


def test_a_part_of_the_mirrored_targets_is_not_enough() -> None:
    targets = blots()
    found = mirror(targets + 0.2 * targets.flip(-1), targets)
    assert found is not None
    assert found.correlation > 0.9
    assert turned_apart(found, 1) == []


def test_symmetric_targets_tell_nothing() -> None:
    targets = blots()
    symmetric = (targets + targets.flip(-1) + targets.flip(-2) + targets.flip(-1, -2)) / 4
    assert mirror(symmetric, symmetric) is None


class Together(LitModule):
    """Pictures and masks are flipped in the training step, so that the loss's masks are not the loader's."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        flipped = [part.flip(-1) for part in batch]
        return super().training_step(flipped, batch_idx)


def trained(
    x: Tensor, y: Tensor, loss: str | nn.Module, channels: int = 1, batch_size: int = 32, kind: type[LitModule] = LitModule
) -> Diagnostics:
    torch.manual_seed(0)
    layers = [part for _ in range(3) for part in (nn.LazyConv2d(16, 3, padding=1), nn.ReLU())]
    watch = Diagnostics(verbose=False)
    net = nn.Sequential(*layers, nn.LazyConv2d(channels, 1))
    net(x[:1])
    trainer = pl.Trainer(max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[watch])  # fmt: skip
    trainer.fit(kind(net, loss=loss, lr=0.1, metrics=[]), DataLoader(TensorDataset(x, y), batch_size, shuffle=True))
    return watch


def test_samples_are_few_and_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[MappedSamples] = []
    look = MappedSamples.mirror
    monkeypatch.setattr(MappedSamples, "mirror", lambda self: kept.append(self) or look(self))
    masks = blots(128)
    watch = trained(masks, masks, nn.BCEWithLogitsLoss(), batch_size=100)
    assert [len(each.targets) for each in kept] == [64]
    assert watch.auditor.mapped is None
    assert watch.losses.mapped is None


def test_masks_that_the_step_flips_with_their_pictures_are_silent() -> None:
    masks = blots(512)
    pictures = 2 * masks - 1 + 0.3 * torch.randn(masks.shape, generator=torch.Generator().manual_seed(2))
    assert trained(pictures, masks, nn.BCEWithLogitsLoss(), kind=Together).findings == []


class Uncopied(nn.Conv2d):
    def __deepcopy__(self, memo: dict[int, object]) -> "Uncopied":
        raise RuntimeError("cannot be copied")


def test_a_network_that_cannot_be_copied_is_left_alone() -> None:
    masks = blots(16)
    assert MappedSamples(Call("", Uncopied(1, 1, 1), (masks,), {}), masks).mirror() is None


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize(("alone", "said"), [(True, ["labels_broken"]), (False, [])])
def test_pictures_that_are_flipped_without_their_masks_are_found(alone: bool, said: list[str], labels: bool) -> None:
    masks = blots(512)
    pictures = 2 * masks - 1 + 0.3 * torch.randn(masks.shape, generator=torch.Generator().manual_seed(2))
    odd = (torch.arange(512) % 2 == 1)[:, None, None, None]
    pictures = torch.where(odd, pictures.flip(-1), pictures)
    masks = masks if alone else torch.where(odd, masks.flip(-1), masks)
    if labels:
        watch = trained(pictures, masks[:, 0].long(), "cross_entropy", channels=2)
    else:
        watch = trained(pictures, masks, nn.BCEWithLogitsLoss())
    assert [finding.rule for finding in watch.findings if finding.severity != "note"] == said


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.Flatten(0)])
def test_outputs_of_another_size_than_the_labels_tell_nothing(pool: nn.Module) -> None:
    """As a segmentation whose logits are enlarged in the training step."""
    network, pictures = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), pool), blots(16)
    samples = MappedSamples(Call("", network, (pictures,), {}), pictures[:, 0].long())
    assert samples.mirror() is None


@pytest.mark.parametrize(
    ("shown", "way"),
    [
        (lambda x: x.transpose(-1, -2), "rows for columns"),
        (lambda x: x.flip(-1), "left and right"),
        (lambda x: x.rot90(1, (-2, -1)), "a quarter to the left"),
        (lambda x: -x.flip(-2), "top and bottom"),
    ],
)
def test_pictures_that_are_turned_against_their_masks_are_found(shown, way: str) -> None:
    masks = blots()
    pictures = torch.cat([torch.randn(masks.shape, generator=torch.Generator().manual_seed(2)), shown(masks)], 1)
    found = turn(pictures, masks)
    assert found.way == way
    assert [f.rule for f in turned_targets(found, 1)] == ["labels_broken"]


def test_pictures_and_masks_that_fit_as_they_are_or_not_at_all_are_silent() -> None:
    masks = blots()
    noise = torch.randn(masks.shape, generator=torch.Generator().manual_seed(3))
    assert turned_targets(turn(1 - masks + noise, masks), 1) == []
    assert turned_targets(turn(noise, masks), 1) == []
    assert turned_targets(turn(masks + masks.flip(-1), masks), 1) == []
