"""Findings on a terminal."""

from __future__ import annotations

import re

import pytest

from hcc.cli.findings import show_findings
from hcc.diagnosis.finding import Section, ok


@pytest.mark.parametrize("columns", [48, 120])
def test_what_was_found_has_most_of_a_line(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", str(columns))):
        monkeypatch.setenv(name, value)

    show_findings((Section("Machine", (ok("upstream api.dc2 127.0.0.1:19191", "held by this sidecar"),)),))

    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert any(line.endswith("held by this sidecar") for line in lines), lines
    assert max(len(line) for line in lines) <= columns
