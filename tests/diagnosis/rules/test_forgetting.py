"""Networks that training made worse, and those whose loss rose for another reason."""

import math

import pytest

from lit_training.diagnosis.course import Course
from lit_training.diagnosis.rules.forgetting import forgot

LN4 = math.log(4)
BUMP = (0.1, 0.6, 0.7, 0.4, 0.5, *[0.1] * 20)


def rules(**fields: object) -> list[str]:
    settings = {
        "training": BUMP,
        "validation": (0.7, 0.5),
        "updates": 90,
        "guess": LN4,
        "before": 0.09,
        "first": 0.1,
        "moved": 0.7,
    }
    return [finding.rule for finding in forgot(Course(**settings | fields))]  # type: ignore[arg-type]


def test_a_network_that_never_gets_back_to_where_it_was_has_forgotten() -> None:
    assert rules() == ["lr_too_high"]
    assert rules(training=(0.1, *[1.4] * 30), validation=(1.4, 1.4)) == ["lr_too_high"]


@pytest.mark.parametrize(
    "fields",
    [
        {"validation": (0.7, 0.15)},  # a bump, as under warm-up
        {"before": 1.4, "first": 1.4},  # a new head
        {"first": 0.9},  # other data in training
        {"training": (0.1, 0.08, *[0.001] * 20)},  # overfitting
        {"training": (*[0.1] * 20, 0.6, 0.6, 0.6, 0.6, 0.6)},  # later, noise or a curriculum
        {"moved": 0.1},
        {"guess": None},
        {"before": None},
        {"validation": ()},
    ],
)
def test_other_reasons_for_a_rise_are_silent(fields: dict[str, object]) -> None:
    assert rules(**fields) == []
