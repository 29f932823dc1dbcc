"""Phases as pure functions: what is refused, and which phase a run is in."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lit_training.phases import Phase, Plateau, Progress, as_phases, current_phase, differences, gradual, plain

START = Progress(0, 0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": []}, "train must name at least one pattern"),
        ({"train": ["head", ""]}, "train must name at least one pattern"),
        ({"train": "head", "epoch": 1, "step": 2}, "give only one of epoch, step, fraction and plateau, got epoch=1, step=2"),
        ({"train": "head", "fraction": 0.5, "plateau": "val_loss"}, "got fraction=0.5, plateau='val_loss'"),
        ({"train": "head", "epoch": -1}, "epoch must be a whole number from 0, got -1"),
        ({"train": "head", "step": 1.5}, "step must be a whole number from 0, got 1.5"),
        ({"train": "head", "fraction": 1.0}, r"fraction must lie in \[0, 1\), got 1.0"),
        ({"train": "head", "epoch": 2, "patience": 5}, "patience, mode, min_delta and restore_best need plateau"),
        ({"train": "head", "plateau": "val_loss", "patience": 0}, "patience must be at least 1"),
        ({"train": "head", "plateau": "val_loss", "mode": "lowest"}, "mode must be 'min' or 'max', got 'lowest'"),
    ],
)
def test_a_malformed_phase_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Phase(**arguments)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "phases must be a non-empty list"),
        ("head", "phases must be a non-empty list"),
        ([Phase("head", epoch=2)], "the first one begins with the training; write it without epoch=2"),
        ([Phase("head", plateau="val_loss")], "the first one begins with the training"),
        ([Phase("head"), Phase("*")], r"\('\*',\) needs epoch=, step=, fraction= or plateau="),
        ([Phase("head"), Phase("a", epoch=4), Phase("*", epoch=2)], r"out of order, epoch must increase .* got \[4, 2\]"),
        ([Phase("head"), Phase("a", step=4), Phase("*", step=4)], "out of order, step must increase"),
        ([Phase("head"), Phase("a", fraction=0.5), Phase("b", epoch=2), Phase("*", fraction=0.1)], "fraction must increase"),
    ],
)
def test_a_malformed_list_is_refused(phases: list[Phase], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_phases(phases)


def test_a_dict_with_an_unknown_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="epochs"):
        as_phases([{"train": "head", "epochs": 2}])
    with pytest.raises(TypeError, match="expected a Phase or a dict of its arguments, got 'head'"):
        as_phases(["head"])


@given(
    times=st.lists(st.integers(1, 50), min_size=1, max_size=5, unique=True).map(sorted),
    visits=st.lists(st.integers(0, 60), max_size=20).map(sorted),
)
def test_the_phase_is_a_pure_function_of_progress(times: list[int], visits: list[int]) -> None:
    """Whatever was looked at before, the phase is the one that this epoch is in."""
    phases = as_phases([Phase("head"), *(Phase("*", epoch=time) for time in times)])
    current = 0
    for epoch in visits:
        current = current_phase(phases, current, Progress(epoch, 7 * epoch, math.nan))
        assert current == sum(epoch >= time for time in times)


def test_an_unknown_length_begins_no_fraction() -> None:
    phases = as_phases([Phase("head"), Phase("*", fraction=0.5)])
    assert current_phase(phases, 0, Progress(9, 99, math.nan)) == 0
    assert current_phase(phases, 0, Progress(9, 99, 0.5)) == 1


def test_a_plateau_moves_one_phase_on_and_no_more() -> None:
    phases = as_phases([Phase("head"), Phase("a", plateau="val_loss"), Phase("b", plateau="val_loss")])
    assert current_phase(phases, 0, START, plateaued=True) == 1
    assert current_phase(phases, 1, START, plateaued=False) == 1


def test_a_phase_never_goes_back() -> None:
    phases = as_phases([Phase("head"), Phase("*", epoch=5)])
    assert current_phase(phases, 1, START) == 1


@pytest.mark.parametrize(("mode", "values"), [("min", [3.0, 2.0, 1.95, 2.5, 1.0]), ("max", [1.0, 2.0, 2.05, 1.0, 3.0])])
def test_only_improvements_beyond_min_delta_count(mode: str, values: list[float]) -> None:
    phase = Phase("*", plateau="metric", mode=mode, min_delta=0.1, patience=2)
    watch, over = Plateau(), []
    for value in values:
        watch.update(value, phase)
        over.append(watch.is_over(phase))
    assert over == [False, False, False, True, False]
    assert watch.best == values[-1]


def test_a_metric_that_is_nan_from_the_start_ends_in_a_plateau() -> None:
    phase, watch = Phase("*", plateau="val_loss", patience=2), Plateau()
    assert [watch.update(math.nan, phase) for _ in range(2)] == [False, False]
    assert watch.is_over(phase)
    assert watch.best is None


def test_plain_phases_come_back_equal() -> None:
    phases = as_phases([Phase(["head", "norm"], train_bn=True), Phase("*", plateau="acc", mode="max", restore_best=True)])
    assert as_phases([plain(phase) for phase in phases]) == phases


def test_differences_name_each_setting_and_each_phase_that_came_or_went() -> None:
    before = [Phase("head"), Phase("a", epoch=1)]
    assert differences(before, before) == []
    assert differences(before, [Phase("head", train_bn=True)]) == [
        "phase 0: train_bn was False, is True",
        "phase 1: ['a'] is gone",
    ]
    assert differences(before, [*before, Phase("*", epoch=3)]) == ["phase 2: ['*'] is new"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 8) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)


def test_gradual_unfreezes_one_block_at_a_time_from_the_head() -> None:
    phases = gradual(Net(), every=3)
    assert [phase.train for phase in phases] == [
        ("head",),
        ("head", "blocks.1", "norm"),
        ("head", "blocks.1", "norm", "blocks.0"),
        ("*",),
    ]
    assert [phase.epoch for phase in phases] == [None, 3, 6, 9]


def test_gradual_refuses_what_has_nothing_to_unfreeze() -> None:
    with pytest.raises(ValueError, match="Linear has 1 layer, there is nothing to unfreeze"):
        gradual(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="every must be at least 1 epoch, got 0"):
        gradual(Net(), every=0)
