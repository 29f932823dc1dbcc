"""Losses that have no lower bound, and likelihoods that are negative by right."""

import math

import pytest

from lit_training.diagnosis.course import Course
from lit_training.diagnosis.rules.sinking import sinks

RUN = [i / 63 for i in range(64)]


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([0.3 - 2000 * t**3 for t in RUN], ["loss_sign"]),  # log-variances that grow
        ([0.7 - 40 * t**2 for t in RUN], ["loss_sign"]),
        ([3 - 900 * (1 - math.exp(-6 * t)) for t in RUN], []),  # a flow over many pixels: ever more slowly
        ([3 - 900 * t for t in RUN], []),
        ([3 - 900 * min(t, 2 / 3) ** 2 for t in RUN], []),  # a warm-up, and a bound
        ([3 - 900 * max(t, 2 * t - 2 / 3) for t in RUN], []),  # a rate that was raised once
        ([0.3 - 4 * t**2 for t in RUN], []),  # a likelihood under warm-up
        ([0.3 - 2000 * t**3 for t in RUN[:8]], []),
        ([0.3 - 2000 * t**3 for t in RUN[:63]] + [math.nan], []),
    ],
)
def test_a_loss_that_falls_faster_and_faster_below_zero_has_no_bound(losses: list[float], said: list[str]) -> None:
    assert [finding.rule for finding in sinks(Course(tuple(losses), updates=300))] == said
