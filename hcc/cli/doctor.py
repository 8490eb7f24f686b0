"""`hcc doctor`: what keeps a sidecar from serving, or will."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hcc.cli.arguments import Command
from hcc.cli.instance import add_settings
from hcc.cli.run import agent_settings, checked_settings
from hcc.cli.settings_table import ALL
from hcc.cli.status import running

if TYPE_CHECKING:
    from hcc.diagnosis.finding import Section


def _arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON instead of a report")
    add_settings(command, ALL)


def _doctor(options: argparse.Namespace) -> int:
    settings, consul = checked_settings(options), agent_settings(options)
    from hcc.diagnosis.doctor import examine
    from hcc.diagnosis.finding import any_failed

    sections = tuple(examine(settings, consul, lambda proxy_id: running(options, proxy_id)))
    if options.json:
        print(json.dumps(as_json(sections), indent=2))
    else:
        from hcc.cli.findings import show_findings

        show_findings(sections)
    return 1 if any_failed(sections) else 0


def as_json(sections: Iterable[Section]) -> list[dict[str, str]]:
    """The findings as objects."""
    return [
        {
            "section": section.title,
            "subject": finding.subject,
            "level": finding.level.value,
            "text": finding.text,
            "remedy": finding.remedy,
        }
        for section in sections
        for finding in section.findings
    ]


COMMANDS = (
    Command(
        "doctor",
        "check everything that a sidecar needs, and say what to do",
        _arguments,
        _doctor,
        ("hcc doctor --sidecar-for web", "hcc doctor --sidecar-for web --token-file /etc/hcc/web.token"),
    ),
)
