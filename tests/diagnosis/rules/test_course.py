"""What the losses of whole runs are taken for, and what stays silent."""

import math

import pytest

from lit_training.diagnosis.course import Course
from lit_training.diagnosis.rules.course import diverged, judge_course

LN4 = math.log(4)
AT_CHANCE = (1.42, 1.40, *[1.39] * 30)
LEARNED = (1.40, 0.9, *[0.1] * 30)


def rules(**fields: object) -> list[str]:
    settings = {
        "updates": 300,
        "guess": LN4,
        "before": 1.4,
        "first_pass": 1.38,
        "passes": 8,
        "moved": 0.6,
        "samples": 2000,
    } | fields
    return [finding.rule for finding in judge_course(Course(**settings))]  # type: ignore[arg-type]


@pytest.mark.parametrize(("moved", "cause"), [(0.004, "lr_too_low"), (0.6, "labels_broken"), (30.0, "lr_too_high")])
def test_a_loss_that_stays_at_a_guess_is_explained_by_how_far_the_weights_moved(moved: float, cause: str) -> None:
    assert rules(training=AT_CHANCE, validation=(1.39, 1.39), moved=moved) == [cause]


def test_targets_that_hardly_follow_from_the_inputs_are_no_broken_labels() -> None:
    clicks = (1.42, *[0.87 * LN4] * 30)
    assert rules(training=clicks, validation=(1.3, 0.88 * LN4)) == []
    assert rules(training=clicks, validation=(1.39, 1.39)) == ["labels_broken"]
    assert rules(training=clicks, validation=(1.3, 0.97 * LN4), sampled=True) == []
    assert rules(training=clicks, validation=(1.38, 0.97 * LN4)) == []  # bases of DNA
    assert rules(training=(1.42, *[0.9 * LN4] * 30), validation=()) == []
    assert rules(training=AT_CHANCE, validation=()) == ["labels_broken"]


def test_a_loss_of_numbers_that_fell_since_the_first_epoch_learned_although_the_first_targets_cost_less() -> None:
    few_large_ones = {"training": (1.8, *[1.3] * 30), "validation": (1.5, 1.45), "sampled": True}
    assert rules(**few_large_ones, first_pass=1.7) == []
    assert rules(**few_large_ones, first_pass=1.35) == ["labels_broken"]


def test_losses_of_numbers_that_never_fell_are_told_although_the_first_targets_cost_more() -> None:
    heavy = {"training": (1.05, *[0.98] * 30), "validation": (1.0, 0.97), "before": 1.0, "guess": 1.4, "sampled": True}
    assert rules(**heavy, first_pass=1.0) == ["labels_broken"]
    assert rules(**heavy | {"validation": (1.0, 0.93)}, first_pass=1.0) == []  # R2 of .07
    assert rules(**heavy, first_pass=1.1) == []  # training learned something
    assert rules(**heavy, first_pass=1.0, moved=0.1) == []  # a trained net that goes on
    assert rules(**heavy | {"guess": 2.5}, first_pass=1.0) == []  # it was far better than a guess before


def test_a_loss_that_was_lower_after_the_first_epoch_was_thrown_back() -> None:
    assert rules(training=AT_CHANCE, validation=(1.39, 1.39), first_pass=1.1) == ["lr_too_high"]


def test_an_offset_that_the_run_was_spent_on_is_one_of_the_targets() -> None:
    spent = {
        "training": (*[20.0] * 12, *[1.1] * 20),
        "validation": (18.0, 1.05),
        "guess": 1.0,
        "first": 21.0,
        "sampled": True,
        "before": 20.0,
    }
    assert rules(**spent) == rules(**spent, moved=9.0) == ["unnormalised_target"]
    assert rules(**spent, moved=0.01) == ["lr_too_low"]
    assert rules(**spent | {"validation": (18.0, 0.9)}) == []
    quick = (20.0, *[1.1] * 31)
    assert rules(**spent | {"training": quick}, first_pass=1.12) == ["labels_broken"]
    assert rules(**spent | {"first": 1.3}, moved=9.0, first_pass=1.12) == ["lr_too_high"]  # thrown up by its own steps


