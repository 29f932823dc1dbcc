"""`LayerFreezing` on one process: what is frozen stays so, rates follow their schedule, and a killed run goes on as if nothing was."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader

from lit_training import parameter_groups
from lit_training.callbacks import LayerFreezing, Phase, declared_frozen, gradual

pytestmark = pytest.mark.filterwarnings("ignore")
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
Make = Callable[[list[dict[str, Any]]], Any]


class Net(LightningModule):
    """Batches come from the step alone, so that a resumed run sees the rows that it would have seen."""

    def __init__(self, optimizer: Make | None = None, *, train_calls: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.mid = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.0))
        self.head = nn.Linear(8, 3)
        self.optimizer, self.train_calls = optimizer, train_calls

    def loss(self, seed: int) -> Tensor:
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) + 1
        return nn.functional.cross_entropy(self.head(self.mid(self.body(x))), x[:, :3].argmax(dim=1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.train_calls:
            self.train()
        return self.loss(self.trainer.fit_loop.epoch_loop.total_batch_idx)

    def configure_optimizers(self) -> Any:
        if self.optimizer is not None:
            return self.optimizer(parameter_groups(self, lr=0.05, weight_decay=0.01))
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


class Each(Callback):
    """Call a function after each training batch, and keep what it returns."""

    def __init__(self, function: Callable[[Trainer, LightningModule], Any]) -> None:
        self.function, self.kept = function, []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.kept.append(self.function(trainer, pl_module))


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(before: dict[str, Tensor], after: dict[str, Tensor], prefix: str = "") -> bool:
    return all(torch.equal(tensor, after[name]) for name, tensor in before.items() if name.startswith(prefix))


def trained(_: Trainer, module: LightningModule) -> set[str]:
    return {name.partition(".")[0] for name, p in module.named_parameters() if p.requires_grad}


def fit(net: LightningModule, *callbacks: Callback, batches: int = 5, **options: Any) -> Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    settings = {"max_epochs": 3, "enable_checkpointing": False, **QUIET, **options}
    trainer = Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(net, DataLoader(torch.zeros(batches), batch_size=1), ckpt_path=ckpt_path)
    return trainer


# ---- which phase when ----


@pytest.mark.parametrize(
    ("trigger", "first"), [({"epoch": 1}, 5), ({"step": 7}, 7), ({"fraction": 0.5}, 8), ({"fraction": 0.2}, 3)]
)
def test_a_phase_begins_where_it_says(trigger: dict[str, Any], first: int) -> None:
    watch = Each(trained)
    fit(Net(), LayerFreezing([Phase("head"), Phase(["mid", "head"], **trigger)]), watch)
    assert watch.kept == [{"head"}] * first + [{"mid", "head"}] * (15 - first)


def test_a_change_waits_for_the_end_of_an_accumulation_window() -> None:
    watch = Each(trained)
    fit(Net(), LayerFreezing([Phase("head"), Phase("*", fraction=0.5)]), watch, batches=8, max_epochs=1, accumulate_grad_batches=3)
    assert watch.kept.index({"body", "mid", "head"}) == 6  # half is at batch 4, inside the window of batches 3 to 5


def test_max_steps_shortens_what_a_fraction_means() -> None:
    watch = Each(trained)
    fit(Net(), LayerFreezing([Phase("head"), Phase("*", fraction=0.5)]), watch, max_steps=6)
    assert len(watch.kept[watch.kept.index({"body", "mid", "head"}) :]) == 3


def test_phases_from_yaml_and_from_gradual_are_phases_too() -> None:
    assert LayerFreezing([{"train": "head"}, {"train": "*", "step": 3}]).phases == (Phase("head"), Phase("*", step=3))
    watch = Each(trained)
    fit(Net(), LayerFreezing(gradual(Net())), watch)
    assert [watch.kept[i] for i in (0, 5, 10)] == [{"head"}, {"mid", "head"}, {"body", "mid", "head"}]


def test_lightning_cli_builds_it_from_yaml(tmp_path: Path) -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(Callback, "callback")
    config = tmp_path / "config.yaml"
    config.write_text(
        "callback:\n  class_path: lit_training.callbacks.LayerFreezing\n  init_args:\n    phases:\n"
        "    - train: head\n    - train: [mid, head]\n      epoch: 1\n    - train: '*'\n      plateau: val_loss\n      patience: 2\n"
    )
    parser.add_argument("--config", action="config")
    built = parser.instantiate_classes(parser.parse_args([f"--config={config}"])).callback
    assert built.phases == (Phase("head"), Phase(["mid", "head"], epoch=1), Phase("*", plateau="val_loss", patience=2))


def test_changes_and_declared_frozen_tell_what_happens() -> None:
    freezing = LayerFreezing([Phase("head"), Phase(["mid", "head"], epoch=1), Phase("mid", step=9)])
    declared = Each(lambda trainer, _: declared_frozen(trainer))
    fit(Net(), freezing, declared)
    head, mid = {"head.weight", "head.bias"}, {"mid.0.weight", "mid.0.bias"}
    assert [(change.step, change.thawed, change.frozen) for change in freezing.changes] == [
        (0, head, frozenset()),
        (5, mid, frozenset()),
        (9, frozenset(), head),
    ]
    body = {"body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"}
    assert declared.kept[0] == body | mid
    assert declared.kept[5] == body
    assert declared.kept[-1] == body | head
    assert declared_frozen(Trainer(**QUIET)) == frozenset()


def test_layers_that_configure_model_builds_are_frozen_too() -> None:
    class Late(Net):
        def configure_model(self) -> None:
            if not hasattr(self, "extra"):
                self.extra = nn.Linear(3, 3)

    watch, net = Each(trained), Late()
    fit(net, LayerFreezing([Phase(["head", "extra"])]), watch)
    assert watch.kept[0] == {"head", "extra"}


def test_a_second_fit_with_a_new_trainer_begins_anew() -> None:
    freezing, watch = LayerFreezing([Phase("head"), Phase("*", epoch=1)]), Each(trained)
    fit(Net(), freezing)
    fit(Net(), freezing, watch)
    assert watch.kept[0] == {"head"}


# ---- frozen means frozen ----


def sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=0.9)


@pytest.mark.parametrize("average", [False, True], ids=["plain", "ema"])
@pytest.mark.parametrize("optimizer", [sgd, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_what_has_trained_and_is_frozen_is_bit_identical_after_100_steps(optimizer: Make, average: bool) -> None:
    """With momentum from before, weight decay, gradients zeroed in place, and `train()` called in every step."""

    class Keeping(Net):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
            optimizer.zero_grad(set_to_none=False)

    states = Each(lambda _, module: bits(module))
    averages = [EMAWeightAveraging(decay=0.9, update_starting_at_step=0)] if average else []
    net = Keeping(optimizer, train_calls=True)
    freezing = LayerFreezing([Phase("*"), Phase("head", step=20)])
    fit(net, *averages, freezing, states, batches=60, max_epochs=2)
    frozen, last = states.kept[19], states.kept[-1]
    assert not same(states.kept[0], frozen, "body")  # it did train before
    assert same(frozen, last, "body")
    assert same(frozen, last, "mid")
    assert not same(frozen, last, "head")


def test_the_moving_average_of_what_never_trains_stays_it_to_the_bit() -> None:
    """Else its rounding would end up in the weights after training: .9 * w + .1 * w is not w."""
    net = Net()
    before = bits(net)
    fit(net, EMAWeightAveraging(decay=0.9), LayerFreezing([Phase("head")]), batches=100, max_epochs=1)
    assert same(before, bits(net), "body")
    assert same(before, bits(net), "mid")
    assert not same(before, bits(net), "head")


def test_dropout_and_batch_norm_of_the_frozen_part_are_in_the_mode_the_phase_says() -> None:
    modes = Each(lambda _, module: (module.body[1].training, module.mid[2].training))
    phases = [
        Phase("head"),
        Phase("head", step=1, train_dropout=False),
        Phase("head", step=2, train_bn=True),
        Phase("*", step=3),
    ]
    net = Net(train_calls=True)
    fit(net, LayerFreezing(phases), modes, max_steps=4)
    assert modes.kept == [(False, True), (False, False), (True, True), (True, True)]
    assert "train" not in net.body[1].__dict__


def test_batch_norm_follows_train_again_after_an_error() -> None:
    class Broken(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            raise ZeroDivisionError

    net = Broken()
    with pytest.raises(ZeroDivisionError):
        fit(net, LayerFreezing([Phase("head")]))
    assert net.body[1].training


def test_a_scaler_passes_over_an_optimizer_whose_parameters_are_all_frozen() -> None:
    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            optimizers = self.optimizers()
            loss = self.loss(batch_idx)
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in optimizers:
                optimizer.step()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            rest = [*self.mid.parameters(), *self.head.parameters()]
            return [torch.optim.SGD(self.body.parameters(), lr=0.1), torch.optim.SGD(rest, lr=0.1)]

    states = Each(lambda _, module: bits(module))
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=16.0))
    fit(Manual(), LayerFreezing([Phase("head"), Phase("*", step=10)]), states, plugins=[scaled])
    assert same(states.kept[0], states.kept[4], "body")
    assert not same(states.kept[0], states.kept[4], "head")
    assert not same(states.kept[5], states.kept[-1], "body")


# ---- rates ----


def sequential(optimizer: Any, rates: list[float]) -> Any:
    parts = [schedulers.LinearLR(optimizer, 0.1, total_iters=4), schedulers.CosineAnnealingLR(optimizer, 11)]
    return schedulers.SequentialLR(optimizer, parts, milestones=[4])


SCHEDULERS: dict[str, Callable[[Any, list[float]], Any]] = {
    "StepLR": lambda o, _: schedulers.StepLR(o, 4, 0.5),
    "MultiStepLR": lambda o, _: schedulers.MultiStepLR(o, [3, 9], 0.3),
    "LambdaLR": lambda o, _: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o, _: schedulers.MultiplicativeLR(o, lambda step: 0.9 if step % 2 else 1.05),
    "ExponentialLR": lambda o, _: schedulers.ExponentialLR(o, 0.9),
    "LinearLR": lambda o, _: schedulers.LinearLR(o, 0.1, total_iters=12),
    "ConstantLR": lambda o, _: schedulers.ConstantLR(o, 0.3, total_iters=8),
    "PolynomialLR": lambda o, _: schedulers.PolynomialLR(o, 15, power=2.0),
    "CosineAnnealingLR": lambda o, _: schedulers.CosineAnnealingLR(o, 15),
    "CosineAnnealingWarmRestarts": lambda o, _: schedulers.CosineAnnealingWarmRestarts(o, 4, 2),
    "OneCycleLR": lambda o, rates: schedulers.OneCycleLR(o, rates, total_steps=16),
    "CyclicLR": lambda o, rates: schedulers.CyclicLR(o, [r / 10 for r in rates], rates, step_size_up=3),
    "SequentialLR": sequential,
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_groups_rate_is_a_constant_multiple_of_the_schedule(name: str) -> None:
    """Through two phase changes, against the scheduler alone on a single group, at every step."""

    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            groups = parameter_groups(self, lr=0.2, weight_decay=0.01, layer_decay=0.25)
            optimizer = torch.optim.SGD(groups, momentum=0.9)
            scheduler = SCHEDULERS[name](optimizer, [group["lr"] for group in groups])
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    rates = Each(lambda trainer, _: {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})
    freezing = LayerFreezing([Phase("head"), Phase(["mid", "head"], epoch=1), Phase("*", step=9)])
    fit(Scheduled(), freezing, rates)
    assert [change.step for change in freezing.changes] == [0, 5, 9]

    alone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.9)
    schedule = SCHEDULERS[name](alone, [0.2])
    for step in range(15):
        alone.step()
        schedule.step()
        expected = alone.param_groups[0]["lr"]
        for group, multiple in [("decay/2.head", 1.0), ("decay/1.mid.0", 0.25), ("no_decay/0.body.0", 0.0625)]:
            assert rates.kept[step][group] == pytest.approx(multiple * expected, rel=1e-6, abs=1e-12), (group, step)


def test_reduce_on_plateau_keeps_the_multiples_too() -> None:
    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(parameter_groups(self, lr=0.2, weight_decay=0.0, layer_decay=0.25))
            scheduler = schedulers.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("loss", float(self.trainer.current_epoch))
            return super().training_step(batch, batch_idx)

    rates = Each(lambda trainer, _: [group["lr"] for group in trainer.optimizers[0].param_groups])
    fit(Scheduled(), LayerFreezing([Phase("head"), Phase("mid", epoch=2), Phase("*", epoch=3)]), rates, max_epochs=5)
    assert rates.kept[-1] == [rate / 8 for rate in rates.kept[0]]


# ---- resume ----

PHASES = [Phase("head"), Phase("mid", epoch=1), Phase("*", step=8)]


def run_and_die(folder: Path, last_batch: int) -> None:
    def die(trainer: Trainer, _: LightningModule) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == last_batch:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    saving = ModelCheckpoint(folder, every_n_train_steps=1, save_last=True)
    fit(Net(), LayerFreezing(PHASES), saving, Each(die), enable_checkpointing=True)


@pytest.mark.parametrize("last_batch", [2, 5, 6, 8, 9, 12], ids=lambda batch: f"batch{batch}")
def test_a_run_killed_in_any_phase_resumes_to_the_same_weights(tmp_path: Path, last_batch: int) -> None:
    """Kill -9 in each phase, in mid-epoch, and right before and after a phase change; the checkpoint is one batch older."""
    process = multiprocessing.get_context("fork").Process(target=run_and_die, args=(tmp_path, last_batch))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    straight, resumed = Net(), Net()
    fit(straight, LayerFreezing(PHASES))
    steps = Each(lambda trainer, _: trainer.global_step)
    fit(resumed, LayerFreezing(PHASES), steps, ckpt_path=tmp_path / "last.ckpt")
    assert len(steps.kept) == 15 - last_batch
    assert same(bits(straight), bits(resumed))


def test_resuming_between_decision_and_change_restores_the_best_weights_first(tmp_path: Path) -> None:
    """The plateau is noticed at an epoch's end; the checkpoint of that moment holds the best weights of epochs before."""
    phases = [Phase("head"), Phase("*", plateau="val_loss", patience=1, restore_best=True)]

    class Validated(Net):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("val_loss", float(abs(self.trainer.current_epoch - 1)))

        def val_dataloader(self) -> DataLoader:
            return DataLoader(torch.zeros(1))

    def at_epoch_2(folder: Path) -> ModelCheckpoint:
        return ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=on_epoch_end)

    for on_epoch_end in (True, False):
        folder = tmp_path / str(on_epoch_end)
        straight, resumed = Validated(), Validated()
        freezing = LayerFreezing(phases)
        fit(straight, freezing, at_epoch_2(folder), enable_checkpointing=True, max_epochs=5)
        assert [change.step for change in freezing.changes] == [0, 15]
        fit(resumed, LayerFreezing(phases), ckpt_path=folder / "epoch=2.ckpt", max_epochs=5)
        assert same(bits(straight), bits(resumed)), on_epoch_end


