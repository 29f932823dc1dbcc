"""What the losses of a run tell when they rest on few samples, or on many that show a small gain."""

import math

import pytest
import torch
from torch import Tensor

from lit_training.diagnosis.course import Course
from lit_training.diagnosis.rules.course import diverged, judge_course
from lit_training.diagnosis.rules.guessing import Guess
from lit_training.diagnosis.samples import Columns
from lit_training.tracing.loss_calls import LossCall
from tests.diagnosis.rules.test_course import LEARNED, LN4, rules

LN2 = math.log(2)


@pytest.mark.parametrize(("samples", "share", "cause"), [(10_000, 0.986, []), (500, 0.986, ["labels_broken"]),
                                                         (10_000, 0.999, ["labels_broken"])])  # fmt: skip
def test_many_validation_samples_tell_a_small_gain_from_chance(samples: int, share: float, cause: list[str]) -> None:
    prices = {"training": (0.70, *[0.985 * LN2] * 30), "validation": (LN2, share * LN2), "guess": LN2, "before": 0.7}
    assert rules(**prices, first_pass=LN2, guess_apart=LN2, samples_apart=samples, classes=2) == cause


def test_what_a_hundred_classes_seem_to_gain_by_chance_is_more() -> None:
    of_two, of_many = (Course((1.0,), guess_apart=LN4, samples_apart=1000, classes=classes).by_chance for classes in (2, 100))
    assert of_many == pytest.approx(of_two * (math.sqrt(99) + 4) ** 2 / 25)


@pytest.mark.parametrize(
    ("samples", "end", "cause"), [(60, 0.9, []), (60, 0.99, ["labels_broken"]), (600, 0.9, ["labels_broken"])]
)
def test_few_validation_samples_may_hide_what_training_shows(samples: int, end: float, cause: list[str]) -> None:
    weak = {"training": (1.1, *[end] * 30), "validation": (1.1, 1.01), "guess": 1.0, "before": 1.1, "first_pass": 1.0}
    assert rules(**weak, sampled=True, guess_apart=1.0, samples_apart=samples) == cause


def test_what_ends_at_a_guess_in_both_learned_nothing_though_validation_once_was_lower() -> None:
    other = {"training": (1.1, *[1.0] * 30), "validation": (0.93, 1.04), "guess": 1.0, "before": 1.0, "first_pass": 1.0}
    assert rules(**other, sampled=True, guess_apart=1.0, samples_apart=500) == ["labels_broken"]
    assert rules(**other | {"validation": (0.93, 0.97)}, sampled=True, guess_apart=1.0, samples_apart=500) == []


@pytest.mark.parametrize(("last", "cause"), [(0.96, []), (1.01, ["lr_too_high"])])
def test_weights_that_moved_far_were_thrown_only_if_validation_gained_nothing(last: float, cause: list[str]) -> None:
    words = {"training": (1.4, *[0.94 * LN4] * 30), "validation": (0.96 * LN4, last * LN4)}
    assert rules(**words, moved=5.0, guess_apart=LN4, samples_apart=4000, classes=4) == cause


@pytest.mark.parametrize(("early", "cause"), [([2.0, 1.0], []), ([1.35, 1.35], ["lr_too_high"])])
def test_single_high_losses_among_noisy_ones_were_not_flung(early: list[float], cause: list[str]) -> None:
    rest = [1.1, 1.7] if not cause else [1.35, 1.37]
    bumpy = {"training": (1.4, 1.75, *early * 3, *rest * 12), "validation": (1.36, 1.35), "first": 1.4, "moved": 2.0}
    assert rules(**bumpy, guess_apart=LN4, samples_apart=4000, classes=4) == cause


def test_a_calm_beginning_is_nothing_learned_that_validation_does_not_show() -> None:
    calm = {"training": (1.0, *[0.6] * 15, *[1.0] * 16), "guess": 1.0, "before": 1.0, "sampled": True, "first_pass": 0.6}
    known = {"guess_apart": 1.0, "samples_apart": 1000}
    assert rules(**calm, **known, validation=(0.95, 0.95)) == []
    assert rules(**calm, **known, validation=(0.7, 0.95)) == ["lr_too_high"]


def test_a_loss_that_starts_low_by_chance_has_not_diverged() -> None:
    noisy = (0.2, *[0.3, 2.1] * 15)
    assert diverged(Course(noisy, guess=1.0, moved=9.0)) == []
    assert [f.rule for f in diverged(Course((0.2, *[1.1, 1.2] * 15), guess=1.0, moved=9.0))] == ["lr_too_high"]


@pytest.mark.parametrize(("samples", "cause"), [(0, ["dropout_too_high"]), (1000, ["dropout_too_high"]), (60, [])])
def test_dropout_is_too_high_by_more_than_few_samples_leave_to_chance(samples: int, cause: list[str]) -> None:
    held = {"training": (1.40, *[1.15] * 30), "validation": (1.2, 0.95), "guess_apart": LN4, "classes": 4}
    assert rules(**held, samples_apart=samples, dropout=0.8) == cause


@pytest.mark.parametrize(("error", "cause"), [(0.0, "train_val_mismatch"), (0.3, "labels_broken")])
def test_a_first_epoch_of_few_batches_does_not_tell_what_it_taught(error: float, cause: str) -> None:
    apart = {"training": LEARNED, "validation": (1.39, 1.9), "first_pass": 0.9, "guess_apart": LN4, "samples_apart": 100}
    assert rules(**apart, first_pass_error=error) == [cause]


@pytest.mark.parametrize(("samples", "cause"), [(2000, "train_val_mismatch"), (200, "overfit_no_regularisation")])
def test_few_samples_are_known_by_heart_soon(samples: int, cause: str) -> None:
    assert rules(training=LEARNED, first_pass=1.36, validation=(1.2, 1.9), samples=samples) == [cause]


