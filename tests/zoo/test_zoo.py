"""The zoo is complete, its held-out part is apart, its cases run, and its examiner judges as it says."""

from collections.abc import Iterator

import pytest
import torch

from tests.zoo import CASES
from tests.zoo.case import ROOTS, Case, faulty, fit, healthy, quiet
from tests.zoo.hurts import Outcome, train_all, verdicts
from tests.zoo.metrics import METRICS
from tests.zoo.score import Row, chosen, examine

FAULTY = [entry for entry in CASES.values() if entry.expected]
HEALTHY = [entry for entry in CASES.values() if not entry.expected]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    quiet()
    yield
    torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------ completeness
@pytest.mark.parametrize("rule", sorted(ROOTS))
def test_each_rule_has_two_faults_of_its_own_and_three_near_misses(rule: str) -> None:
    assert sum(entry.expected[0] == rule for entry in FAULTY) >= 2
    assert sum(rule in entry.near_miss for entry in HEALTHY) >= 3


def test_the_zoo_is_as_large_as_promised() -> None:
    assert len(FAULTY) >= 80
    assert len(HEALTHY) >= 100


def test_names_say_what_a_case_is() -> None:
    assert all(entry.name.startswith("f_" if entry.expected else "h_") for entry in CASES.values())


def test_each_fault_has_a_healthy_twin_and_a_margin() -> None:
    for entry in FAULTY:
        assert CASES[entry.twin].expected == (), entry.name
        assert entry.note or entry.margin >= 0.03, entry.name


def test_only_a_waste_is_excused_from_hurting() -> None:
    assert {entry.expected[0] for entry in FAULTY if entry.note} == {"bias_before_bn"}


# ------------------------------------------------------------------------------------------ held out
def test_the_held_out_part_is_a_folder_of_its_own() -> None:
    assert CASES["h_mlp_sgd"].held_out is CASES["f_constant_weights"].held_out is False
    held = [entry for entry in CASES.values() if entry.held_out]
    assert sum(bool(entry.expected) for entry in held) >= 80
    assert sum(not entry.expected for entry in held) >= 100


def test_a_held_out_fault_has_a_held_out_twin() -> None:
    assert all(CASES[entry.twin].held_out == entry.held_out for entry in FAULTY)


def test_both_parts_hold_most_rules() -> None:
    held = {entry.expected[0] for entry in FAULTY if entry.held_out}
    tuned = {entry.expected[0] for entry in FAULTY if not entry.held_out}
    assert min(len(held), len(tuned)) >= 0.7 * len(ROOTS)


def test_parts_do_not_overlap() -> None:
    tune, held = set(chosen("tune", [], ["*"])), set(chosen("heldout", [], ["*"]))
    assert not tune & held
    assert tune | held == set(chosen("all", [], ["*"])) == set(CASES)


def test_ids_choose_faults_and_near_misses() -> None:
    names = chosen("all", ["bn_stats"], ["*"])
    assert "f_norm_momentum_tiny" in names
    assert all("bn_stats" in (*CASES[name].expected, *CASES[name].near_miss) for name in names)


# ------------------------------------------------------------------------------------------ cases run
@pytest.mark.parametrize("name", CASES)
def test_a_case_builds_and_trains_two_steps(name: str) -> None:
    case = CASES[name].build(seed=1)
    case.trainer |= {"limit_val_batches": 1}
    assert case.metric in METRICS
    module, _ = fit(case, max_steps=2)
    names = {name for name, _ in module.named_parameters()}
    assert set(case.frozen) <= names, "what a case declares as frozen must be names of its parameters"


@pytest.mark.parametrize("name", ["h_mlp_sgd", "f_nan_values", "h_dropout_half"])
def test_a_case_is_the_same_each_time_it_is_built(name: str) -> None:
    first, second = (fit(CASES[name].build(seed=3), max_steps=3)[0].state_dict() for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0.0, atol=0.0, equal_nan=True)


def test_a_fault_leaves_its_twin_alone() -> None:
    before = CASES["h_mlp_sgd"].build(seed=0).model.state_dict()
    CASES["f_constant_weights"].build(seed=0)
    torch.testing.assert_close(CASES["h_mlp_sgd"].build(seed=0).model.state_dict(), before, rtol=0.0, atol=0.0)


def test_a_registered_name_is_unique_and_its_ids_are_known() -> None:
    def h_mlp_sgd(seed: int) -> Case:
        raise AssertionError("never built")

    with pytest.raises(ValueError, match="h_mlp_sgd: registered twice"):
        healthy(source="")(h_mlp_sgd)
    with pytest.raises(ValueError, match=r"unknown ids \['nonsense'\]"):
        faulty("nonsense", twin="h_mlp_sgd", source="")(lambda case: None)


