"""Examine the diagnosis on the zoo.

    python -m tests.zoo.score [--part tune|heldout|all] [--seeds 0 1 2] [--ids ID ...] [--names 'f_*'] [--jobs 2] [--json FILE]

detection     some error or warning on a faulty case
root cause    some error or warning whose rule is an accepted root
root cause@1  the most severe finding (the first among equals) is an accepted root
notes         on a fault that is only worth a note: a finding of any severity has the right rule
false alarms  some error or warning on a healthy case, or one with another rule on a case that is worth a note
failures      the diagnosis itself failed somewhere, which costs a user one warning

The tuned and the held-out part are always reported apart, and of the held-out part only the rates, so that nobody tunes on
what it misses; `--show-heldout` lists its misses too. A crash is a miss on a faulty case and a false alarm on a healthy one.
"""

import argparse
import json
import os
import re
import signal
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from tests.zoo import CASES
from tests.zoo.case import ROOTS, Case, Entry, fit, quiet

RANK = {"error": 0, "warning": 1}
TIME_LIMIT = 120
FAILED = r"(?s).*(failed, training goes on|failed and was skipped)"

Answer = list[tuple[str, str, str]]
"""Findings as (rule, severity, where), in the order in which the diagnosis gives them."""


@dataclass(frozen=True)
class Row:
    """The judgement of one answer on one case and seed."""

    name: str
    seed: int
    expected: tuple[str, ...]
    note: bool
    answer: Answer
    crash: str | None
    seconds: float
    failures: list[str] = field(default_factory=list)

    @property
    def alarms(self) -> list[str]:
        """The rules of errors, then of warnings."""
        loud = [finding for finding in self.answer if finding[1] in RANK]
        return [rule for rule, *_ in sorted(loud, key=lambda finding: RANK[finding[1]])]

    @property
    def faulty(self) -> bool:
        return bool(self.expected) and not self.note

    @property
    def root(self) -> bool:
        return any(rule in self.expected for rule in self.alarms)

    @property
    def root_at_1(self) -> bool:
        return bool(self.alarms) and self.alarms[0] in self.expected

    @property
    def noted(self) -> bool:
        return any(rule in self.expected for rule, *_ in self.answer)

    @property
    def false_alarm(self) -> bool:
        return not self.faulty and (bool(self.crash) or any(rule not in self.expected for rule in self.alarms))


def diagnose(case: Case) -> Answer:
    """Fit the case with the product's callbacks and read their findings, also after a crash of the training itself."""
    from lit_training.callbacks import diagnostics

    torch.manual_seed(10_000 + case.seed)
    callbacks = diagnostics(expect_frozen=case.frozen)
    crash = None
    try:
        fit(case, callbacks)
    except Exception as error:
        crash = error
    found = [(f.rule, str(f.severity), str(f.where)) for callback in callbacks for f in getattr(callback, "findings", ())]
    if crash is not None and not found:
        raise crash
    return found


def _out_of_time(*_: Any) -> None:
    raise TimeoutError(f"over {TIME_LIMIT} s")


def examine(name: str, seed: int, diagnose: Callable[[Case], Answer] = diagnose) -> Row:
    """One case, one seed."""
    quiet()
    entry, start = CASES[name], perf_counter()
    answer, crash, warned = [], None, []
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(TIME_LIMIT)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings(record=True) as warned:
            warnings.filterwarnings("always", FAILED)
            answer = diagnose(entry.build(seed))
    except (Exception, SystemExit) as error:
        crash = f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
    failures = [str(w.message) for w in warned if re.match(FAILED, str(w.message))]
    return Row(name, seed, entry.expected, entry.note, answer, crash, perf_counter() - start, failures)


def examine_all(names: Iterable[str], seeds: Iterable[int], jobs: int) -> list[Row]:
    """Every name with every seed, in `jobs` processes."""
    todo = [(name, seed) for seed in seeds for name in names]
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        return list(pool.map(partial(examine, diagnose=diagnose), *zip(*todo, strict=True)))