def test_an_offset_that_the_run_never_came_near_is_one_of_the_targets() -> None:
    far = {"training": (4.5, *[4.4] * 30), "validation": (4.5, 4.3), "guess": 1.0, "sampled": True, "before": 4.5}
    assert rules(**far, first=4.5) == ["unnormalised_target"]
    assert rules(**far, first=3.0) != ["unnormalised_target"]  # it rose
    assert rules(**far, first=4.5, guess_apart=4.0, samples_apart=500) != ["unnormalised_target"]  # validation is near


FELL_BACK = {"training": (1.4, 1.0, 0.9, *[1.35] * 30), "validation": (0.95, 1.36), "moved": 2.0}


def test_a_run_that_had_learned_something_and_fell_back_to_a_guess_had_too_high_a_rate() -> None:
    assert rules(**FELL_BACK) == ["lr_too_high"]


@pytest.mark.parametrize(
    "changed",
    [
        {"training": (1.4, 1.0, 0.9, *[1.35] * 20, *[0.9] * 4)},  # it came back
        {"training": (1.4, 1.3, 1.2, *[1.35] * 30)},  # it had learned next to nothing
        {"validation": (0.95, 0.9)},
        {"moved": 0.1},
        {"guess": None},
    ],
)
def test_a_loss_that_is_only_now_and_then_at_a_guess_is_silent(changed: dict[str, object]) -> None:
    assert "lr_too_high" not in rules(**FELL_BACK | changed)


def test_a_loss_far_above_a_guess_that_falls_is_left_to_other_rules() -> None:
    falling = tuple(5000 * 0.9**i for i in range(30))
    assert rules(training=falling, validation=(800.0, 300.0), first_pass=4000.0) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"validation": (1.39, 0.9)},  # what is learned shows in validation, as under noisy labels
        {"validation": (1.39, 1.39), "passes": 2},
        {"validation": (1.39, 1.39), "updates": 40},
        {"validation": (1.39, 1.39), "guess": None},
        {"validation": (1.39, 1.39), "moved": None},
    ],
)
def test_without_a_known_guess_enough_time_or_agreement_nothing_is_said(fields: dict[str, object]) -> None:
    assert rules(training=AT_CHANCE, **fields) == []


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"first_pass": 0.7, "validation": (1.6, 2.4)}, "train_val_mismatch"),
        ({"first_pass": 0.7, "validation": (1.6, 2.0, 2.4), "passes": 3}, "train_val_mismatch"),
        ({"first_pass": 1.36, "validation": (1.2, 1.9)}, "train_val_mismatch"),  # gained a little, and lost it
        ({"first_pass": 1.2, "validation": (1.2, 1.9)}, "overfit_no_regularisation"),  # all there was to gain
        ({"first_pass": 1.39, "validation": (1.40, 1.9)}, "labels_broken"),
        ({"first_pass": 1.39, "validation": (1.40, 1.9), "passes": 60}, "overfit_no_regularisation"),
        ({"first_pass": 1.39, "validation": (1.2, 1.6), "passes": 20}, "overfit_no_regularisation"),
        ({"first_pass": 1.39, "validation": (1.40, 1.9), "uneven": True}, "class_imbalance"),
    ],
)
def test_a_validation_loss_that_never_beats_a_guess_is_told_apart_by_the_first_epoch(
    fields: dict[str, object], cause: str
) -> None:
    assert rules(training=LEARNED, **fields) == [cause]


@pytest.mark.parametrize(
    "fields",
    [
        {"validation": (1.0, 0.4)},
        {"validation": (1.6, 2.4), "before": 40.0},  # another formula, such as a sum
        {"validation": (1.6, 2.4), "before": None},
        {"validation": (1.6, 2.4), "passes": 2},
        {"validation": (2.4, 2.0, 1.6), "passes": 3},
    ],
)
def test_validation_by_another_formula_or_that_learns_is_left_alone(fields: dict[str, object]) -> None:
    assert rules(training=LEARNED, first_pass=0.7, **fields) == []


