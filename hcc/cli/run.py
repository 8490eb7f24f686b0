"""`hcc run`: the sidecar of one service instance."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from hcc.cli.arguments import Command, add_boolean, checked
from hcc.cli.instance import add_choice, add_state_dir, chosen
from hcc.errors import SettingError
from hcc.settings import RunSettings, Selection, parse_duration, parse_listen_address, parse_log_level

MAX_SPOE_WORKERS = 64


def run_settings(options: argparse.Namespace, environ: Mapping[str, str]) -> RunSettings:
    """The settings of `hcc run`.

    Raises:
        SettingError: not exactly one way of choosing the proxy, or flags that do not go together.
    """
    selection = Selection(*chosen(options, environ), options.sidecar_for_tag or "")
    given = [flag for flag in (selection.sidecar_for, selection.proxy_id, selection.sidecar_for_tag) if flag]
    if len(given) != 1:
        found = "none" if not given else "several"
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
        metrics_per_endpoint=options.metrics_per_endpoint,
        intentions=options.enable_intentions,
        spoe_workers=options.spoe_workers,
        drain_timeout_s=options.drain_timeout,
        log_level=options.log_level,
    )


def _control(control: str, dataplane: str) -> str:
    """How HAProxy is driven: to name a Data Plane API means to use it."""
    if control == "direct" and dataplane:
        raise SettingError("--control direct and --dataplane PATH contradict each other; leave one out")
    return control or ("dataplane" if dataplane else "direct")


def _arguments(run: argparse.ArgumentParser) -> None:
    which = run.add_argument_group("which proxy (exactly one)")
    add_choice(which)
    which.add_argument("--sidecar-for-tag", metavar="TAG", help="found by a tag of the service")
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
    add_boolean(haproxy, "--enable-intentions", True, "check callers against Consul's intentions")
    haproxy.add_argument(
        "--spoe-workers", type=checked(_worker_count), default=2, metavar="N", help="authoriser processes (2)"
    )
    operations = run.add_argument_group("operation")
    add_state_dir(operations)
    operations.add_argument(
        "--stats-addr", type=checked(_optional_address), default=None, metavar="HOST:PORT",
        help="serve the status page, /metrics, /health and /ready there",
    )  # fmt: skip
    add_boolean(operations, "--stats-service-register", False, "register that address in Consul")
    add_boolean(operations, "--metrics-per-endpoint", False, "show each endpoint in /metrics, by its address")
    operations.add_argument(
        "--drain-timeout", type=checked(parse_duration), default=15.0, metavar="TIME",
        help="how long open connections may finish after SIGTERM (15s)",
    )  # fmt: skip
    operations.add_argument(
        "--log-level",
        type=checked(parse_log_level),
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


def _worker_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_SPOE_WORKERS:
        raise SettingError(f"expected a whole number from 1 to {MAX_SPOE_WORKERS}, found {text!r}")
    return int(text)


def _optional_address(text: str) -> object:
    # The Go program's default is the empty string, so scripts pass it to mean "none".
    return parse_listen_address(text) if text else None


def _run(options: argparse.Namespace) -> int:
    from hcc.app import sidecar
    from hcc.consul.environment import consul_settings

    settings = run_settings(options, os.environ)
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


COMMANDS = (
    Command(
        "run",
        "run the sidecar of one service instance",
        _arguments,
        _run,
        ("hcc run --sidecar-for web --stats-addr 127.0.0.1:20200",),
    ),
)
