"""`hcc log-level`: how much a running sidecar tells."""

from __future__ import annotations

import argparse

from hcc.cli.arguments import Command, checked
from hcc.cli.instance import add_instance, asked
from hcc.settings import parse_log_level


def _arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("level", metavar="LEVEL", type=checked(parse_log_level), help="debug, info, warn or error")
    add_instance(command)


def _log_level(options: argparse.Namespace) -> int:
    asked(options, "POST", f"/v1/log-level/{options.level}")
    print(f"log level {options.level}")
    return 0


COMMANDS = (
    Command(
        "log-level",
        "change how much a running sidecar logs, until it is restarted",
        _arguments,
        _log_level,
        ("hcc log-level debug --sidecar-for web",),
    ),
)
