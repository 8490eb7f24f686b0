"""All checks of `hcc doctor`, in the order in which one thing needs the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from hcc.app.composition import MAX_CONNECTIONS
from hcc.app.state_directory import CONTROL_SOCKET, LOCK, directory_name
from hcc.consul.answers import Registration
from hcc.consul.client import ConsulClient
from hcc.consul.credentials import TokenSource
from hcc.consul.environment import ConsulSettings
from hcc.diagnosis.consul import Known, check_agent, check_leaf, check_rights, rights
from hcc.diagnosis.finding import Finding, Section, failed, skipped
from hcc.diagnosis.haproxy import check_haproxy
from hcc.diagnosis.machine import (
    Listener,
    check_access_log,
    check_file_descriptors,
    check_port,
    check_state_directory,
    file_owner,
    socket_owner,
)
from hcc.diagnosis.sidecar import Running, check_sidecar
from hcc.errors import HccError
from hcc.haproxy.layout import layout
from hcc.haproxy.process import recorded_pid
from hcc.haproxy.room import FDS_PER_CONNECTION, SPARE_FDS
from hcc.settings import RunSettings


def examine(settings: RunSettings, consul: ConsulSettings, running: Callable[[str], Running]) -> Iterator[Section]:
    """The sections of findings, each as soon as it is there.

    Args:
        settings: as `hcc run` would have them; a proxy need not be chosen.
        consul: how to reach Consul.
        running: asks the sidecar of a proxy, by the ID that Consul has for what was chosen; empty where it has none.
    """
    yield Section("HAProxy", tuple(check_haproxy(settings)))
    known = Known()
    yield from _consul(settings, consul, known)
    base = Path(settings.state_dir)
    proxy_id = known.proxy_id or settings.selection.proxy_id
    directory = _directory(base.absolute(), proxy_id) if proxy_id else None
    pid = (socket_owner(directory / CONTROL_SOCKET) or file_owner(directory / LOCK)) if directory is not None else 0
    yield Section("Machine", tuple(_machine(settings, known.registration, directory, pid)))
    told = known.registration.proxy.warnings if known.registration is not None else ()
    yield Section("Sidecar", tuple(check_sidecar(running(known.proxy_id), pid, told)))


def _directory(base: Path, proxy_id: str) -> Path:
    """The proxy's own directory: below the base or, under systemd, below that of its unit."""
    name = directory_name(proxy_id)
    # Where it may not be looked for is told by the check of what is found here.
    with contextlib.suppress(OSError):
        return next((path for path in (base / name, *base.glob(f"*/{name}")) if path.exists()), base / name)
    return base / name


def _consul(settings: RunSettings, consul: ConsulSettings, known: Known) -> Iterator[Section]:
    try:
        client = ConsulClient(consul, TokenSource(consul))
    except HccError as exc:
        finding = failed("settings", str(exc), "correct the setting; `hcc settings` shows where it comes from")
        yield Section("Consul", (finding,))
        return
    try:
        findings = list(check_agent(client, settings.selection, known))
        if known.registration is not None and known.registration.proxy.service:
            findings += check_leaf(client, known.registration.proxy.service, datetime.now(UTC))
        yield Section(f"Consul at {consul.address.label()}", tuple(findings))
        if known.registration is not None:
            yield Section("Rights of the token", tuple(check_rights(client, rights(known.registration, settings))))
    finally:
        client.close()


def _haproxy(directory: Path | None) -> int:
    """Process id of the sidecar's HAProxy, 0 where none is known or we may not look."""
    if directory is None:
        return 0
    try:
        return recorded_pid(layout(str(directory)).pid_file) or 0
    except OSError:
        return 0


def _machine(
    settings: RunSettings, registration: Registration | None, directory: Path | None, pid: int
) -> Iterator[Finding]:
    if registration is None:
        yield skipped("ports", "the sidecar's registration is not known")
    else:
        for listener in listeners(registration, settings):
            yield check_port(listener, directory, pid)
    yield check_file_descriptors(pid, MAX_CONNECTIONS, FDS_PER_CONNECTION, SPARE_FDS, _haproxy(directory))
    yield from check_state_directory(Path(settings.state_dir), directory, pid)
    if settings.access_log.startswith("/"):
        yield check_access_log(settings.access_log)


def listeners(registration: Registration, settings: RunSettings) -> tuple[Listener, ...]:
    """Every TCP address that the sidecar listens on."""
    proxy = registration.proxy
    public = (Listener("public listener", proxy.bind_address, proxy.bind_port),) if proxy.service_id else ()
    upstreams = tuple(
        Listener(f"upstream {one.key.label()}", one.local_bind_address, one.local_bind_port)
        for one in proxy.upstreams
        if not one.local_bind_socket
    )
    exposed = tuple(
        Listener(f"exposed path {one.path}", proxy.bind_address, one.port)
        for one in {one.port: one for one in reversed(proxy.exposed)}.values()
    )
    stats = settings.stats_addr
    ours = (Listener("--stats-addr", stats.host, stats.port),) if stats else ()
    return (*public, *upstreams, *exposed, *ours)
