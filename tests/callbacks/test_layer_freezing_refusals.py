"""`LayerFreezing` refuses what it cannot do right, before the first batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy

from lit_training.callbacks import LayerFreezing, Phase
from tests.callbacks.freezing import QUIET, Net, bits, fit, same

pytestmark = pytest.mark.filterwarnings("ignore")


def refused(message: str, *callbacks: Callback, net: LightningModule | None = None, **options: Any) -> None:
    with pytest.raises(ValueError, match=message):
        fit(net or Net(), *callbacks, **options)


def test_a_pattern_without_a_match_is_refused_before_the_first_batch() -> None:
    refused(
        r"phase 1: train: 'boddy' matches no parameter; nearest: \['body'",
        LayerFreezing([Phase("head"), Phase("boddy", epoch=1)]),
    )


def test_a_phase_that_trains_nothing_is_refused() -> None:
    refused(
        r"phase 1: train: \('mid.2',\) matches no parameter that can train",
        LayerFreezing([Phase("*"), Phase("mid.2", epoch=1)]),
    )


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