def test_resuming_with_other_phases_shows_the_difference(tmp_path: Path) -> None:
    """Through a real checkpoint: a `state_key` that held the phases would keep Lightning from asking."""
    trainer = fit(Net(), LayerFreezing(PHASES), max_steps=6)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    other = [Phase("head"), Phase("mid", epoch=2), Phase("*", step=12)]
    with pytest.raises(ValueError, match=r"trained with other phases: phase 1: epoch was 1, is 2; phase 2: step was 8, is 12"):
        fit(Net(), LayerFreezing(other), ckpt_path=tmp_path / "run.ckpt")
    tested = Trainer(callbacks=LayerFreezing(other), **QUIET)
    tested.predict(Predicting(), DataLoader(torch.zeros(1)), ckpt_path=tmp_path / "run.ckpt", weights_only=True)


class Predicting(Net):
    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss(0)


# ---- plateaus ----


class Logged(Net):
    """Logs the given values of `metric`, one a validation, or one an epoch of training."""

    def __init__(self, values: list[float], *, in_validation: bool = True) -> None:
        super().__init__()
        self.values, self.in_validation = iter(values), in_validation

    def on_validation_epoch_end(self) -> None:
        if self.in_validation and not self.trainer.sanity_checking:
            self.log("metric", next(self.values))

    def on_train_epoch_end(self) -> None:
        if not self.in_validation:
            self.log("metric", next(self.values))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.loss(0)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(1))


