"""The entry points: `hcc COMMAND ...` and `haproxy-consul-connect -flag ...`.

Exit codes: 0 done, 1 failed (the reason is one line on stderr), 2 wrong flag or value.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from hcc.cli import arguments, go_flags
from hcc.errors import HccError, SettingError
from hcc.version import VERSION

DONE, FAILED, WRONG_USE = 0, 1, 2

_COLUMNS = ("NAME", "STATE", "GENERATION", "RESTARTS", "MAILBOX", "UPTIME", "LAST ERROR")


def main(words: Sequence[str] | None = None) -> int:
    """Run `hcc` with `words` (default: the process's own); the exit code."""
    return _guarded("hcc", lambda: _command(sys.argv[1:] if words is None else words))


def main_go(words: Sequence[str] | None = None) -> int:
    """Run `haproxy-consul-connect`, the Go program's command; the exit code."""
    return _guarded("haproxy-consul-connect", lambda: _go_command(sys.argv[1:] if words is None else words))


def _guarded(program: str, command: Callable[[], int]) -> int:
    try:
        return command()
    except SettingError as exc:
        print(f"{program}: {exc}", file=sys.stderr)
        return WRONG_USE
    except HccError as exc:
        print(f"{program}: {exc}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # The reader (head, less) went away; stdout must not be flushed into it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _command(words: Sequence[str]) -> int:
    options = arguments.parse(arguments.parser(os.environ, default_state_dir()), words)
    commands = {"run": _run, "actors": _actors, "restart": _restart}
    return commands[options.command](options)


def _go_command(words: Sequence[str]) -> int:
    if go_flags.wants_help(words):
        print(go_flags.HELP, end="")
        return DONE
    translated = go_flags.translated(words)
    if "--version" in translated:
        print(f"haproxy-consul-connect (HAProxy Connect) {VERSION}")
        return DONE
    return _command(("run", *translated))


def default_state_dir() -> str:
    """Where state goes when --state-dir is not given: the user's or the system's run-time directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return f"{runtime}/hcc"
    return "/run/hcc" if os.geteuid() == 0 else f"/tmp/hcc-{os.geteuid()}"  # noqa: S108 (made 0700, owner checked)


def _run(options: argparse.Namespace) -> int:
    from hcc.app import sidecar
    from hcc.consul.environment import consul_settings

    settings = arguments.run_settings(options)
    consul = consul_settings(
        os.environ,
        http_addr=options.http_addr,
        token=options.token,
        token_file=options.token_file,
        ca_file=options.ca_file,
        ca_path=options.ca_path,
        client_cert=options.client_cert,
        client_key=options.client_key,
        tls_server_name=options.tls_server_name,
        namespace=options.namespace,
        partition=options.partition,
    )
    return sidecar.run(settings, consul)


def _actors(options: argparse.Namespace) -> int:
    rows = cast("list[dict[str, object]]", _asked(options, "GET", "/v1/actors"))
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        parents = {str(row["name"]): row["parent"] for row in rows}
        print(_table([_COLUMNS, *(_row(row, parents) for row in rows)]))
    return DONE


def _restart(options: argparse.Namespace) -> int:
    row = cast("dict[str, object]", _asked(options, "POST", f"/v1/actors/{options.name}/restart"))
    print(f"{row['name']} restarted, generation {row['generation']}")
    return DONE


def _asked(options: argparse.Namespace, method: str, target: str) -> object:
    from hcc.cli import control

    path = control.find_control_socket(Path(options.state_dir), options.proxy_id, options.sidecar_for)
    return control.ask(path, method, target)


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


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
