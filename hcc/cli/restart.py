"""`hcc restart`: one actor of a running sidecar begins anew."""

from __future__ import annotations

import argparse
from typing import cast
from urllib.parse import quote

from hcc.cli.arguments import Command
from hcc.cli.instance import add_instance, asked
from hcc.errors import SettingError

# Of any actor's name, with room.
MAX_NAME_LENGTH = 100


def _arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME", help="an actor as `hcc actors` names it")
    add_instance(command)


def _restart(options: argparse.Namespace) -> int:
    if not 0 < len(options.name) <= MAX_NAME_LENGTH:
        found = f"{len(options.name)} characters" if options.name else "nothing"
        raise SettingError(f"expected the name of an actor, found {found}; `hcc actors` lists them")
    name = quote(options.name, safe="", errors="replace")
    row = cast("dict[str, object]", asked(options, "POST", f"/v1/actors/{name}/restart"))
    print(f"{row['name']} restarted, generation {row['generation']}")
    return 0


COMMANDS = (
    Command(
        "restart",
        "restart one actor of a running sidecar",
        _arguments,
        _restart,
        ("hcc restart ConsulWatcher",),
    ),
)