@pytest.mark.parametrize(("before", "rule"), [(79_000.0, []), (None, []), (5000.0, ["train_val_mismatch"])])
def test_a_validation_loss_in_units_of_its_own_is_compared_with_its_own_start(before: float | None, rule: list[str]) -> None:
    worth = (32_000.0, 9000.0, 5000.0) if rule == [] else (5000.0, 5200.0, 5000.0)
    assert rules(training=(1.0, 0.3, *[0.03] * 30), validation=worth, before=before) == rule


def test_a_validation_loss_in_other_units_says_nothing_of_the_data() -> None:
    euros: dict[str, object] = {"training": (0.36, *[0.01] * 30), "validation": (43e3, 14e3), "guess": None}
    assert rules(**euros, before=66e3) == rules(**euros, before=None) == []
    assert rules(**euros | {"validation": (43e3, 42e3)}, before=None) == ["train_val_mismatch"]
    apart = {"training": (1.4, 0.4, 0.001), "validation": (7.0, 9.0, 16.0), "guess": None}
    assert rules(**apart, before=1.5) == ["train_val_mismatch"]


PLATEAU = (1.0, 0.95, 0.90, 0.90, 0.91, 0.90)  # what is left is noise


def test_dropout_that_leaves_too_little_to_learn_with_is_named() -> None:
    held = {"training": (1.40, *[1.15] * 30), "validation": (1.2, 0.95)}
    assert rules(**held, dropout=0.8) == ["dropout_too_high"]
    assert rules(**{**held, "validation": PLATEAU}, dropout=0.8) == []
    assert rules(**held, dropout=0.5) == []
    assert rules(training=(1.40, *[0.6] * 30), validation=(1.2, 0.4), dropout=0.8) == []


def test_learning_by_heart_is_overfitting_although_validation_never_rose_above_its_start() -> None:
    by_heart = (1.40, 0.5, *[0.002] * 30)
    assert rules(training=by_heart, validation=(1.2, 0.6, 0.75), passes=120) == ["overfit_no_regularisation"]
    assert rules(training=by_heart, validation=(1.2, 0.3, 0.35), passes=120) == []


@pytest.mark.parametrize(("passes", "end", "cause"), [(24, 0.14, ["overfit_no_regularisation"]), (6, 0.14, []), (24, 0.6, [])])
def test_a_validation_loss_that_stays_near_a_guess_far_above_training_is_overfitting(
    passes: int, end: float, cause: list[str]
) -> None:
    assert rules(training=(1.40, 0.7, *[end] * 30), validation=(1.2, 1.0, 1.05), passes=passes) == cause


def test_a_loss_that_rises_without_end_is_a_rate_and_one_that_breaks_while_falling_is_not() -> None:
    assert [f.rule for f in diverged(Course((1.0, 5.0, math.nan), broken=17))] == ["lr_too_high"]
    assert [f.rule for f in diverged(Course((1.0, 0.5, math.nan), broken=17))] == ["nan_loss"]
    assert diverged(Course((1.0, 0.5, 0.4))) == []


@pytest.mark.parametrize(
    ("training", "moved", "cause"),
    [
        ((1.0, 3.0, 9.0, 9.0, 9.0), 20.0, ["lr_too_high"]),
        ((1.0, 3.0, 9.0, 9.0, 9.0), 0.4, []),  # a harder task: longer rollouts
        ((0.03, 0.6, 1.1, 0.02, 1.3), 20.0, []),  # batches of one
    ],
)
def test_a_loss_that_ends_high_is_a_rate_if_it_stayed_there_and_weights_were_thrown(
    training: tuple[float, ...], moved: float, cause: list[str]
) -> None:
    assert [f.rule for f in diverged(Course(training, moved=moved))] == cause


def test_a_trained_network_given_harder_data_has_not_diverged() -> None:
    assert diverged(Course((0.05, 0.4, 0.6), guess=LN4)) == []
    assert [f.rule for f in diverged(Course((0.05, 0.9, 1.2), guess=LN4))] == ["lr_too_high"]


@pytest.mark.parametrize(("validation", "learned"), [((0.9, 0.8), True), ((0.9, 0.87), False), ((), False)])
def test_what_is_learned_shows_in_both_losses(validation: tuple[float, ...], learned: bool) -> None:
    assert Course(LEARNED, validation, guess=LN4, uneven=True).learned is learned
    assert not Course(LEARNED, validation, guess=LN4).learned  # pixels, of which the shares are not known


