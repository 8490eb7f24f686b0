"""`hcc status` and `hcc wait-ready`: how a running sidecar does."""

from __future__ import annotations

import argparse
import json
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from hcc.cli.arguments import Command, checked
from hcc.cli.instance import add_instance, control_socket
from hcc.errors import HccError
from hcc.settings import parse_duration

if TYPE_CHECKING:
    from hcc.cli.terminal import Shown
    from hcc.diagnosis.sidecar import Running

TARGET = "/api/v1/status"
WATCH_INTERVAL_S = 1.0
READY_INTERVAL_S = 0.1
# To find the sidecar and to hear from it. A status waits for HAProxy and for actors, neither of them for long.
STATUS_TIMEOUT_S = 10.0


class NotReadyError(HccError):
    """The sidecar is not ready; the text says what it lacks."""


def _status_arguments(command: argparse.ArgumentParser) -> None:
    either = command.add_mutually_exclusive_group()
    either.add_argument("--json", action="store_true", help="print JSON, as /api/v1/status has it")
    either.add_argument("--watch", action="store_true", help="show it anew every second, until Ctrl-C")
    add_instance(command)


def _status(options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps(_told(options, options.proxy_id, options.sidecar_for), indent=2))
        return 0
    from hcc.cli import terminal

    if options.watch:
        terminal.keep_showing(lambda: _now(options), WATCH_INTERVAL_S)
    else:
        terminal.show(_view(options))
    return 0


def running(options: argparse.Namespace, proxy_id: str) -> Running:  # noqa: PLR0911 - one return for each outcome
    """The status of the chosen sidecar, or why there is none.

    `proxy_id` is what Consul says that was chosen; empty when it says nothing.
    """
    from hcc.actors.status import StatusError, from_json
    from hcc.cli.control import BarredError, EndedError, SilentError
    from hcc.diagnosis.sidecar import Running

    if options.sidecar_for_tag and not proxy_id:
        return Running(None, f"not looked for: Consul does not say which has the tag {options.sidecar_for_tag}")
    chosen = (proxy_id, "") if proxy_id else (options.proxy_id, options.sidecar_for)
    try:
        return Running(from_json(_told(options, *chosen)))
    except SilentError as exc:
        return Running(None, str(exc), hangs=True)
    except StatusError as exc:
        return Running(None, str(exc), other=True)
    except EndedError as exc:
        return Running(None, str(exc), ended=True)
    except BarredError as exc:
        return Running(None, str(exc), barred=True)
    except HccError as exc:
        return Running(None, str(exc))


def _told(options: argparse.Namespace, proxy_id: str, sidecar_for: str) -> object:
    """The status of the sidecar that fits, as JSON.

    Raises:
        ControlError: there is none, or it did not answer in time.
    """
    from hcc.cli.control import ask, find_control_socket

    deadline = time.monotonic() + STATUS_TIMEOUT_S
    # However many hang beside it, the one that is found has the other half to answer in.
    path = find_control_socket(Path(options.state_dir), proxy_id, sidecar_for, STATUS_TIMEOUT_S / 2)
    return ask(path, "GET", TARGET, deadline - time.monotonic())


def _view(options: argparse.Namespace) -> Shown:
    from hcc.actors.status import StatusError, from_json
    from hcc.cli.status_view import view
    from hcc.diagnosis.sidecar import RENEW

    try:
        return view(from_json(_told(options, options.proxy_id, options.sidecar_for)))
    except StatusError as exc:
        raise StatusError(f"{exc}; {RENEW}, or look at --json") from exc


def _now(options: argparse.Namespace) -> Shown:
    """The view; while watching, a sidecar that is away is no reason to end."""
    try:
        return _view(options)
    except HccError as exc:
        return str(exc)


def _wait_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--timeout", type=checked(parse_duration), default=30.0, metavar="TIME", help="how long to wait (default: 30s)"
    )
    add_instance(command)


def _wait_ready(options: argparse.Namespace) -> int:
    deadline = time.monotonic() + options.timeout
    while True:
        problem = _lacking(options, deadline)
        if not problem:
            return 0
        if time.monotonic() >= deadline:
            raise NotReadyError(f"not ready after {options.timeout:g} s: {problem}")
        time.sleep(READY_INTERVAL_S)


def _lacking(options: argparse.Namespace, deadline: float) -> str:
    """What keeps the sidecar from being ready; empty when it is. One that is not there yet may come."""
    from hcc.cli.control import ControlError, fetch

    try:
        path = control_socket(options, deadline - time.monotonic())
        status, text = fetch(path, "GET", "/ready", deadline - time.monotonic())
    except ControlError as exc:
        return str(exc)
    return "" if status == HTTPStatus.OK else "; ".join(text.splitlines())


COMMANDS = (
    Command(
        "status",
        "show how a running sidecar does",
        _status_arguments,
        _status,
        ("hcc status --sidecar-for web", "hcc status --watch", "hcc status --json | jq .readiness"),
    ),
    Command(
        "wait-ready",
        "wait until a sidecar is ready",
        _wait_arguments,
        _wait_ready,
        ("hcc wait-ready --sidecar-for web --timeout 10s",),
    ),
)
