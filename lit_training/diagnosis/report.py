"""The result of an audit: findings, and a row for each layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding, is_alarm

__all__ = ["AuditReport", "LayerRow", "report"]


@dataclass(frozen=True)
class LayerRow:
    """One layer of the audit table; standard deviations over the joint batch of all processes.

    `std` and `signal` are those of the output before the nonlinearity, `activation_signal` that after it, `gradient_std` that of
    the loss's gradient with respect to the output. What was not seen is `None`.
    """

    name: str
    op: str
    nonlinearity: str
    shape: tuple[int, ...]
    std: float
    signal: float
    activation_signal: float | None
    gradient_std: float | None
    verdict: str


@dataclass(frozen=True)
class AuditReport:
    """What one batch showed; prints as a table.

    Args:
        findings: in causal order; the first alarm is the cause to fix first.
        layers: a row for each layer, in forward order.
        loss: the loss at this step, `None` if unknown.
    """

    findings: list[Finding]
    layers: list[LayerRow]
    loss: float | None = None

    @property
    def alarms(self) -> list[Finding]:
        """The errors and warnings."""
        return [finding for finding in self.findings if is_alarm(finding)]

    def __rich__(self) -> Any:
        from lit_training.showing.console import audit_view

        return audit_view(self)

    def __str__(self) -> str:
        from lit_training.showing.console import as_text

        return as_text(self)


def report(evidence: Evidence, findings: Sequence[Finding]) -> AuditReport:
    """Put findings next to the layers they are about."""
    verdicts: dict[str, str] = {}
    for finding in findings:
        verdicts.setdefault(finding.where, finding.rule)
    rows = [
        LayerRow(
            name=layer.name,
            op=layer.op,
            nonlinearity=layer.nonlinearity,
            shape=layer.shape,
            std=layer.output.std,
            signal=layer.output.signal,
            activation_signal=layer.activation.signal if layer.activation is not None else None,
            gradient_std=layer.gradient.std if layer.gradient is not None else None,
            verdict=verdicts.get(layer.name, ""),
        )
        for layer in evidence.layers
    ]
    return AuditReport(list(findings), rows, evidence.loss)