def test_validation_is_compared_with_what_a_guess_costs_there() -> None:
    stormy = {
        "training": (1.1, *[0.93] * 30),
        "validation": (1.7, 1.58),
        "guess": 1.0,
        "sampled": True,
        "before": 1.7,
        "first_pass": 1.0,
    }
    assert rules(**stormy) == []  # it came down, whatever a guess costs there
    assert rules(**stormy | {"before": 1.6}) == ["labels_broken"]
    assert rules(**stormy, guess_apart=1.77, samples_apart=2000) == []
    assert rules(**stormy, guess_apart=1.59, samples_apart=2000) == ["labels_broken"]


def test_a_little_is_something_where_it_is_known_what_a_guess_costs() -> None:
    returns = {"training": (1.05, *[0.97] * 30), "validation": (1.0, 0.98), "guess": 1.0, "before": 1.0, "first_pass": 1.0}
    assert rules(**returns, sampled=True) == ["labels_broken"]
    assert rules(**returns, sampled=True, guess_apart=1.0, samples_apart=500) == []
    assert rules(**returns, guess_apart=1.0, samples_apart=500) == ["labels_broken"]  # of labels that are all as common


def test_weights_that_hardly_moved_do_not_learn_too_slowly_what_they_know() -> None:
    newer = {"training": [0.97 * LN4] * 32, "validation": (0.97 * LN4, 0.968 * LN4), "moved": 0.008}
    assert rules(**newer) == []
    assert rules(**newer | {"validation": (LN4, LN4)}) == ["lr_too_low"]


def test_a_run_did_not_fall_back_if_validation_is_as_hard_as_its_end() -> None:
    stream = {"training": (1.0, *[0.4] * 15, *[1.1] * 16), "validation": (0.7, 1.0), "guess": 1.0, "before": 1.5}
    assert rules(**stream, sampled=True) == ["lr_too_high"]
    assert rules(**stream, sampled=True, guess_apart=1.5, samples_apart=500) == []


def test_a_handful_of_validation_samples_tells_nothing() -> None:
    apart = {"training": LEARNED, "validation": (1.4, 1.5), "guess_apart": LN4}
    assert rules(**apart, samples_apart=200) == ["labels_broken"]
    assert rules(**apart, samples_apart=24) == []


def test_weights_that_all_ended_at_zero_were_decayed_too_hard_unless_something_was_learned() -> None:
    small = {"training": (1.1, *[0.8] * 30), "validation": (1.0, 0.8), "guess": None, "before": 1.0, "first": 1.1}
    assert rules(**small, kept=0.01) == ["weight_decay_too_strong"]
    assert rules(**small, kept=0.3) == rules(**small, kept=None) == []
    assert rules(**small | {"training": LEARNED, "validation": (1.0, 0.1)}, kept=0.01) == []
    penalised = {"training": (90.0, *[0.8] * 30), "first": 100.0}
    assert rules(**small | penalised, kept=0.01) == ["weight_decay_too_strong"]


def test_epochs_that_all_begin_at_the_same_weights_keep_nothing() -> None:
    back = {"training": (1.4, *[1.2] * 30), "validation": (1.3, 1.2), "guess": None, "rewinds": 6, "level": 1.3}
    assert rules(**back) == ["no_update"]
    assert rules(**back | {"rewinds": 2}) == rules(**back | {"passes": 20}) == []
    assert rules(**back | {"level": 0.4}) == rules(**back | {"before": None}) == []


@pytest.mark.parametrize(
    ("start", "moved", "uneven", "said"),
    [(1.7, 2.0, False, ["lr_too_high"]), (1.45, 2.0, False, []), (1.7, 0.6, False, []), (1.7, 2.0, True, [])],
)
def test_a_loss_of_classes_that_rose_at_first_and_stayed_at_a_guess_had_too_high_a_rate(
    start: float, moved: float, uneven: bool, said: list[str]
) -> None:
    stayed = {"training": (start, 1.40, *[1.31] * 30), "validation": (1.35, 1.32), "first": 1.42}
    assert rules(**stayed, moved=moved, uneven=uneven) == said
