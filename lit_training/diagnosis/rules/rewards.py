"""What a logged reward that falls tells at the end of a run: each step makes the policy worse."""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean, median

from lit_training.diagnosis.course import STEPS_OF_NOISE
from lit_training.diagnosis.finding import Finding

__all__ = ["reward_fell", "reward_name"]

STRETCHES = 12
SIGNIFICANT = 5.0
_REWARD = frozenset("reward rewards return returns".split())
_OF_ALL = frozenset("train training mean avg average episode ep episodic total step epoch batch running".split())


def reward_name(logged: Iterable[str]) -> str | None:
    """Return which of the names that a module logs in training is its reward, `None` if there is none.

    Rewards of a part of the samples or of a kind of their own may well fall: of rejected answers, for what is new.

    >>> reward_name(["train_loss", "rewards/rejected", "intrinsic_reward", "train/mean_reward"])
    'train/mean_reward'
    """
    words = {name: {*re.split(r"[^a-z]+", name.lower())} - {""} for name in logged}
    return next((name for name, said in words.items() if said & _REWARD and said <= _REWARD | _OF_ALL), None)


def reward_fell(means: Sequence[float], updates: int) -> list[Finding]:
    """Say so if the reward fell all through the run: `loss_sign`.

    Threshold: each third of the run has a lower mean than the one before, and the last one is below the first by five standard
    errors, as the steps between stretches tell.

    Args:
        means: of equal stretches of the run, in order.
        updates: optimiser steps done.

    >>> reward_fell([-i / 10 for i in range(30)], 300)[0].rule, reward_fell([i / 10 for i in range(30)], 300)
    ('loss_sign', [])
    """
    if len(means) < STRETCHES or not all(map(math.isfinite, means)):
        return []
    third = len(means) // 3
    first, second, last = fmean(means[:third]), fmean(means[third:-third]), fmean(means[-third:])
    noise = median(abs(b - a) for a, b in pairwise(means)) / STEPS_OF_NOISE
    if not first > second > last or first - last <= SIGNIFICANT * noise * math.sqrt(2 / third):
        return []
    message = (
        f"The reward falls from {first:.3g} in the first third of the run to {last:.3g} in the last, as the loss is minimised."
    )
    advice = "A policy gradient minimises minus the log-probability times the advantage: look for a minus that is missing."
    return [Finding("loss_sign", "error", "", updates, message, advice, {"first": first, "last": last})]
