"""`hcc troubleshoot upstream NAME`: where the way to an upstream breaks."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from hcc.cli.arguments import Command
from hcc.cli.instance import add_settings, asked
from hcc.cli.run import agent_settings, checked_settings
from hcc.cli.settings_table import ALL
from hcc.cli.status import running
from hcc.settings import Selection

if TYPE_CHECKING:
    from hcc.diagnosis.finding import Section


def _arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("what", metavar="upstream", choices=("upstream",), help="what to look at")
    command.add_argument("name", metavar="NAME", help="as `hcc status` shows it, such as web, web.dc2, query:web")
    command.add_argument("--json", action="store_true", help="print JSON instead of a report")
    add_settings(command, ALL)


def _troubleshoot(options: argparse.Namespace) -> int:
    section = _section(options)
    from hcc.diagnosis.upstream import first_break

    broken = first_break(section.findings)
    if options.json:
        from hcc.cli.doctor import as_json

        print(json.dumps(as_json((section,)), indent=2))
    else:
        from hcc.cli.findings import show_findings

        show_findings((section,))
        print(f"it breaks at: {broken}" if broken else "it works as far as can be seen from here")
    return 1 if broken else 0


def _section(options: argparse.Namespace) -> Section:
    selection, consul = _selection(options), agent_settings(options)
    from hcc.consul.client import ConsulClient
    from hcc.consul.credentials import TokenSource
    from hcc.diagnosis.consul import Known, check_agent
    from hcc.diagnosis.finding import Level, Section
    from hcc.diagnosis.upstream import follow

    title = f"Upstream {options.name}"
    client, known = ConsulClient(consul, TokenSource(consul)), Known()
    try:
        findings = tuple(check_agent(client, selection, known))
        if known.registration is None:
            return Section(title, tuple(one for one in findings if one.level is Level.FAILED))
        sidecar = running(options, known.proxy_id)
        return Section(title, tuple(follow(client, known.registration, options.name, sidecar)))
    finally:
        client.close()


def _selection(options: argparse.Namespace) -> Selection:
    """The choice; of the one sidecar that runs, where none is made."""
    chosen = checked_settings(options).selection
    if chosen != Selection():
        return chosen
    about = asked(options, "GET", "/v1/about")
    assert isinstance(about, dict)  # noqa: S101 (our own program's answer)
    return Selection(proxy_id=str(about["proxy_id"]))


COMMANDS = (
    Command(
        "troubleshoot",
        "follow one upstream from Consul to HAProxy, and say where it breaks",
        _arguments,
        _troubleshoot,
        ("hcc troubleshoot upstream db --sidecar-for web",),
    ),
)
