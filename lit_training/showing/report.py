"""The result of an audit: findings, and a table with a row for each layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding, is_alarm
from lit_training.showing.console import MARK, STYLE, as_text, verdict_view

__all__ = ["AuditReport", "LayerRow", "audit_view", "report"]

_EDGE_ROWS = 12
_USABLE = 1e3  # of the first layer's signal, as in the rules init_vanishing and init_exploding


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

    def __rich__(self) -> Group:
        return audit_view(self)

    def __str__(self) -> str:
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


def audit_view(report: AuditReport, title: str = "Audit of the first batch, before the first weight update") -> Group:
    """Lay out an audit: a table with a row a layer, then a conclusion of a few lines."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("output")
    for column in ("std", "signal", "after", "gradient"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for row in _folded(report.layers):
        table.add_row(*(_cells(row, report) if row is not None else ["…"] * 7))
    return Group(table, Text(), verdict_view(report.findings, report.loss))


def _folded(rows: Sequence[LayerRow]) -> list[LayerRow | None]:
    """Leave out the middle of a deep net, but never a row with a verdict."""
    if len(rows) <= 2 * _EDGE_ROWS + 2:
        return list(rows)
    folded: list[LayerRow | None] = []
    for i, row in enumerate(rows):
        if i < _EDGE_ROWS or i >= len(rows) - _EDGE_ROWS or row.verdict:
            folded.append(row)
        elif folded[-1] is not None:
            folded.append(None)
    return folded


def _cells(row: LayerRow, report: AuditReport) -> list[Text | str]:
    name = f"{row.name} → {row.nonlinearity}" if row.nonlinearity else row.name
    shape = "×".join(str(size) for size in row.shape)
    numbers = [_figure(value) for value in (row.std, row.signal, row.activation_signal, row.gradient_std)]
    return [name, shape, *numbers, _verdict(row, report)]


def _verdict(row: LayerRow, report: AuditReport) -> Text:
    """Say what was found at a layer, or else whether what was found elsewhere left it without a usable signal."""
    if row.verdict:
        severity = next((finding.severity for finding in report.findings if finding.where == row.name), "note")
        return Text(f"{MARK[severity]} {row.verdict}", style=STYLE[severity])
    ruined = any(finding.rule in ("init_vanishing", "init_exploding") for finding in report.findings if is_alarm(finding))
    strength = row.signal / report.layers[0].signal if ruined and report.layers[0].signal else 1.0
    if not 1 / _USABLE < strength < _USABLE:
        return Text("faint" if strength < 1 else "huge", style="yellow")
    return Text("ok", style="green")


def _figure(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    if value == 0 or 1e-2 <= abs(value) < 1e3:
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e+")
