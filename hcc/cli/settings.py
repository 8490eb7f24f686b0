"""`hcc settings`: each value and where it came from."""

from __future__ import annotations

import argparse
import json
import os
import sys

from hcc.cli.arguments import Command
from hcc.cli.instance import add_settings
from hcc.cli.resolution import Given, strange_variables
from hcc.cli.settings_table import ALL
from hcc.consul.address import masked

HIDDEN = "(set, not shown)"


def _arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_settings(command, ALL)


def _settings(options: argparse.Namespace) -> int:
    if options.json:
        rows = [{"name": one.setting.key, "value": shown(one), "source": one.source} for one in options.given]
        print(json.dumps(rows, indent=2))
    else:
        from hcc.cli.terminal import Cell, show_table

        show_table(
            ("SETTING", "VALUE", "SOURCE"),
            [
                (one.setting.key, shown(one) or "-", Cell(one.source, "dim" if not one.strength else ""))
                for one in options.given
            ],
        )
    for line in strange_variables(os.environ):
        print(f"hcc: {line}", file=sys.stderr)
    return 0


def shown(given: Given) -> str:
    """A value as people may see it: a secret only as being there, an address without its password.

    Nothing chosen is shown as its meaning.
    """
    if given.setting.secret and given.text:
        return HIDDEN
    default = given.setting.default_text.replace("`", "")
    text = masked(given.text) if given.setting.key == "http_addr" else given.text
    return text or (f"({default})" if default else "")


COMMANDS = (
    Command(
        "settings",
        "show each setting and where it came from",
        _arguments,
        _settings,
        ("hcc settings", "hcc settings --config-file /etc/hcc/web.toml --json"),
    ),
)
