"""Show that each fault hurts and that each healthy case learns.

    python -m tests.zoo.hurts [--seeds 0 1] [--names 'f_*'] [--jobs 2] [--json out.json]

A fault holds if, on average over the seeds, the metric of its healthy twin is better by the margin that the fault states; a
healthy case holds if on every seed it covers at least half of the way from the best constant predictor to 1. Exits with 1 where
one does not. Faults that are only worth a note are listed and not judged.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from time import perf_counter

import torch

from tests.zoo import CASES
from tests.zoo.case import fit, loaders, quiet
from tests.zoo.metrics import METRICS

LEARNT = 0.5
"""The share of the way from the best constant predictor to a perfect metric that a healthy case covers at least."""


@dataclass(frozen=True)
class Outcome:
    """How well a case did on one seed."""

    name: str
    seed: int
    metric: float
    constant: float
    seconds: float


def train(name: str, seed: int) -> Outcome:
    """Train one case; a crash or a metric that is not finite counts as the worst figure of a metric, -1 (0 for shares)."""
    quiet()
    start = perf_counter()
    case = CASES[name].build(seed)
    batches = (list(batch.values()) if isinstance(batch, dict) else batch for batch in loaders(case)[1])
    targets = torch.cat([torch.as_tensor(batch[-1]) for batch in batches])
    metric = METRICS[case.metric]
    worst = -1.0 if case.metric == "r2" else 0.0
    try:
        module, trainer = fit(case)
        score = trainer.validate(module, loaders(case)[1], verbose=False)[0]["val_metric"]
    except (ValueError, RuntimeError, FloatingPointError, IndexError) as error:
        print(f"{name} seed {seed}: {error}", file=sys.stderr)
        score = worst
    score = score if score == score else worst
    return Outcome(name, seed, score, metric.constant(targets), perf_counter() - start)


def train_all(names: Iterable[str], seeds: Iterable[int], jobs: int) -> dict[tuple[str, int], Outcome]:
    """Every name with every seed, in `jobs` processes."""
    todo = [(name, seed) for name in names for seed in seeds]
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        return dict(zip(todo, pool.map(train, *zip(*todo, strict=True)), strict=True))


def verdicts(names: Iterable[str], seeds: list[int], outcomes: dict[tuple[str, int], Outcome]) -> dict[str, tuple[bool, str]]:
    """For each case whether it holds, and the figures."""
    result = {}
    for name in names:
        entry = CASES[name]
        mine = [outcomes[name, seed] for seed in seeds]
        figures = f"metric {fmean(o.metric for o in mine):6.3f}"
        if entry.twin is None:
            share = min((o.metric - o.constant) / (1 - o.constant) for o in mine)
            result[name] = (
                share >= LEARNT,
                f"{figures}  constant {fmean(o.constant for o in mine):6.3f}  learnt {share:5.2f} (>= {LEARNT})",
            )
        else:
            twin = fmean(outcomes[entry.twin, seed].metric for seed in seeds)
            loss = twin - fmean(o.metric for o in mine)
            result[name] = (
                entry.note or loss >= entry.margin,
                f"{figures}  twin     {twin:6.3f}  lost   {loss:5.2f} (>= {entry.margin})",
            )
        result[name] = result[name][0], result[name][1] + f"  {max(o.seconds for o in mine):4.1f} s"
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--names", nargs="+", default=["*"], help="globs")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json")
    args = parser.parse_args()
    names = [name for name in CASES if any(fnmatchcase(name, pattern) for pattern in args.names)]
    twins = [twin for name in names if (twin := CASES[name].twin) is not None]
    outcomes = train_all(dict.fromkeys([*names, *twins]), args.seeds, args.jobs)
    judged = verdicts(names, args.seeds, outcomes)
    for name, (holds, figures) in judged.items():
        print(f"{'  ' if holds else '! '}{name:34s} {figures}")
    if args.json:
        Path(args.json).write_text(json.dumps([asdict(o) for o in outcomes.values()], indent=1))
    sys.exit(not all(holds for holds, _ in judged.values()))


if __name__ == "__main__":
    main()
