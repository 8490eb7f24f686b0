"""Words of a command line and the environment, as settings."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

from hcc.errors import SettingError
from hcc.settings import (
    RunSettings,
    Selection,
    parse_boolean,
    parse_duration,
    parse_listen_address,
    parse_log_level,
)
from hcc.version import VERSION

MAX_SPOE_WORKERS = 64

T = TypeVar("T")


class _Parser(argparse.ArgumentParser):
    """argparse, except that an error is an exception whose one line says what was expected."""

    def error(self, message: str) -> NoReturn:
        raise SettingError(message)


def parser(environ: Mapping[str, str], default_state_dir: str) -> argparse.ArgumentParser:
    """The parser of the whole command `hcc`; the environment gives the defaults of proxy selection."""
    top = _Parser(
        prog="hcc",
        description="HAProxy as a data plane of Consul's service mesh.",
        allow_abbrev=False,
        epilog="exit codes: 0 done, 1 failed, 2 wrong flag or value",
    )
    top.add_argument("--version", action="version", version=f"hcc {VERSION}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    _add_run(commands, environ, default_state_dir)
    actors = commands.add_parser("actors", help="list the actors of a running sidecar", allow_abbrev=False)
    _add_instance(actors, environ, default_state_dir)
    actors.add_argument("--json", action="store_true", help="print JSON instead of a table")
    restart = commands.add_parser("restart", help="restart one actor of a running sidecar", allow_abbrev=False)
    restart.add_argument("name", metavar="NAME", help="an actor as `hcc actors` names it")
    _add_instance(restart, environ, default_state_dir)
    return top


def parse(top: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """The parsed words.

    Raises:
        SettingError: an unknown flag (naming the nearest known one), a bad value, a missing command.
    """
    options, unknown = top.parse_known_args(list(words))
    if unknown:
        raise SettingError(_unknown(top, options.command, unknown[0]))
    if options.command is None:
        raise SettingError("expected a command: run, actors or restart (see hcc --help)")
    return options


def run_settings(options: argparse.Namespace) -> RunSettings:
    """The settings of `hcc run`.

    Raises:
        SettingError: not exactly one way of choosing the proxy, or flags that do not go together.
    """
    selection = Selection(options.sidecar_for, options.proxy_id, options.sidecar_for_tag)
    chosen = [flag for flag in (selection.sidecar_for, selection.proxy_id, selection.sidecar_for_tag) if flag]
    if len(chosen) != 1:
        found = "none" if not chosen else "several"
        raise SettingError(f"expected one of --sidecar-for, --proxy-id, --sidecar-for-tag, found {found}")
    if options.stats_service_register and options.stats_addr is None:
        raise SettingError("--stats-service-register expects --stats-addr HOST:PORT, found none")
    return RunSettings(
        selection=selection,
        haproxy=options.haproxy,
        control=_control(options.control, options.dataplane),
        dataplane=options.dataplane,
        state_dir=options.state_dir,
        stats_addr=options.stats_addr,
        stats_service_register=options.stats_service_register,
        intentions=options.enable_intentions,
        spoe_workers=options.spoe_workers,
        on_exit=options.on_exit,
        drain_timeout_s=options.drain_timeout,
        drain_delay_s=options.drain_delay,
        drain_maintenance=options.drain_maintenance,
        cached_start=options.cached_start,
        log_level=options.log_level,
    )


def _control(control: str, dataplane: str) -> str:
    """How HAProxy is driven: to name a Data Plane API means to use it."""
    if control == "direct" and dataplane:
        raise SettingError("--control direct and --dataplane PATH contradict each other; leave one out")
    return control or ("dataplane" if dataplane else "direct")


def _add_run(commands: argparse._SubParsersAction[_Parser], environ: Mapping[str, str], default_state_dir: str) -> None:
    run = commands.add_parser(
        "run",
        help="run the sidecar of one service instance",
        allow_abbrev=False,
        epilog="example: hcc run --sidecar-for web --stats-addr 127.0.0.1:20200",
    )
    which = run.add_argument_group("which proxy (exactly one)")
    _add_selection(which, environ)
    which.add_argument(
        "--sidecar-for-tag", default="", metavar="TAG", action=_Choose, help="found by a tag of the service"
    )
    consul = run.add_argument_group("Consul (each also from its CONSUL_* variable)")
    consul.add_argument("--http-addr", metavar="ADDR", help="agent: host:port, URL or unix:///path")
    consul.add_argument("--token", metavar="TOKEN", help="ACL token; others see it in the process list")
    for flag, text in _CONSUL_FLAGS:
        consul.add_argument(flag, metavar=text.split()[0], help=text.split(" ", 1)[1])
    haproxy = run.add_argument_group("HAProxy")
    haproxy.add_argument("--haproxy", default="", metavar="PATH", help="program (default: PATH, then the package)")
    haproxy.add_argument(
        "--control",
        choices=("direct", "dataplane"),
        default="",
        help="by its own sockets, or the Data Plane API (direct)",
    )
    haproxy.add_argument(
        "--dataplane", default="", metavar="PATH",
        help="Data Plane API program, and use it (default: DATAPLANEAPI_BIN, PATH)",
    )  # fmt: skip
    _add_boolean(haproxy, "--enable-intentions", True, "check callers against Consul's intentions")
    haproxy.add_argument(
        "--spoe-workers", type=_type(_worker_count), default=2, metavar="N", help="authoriser processes (2)"
    )
    operations = run.add_argument_group("operation")
    operations.add_argument(
        "--state-dir", default=default_state_dir, metavar="DIR", help=f"base directory ({default_state_dir})"
    )
    operations.add_argument(
        "--stats-addr", type=_type(_optional_address), default=None, metavar="HOST:PORT",
        help="serve /metrics, /health and /ready there",
    )  # fmt: skip
    _add_boolean(operations, "--stats-service-register", False, "register that address in Consul")
    operations.add_argument(
        "--drain-timeout", type=_type(parse_duration), default=15.0, metavar="TIME",
        help="how long open connections may finish after SIGTERM (15s)",
    )  # fmt: skip
    operations.add_argument(
        "--on-exit", choices=("drain", "leave"), default="drain",
        help="SIGTERM drains and ends HAProxy, or leaves it to the next hcc (drain)",
    )  # fmt: skip
    operations.add_argument(
        "--drain-delay", type=_type(parse_duration), default=0.0, metavar="TIME",
        help="not ready, but serving, this long before listeners close (0s)",
    )  # fmt: skip
    _add_boolean(operations, "--drain-maintenance", False, "tell Consul's catalogue of a drain by maintenance mode")
    operations.add_argument(
        "--no-cached-start", dest="cached_start", action="store_false",
        help="neither keep Consul's answers nor start from them while the agent is down",
    )  # fmt: skip
    operations.add_argument(
        "--log-level",
        type=_type(parse_log_level),
        default="info",
        metavar="LEVEL",
        help="debug, info, warn, error",
    )


_CONSUL_FLAGS = (
    ("--token-file", "FILE file that holds the ACL token; read again on SIGHUP"),
    ("--ca-file", "FILE CA certificates of the agent"),
    ("--ca-path", "DIR directory of CA certificates"),
    ("--client-cert", "FILE client certificate shown to the agent"),
    ("--client-key", "FILE its key"),
    ("--tls-server-name", "NAME name expected in the agent's certificate"),
    ("--namespace", "NAME Consul Enterprise namespace"),
    ("--partition", "NAME Consul Enterprise partition"),
)


def _add_selection(group: argparse._ActionsContainer, environ: Mapping[str, str]) -> None:
    proxy_id = environ.get("CONNECT_PROXY_ID", "")
    group.add_argument(
        "--sidecar-for",
        default="" if proxy_id else environ.get("CONNECT_SIDECAR_FOR", ""),
        metavar="ID",
        action=_Choose,
        help="service ID (CONNECT_SIDECAR_FOR)",
    )
    group.add_argument(
        "--proxy-id",
        default=proxy_id,
        metavar="ID",
        action=_Choose,
        help="the proxy's own ID (CONNECT_PROXY_ID)",
    )


def _add_instance(command: argparse.ArgumentParser, environ: Mapping[str, str], default_state_dir: str) -> None:
    _add_selection(command, environ)
    command.add_argument("--state-dir", default=default_state_dir, metavar="DIR", help="as given to hcc run")


class _Choose(argparse.Action):
    """A flag that chooses the proxy beats whatever the environment chose."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 (argparse's signature)
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        if not getattr(namespace, "chosen_by_flag", False):
            namespace.sidecar_for = namespace.proxy_id = ""
            namespace.chosen_by_flag = True
        setattr(namespace, self.dest, values)