def steps_of_changes(net: Net, phases: list[Phase], **options: Any) -> list[int]:
    freezing = LayerFreezing(phases)
    fit(net, freezing, **options)
    return [change.step for change in freezing.changes]


def test_a_plateau_is_counted_once_a_validation() -> None:
    phases = [Phase("head"), Phase("mid", plateau="metric", patience=2), Phase("*", plateau="metric", patience=1)]
    assert steps_of_changes(Logged([3, 2, 2, 2, 5, 5, 1, 1]), phases, max_epochs=8) == [0, 20, 30]


def test_several_validations_an_epoch_are_several_checks() -> None:
    """The change comes with the next batch, not with the next epoch."""
    phases = [Phase("head"), Phase("*", plateau="metric", patience=1)]
    assert steps_of_changes(Logged([1, 2, 3, 4]), phases, batches=6, max_epochs=2, val_check_interval=3) == [0, 6]
    assert steps_of_changes(Logged([2, 1, 3, 4]), phases, batches=6, max_epochs=2, val_check_interval=3) == [0, 9]


def test_a_metric_that_the_end_of_an_epoch_logs_is_too_late_for_callbacks_of_lightning_and_says_so() -> None:
    net = Logged([1, 1, 1, 1], in_validation=False)
    with pytest.raises(ValueError, match="waits for plateau='metric', which is not logged; logged are"):
        fit(net, LayerFreezing([Phase("head"), Phase("*", plateau="metric", patience=1)]))


