"""Rules about targets on a run of Lightning: each fault, and what looks like it and is none."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from lit_training import LitModule
from lit_training.callbacks import Diagnostics
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rules.imbalance import learned_anyway

RULES = ["labels_broken", "data_not_shuffled", "class_imbalance", "unnormalised_target", "train_val_mismatch", "bad_data"]


def found(x: Tensor, y: Tensor, *, loss="cross_entropy", outputs: int = 4, val=None, steps: int = 12, lr: float = 0.01,
          optimizer=None, **loading) -> list[str]:  # fmt: skip
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, outputs), *([nn.Flatten(0)] if outputs == 1 else [])
    )
    watch = Diagnostics(verbose=False, select=RULES)
    options = {} if optimizer is None else {"optimizer": optimizer}
    trainer = pl.Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[watch])  # fmt: skip
    loading = {"shuffle": True} | loading if "sampler" not in loading else loading
    val_loader = None if val is None else DataLoader(TensorDataset(*val), 32)
    module = LitModule(net, loss=loss, lr=lr, metrics=[], **options)
    trainer.fit(module, DataLoader(TensorDataset(x, y), 32, **loading), val_loader)
    return [finding.rule for finding in watch.findings if finding.severity != "note"]


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    y = torch.randint(4, (512,))
    return torch.randn(512, 6) + y[:, None], y


@pytest.mark.parametrize(("weight", "said"), [([1.0, 1.0], ["class_imbalance"]), ([1.0, 30.0], [])])
def test_weights_that_are_all_alike_are_none(weight: list[float], said: list[str]) -> None:
    torch.manual_seed(1)
    y = (torch.rand(512) < 0.04).long()
    loss = nn.CrossEntropyLoss(torch.tensor(weight))
    assert found(torch.randn(512, 6) + y[:, None], y, loss=loss, outputs=2) == said


def test_healthy_labels_are_silent(data) -> None:
    x, y = data
    assert found(x, y, val=(x[:64], y[:64])) == []


@pytest.mark.parametrize("descending", [False, True])
def test_sorted_labels_are_not_shuffled(data, descending: bool) -> None:
    x, y = data
    order = y.argsort(descending=descending)
    assert found(x[order], y[order], shuffle=False) == ["data_not_shuffled"]
    assert found(x[order], y[order]) == []


def log_cosh(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).cosh().log().mean()


def test_order_is_seen_under_losses_that_are_not_torchs(data) -> None:
    x, _ = data
    y = x.sum(1) + 0.1 * torch.randn(len(x))
    order = y.argsort()
    assert found(x[order], y[order], loss=log_cosh, outputs=1, shuffle=False) == ["data_not_shuffled"]
    assert found(x[order], y[order], loss=log_cosh, outputs=1) == []
    assert found(x, torch.zeros(len(x)), loss=log_cosh, outputs=1) == []  # what all targets being alike means, is not known


def test_blocks_of_two_classes_are_not_shuffled_though_no_batch_is_sorted(data) -> None:
    x, y = data
    y = (torch.arange(512) // 48) % 4
    assert found(x, y, shuffle=False) == ["data_not_shuffled"]


def test_reading_in_order_is_fine_if_the_order_is_random_or_balanced(data) -> None:
    x, y = data
    assert found(x, y, shuffle=False) == []
    assert found(x, torch.arange(512) % 4, shuffle=False) == []


def test_sorted_numbers_are_not_shuffled(data) -> None:
    x, _ = data
    y = x[:, 0].sort().values
    assert found(x, y, loss="mse", outputs=1, shuffle=False) == ["data_not_shuffled"]
    assert found(x, y, loss="mse", outputs=1) == []


def test_labels_that_are_all_alike_are_broken_if_shuffled(data) -> None:
    x, y = data
    assert found(x, torch.zeros_like(y)) == ["labels_broken"]
    assert found(x, torch.zeros_like(y), shuffle=False) == ["data_not_shuffled"]


def test_labels_that_the_loss_ignores_are_broken(data) -> None:
    x, y = data
    mostly = torch.where(torch.arange(512) % 16 == 0, y, -100)
    half = torch.where(torch.arange(512) % 2 == 0, y, -100)
    assert found(x, mostly) == ["labels_broken"]
    assert found(x, half) == []


def test_numbers_that_are_nearly_all_zero_are_broken(data) -> None:
    x, _ = data
    y = x[:, 0]
    assert found(x, (0.2 * y).trunc() * (y > 5), loss="mse", outputs=1) == ["labels_broken"]
    assert found(x, y.clamp_min(float(y.median())), loss="mse", outputs=1) == []


class Plain(pl.LightningModule):
    """A module that is not ours, which refuses nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0))

    def training_step(self, batch, batch_idx):
        return nn.functional.binary_cross_entropy_with_logits(self.layers(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.parametrize(("low", "high", "broken"), [(-1, 1, True), (0, 255, True), (0, 1, False), (0.1, 0.9, False)])
def test_bce_takes_0_to_1(data, low: float, high: float, broken: bool) -> None:
    x, y = data
    watch = Diagnostics(verbose=False, select=["labels_broken"])
    loader = DataLoader(TensorDataset(x, torch.where(y % 2 == 0, low, high).float()), 32)
    pl.Trainer(max_steps=6, barebones=True, accelerator="cpu", callbacks=[watch]).fit(Plain(), loader)
    assert [finding.rule for finding in watch.findings] == ["labels_broken"] * broken


def test_imbalance_is_named_unless_something_makes_up_for_it(data) -> None:
    x, _ = data
    y = (torch.rand(512) < 0.05).long()
    assert found(x, y, outputs=2) == ["class_imbalance"]
    assert found(x, y, outputs=2, loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 19.0]))) == []
    weights = torch.where(y == 1, 19.0, 1.0)
    assert found(x, y, outputs=2, sampler=WeightedRandomSampler(weights, 512)) == []
    assert found(x, (torch.rand(512) < 0.25).long(), outputs=2) == []


