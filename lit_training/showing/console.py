"""Findings on the console: the verdict, each finding in two lines, and how to print."""

import io
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from lit_training.diagnosis.finding import Finding, is_alarm

__all__ = ["MARK", "STYLE", "as_text", "finding_view", "show", "verdict_view"]

STYLE = {"error": "bold red", "warning": "yellow", "note": "dim"}
MARK = {"error": "✗", "warning": "!", "note": "·"}


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
        (f"{MARK[finding.severity]} {finding.rule}{place}: ", STYLE[finding.severity]), finding.message, overflow="fold"
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
