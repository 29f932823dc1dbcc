"""Which steps a monitor looks at."""

__all__ = ["is_sampled"]


def is_sampled(step: int, every_n_steps: int) -> bool:
    """Tell whether a monitor looks at this step: often while the run is young, then at a fixed interval.

    Args:
        step: number of optimiser steps done, from 0.
        every_n_steps: the interval; powers of two below it are sampled as well, so that a run of 200 steps can be judged too. 0 is
            never.

    >>> [step for step in range(200) if is_sampled(step, 50)]
    [0, 1, 2, 4, 8, 16, 32, 50, 100, 150]
    """
    if every_n_steps <= 0:
        return False
    return step % every_n_steps == 0 or (step < every_n_steps and step & (step - 1) == 0)