def test_targets_that_the_rate_does_not_fit_are_named(data) -> None:
    x, _ = data
    prices = 250_000 + 80_000 * x[:, 0]
    assert found(x, prices, loss="mse", outputs=1) == ["unnormalised_target"]
    assert found(x, prices, loss="mse", outputs=1, optimizer=torch.optim.Adam, lr=1e-3) == ["unnormalised_target"]
    assert found(x, 20 + 8 * x[:, 0], loss="mse", outputs=1, optimizer=torch.optim.Adam, lr=1e-2, steps=400) == []
    assert found(x, x[:, 0], loss="mse", outputs=1) == []


def test_a_size_that_a_usual_rate_hardly_moves_and_one_that_it_cannot_tell_apart_are_named(data) -> None:
    x, _ = data
    adam = {"loss": "mse", "outputs": 1, "optimizer": torch.optim.Adam}
    assert found(x, 700 * x[:, 0], lr=1e-3, steps=250, **adam) == ["unnormalised_target"]
    assert found(x, 700 * x[:, 0], lr=1e-1, steps=250, **adam) == []
    assert found(x, 0.001 * x[:, 0], lr=4e-3, steps=250, **adam) == ["unnormalised_target"]
    assert found(x, 0.1 * x[:, 0], lr=4e-3, steps=250, **adam) == []


TWO = {
    "mse": ("mse", True),
    "by hand": (lambda output, target: ((output - target) ** 2).mean(), True),
    "a sum of two": (lambda o, t: F.mse_loss(o[:, 0], t[:, 0]) + F.mse_loss(o[:, 1], t[:, 1]), True),
    "absolute": ("l1", False),
    "weighted": (lambda output, target: ((output - target) ** 2 * torch.tensor([1.0, 1e-4])).mean(), False),
    "a weighted sum": (lambda o, t: F.mse_loss(o[:, 0], t[:, 0]) + 1e-4 * F.mse_loss(o[:, 1], t[:, 1]), False),
    "scaled": (lambda output, target: F.mse_loss(output, target / torch.tensor([1.0, 90.0])), False),
}


@pytest.mark.parametrize("way", TWO)
def test_a_target_that_has_next_to_nothing_of_a_squared_error_is_named(data, way: str) -> None:
    x, _ = data
    loss, named = TWO[way]
    metres_and_grams = x[:, :2] * torch.tensor([1.0, 90.0])
    steps = {"optimizer": torch.optim.Adam, "lr": 1e-2, "steps": 250}
    assert found(x, metres_and_grams, loss=loss, outputs=2, **steps) == (["unnormalised_target"] if named else [])
    assert found(x, x[:, :2] * torch.tensor([1.0, 9.0]), loss=loss, outputs=2, **steps) == []


@pytest.mark.parametrize(("size", "weight", "said"), [(300, 1.0, ["unnormalised_target"]), (300, 1e-4, []), (3, 1.0, [])])
def test_a_cross_entropy_that_drowns_in_the_error_that_it_is_added_to_is_named(data, size, weight, said) -> None:
    x, y = data

    def of_both(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output[:, :4], target[:, 0].long()) + weight * F.mse_loss(output[:, 4], target[:, 1])

    both = torch.stack([y.float(), size + size / 7 * x[:, 0]], 1)
    assert found(x, both, loss=of_both, outputs=5, optimizer=torch.optim.Adam, lr=2e-3, steps=250) == said


def test_yes_or_no_that_was_divided_once_more_is_no_answer_but_small_shares_are(data) -> None:
    x, y = data
    bce = {"loss": F.binary_cross_entropy_with_logits, "outputs": 1}
    assert found(x, (y > 1).float() / 255, **bce) == ["labels_broken"]
    assert found(x, 0.04 * torch.rand(512) * (y > 1), **bce) == []


def test_a_seldom_number_beside_a_large_one_is_left_alone(data) -> None:
    x, y = data
    seldom = torch.stack([0.5 * (y == 0), 90 * x[:, 0]], 1)
    assert found(x, seldom, loss="mse", outputs=2, optimizer=torch.optim.Adam, lr=1e-2, steps=250) == []


