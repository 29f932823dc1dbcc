"""What a diagnosis says: the `Finding`, its order of causes, and how findings are written to a file."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

__all__ = ["Finding", "Severity", "is_alarm", "save_findings"]

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that a rule found.

    Args:
        rule: id of the rule, as `python -m lit_training explain` lists them.
        severity: `error` breaks training, `warning` costs quality or time, `note` is for information. Errors and warnings are
            alarms.
        where: name of the module or parameter, or `""` for the whole set-up.
        step: optimiser steps that were done before it was seen.
        message: one sentence with the measured figure.
        advice: what to change, in code where possible.
        evidence: the numbers behind the message.
        remedy: the change in machine-readable form, or `None`.
        caused_by: the finding that explains this one, which is then a `note`.

    Raises:
        ValueError: for an unknown severity.

    >>> print(Finding("dead_relu", "warning", "body.0", message="60 % of the units never fire.", advice="Lower lr."))
    WARNING dead_relu at body.0: 60 % of the units never fire. Lower lr.
    """

    rule: str
    severity: Severity
    where: str = ""
    step: int = 0
    message: str = ""
    advice: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)
    remedy: Mapping[str, Any] | None = None
    caused_by: "Finding | None" = None

    def __post_init__(self) -> None:
        if self.severity not in get_args(Severity):
            raise ValueError(f"severity must be one of {get_args(Severity)}, got {self.severity!r}")

    def __str__(self) -> str:
        place = f" at {self.where}" if self.where else ""
        cause = f" (explained by {self.caused_by.rule})" if self.caused_by else ""
        return " ".join(f"{self.severity.upper()} {self.rule}{place}{cause}: {self.message} {self.advice}".split())

    def as_symptom_of(self, cause: "Finding") -> "Finding":
        """Return this finding as a note that names its cause.

        >>> cause = Finding("saturation", "error")
        >>> Finding("init_exploding", "error").as_symptom_of(cause).severity
        'note'
        """
        return replace(self, severity="note", caused_by=cause)

    def as_dict(self) -> dict[str, Any]:
        """Return plain types for JSON; the cause is given by its rule and place.

        >>> Finding("nan_loss", "error", step=3).as_dict()["step"]
        3
        """
        cause = {"rule": self.caused_by.rule, "where": self.caused_by.where} if self.caused_by else None
        names = ("rule", "severity", "where", "step", "message", "advice")
        remedy = dict(self.remedy) if self.remedy is not None else None
        return {name: getattr(self, name) for name in names} | {
            "evidence": dict(self.evidence),
            "remedy": remedy,
            "caused_by": cause,
        }


def is_alarm(finding: Finding) -> bool:
    """Tell whether a finding asks for action: errors and warnings do, notes do not.

    >>> is_alarm(Finding("bias_before_bn", "note"))
    False
    """
    return finding.severity != "note"


def save_findings(findings: Iterable[Finding], path: str | Path) -> None:
    """Write findings as a JSON list, one object each, in the order of causes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_findings([Finding("nan_loss", "error")], Path(folder) / "findings.json")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([finding.as_dict() for finding in findings], indent=2) + "\n", encoding="utf-8")
