"""Findings on the console: the audit's table and the verdict at the end of a run."""

import io
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lit_training.diagnosis.finding import Finding, is_alarm
from lit_training.diagnosis.report import AuditReport, LayerRow

__all__ = ["as_text", "audit_view", "finding_view", "show", "verdict_view"]

_STYLE = {"error": "bold red", "warning": "yellow", "note": "dim"}
_MARK = {"error": "✗", "warning": "!", "note": "·"}
_EDGE_ROWS = 12
_USABLE = 1e3  # of the first layer's signal, as in the rules init_vanishing and init_exploding


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


def verdict_view(findings: Sequence[Finding], loss: float | None = None) -> Group:
    """Lay out a verdict: the alarms, each in two lines, and how many notes there are besides."""
    alarms = [finding for finding in findings if is_alarm(finding)]
    notes = [finding for finding in findings if not is_alarm(finding)]
    at = "" if loss is None else f" Loss {loss:.4g}."
    if not alarms:
        lines: list[Any] = [Text(f"✓ Nothing is wrong with what could be seen.{at}", style="green")]
    else:
        more = f", {len(alarms) - 1} more below" if len(alarms) > 1 else ""
        lines = [Text(f"Fix this first{more}.{at}" if more else f"Fix this.{at}", style="bold")]
        lines += [finding_view(alarm) for alarm in alarms]
    symptoms = [note for note in notes if note.caused_by is not None]
    if symptoms:
        lines.append(Text("  explained by it: " + ", ".join(dict.fromkeys(note.rule for note in symptoms)), style="dim"))
    lines += [finding_view(note) for note in notes if note.caused_by is None]
    return Group(*lines)


def finding_view(finding: Finding) -> Group:
    """Lay out one finding: what, where and the figure; below it, what to do."""
    place = f" at {finding.where}" if finding.where else ""
    head = Text.assemble(
        (f"{_MARK[finding.severity]} {finding.rule}{place}: ", _STYLE[finding.severity]), finding.message, overflow="fold"
    )
    advice = Padding(Text(f"→ {finding.advice}", overflow="fold"), (0, 0, 0, 2))
    return Group(head, advice) if finding.advice else Group(head)


def show(view: Any) -> None:
    """Print a view; a terminal that cannot take it must not stop a run."""
    console = Console(soft_wrap=False)
    console.print()
    console.print(view)


def as_text(view: Any, width: int = 120) -> str:
    """Return a view as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(view)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())  # type: ignore[attr-defined]


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
        return Text(f"{_MARK[severity]} {row.verdict}", style=_STYLE[severity])
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
