"""`hcc plan`, `hcc config` and `hcc snapshot`: what a sidecar would do, and what it makes that of."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hcc.cli.arguments import Command
from hcc.cli.instance import add_instance, add_settings, asked, control_socket
from hcc.cli.settings_table import HAPROXY, INSTANCE
from hcc.errors import SettingError

if TYPE_CHECKING:
    from hcc.haproxy.review import Review

STDIN = "-"


def _plan_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON instead of lines")
    add_instance(command)


def _plan(options: argparse.Namespace) -> int:
    found = cast("dict[str, list[str]]", asked(options, "GET", "/v1/plan"))
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for reason in found["reasons"]:
        print(f"# {reason}")
    # A sidecar of an older hcc does not say.
    left_out = found.get("left_out", [])
    for text in left_out:
        print(f"# left out: {text}")
    for operation in found["operations"]:
        print(operation)
    if not found["operations"]:
        print(f"nothing to do: HAProxy runs what is wanted{', but for what is left out' if left_out else ''}")
    return 0


def _config_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--from",
        dest="review",
        metavar="FILE",
        help="render what `hcc snapshot` wrote (- for standard input), and let HAProxy check it; no sidecar is asked",
    )
    add_settings(command, (*INSTANCE, HAPROXY))


def _config(options: argparse.Namespace) -> int:
    if options.review is None:
        print(_text(options, "/v1/config"), end="")
        return 0
    review = _read(options.review)
    from hcc.app.offline import checked_offline, made_offline
    from hcc.haproxy.binary import find_haproxy, probe
    from hcc.haproxy.capabilities import capabilities_of
    from hcc.log import one_line

    found = find_haproxy(options.haproxy)
    build = probe(found.binary)
    rendered = checked_offline(review, found.binary, capabilities_of(build))
    print(rendered.config, end="")
    for problem in made_offline(review).problems:
        print(f"hcc: {one_line(str(problem))}", file=sys.stderr)
    print(f"hcc: {build.label()} takes it", file=sys.stderr)
    return 0


def _snapshot(options: argparse.Namespace) -> int:
    print(json.dumps(asked(options, "GET", "/v1/snapshot"), indent=2))
    return 0


def _text(options: argparse.Namespace, target: str) -> str:
    from hcc.cli.control import fetch_text

    return fetch_text(control_socket(options), target)


def _read(name: str) -> Review:
    """The review in a file.

    Raises:
        SettingError: it cannot be read, or is no JSON. ReviewError: it holds something else.
    """
    from hcc.haproxy.review import read_review

    try:
        text = sys.stdin.read() if name == STDIN else Path(name).read_text(encoding="utf-8")
        data = json.loads(text)
    except OSError as exc:
        raise SettingError(f"--from {name}: expected a readable file, found {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise SettingError(f"--from {name}: expected JSON as `hcc snapshot` writes it, found {exc}") from exc
    return read_review(data)


COMMANDS = (
    Command(
        "plan",
        "show what a running sidecar would do to HAProxy now",
        _plan_arguments,
        _plan,
        ("hcc plan --sidecar-for web", "hcc plan --json | jq .operations"),
    ),
    Command(
        "config",
        "print haproxy.cfg of a running sidecar, or make it from a snapshot and check it",
        _config_arguments,
        _config,
        ("hcc config --sidecar-for web", "hcc config --from web.json --haproxy /usr/sbin/haproxy"),
    ),
    Command(
        "snapshot",
        "write what Consul told a running sidecar as JSON, without secrets",
        add_instance,
        _snapshot,
        ("hcc snapshot --sidecar-for web > web.json",),
    ),
)
