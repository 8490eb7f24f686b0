"""The sidecar of a client whose upstreams are services of the farm, and what its HAProxy has of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hcc.haproxy.runtime import RuntimeSocket, RuntimeSocketError
from tests.bench.farm import Service, farm
from tests.bench.mesh import READY_S, Agent, Sidecar, sidecar
from tests.ports import free_ports


@contextmanager
def client_of(services: Sequence[Service], agent: Agent, haproxy: str, folder: Path, *flags: str) -> Iterator[Sidecar]:
    """The client of all these services, with their endpoints answering; ended afterwards."""
    for one in services:
        agent.put("/v1/config", {"Kind": "service-defaults", "Name": one.name, "Protocol": "http"})
    name, (public, stats) = f"client-of-{services[0].name}", free_ports(2)
    upstreams = [{"DestinationName": one.name, "LocalBindPort": one.upstream} for one in services]
    own = {"SidecarService": {"Port": public, "Proxy": {"Upstreams": upstreams}}}
    agent.put("/v1/agent/service/register", {"Name": name, "Port": 1, "Connect": own})
    with farm(services, agent, haproxy, folder), sidecar(name, stats, agent, haproxy, folder, *flags) as client:
        yield client


def wait_serving(client: Sidecar, one: Service, count: int) -> None:
    """Return when HAProxy has so many servers of a service that may get traffic.

    Source: HAProxy management.txt, show servers state; 2 is running, and of the administrative state only that the file
    had the server in maintenance once (4) does not matter.
    """
    end = time.monotonic() + READY_S
    while True:
        asked = time.monotonic()
        rows = [line.split() for line in _said(client, f"show servers state {one.backend}").splitlines()]
        serving = sum(row[5:7] in (["2", "0"], ["2", "4"]) for row in rows)
        if serving >= count:
            return
        assert time.monotonic() < end, f"{serving} of {count} endpoints of {one.name} may serve after {READY_S:g} s"
        # Of many servers the answer is long: HAProxy is to spend its time on what is waited for.
        time.sleep(0.05 + 5 * (time.monotonic() - asked))


def wait_created(client: Sidecar, one: Service, number: int) -> None:
    """Return when HAProxy has the server of an endpoint."""
    end = time.monotonic() + READY_S
    while "initial" not in _said(client, f"get weight {one.server(number)}"):
        assert time.monotonic() < end, f"no server {one.server(number)} within {READY_S:g} s"
        time.sleep(0.002)


def _said(client: Sidecar, command: str) -> str:
    """What the client's HAProxy says; nothing while it starts or reloads."""
    with suppress(RuntimeSocketError):
        return RuntimeSocket(f"{client.directory}/stats.sock").send(command)
    return ""
