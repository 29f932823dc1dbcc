"""`LayerFreezing` on one process: phases begin where they say, and what is frozen stays as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from lit_training.callbacks import LayerFreezing, Phase, declared_frozen, gradual
from tests.callbacks.freezing import QUIET, Each, Make, Net, bits, fit, same, trained

pytestmark = pytest.mark.filterwarnings("ignore")


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
    fit(
        Net(),
        LayerFreezing([Phase("head"), Phase("*", fraction=0.5)]),
        watch,
        batches=8,
        max_epochs=1,
        accumulate_grad_batches=3,
    )
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
        "    - train: head\n    - train: [mid, head]\n      epoch: 1\n    - train: '*'\n"
        "      plateau: val_loss\n      patience: 2\n"
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