# ------------------------------------------------------------------------------------------ it hurts
def test_a_fault_is_shown_to_hurt() -> None:
    names = ["h_least_squares", "f_sgd_rate_millionth"]
    judged = verdicts(names, [0], train_all([*names, "h_patient_sgd"], [0], jobs=1))
    assert [holds for holds, _ in judged.values()] == [True, True]


@pytest.mark.parametrize(("metric", "holds"), [(0.95, False), (0.7, True)])
def test_a_fault_must_lose_its_margin(metric: float, holds: bool) -> None:
    name, twin = "f_keep_probability", CASES["f_keep_probability"].twin
    outcomes = {(name, 0): Outcome(name, 0, metric, 0.25, 1.0), (twin, 0): Outcome(twin, 0, 0.99, 0.25, 1.0)}
    assert verdicts([name], [0], outcomes)[name][0] == holds


@pytest.mark.parametrize(("metric", "holds"), [(0.5, False), (0.7, True)])
def test_a_healthy_case_must_beat_the_constant_predictor(metric: float, holds: bool) -> None:
    assert verdicts(["h_conv"], [0], {("h_conv", 0): Outcome("h_conv", 0, metric, 0.25, 1.0)})["h_conv"][0] == holds


@pytest.mark.parametrize(
    ("metric", "output", "target", "score", "constant"),
    [
        ("accuracy", [[2.0, 1.0], [0.0, 1.0], [0.0, 1.0]], [0, 1, -100], 1.0, 0.5),
        ("balanced_accuracy", [[1.0, 0.0]] * 4, [0, 0, 0, 1], 0.5, 0.5),
        ("binary_accuracy", [[1.0], [-1.0], [1.0]], [[1.0], [1.0], [1.0]], 2 / 3, 1.0),
        ("jaccard", [[1.0, 1.0, -1.0]], [[1.0, 0.0, 0.0]], 0.5, 1 / 3),
        ("r2", [[1.0], [1.0]], [[0.0], [2.0]], 0.0, 0.0),
    ],
)
def test_metrics_by_hand(metric: str, output: list, target: list, score: float, constant: float) -> None:
    output, target = torch.tensor(output), torch.tensor(target)
    assert METRICS[metric].score(output, target).item() == pytest.approx(score)
    assert METRICS[metric].constant(target) == pytest.approx(constant)


# ------------------------------------------------------------------------------------------ the judge
def row(*answer: tuple[str, str], name: str = "f_sgd_rate_ten", crash: str | None = None) -> Row:
    entry = CASES[name]
    return Row(name, 0, entry.expected, entry.note, [(rule, severity, "") for rule, severity in answer], crash, 0.0)


def test_errors_come_before_warnings() -> None:
    judged = row(("dead_relu", "warning"), ("lr_too_high", "error"))
    assert judged.alarms == ["lr_too_high", "dead_relu"]
    assert judged.root_at_1


def test_a_note_is_no_alarm() -> None:
    judged = row(("lr_too_high", "note"))
    assert not judged.alarms
    assert not judged.root


def test_a_root_behind_another_alarm_is_found_but_not_first() -> None:
    judged = row(("dead_relu", "error"), ("lr_too_high", "error"))
    assert (judged.root, judged.root_at_1) == (True, False)


def test_any_alarm_or_crash_on_a_healthy_case_is_false() -> None:
    assert row(("bad_gain", "warning"), name="h_conv").false_alarm
    assert row(name="h_conv", crash="boom").false_alarm
    assert not row(("bad_gain", "note"), name="h_conv").false_alarm


def test_what_is_worth_a_note_may_be_noted_but_not_mistaken() -> None:
    name = "f_conv_bias_before_norm"
    assert row(("bias_before_bn", "note"), name=name).noted
    assert not row(("bias_before_bn", "note"), name=name).false_alarm
    assert row(("bad_gain", "error"), name=name).false_alarm
    assert not row(name=name).noted


def answer_by_crashing(case: Case) -> list[tuple[str, str, str]]:
    raise RuntimeError("no findings")


def test_a_crash_of_the_diagnosis_is_recorded() -> None:
    assert examine("h_conv", 0, answer_by_crashing).crash == "RuntimeError: no findings"


def test_the_examined_sees_the_case_without_its_answer() -> None:
    answers = {"name", "source", "expected", "near_miss", "twin", "margin", "note"}
    assert not answers & set(vars(CASES["f_sgd_rate_ten"].build()))
