"""`hcc explain`: what a running sidecar's intentions say of a caller, and why."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, urlencode

from hcc.cli.arguments import Command
from hcc.cli.instance import add_instance, asked
from hcc.errors import SettingError

if TYPE_CHECKING:
    from hcc.cli.terminal import Row

TARGET = "/v1/explain"
# What a sidecar reads of a question's first line is 65,536 bytes.
MAX_QUERY_BYTES = 60_000
# Beside those of all commands, so that a script can ask.
EXIT_CODES = {"allow": 0, "deny": 3, "by request": 4, "by token": 5}


def _arguments(command: argparse.ArgumentParser) -> None:
    request = command.add_argument_group("the caller, and what it asks for")
    request.add_argument(
        "--source",
        required=True,
        metavar="CALLER",
        help="a service's name, ap/PARTITION/ns/NAMESPACE/svc/NAME as in the log, a name as in hcc status (shop.dc2), "
        "or a SPIFFE URI",
    )
    request.add_argument(
        "--path", metavar="/PATH", help="of a request, as it is sent (default: / with --method, --header)"
    )
    request.add_argument("--method", metavar="METHOD", help="of a request (default: GET)")
    request.add_argument(
        "--header", action="append", metavar="NAME:VALUE", help="of a request; as often as it has some"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    add_instance(command)


def _explain(options: argparse.Namespace) -> int:
    answer = cast("dict[str, object]", asked(options, "GET", f"{TARGET}?{_query(options)}"))
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        from hcc.cli.terminal import show_table

        show_table(("VERDICT", str(answer["verdict"])), _rows(answer))
    return EXIT_CODES[str(answer["verdict"])]


def _query(options: argparse.Namespace) -> str:
    """The question.

    Raises:
        SettingError: a word of it is none, or they are too long; whether a sidecar runs or not.
    """
    from hcc.actors.explanation import parse_question

    names = ("source", "path", "method", "header")
    words = {name: value for name in names if (value := getattr(options, name)) is not None}
    query = urlencode(words, doseq=True, errors="replace")
    if len(query) > MAX_QUERY_BYTES:
        longest = max(words, key=lambda name: len(urlencode({name: words[name]}, doseq=True, errors="replace")))
        raise SettingError(
            f"expected a question of at most {MAX_QUERY_BYTES} bytes, found {len(query)}, most of them by --{longest}"
        )
    parse_question(parse_qs(query, keep_blank_values=True))
    return query


def _rows(answer: dict[str, object]) -> list[Row]:
    decided = answer["permission"]
    permissions = cast("list[str]", answer["permissions"])
    rows = [(name, str(answer[name]) or "none") for name in ("reason", "source", "destination", "intention")]
    rows += [
        (f"permission {position}", f"{text}{' <- decides' if position == decided else ''}")
        for position, text in enumerate(permissions)
    ]
    rows += [("default", str(answer["default"])), ("policy", f"version {answer['version']}")]
    return [*rows, ("intentions", str(answer["intentions"]))]


COMMANDS = (
    Command(
        "explain",
        "explain whether intentions let a caller in",
        _arguments,
        _explain,
        (
            "hcc explain --source web",
            "hcc explain --source web --path /admin --method POST --header x-role:admin",
            "hcc explain --source spiffe://DOMAIN/ns/default/dc/dc1/svc/web --json",
        ),
    ),
)