def chosen(part: str, ids: Sequence[str], globs: Sequence[str]) -> list[str]:
    """Names of the cases of a part that stand for, or nearly miss, one of the ids."""

    def wanted(entry: Entry) -> bool:
        of_part = part == "all" or entry.held_out == (part == "heldout")
        of_ids = not ids or bool({*entry.expected[:1], *entry.near_miss} & {*ids})
        return of_part and of_ids and any(fnmatchcase(entry.name, glob) for glob in globs)

    return [name for name, entry in CASES.items() if wanted(entry)]


# ------------------------------------------------------------------------------------------ the report
def percent(hits: int, total: int) -> str:
    return f"{hits:4d}/{total:<4d} {100 * hits / total:5.1f} %" if total else "   -"


def report(rows: list[Row], details: bool) -> None:
    """Print the rates, by rule too, and with `details` what was missed and what was cried wolf at."""
    faulty, notes = [r for r in rows if r.faulty], [r for r in rows if r.note]
    others = [r for r in rows if not r.faulty]
    print(f"detection     {percent(sum(bool(r.alarms) for r in faulty), len(faulty))}")
    print(f"root cause    {percent(sum(r.root for r in faulty), len(faulty))}")
    print(f"root cause@1  {percent(sum(r.root_at_1 for r in faulty), len(faulty))}")
    print(f"notes         {percent(sum(r.noted for r in notes), len(notes))}")
    print(f"false alarms  {percent(sum(r.false_alarm for r in others), len(others))}")
    print(f"failures      {percent(sum(bool(r.failures) for r in rows), len(rows))}")
    if not details:
        return
    by_id: dict[str, list[Row]] = defaultdict(list)
    for row in faulty:
        by_id[row.expected[0]].append(row)
    wolf = Counter(rule for r in others if r.false_alarm for rule in {*r.alarms} - {*r.expected})
    print(f"\n{'rule':26s} {'detection':20s} {'root cause':20s} {'root cause@1':20s} false alarms")
    for rule in sorted({*by_id, *wolf}):
        some = by_id.get(rule, [])
        rates = (
            percent(sum(hits), len(some))
            for hits in ([bool(r.alarms) for r in some], [r.root for r in some], [r.root_at_1 for r in some])
        )
        print(f"{rule:26s} " + " ".join(f"{rate:20s}" for rate in rates) + f" {wolf[rule]}")
    print("\nmisses: the first alarm is no accepted root")
    for row in faulty + notes:
        if not (row.noted if row.note else row.root_at_1):
            said = row.crash or ", ".join(dict.fromkeys(row.alarms)) or "nothing"
            print(f"  {row.name:30s} seed {row.seed}  said: {said:50s}  accepted: {', '.join(row.expected)}")
    print("\nfalse alarms")
    for row in others:
        if row.false_alarm:
            said = row.crash or "; ".join(
                f"{rule} {severity} at {where or '-'}" for rule, severity, where in row.answer if severity in RANK
            )
            print(f"  {row.name:30s} seed {row.seed}  {said[:160]}")
    print("\nfailures of the diagnosis")
    for row in rows:
        for failure in row.failures:
            print(f"  {row.name:30s} seed {row.seed}  {failure[:160]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["tune", "heldout", "all"], default="tune")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ids", nargs="+", default=[], choices=sorted(ROOTS), metavar="ID")
    parser.add_argument("--names", nargs="+", default=["*"], help="globs")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--show-heldout", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    names = chosen(args.part, args.ids, args.names)
    rows = examine_all(names, args.seeds, args.jobs) if names else []
    for part in ("tune", "heldout"):
        some = [row for row in rows if CASES[row.name].held_out == (part == "heldout")]
        if some:
            print(f"\n== {part}: {len({row.name for row in some})} cases, seeds {args.seeds}")
            report(some, details=part == "tune" or args.show_heldout)
    if rows:
        print(f"\ntime: total {sum(r.seconds for r in rows):.0f} s, slowest {max(r.seconds for r in rows):.1f} s")
    if args.json:
        Path(args.json).write_text(
            json.dumps([asdict(row) for row in rows if args.show_heldout or not CASES[row.name].held_out], indent=1)
        )


if __name__ == "__main__":
    main()
