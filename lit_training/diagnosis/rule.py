"""What a rule is, and how many rules become one ordered list of findings."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from inspect import cleandoc

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding, is_alarm

__all__ = ["Filter", "Rule", "diagnose", "rule"]

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
    all_rules = [r if isinstance(r, Rule) else Rule(r, tuple(getattr(r, "explains", ()))) for r in rules]
    findings = [finding for r in all_rules for finding in _run(r, evidence) if wanted is None or wanted.wants(finding)]
    return in_causal_order(findings, all_rules)


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


def _silences(pattern: str, finding: Finding) -> bool:
    rule_pattern, _, place = pattern.partition(":")
    if not fnmatchcase(finding.rule, rule_pattern):
        return False
    return not place or fnmatchcase(finding.where, place) or fnmatchcase(finding.where, f"{place}.*")