def test_a_later_time_does_not_wait_for_the_plateau() -> None:
    phases = [Phase("head"), Phase("mid", plateau="metric"), Phase("*", epoch=2)]
    assert steps_of_changes(Logged([5, 4, 3, 2]), phases, max_epochs=4) == [0, 10]


def test_a_metric_that_is_never_logged_is_an_error_after_the_first_epoch() -> None:
    with pytest.raises(ValueError, match=r"waits for plateau='val_acc', which is not logged; logged are \['metric'\]"):
        fit(Logged([1, 2, 3]), LayerFreezing([Phase("head"), Phase("mid", epoch=2), Phase("*", plateau="val_acc")]))


# ---- bad input ----


def refused(message: str, *callbacks: Callback, net: LightningModule | None = None, **options: Any) -> None:
    with pytest.raises(ValueError, match=message):
        fit(net or Net(), *callbacks, **options)


def test_a_pattern_without_a_match_is_refused_before_the_first_batch() -> None:
    refused(r"phase 1: train: 'boddy' matches no parameter; nearest: \['body'", LayerFreezing([Phase("head"), Phase("boddy", epoch=1)]))


def test_a_phase_that_trains_nothing_is_refused() -> None:
    refused(r"phase 1: train: \('mid.2',\) matches no parameter that can train", LayerFreezing([Phase("*"), Phase("mid.2", epoch=1)]))