@pytest.mark.parametrize(
    "fields",
    [
        {"training": LEARNED, "validation": (1.2, 1.9), "first_pass": 1.36},
        {"training": (1.40, 0.5, *[0.002] * 30), "validation": (1.2, 0.6, 0.75), "passes": 120},
    ],
)
def test_who_stops_early_is_told_of_overfitting_by_a_note(fields: dict[str, object]) -> None:
    known = {"guess": LN4, "before": 1.4, "first_pass": 1.38, "passes": 8, "samples": 2000, "updates": 300, "moved": 0.6}
    findings = judge_course(Course(**known | fields, stops_early=True))  # type: ignore[arg-type]
    assert [(f.rule, f.severity) for f in findings] == [("overfit_no_regularisation", "note")]


def test_targets_of_several_numbers_are_kept_to_tell_what_a_guess_costs() -> None:
    columns = Columns()
    for sign in (-1.0, 1.0, 3.0):
        columns.note((torch.full((4, 2, 3), sign), torch.zeros(4, 100)))
    rows = columns.at(0)
    assert rows is not None
    assert rows.shape == (12, 6)
    assert columns.at(1) is None  # more than a few
    assert (
        Guess(0.0, call=LossCall("mse_loss", 0, 1, (0.0, 0.0), (0.0, 0.0), 0.0, 1.0)).on(rows) is None
    )  # how the loss bends is not known


@pytest.mark.parametrize(
    ("targets", "classes", "cost"),
    [
        (torch.tensor([[0.0, 1.0], [1.0, 1.0]]).repeat(8, 1), 2, LN2 / 2),  # two questions, of which one has one answer
        (torch.eye(4).repeat(10, 1), 4, LN4),
        (torch.eye(4)[[0, 0, 0, 0]].repeat(10, 1), 4, None),
        (torch.rand(40), 4, None),
    ],
)
def test_a_guess_of_labels_that_are_given_as_numbers(targets: Tensor, classes: int, cost: float | None) -> None:
    guess = Guess(1.0, call=LossCall("nll_loss", 0, 1, (0.0, 0.0), (0.0, 0.0), 0.0, 1.0), classes=classes)
    assert guess.on(targets) == (None if cost is None else pytest.approx(cost))


@pytest.mark.parametrize(("last", "cause"), [(0.88, []), (0.95, ["train_val_mismatch"])])
def test_validation_that_is_at_its_best_in_the_end_is_neither_lost_nor_overfitted(last: float, cause: list[str]) -> None:
    ratings = {
        "training": (1.0, *[0.65] * 30),
        "validation": (0.95, 0.88, last),
        "guess": 1.0,
        "before": 1.0,
        "first_pass": 0.96,
    }
    assert rules(**ratings, guess_apart=1.0, samples_apart=3000, sampled=True) == cause
    slight = {"validation": (1.3, 1.0, last / 0.88), "passes": 24, "guess_apart": LN4, "samples_apart": 3000, "classes": 4}
    assert bool(rules(training=(1.40, *[0.2] * 30), **slight)) == bool(cause)
    assert rules(training=(1.40, *[0.02] * 30), **slight) == ["overfit_no_regularisation"]


@pytest.mark.parametrize(
    ("best", "before", "cause"), [(8.4, 9.4, []), (9.3, 9.4, ["labels_broken"]), (1.05, 9.4, ["labels_broken"])]
)
def test_a_guess_known_from_one_batch_of_small_targets_is_doubted(best: float, before: float, cause: list[str]) -> None:
    small = {"training": (9.0, *[max(best, 1.0)] * 30), "validation": (best + 0.1, best), "guess": 1.0, "first": 4.0}
    assert rules(**small, before=before, first_pass=best, sampled=True) == cause


@pytest.mark.parametrize(("samples", "cause"), [(64, []), (600, ["lr_too_high"])])
def test_few_validation_samples_do_not_tell_that_all_was_lost(samples: int, cause: list[str]) -> None:
    patients = {"training": (1.4, *[1.38] * 30), "validation": (1.24, 1.40), "first_pass": 1.2, "guess_apart": LN4}
    assert rules(**patients, samples_apart=samples, classes=4) == cause


@pytest.mark.parametrize(("classes", "cause"), [(2, []), (0, ["train_val_mismatch"])])
def test_classes_that_training_draws_evenly_cannot_be_known_to_be_rare_in_validation(classes: int, cause: list[str]) -> None:
    drawn = Course((0.67, 0.18, 0.08), (0.21, 0.13, 0.12), 250, guess=0.69, before=0.58, first_pass=0.1, passes=4, classes=classes,
                   guess_apart=0.14, samples_apart=1000, samples=2000, moved=1.4)  # fmt: skip
    assert [finding.rule for finding in judge_course(drawn)] == cause


@pytest.mark.parametrize(
    ("end", "best", "last", "cause"),
    [
        (0.04, 0.45, 0.5, ["overfit_no_regularisation"]),
        (0.17, 0.45, 1.1, []),
        (0.04, 0.2, 0.5, []),
        (0.1, 0.45, 0.5, []),
    ],
)
def test_what_is_learned_by_heart_over_many_epochs_leaves_little_in_training_only(
    end: float, best: float, last: float, cause: list[str]
) -> None:
    course = Course((0.9, 0.3, end, end), (0.8, best, last), 400, guess=1.0, guess_apart=1.0, before=1.1, first_pass=0.8,
                    passes=80, samples=160, samples_apart=600, moved=0.3, sampled=True)  # fmt: skip
    assert [finding.rule for finding in judge_course(course)] == cause
