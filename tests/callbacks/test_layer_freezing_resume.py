"""`LayerFreezing`: a killed run goes on as if nothing was."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from lit_training.callbacks import LayerFreezing, Phase
from tests.callbacks.freezing import QUIET, Each, Net, bits, fit, same

pytestmark = pytest.mark.filterwarnings("ignore")


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