def test_phases_of_different_kinds_out_of_order_are_refused() -> None:
    message = r"out of order, step=4 \(step 4\) does not come after epoch=1 \(step 5\), with 5 steps per epoch"
    refused(message, LayerFreezing([Phase("head"), Phase("mid", epoch=1), Phase("*", step=4)]))


def test_a_fraction_of_a_run_without_end_is_refused() -> None:
    refused("fraction=0.5 needs a run of known length", LayerFreezing([Phase("head"), Phase("*", fraction=0.5)]), max_epochs=-1)


def test_a_phase_after_the_end_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="the phase at epoch=3 never begins, the run ends after 15 steps"):
        fit(Net(), LayerFreezing([Phase("head"), Phase("*", epoch=3)]))


def test_a_parameter_that_no_optimizer_has_is_refused_with_the_line_to_write() -> None:
    class Filtered(Net):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(filter(lambda p: p.requires_grad, self.parameters()), lr=0.1)

    message = r"6 parameters .* in no optimizer: body.0.weight, .*torch.optim.AdamW\(self.parameters\(\), ...\)"
    refused(message, LayerFreezing([Phase("head"), Phase("*", epoch=1)]), net=Filtered())


def test_a_quick_development_run_ends_in_its_first_phase() -> None:
    freezing = LayerFreezing([Phase("head"), Phase("*", epoch=2)])
    fit(Net(), freezing, fast_dev_run=True)
    assert [change.phase for change in freezing.changes] == [0]


def test_two_layer_freezings_are_refused() -> None:
    """Each would freeze what the other trains; Lightning refuses them by their state key."""
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `LayerFreezing`"):
        fit(Net(), LayerFreezing([Phase("head")]), LayerFreezing([Phase("mid")]))


def test_swa_that_would_reset_frozen_batch_norm_is_refused() -> None:
    swa = StochasticWeightAveraging(0.1, swa_epoch_start=1)
    refused("StochasticWeightAveraging resets the statistics", LayerFreezing([Phase("head")]), swa)
    fit(Net(), LayerFreezing([Phase("head"), Phase("*", epoch=1)]), StochasticWeightAveraging(0.1, swa_epoch_start=2))


def test_lbfgs_that_would_move_what_is_frozen_again_is_refused() -> None:
    class Quasi(Net):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.LBFGS(self.parameters(), lr=0.1)

    refused("LBFGS moves all parameters", LayerFreezing([Phase("*"), Phase("head", epoch=1)]), net=Quasi())
    net = Quasi()
    before = bits(net)
    fit(net, LayerFreezing([Phase("head")]))
    assert same(before, bits(net), "body")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDPStrategy(static_graph=True), "Drop static_graph=True"),
        (lambda: FSDPStrategy(), "does not support FSDPStrategy: .* ModelParallelStrategy"),
    ],
)
def test_strategies_under_which_it_cannot_be_right_are_refused(make: Callable[[], Any], message: str) -> None:
    trainer = Trainer(**QUIET)
    trainer._accelerator_connector.strategy = make()
    with pytest.raises(ValueError, match=message):
        LayerFreezing([Phase("head")]).setup(trainer, Net(), "fit")