def _add_boolean(group: argparse._ActionsContainer, flag: str, default: bool, text: str) -> None:
    group.add_argument(
        flag,
        nargs="?",
        const=True,
        default=default,
        type=_type(parse_boolean),
        metavar="true|false",
        help=f"{text} ({str(default).lower()})",
    )


def _type(convert: Callable[[str], T]) -> Callable[[str], T]:
    """`convert` for argparse, which reports only its own error class with the flag's name."""

    def converted(text: str) -> T:
        try:
            return convert(text)
        except SettingError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return converted


def _worker_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_SPOE_WORKERS:
        raise SettingError(f"expected a whole number from 1 to {MAX_SPOE_WORKERS}, found {text!r}")
    return int(text)


def _optional_address(text: str) -> object:
    # The Go program's default is the empty string, so scripts pass it to mean "none".
    return parse_listen_address(text) if text else None


def _unknown(top: argparse.ArgumentParser, command: str | None, word: str) -> str:
    flags = [flag for flag in _flags(top, command) if flag.startswith("--")]
    near = difflib.get_close_matches(word.partition("=")[0], flags, n=1)
    hint = f"did you mean {near[0]}?" if near else f"see hcc {command or ''} --help".replace("  ", " ")
    return f"unknown argument {word!r}: {hint}"


def _flags(top: argparse.ArgumentParser, command: str | None) -> list[str]:
    for action in top._actions:  # noqa: SLF001 (argparse offers no public way to list flags)
        if isinstance(action, argparse._SubParsersAction) and command in action.choices:  # noqa: SLF001
            return list(action.choices[command]._option_string_actions)  # noqa: SLF001
    return list(top._option_string_actions)  # noqa: SLF001
