"""`InitAuditor` where mixed precision scales the loss: a CPU's GradScaler does what a GPU's does."""

from collections.abc import Callable

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lit_training.callbacks import InitAuditor
from tests.diagnosis.rules.looking import mlp

G = torch.Generator().manual_seed(0)
X = torch.randn(512, 16, generator=G)
Y = (X[:, :4] + 0.1 * torch.randn(512, 4, generator=G)).argmax(1)


def sgd(parameters) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


def fused(parameters) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, fused=True)


def adamw(parameters) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


class Fit(pl.LightningModule):
    def __init__(self, optimizer: Callable[..., Optimizer] = sgd) -> None:
        super().__init__()
        self.net, self.optimizer = mlp(16, 32, 32, 4), optimizer

    def training_step(self, batch: list[Tensor], _: int) -> Tensor | None:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Optimizer:
        return self.optimizer(self.parameters())


class EveryFourth(Fit):
    """Accumulates by hand, so that the first batch ends without a step, and its gradients scaled."""

    automatic_optimization = False

    def training_step(self, batch: list[Tensor], i: int) -> None:
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]) / 4)
        if i % 4 == 3:
            optimizer = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()


def audited(module: Fit, start: float = 2.0**16, target: Tensor = Y, **settings) -> tuple[InitAuditor, torch.amp.GradScaler]:
    scaler = torch.amp.GradScaler("cpu", init_scale=start)
    auditor = InitAuditor(verbose=False)
    settings = {"max_steps": 16, "barebones": True, "accelerator": "cpu"} | settings
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    pl.Trainer(callbacks=[auditor], plugins=[plugin], **settings).fit(module, DataLoader(TensorDataset(X, target), 16))
    return auditor, scaler


def loud(auditor: InitAuditor) -> list[str]:
    return [finding.rule for finding in auditor.findings if finding.severity != "note"]


@pytest.mark.parametrize("module", [Fit, EveryFourth])
@pytest.mark.parametrize("optimizer", [sgd, fused, adamw])
@pytest.mark.parametrize("start", [2.0**10, 2.0**16, 2.0**26])
def test_a_scaled_loss_is_judged_as_it_was(module: type[Fit], optimizer, start: float) -> None:
    auditor, _ = audited(module(optimizer), start)
    assert loud(auditor) == []
    assert auditor.report is not None
    assert auditor.report.loss == pytest.approx(1.4 if module is Fit else 0.35, rel=0.2)


class Watched(InitAuditor):
    """Keeps the weights that were there when it concluded."""

    def _collect(self, trainer, optimizer, step):
        self.at = {name: value.clone() for name, value in trainer.lightning_module.state_dict().items()}
        self.left_out = self._left_out._count
        return super()._collect(trainer, optimizer, step)


@pytest.mark.parametrize("optimizer", [sgd, fused])
def test_steps_that_are_left_out_are_not_the_first(optimizer) -> None:
    module, watch = Fit(optimizer), Watched(verbose=False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**26))
    pl.Trainer(callbacks=[watch], plugins=[plugin], max_steps=24, barebones=True, accelerator="cpu").fit(
        module, DataLoader(TensorDataset(X, Y), 16)
    )
    assert watch.left_out > 4
    torch.testing.assert_close(watch.at, before, rtol=0, atol=0)
    assert watch.report is not None
    assert all(0 < row.gradient_std < 1 for row in watch.report.layers)
    assert loud(watch) == []


class Overflowing(Fit):
    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1]) / (self.net[0].bias.sum() * 0)


def test_a_loss_that_is_no_number_is_judged_at_once() -> None:
    auditor, _ = audited(Overflowing(), max_steps=1)
    assert loud(auditor) == ["nan_loss"]


class Frozen(Fit):
    def configure_optimizers(self) -> Optimizer:
        self.net[0].requires_grad_(False)
        return self.optimizer([p for p in self.parameters() if p.requires_grad])


class Large(Fit):
    """Values that float16 cannot hold; or that grow until it cannot."""

    def __init__(self, growing: bool) -> None:
        super().__init__()
        self.net = mlp(16, *[32] * 12, 4) if growing else self.net
        with torch.no_grad():
            for weight in [layer.weight for layer in self.net if isinstance(layer, nn.Linear)]:
                weight.normal_() if growing else None
        self.factor = 1.0 if growing else 1e6

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self.net(self.factor * batch[0]), batch[1])


def test_values_that_float16_cannot_hold_are_told_from_broken_formulas() -> None:
    findings = audited(Large(growing=False))[0].findings
    (finding,) = [finding for finding in findings if finding.rule == "nan_loss" and finding.severity == "error"]
    assert "beyond 65504" in finding.message
    assert "bf16-mixed" in finding.advice
    assert "no_update" not in [finding.rule for finding in findings]


def test_growth_until_float16_overflows_is_the_cause() -> None:
    assert loud(audited(Large(growing=True))[0]) == ["init_exploding"]


class Root(Fit):
    """A distance of zero: its root has no slope."""

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return super().training_step(batch, _) + (self.net[0].bias * 0).square().sum().sqrt()


def test_gradients_that_no_scale_makes_finite_are_named() -> None:
    auditor, scaler = audited(Root(), max_steps=40)
    assert scaler.get_scale() < 2.0**-20
    assert loud(auditor) == ["nan_loss"]


class Column(Fit):
    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.mse_loss(self.net(batch[0])[:, :1], batch[0][:, 0])


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_column_against_a_row_is_found_behind_a_cast() -> None:
    assert loud(audited(Column())[0]) == ["shape_broadcast"]


class Alike(Fit):
    def __init__(self) -> None:
        super().__init__()
        for layer in (self.net[0], self.net[2]):
            nn.init.constant_(layer.weight, 0.1)
            nn.init.zeros_(layer.bias)


def test_units_are_alike_up_to_the_rounding_of_half_precision() -> None:
    assert loud(audited(Alike())[0])[0] == "init_symmetry"


@pytest.mark.parametrize("start", [2.0**16, 2.0**26])
def test_faults_are_named_all_the_same(start: float) -> None:
    assert loud(audited(Frozen(), start)[0]) == ["frozen_by_accident"]
    assert loud(audited(Fit(lambda parameters: torch.optim.SGD(parameters, lr=3000.0)), start)[0])[0] == "lr_too_high"


class AveragedTwice(Fit):
    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return super().training_step(batch, _) / len(batch[0])


def test_a_mean_that_is_divided_once_more_is_found_behind_the_scale() -> None:
    assert "loss_reduction" in loud(audited(AveragedTwice())[0])


def test_what_lightning_divides_by_for_accumulation_is_no_division_of_the_users() -> None:
    assert loud(audited(Fit(), accumulate_grad_batches=16, max_steps=8)[0]) == []


class Decay(Fit):
    """A known law between the output and the loss, by which the target rises where the output falls."""

    def __init__(self) -> None:
        super().__init__(adamw)
        self.net = mlp(16, 32, 1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.mse_loss((-F.softplus(self.net(batch[0]))).exp(), batch[1])


def test_a_law_in_front_of_the_loss_is_read_behind_the_scale() -> None:
    assert loud(audited(Decay(), target=(-F.softplus(X[:, :1])).exp())[0]) == []
