"""Time several variants side by side: in turn, many rounds, so that what else the machine does hits all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def seconds(variants: Mapping[str, Callable[[], object]], rounds: int = 30) -> dict[str, float]:
    """Return the median seconds of one call of each variant, after one round of warming up."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(rounds + 1):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            if i:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}
