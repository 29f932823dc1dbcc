"""`RankConsistency` on one process; on two, in `tests/distributed`."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_training.callbacks import RankConsistency
from lit_training.diagnosis.rules.divergence import ranks_diverged


@pytest.mark.parametrize("every", [0, -1, "step", 1.5])
def test_another_interval_is_refused(every: object) -> None:
    with pytest.raises(ValueError, match="every must be 'epoch' or a number of optimizer steps from 1"):
        RankConsistency(every)


def test_one_process_is_never_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_training.callbacks.rank_consistency.fingerprints", None)
    watch = RankConsistency(1)
    Trainer(max_steps=2, barebones=True, accelerator="cpu", callbacks=watch).fit(BoringModel())
    assert watch.findings == []


def test_the_finding_names_the_tensors_and_how_far_they_are_apart() -> None:
    differences = {f"layer{i}.weight": 0.1 * i for i in range(7)} | {"shard": float("nan")}
    (finding,) = ranks_diverged(differences, step=3, processes=4)
    assert finding.where == "layer0.weight"
    assert "4 processes hold different values of layer0.weight, layer1.weight, " in finding.message
    assert finding.message.endswith("layer4.weight and 3 more, up to 0.6 apart.")
    assert finding.evidence == {"tensors": 8.0, "difference": pytest.approx(0.6)}
    assert ranks_diverged({}, step=3, processes=4) == []


def test_a_failure_inside_costs_a_warning_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "world_size", property(lambda self: 2))
    monkeypatch.setattr("lit_training.callbacks.rank_consistency.shared_tensors", lambda *_: 1 / 0)
    model = BoringModel()
    before = model.layer.weight.detach().clone()
    with pytest.warns(UserWarning, match="RankConsistency._check failed, training goes on: ZeroDivisionError"):
        Trainer(max_steps=2, barebones=True, accelerator="cpu", callbacks=RankConsistency()).fit(model)
    assert not torch.equal(before, model.layer.weight)
