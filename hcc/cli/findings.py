"""Findings as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from hcc.cli.terminal import console, show, styled
from hcc.diagnosis.finding import Finding, Level, Section

_MARKS = {
    Level.OK: Text("ok", style="green"),
    Level.WARNING: Text("warn", style="yellow"),
    Level.FAILED: Text("FAIL", style="bold red"),
    Level.SKIPPED: Text("-", style="dim"),
}
_MAX_SUBJECT = 36


def show_findings(sections: Sequence[Section]) -> None:
    """Print them with what to do, and a count at the end."""
    findings = [finding for section in sections for finding in section.findings]
    longest = max((len(finding.subject) for finding in findings), default=0)
    # What was found is what matters: on a narrow terminal it has most of the line.
    width = min(_MAX_SUBJECT, longest, console().width // 3)
    for section in sections:
        show(Text(section.title, style="bold"), _grid(section.findings, width), Text())
    show(Text(_summary(findings), style="bold"))


def _grid(findings: Sequence[Finding], width: int) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=6)
    grid.add_column(width=width, overflow="fold")
    grid.add_column(overflow="fold")
    for finding in findings:
        text = styled(finding.text, "dim" if finding.level is Level.SKIPPED else "")
        if finding.remedy:
            text.append("\n").append_text(styled(f"-> {finding.remedy}", "cyan"))
        grid.add_row(Text("  ") + _MARKS[finding.level], styled(finding.subject), text)
    return grid


def _summary(findings: Sequence[Finding]) -> str:
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    words = ((Level.FAILED, "failed"), (Level.WARNING, "to look at"), (Level.OK, "ok"))
    return ", ".join(f"{counts[level]} {word}" for level, word in words if counts[level])
