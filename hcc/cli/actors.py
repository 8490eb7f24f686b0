"""`hcc actors`: the actors of a running sidecar."""

from __future__ import annotations

import argparse
import json
from typing import cast

from hcc.cli.arguments import Command
from hcc.cli.instance import add_instance, asked

_COLUMNS = ("NAME", "STATE", "GENERATION", "RESTARTS", "MAILBOX", "UPTIME", "LAST ERROR")


def _actors_arguments(command: argparse.ArgumentParser) -> None:
    add_instance(command)
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _actors(options: argparse.Namespace) -> int:
    rows = cast("list[dict[str, object]]", asked(options, "GET", "/v1/actors"))
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        parents = {str(row["name"]): row["parent"] for row in rows}
        from hcc.cli.terminal import show_table

        show_table(_COLUMNS, [_row(row, parents) for row in rows])
    return 0


def _row(row: dict[str, object], parents: dict[str, object]) -> tuple[str, ...]:
    return (
        "  " * _depth(row["parent"], parents) + str(row["name"]),
        str(row["state"]),
        str(row["generation"]),
        str(row["restarts"]),
        str(row["mailbox_depth"]),
        f"{row['uptime_s']:.0f}s",
        str(row["last_error"] or "-"),
    )


def _depth(parent: object, parents: dict[str, object]) -> int:
    return 1 + _depth(parents.get(str(parent)), parents) if parent else 0


COMMANDS = (
    Command("actors", "list the actors of a running sidecar", _actors_arguments, _actors, ("hcc actors --json",)),
)
