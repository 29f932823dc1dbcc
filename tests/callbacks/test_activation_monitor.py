"""`ActivationMonitor`: right figures, at the sampled steps, under the step of the loss, and few words."""

import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training.callbacks import ActivationMonitor


class Net(pl.LightningModule):
    """Two layers whose second rectifier is closed for half of the units; keeps what its layers gave."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1))
        with torch.no_grad():
            self.net[2].bias[:4] = -100.0
        self.given: dict[str, Tensor] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        for name, layer in self.net.named_children():
            x = layer(x)
            self.given[f"net.{name}"] = x.detach().clone()
        return x.square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Notes(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


def fit(module: pl.LightningModule, monitor: ActivationMonitor, **options: Any) -> None:
    data = TensorDataset(torch.randn(160, 6, generator=torch.Generator().manual_seed(0)))
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = quiet | {"max_epochs": 1, "accelerator": "cpu", "logger": False} | options
    pl.Trainer(callbacks=[monitor], **settings).fit(module, DataLoader(data, batch_size=16))


@pytest.mark.parametrize("every", [1, 4])
def test_figures_are_those_of_the_layers_outputs(every: int) -> None:
    torch.manual_seed(0)
    net, monitor = Net(), ActivationMonitor(every)
    fit(net, monitor, max_steps=5)
    assert list(monitor.latest) == ["net.0", "net.2", "net.4"]
    for name, stats in monitor.latest.items():
        output = net.given[name].double()
        assert stats.mean == pytest.approx(float(output.mean()), rel=1e-4, abs=1e-6)
        assert stats.variance == pytest.approx(float(output.var(correction=0)), rel=1e-4)
        assert stats.signal == pytest.approx(float(output.std(0).mean()), rel=1e-4)
    assert monitor.latest["net.2"].dead == pytest.approx(float((net.given["net.2"].amax(0) <= 0).double().mean()))
    assert monitor.latest["net.2"].dead >= 0.5
    assert monitor.latest["net.0"].saturated is not None
    assert monitor.latest["net.4"].dead is None


def test_sampled_steps_are_logged_in_one_row_each_sorted_by_depth() -> None:
    notes = Notes()
    fit(Net(), ActivationMonitor(4), logger=notes)
    assert [step for step, _ in notes.rows] == [0, 1, 2, 4, 8]
    names = [name for name in notes.rows[0][1] if name.startswith("activation_std/")]
    assert names == ["activation_std/0.net.0", "activation_std/1.net.2", "activation_std/2.net.4"]


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"barebones": True}], ids=["never", "barebones"])
def test_nothing_is_sampled_when_it_is_off(options: dict[str, Any]) -> None:
    monitor = ActivationMonitor(options.get("every_n_steps"))
    bare = {"barebones": True, "enable_checkpointing": None, "enable_progress_bar": None, "enable_model_summary": None,
            "logger": None}  # fmt: skip
    fit(Net(), monitor, **(bare if "barebones" in options else {}))
    assert monitor.latest == {}


def test_a_step_of_many_batches_is_sampled_once() -> None:
    notes = Notes()
    fit(Net(), ActivationMonitor(1), logger=notes, accumulate_grad_batches=5)
    assert [step for step, _ in notes.rows] == [0, 1]


def test_the_first_layer_that_gives_nan_is_named() -> None:
    net, monitor = Net(), ActivationMonitor(1)
    with torch.no_grad():
        net.net[2].weight[0, 0] = float("nan")
    fit(net, monitor, max_steps=2)
    assert [(finding.rule, finding.where) for finding in monitor.findings] == [("nan_loss", "net.2")]


class Scores(nn.Linear):
    """Minus infinity for what may not be chosen: from the start, or from its second call on."""

    calls = 0

    def __init__(self, masked_after: int) -> None:
        super().__init__(4, 3)
        self.masked_after = masked_after

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        absent = torch.tensor([False, False, self.calls > self.masked_after])
        return super().forward(x).masked_fill(absent, -torch.inf)


@pytest.mark.parametrize(("masked_after", "rules"), [(0, []), (1, ["nan_loss"])])
def test_minus_infinity_from_the_first_step_on_is_a_mask(masked_after: int, rules: list[str]) -> None:
    class Chooses(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.scores = Scores(masked_after)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.scores(batch), torch.zeros(len(batch), dtype=torch.long))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    monitor = ActivationMonitor(1)
    trainer = pl.Trainer(max_steps=3, barebones=True, accelerator="cpu", callbacks=[monitor])
    trainer.fit(Chooses(), torch.utils.data.DataLoader(torch.randn(24, 4), 8))
    assert [finding.rule for finding in monitor.findings] == rules


def test_a_net_without_layers_is_told_once() -> None:
    class Bare(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (batch[0] * self.net[0].weight[0]).mean()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Bare(), ActivationMonitor(1))
    assert sum("saw no layer run" in str(w.message) for w in caught) == 1


def test_a_negative_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be positive, 0 for never or None"):
        ActivationMonitor(-1)


def test_units_that_a_step_threw_over_are_named() -> None:
    torch.manual_seed(0)
    monitor = ActivationMonitor(every_n_steps=1)

    class Thrown(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))

        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                nn.init.constant_(self.model[0].bias, -100.0)
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    data = torch.utils.data.TensorDataset(torch.randn(128, 8), torch.randint(2, (128,)))
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[monitor],
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Thrown(), torch.utils.data.DataLoader(data, 16))
    assert [(finding.rule, finding.where, finding.step) for finding in monitor.findings] == [("lr_too_high", "model.0", 4)]


class Dies(Net):
    """All units of a rectifier are thrown over after three steps; what is beside it goes on."""

    def __init__(self, width: int, beside: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 1))
        self.beside, self.around = beside, nn.Linear(6, 1)
        with torch.no_grad():
            self.net[0].bias.fill_(1.0)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == 3:
            self.net[0].bias.data.fill_(-100.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = self.net(batch[0]) + (self.around(batch[0]) if self.beside else 0.0)
        return x.square().mean()


@pytest.mark.parametrize(
    ("width", "beside", "steps", "found"),
    [(8, False, 5, ["net.0"]), (8, True, 5, ["net.0"]), (4, False, 7, ["net.0"]), (4, False, 6, []), (4, True, 9, [])],
)
def test_a_layer_that_dies_is_found_a_narrow_one_if_it_cuts_the_network(
    width: int, beside: bool, steps: int, found: list[str]
) -> None:
    torch.manual_seed(0)
    monitor = ActivationMonitor(1)
    fit(Dies(width, beside), monitor, max_steps=steps)
    assert [(finding.rule, finding.where) for finding in monitor.findings] == [("lr_too_high", place) for place in found]


def test_units_that_are_given_nothing_are_not_dead() -> None:
    class LeftOut(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net(batch[0] * (batch_idx < 2)).square().mean()

    module, monitor = LeftOut(), ActivationMonitor(1)
    module.net = nn.Sequential(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 1))
    fit(module, monitor, max_steps=6)
    assert monitor.latest["net.0"].dead == 1
    assert monitor.findings == []
