"""`hcc run`: the sidecar of one service instance."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hcc.cli.arguments import Command
from hcc.cli.instance import add_settings
from hcc.cli.settings_table import ALL
from hcc.errors import SettingError
from hcc.settings import RunSettings, Selection

if TYPE_CHECKING:
    from hcc.consul.environment import ConsulSettings


def run_settings(options: argparse.Namespace) -> RunSettings:
    """What `hcc run` is told, from settled options.

    Raises:
        SettingError: no proxy is chosen, or settings that do not go together.
    """
    settings = checked_settings(options)
    if settings.selection == Selection():
        raise SettingError("expected one of --sidecar-for, --proxy-id, --sidecar-for-tag, found none")
    return settings


def checked_settings(options: argparse.Namespace) -> RunSettings:
    """As `run_settings`; a proxy need not be chosen.

    Raises:
        SettingError: settings that do not go together.
    """
    if options.stats_service_register and options.stats_addr is None:
        raise SettingError("--stats-service-register expects --stats-addr HOST:PORT, found none")
    _check_access_log(options.access_log)
    return RunSettings(
        selection=Selection(options.sidecar_for, options.proxy_id, options.sidecar_for_tag),
        haproxy=options.haproxy,
        control=_control(options),
        dataplane=options.dataplane,
        state_dir=options.state_dir,
        stats_addr=options.stats_addr,
        stats_service_register=options.stats_service_register,
        metrics_per_endpoint=options.metrics_per_endpoint,
        intentions=options.intentions,
        spoe_workers=options.spoe_workers,
        resync_s=options.resync,
        on_exit=options.on_exit,
        drain_timeout_s=options.drain_timeout,
        drain_delay_s=options.drain_delay,
        drain_maintenance=options.drain_maintenance,
        cached_start=not options.no_cached_start,
        log_level=options.log_level,
        log_format=options.log_format,
        access_log=options.access_log,
        verify_upstream=options.verify_upstream,
    )


def agent_settings(options: argparse.Namespace) -> ConsulSettings:
    """How to reach Consul, from settled options.

    Raises:
        SettingError: an address that cannot be used, or settings that do not go together.
    """
    from hcc.consul.environment import consul_settings

    return consul_settings(
        http_addr=options.http_addr,
        http_addr_source=next(given.source for given in options.given if given.setting.key == "http_addr"),
        token=options.token,
        token_file=options.token_file,
        auth=options.auth,
        ssl=options.ssl,
        ssl_verify=options.ssl_verify,
        ca_file=options.ca_file,
        ca_path=options.ca_path,
        client_cert=options.client_cert,
        client_key=options.client_key,
        tls_server_name=options.tls_server_name,
        namespace=options.namespace,
        partition=options.partition,
    )


def _check_access_log(where: str) -> None:
    """Raises SettingError where it is nothing that HAProxy could be told; it would never run."""
    # The two of most sidecars cost no import before HAProxy's program is asked what it is.
    if where not in ("", "stdout"):
        from hcc.haproxy.access_log import target
        from hcc.haproxy.words import WordError

        try:
            tuple(target(where))
        except WordError as exc:
            raise SettingError(f"--access-log cannot stand in HAProxy's configuration: {exc}") from exc


def _control(options: argparse.Namespace) -> str:
    """How HAProxy is driven: to name a Data Plane API means to use it, unless a stronger source says otherwise."""
    strength = {given.setting.key: given.strength for given in options.given}
    if options.control == "direct" and options.dataplane and strength["control"] <= strength["dataplane"]:
        raise SettingError("--control direct and --dataplane PATH contradict each other; leave one out")
    return str(options.control or ("dataplane" if options.dataplane else "direct"))


def _arguments(run: argparse.ArgumentParser) -> None:
    add_settings(run, ALL)


def _run(options: argparse.Namespace) -> int:
    settings, consul = run_settings(options), agent_settings(options)
    from hcc.app.signals import Signals

    # Heard from here on: who stops us while we still import may mean a HAProxy that runs already.
    signals = Signals()
    signals.install()
    from hcc.app.head_start import HeadStart

    head_start = HeadStart(settings.haproxy)
    from hcc.app import sidecar

    return sidecar.run(settings, consul, head_start, signals)


COMMANDS = (
    Command(
        "run",
        "run the sidecar of one service instance",
        _arguments,
        _run,
        ("hcc run --sidecar-for web --stats-addr 127.0.0.1:20200",),
    ),
)
