"""Time several variants side by side: in turn, many rounds, so that what else the machine does hits all of them alike."""

import random
import statistics
import time
from collections.abc import Callable, Mapping


def seconds(
    variants: Mapping[str, Callable[[], object]],
    rounds: int = 30,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, float]:
    """Return the median seconds of one call of each variant, after one round of warming up.

    `before` holds what to run, untimed, ahead of a variant. Each round takes the variants in another order: in one fixed order
    the time slices of a busy machine can fall in step with them, and hit the same variant in every round.
    """
    order, names = random.Random(0), list(variants)
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(rounds + 1):
        order.shuffle(names)
        for name in names:
            if before and name in before:
                before[name]()
            start = time.perf_counter()
            variants[name]()
            if i:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}
