"""What a rule is, and how many rules become one ordered list of findings, at first and when later steps have shown more."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from inspect import cleandoc
from typing import Any

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding, is_alarm

__all__ = ["Diagnosis", "Filter", "Rule", "diagnose", "rule"]

Check = Callable[[Evidence], Iterable[Finding]]


@dataclass(frozen=True)
class Rule:
    """A named function from evidence to findings, and the rules whose alarms it explains.

    The alarm of a `symptom` is explained by any alarm that is none. The docstring of `check` is what `python -m lit_training
    explain` prints.
    """

    check: Callable[..., Iterable[Finding]]
    explains: tuple[str, ...] = ()
    symptom: bool = False

    @property
    def id(self) -> str:
        """The rule's name, which is that of its function."""
        return getattr(self.check, "__name__", type(self.check).__name__)

    @property
    def page(self) -> str:
        """The rule's explanation."""
        return cleandoc(self.check.__doc__ or "(no explanation)")

    def __call__(self, evidence: Evidence) -> list[Finding]:
        """Return what the rule finds."""
        return list(self.check(evidence))


def rule(*, explains: Sequence[str] = (), symptom: bool = False) -> Callable[[Check], Rule]:
    """Make a rule of a function whose name is the rule's id.

    >>> @rule(explains=["nan_loss"])
    ... def huge_loss(evidence):
    ...     '''The loss is huge.'''
    ...     return [Finding("huge_loss", "error")] if (evidence.loss or 0) > 1e6 else []
    >>> huge_loss.id, huge_loss.page
    ('huge_loss', 'The loss is huge.')
    """
    return lambda check: Rule(check, tuple(explains), symptom)


@dataclass(frozen=True)
class Filter:
    """Which findings the user wants, as with a linter.

    Args:
        select: patterns of rule ids; `None` selects all.
        ignore: patterns of rule ids, or of `rule:place` (`"saturation:features.*"`).

    Raises:
        ValueError: from `check`, for a pattern that matches no rule (the nearest are listed).
    """

    select: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()

    def check(self, rules: Iterable[Rule]) -> None:
        """Refuse patterns that can match nothing."""
        ids = [rule.id for rule in rules]
        for argument, patterns in (("select", self.select or ()), ("ignore", self.ignore)):
            for pattern in patterns:
                if not any(fnmatchcase(i, pattern.partition(":")[0]) for i in ids):
                    near = get_close_matches(pattern.partition(":")[0], ids, n=3, cutoff=0.0)
                    raise ValueError(f"{argument}: {pattern!r} matches no rule; nearest: {near}")

    def wants(self, finding: Finding) -> bool:
        """Tell whether a finding passes."""
        if self.select is not None and not any(fnmatchcase(finding.rule, pattern) for pattern in self.select):
            return False
        return not any(_silences(pattern, finding) for pattern in self.ignore)


def diagnose(evidence: Evidence, rules: Iterable[Rule | Check], wanted: Filter | None = None) -> list[Finding]:
    """Run rules on evidence; return their findings in causal order, symptoms as notes that name their cause.

    A rule that raises becomes one warning and finds nothing: a mistake in a rule must not cost a training run.

    >>> from lit_training.tracing.graph import Graph
    >>> diagnose(Evidence(Graph(), ()), [lambda evidence: [Finding("mine", "note")]])[0].rule
    'mine'
    """
    return Diagnosis(rules, wanted)(evidence)


class Diagnosis:
    """Do what `diagnose` does, once and again on the same evidence with `later` and `samples` of the steps that followed.

    A rule that had read neither would find the same again, and is not run again.

    >>> from lit_training.tracing.graph import Graph
    >>> run = []
    >>> diagnosis = Diagnosis([lambda e: run.append("once") or [], lambda e: run.append("twice") or [e.later][:0]])
    >>> diagnosis(Evidence(Graph(), ())), diagnosis(Evidence(Graph(), ())), run
    ([], [], ['once', 'twice', 'twice'])
    """

    def __init__(self, rules: Iterable[Rule | Check], wanted: Filter | None = None) -> None:
        self._rules = [r if isinstance(r, Rule) else Rule(r, tuple(getattr(r, "explains", ()))) for r in rules]
        self._wanted = wanted
        self._settled: dict[int, list[Finding]] = {}

    def __call__(self, evidence: Evidence) -> list[Finding]:
        """Return the findings in causal order."""
        watched = _Watched(**vars(evidence))
        found = [finding for i in range(len(self._rules)) for finding in self._findings(i, watched)]
        wanted = self._wanted
        return in_causal_order([f for f in found if wanted is None or wanted.wants(f)], self._rules)

    def _findings(self, i: int, evidence: "_Watched") -> list[Finding]:
        if i in self._settled:
            return self._settled[i]
        evidence.note_reading(False)
        found = _run(self._rules[i], evidence)
        if not evidence.was_read:
            self._settled[i] = found
        return found


def in_causal_order(findings: Iterable[Finding], rules: Sequence[Rule]) -> list[Finding]:
    """Order findings by the order of the rules, and turn alarms that an earlier alarm explains into notes.

    Alarms come before notes; of findings by one rule, the order stays as given.
    """
    order = {rule.id: i for i, rule in enumerate(rules)}
    explains = {rule.id: rule.explains for rule in rules}
    symptoms = {rule.id for rule in rules if rule.symptom}
    result: list[Finding] = []
    for finding in sorted(findings, key=lambda f: order.get(f.rule, len(order))):
        causes = (
            f
            for f in result
            if is_alarm(f)
            and (finding.rule in explains.get(f.rule, ()) or (finding.rule in symptoms and f.rule not in symptoms))
        )
        cause = next(causes, None) if is_alarm(finding) else None
        result.append(finding.as_symptom_of(cause) if cause else finding)
    return sorted(result, key=lambda f: not is_alarm(f))


def _run(r: Rule, evidence: Evidence) -> list[Finding]:
    try:
        return r(evidence)
    except Exception as error:
        warnings.warn(f"rule {r.id} failed and was skipped: {type(error).__name__}: {error}", stacklevel=2)
        return []


class _Noting:
    """A field of `_Watched` that notes whenever it is read."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, evidence: "_Watched", owner: type) -> Any:
        evidence.note_reading(True)
        return vars(evidence)[self._name]

    def __set__(self, evidence: "_Watched", value: Any) -> None:
        vars(evidence)[self._name] = value


class _Watched(Evidence):
    """Evidence that notes whether a rule reads what later steps add to it."""

    later = _Noting()
    samples = _Noting()
    was_read = False

    def note_reading(self, read: bool) -> None:
        vars(self)["was_read"] = read


def _silences(pattern: str, finding: Finding) -> bool:
    rule_pattern, _, place = pattern.partition(":")
    if not fnmatchcase(finding.rule, rule_pattern):
        return False
    return not place or fnmatchcase(finding.where, place) or fnmatchcase(finding.where, f"{place}.*")