def test_rare_labels_that_are_learnt_all_the_same_are_a_note() -> None:
    found = [Finding("bad_data", "error"), Finding("class_imbalance", "warning"), Finding("labels_broken", "note")]
    assert [(f.rule, f.severity) for f in learned_anyway(found)] == [
        ("bad_data", "error"),
        ("class_imbalance", "note"),
        ("labels_broken", "note"),
    ]


def test_validation_that_is_scaled_otherwise_is_named(data) -> None:
    x, y = data
    assert found(x, y, val=(255 * x[:64], y[:64])) == ["train_val_mismatch"]
    assert found(x, y, val=(x[:64] + 10, y[:64])) == ["train_val_mismatch"]
    assert found(x, y, val=(1.3 * x[:64] + 0.3, y[:64])) == []


def test_validation_in_the_order_of_time_need_not_look_like_all_of_training(data) -> None:
    _, y = data
    season = 2 * torch.linspace(0, 12, 512).sin()[:, None] + 0.1 * torch.randn(512, 6)
    later = season[100:164]  # one slope of the wave
    assert found(season, y, val=(later + 3, y[:64])) == []
    assert found(season, y, val=(later[torch.randperm(64)] + 3, y[:64])) == ["train_val_mismatch"]
    assert found(season, y, val=(255 * later + 1000, y[:64])) == ["train_val_mismatch"]


def test_other_shares_of_yes_and_no_are_no_other_scale(data) -> None:
    x, _ = data
    train, val = (torch.arange(n) % every == 0 for n, every in ((512, 2), (64, 32)))
    assert found(x, train.float(), val=(x[:64], val.float()), loss="mse", outputs=1) == []
    assert found(x, train.float(), val=(x[:64], 50 * val.float()), loss="mse", outputs=1) == ["train_val_mismatch"]


def test_outliers_alone_are_no_other_scale(data) -> None:
    x, y = data
    amounts = x.clone()
    amounts[:64:16] *= 50
    assert found(x, y, val=(amounts[:64], y[:64])) == []


def test_outliers_that_only_training_has_are_bad_data(data) -> None:
    x, y = data
    glitches = torch.where(torch.rand(x.shape) < 0.03, 500.0, x)
    assert found(glitches, y, val=(x[:64], y[:64])) == ["bad_data"]
    assert found(x.exp().exp().clamp(max=50), y, val=(x[:64].exp().exp().clamp(max=50), y[:64])) == []


class OnlyInTraining(LitModule):
    """Centres pictures of 100 to 110 in one of its two steps."""

    both = False

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0] - 105, batch[1]), batch_idx)

    def validation_step(self, batch, batch_idx):
        return super().validation_step((batch[0] - 105 * self.both, batch[1]), batch_idx)


@pytest.mark.parametrize(("both", "rules"), [(False, ["train_val_mismatch"]), (True, [])])
def test_what_only_the_training_step_does_to_a_batch_is_named(data, both: bool, rules: list[str]) -> None:
    x, y = data
    module = OnlyInTraining(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)), metrics=[])
    module.both = both
    watch = Diagnostics(verbose=False, select=RULES)
    loader = DataLoader(TensorDataset(x / x.std() + 105, y), 32, shuffle=True)
    pl.Trainer(max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
               enable_model_summary=False, callbacks=[watch]).fit(module, loader, loader)  # fmt: skip
    assert [finding.rule for finding in watch.findings if finding.severity != "note"] == rules
    assert not module.network._forward_pre_hooks


def test_the_first_validation_batch_changes_nothing(data) -> None:
    x, y = data
    weights = []
    for callbacks in ([], [Diagnostics(verbose=False)]):
        pl.seed_everything(0, verbose=False)
        module = LitModule(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4)))
        trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                             callbacks=callbacks)  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(x, y), 32, shuffle=True), DataLoader(TensorDataset(x, y), 32))
        weights.append([p.detach().clone() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_sorted_set_that_begins_with_one_class_and_a_few_of_the_next_is_not_shuffled(data) -> None:
    x, y = data
    y = (torch.arange(512) >= 122).long()
    assert found(x, y, shuffle=False, outputs=2) == ["data_not_shuffled"]
    y = (torch.arange(512) % 16 == 3).long()
    assert found(x, y, shuffle=False, outputs=2) == ["class_imbalance"]


def test_numbers_are_nothing_for_bce() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(256, 6), torch.randn(256)
    watch = Diagnostics(verbose=False)
    trainer = pl.Trainer(max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[watch])  # fmt: skip
    asks = lambda output, target: nn.functional.binary_cross_entropy_with_logits(output, target)  # noqa: E731
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0))
    trainer.fit(
        LitModule(net, loss=asks, lr=0.01, metrics=[]),
        DataLoader(TensorDataset(x, y), 32),
    )
    assert next(finding.rule for finding in watch.findings if finding.severity != "note") == "wrong_loss"


def test_targets_far_from_zero_for_their_spread_are_unnormalised() -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 6)
    assert found(x, 300 + x[:, 0], loss="mse", outputs=1, lr=1e-4) == ["unnormalised_target"]
    assert found(x, 20 + x[:, 0], loss="mse", outputs=1, lr=1e-4) == []


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
