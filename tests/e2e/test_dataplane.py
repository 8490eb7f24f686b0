"""hcc with HAProxy behind a real Data Plane API 1.2.5, from its start to its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from tests.binaries import dataplaneapi
from tests.e2e.clients import tcp_ask
from tests.e2e.mesh import Member, Mesh, Service, Site, upstream
from tests.e2e.namespaces import is_running
from tests.e2e.versions import on_2_6
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
PORT, OTHER_PORT = 9471, 9472
MENDED_S = 10.0


@dataclass
class Pair:
    mesh: Mesh
    called: Member
    caller: Member


@pytest.fixture
def pair(site: Site, haproxy: str) -> Iterator[Pair]:
    mesh = Mesh(site, haproxy)
    flags = ("--dataplane", dataplaneapi())
    try:
        called = mesh.add(Service("dpdb"), *flags)
        caller = mesh.add(Service("dpcaller", host="b", app=False, upstreams=(upstream("dpdb", PORT),)), *flags)
        called.wait_ready()
        caller.wait_ready()
        called.wait_healthy(site.client)
        wait_until("an answer", lambda: tcp_ask(caller.namespace, PORT) == "dpdb", MENDED_S)
        yield Pair(mesh, called, caller)
    finally:
        mesh.close()


def dataplane_pid(member: Member) -> int:
    return int((member.sidecar.state_dir / "dataplane.pid").read_text().split()[0])


def is_denied(caller: Member) -> bool:
    try:
        tcp_ask(caller.namespace, OTHER_PORT)
    except ConnectionError:
        return True
    return False


@on_2_6
def test_it_serves_survives_kills_and_ends_without_a_trace(pair: Pair) -> None:
    caller = pair.caller
    sidecar, worker = caller.sidecar, caller.sidecar.worker_pid()
    assert "control: Data Plane API 1.x" in sidecar.log_text()
    assert any('control="dataplane"' in name for name in sidecar.metrics())
    assert "put right" not in sidecar.log_text() + pair.called.sidecar.log_text()

    first = dataplane_pid(caller)
    os.kill(first, signal.SIGKILL)
    wait_until("another Data Plane API", lambda: dataplane_pid(caller) != first, MENDED_S)
    assert tcp_ask(caller.namespace, PORT) == "dpdb"
    assert sidecar.worker_pid() == worker

    caller.register(replace(caller.service, upstreams=(upstream("dpdb", OTHER_PORT),)))
    wait_until("the upstream at its new port", lambda: tcp_ask(caller.namespace, OTHER_PORT) == "dpdb", MENDED_S)
    worker = sidecar.worker_pid()

    second = dataplane_pid(caller)
    sidecar.kill()
    sidecar.start()
    sidecar.wait_ready()
    wait_until("another Data Plane API", lambda: dataplane_pid(caller) != second, MENDED_S)
    assert not is_running(second)
    assert sidecar.worker_pid() == worker
    assert tcp_ask(caller.namespace, OTHER_PORT) == "dpdb"

    pair.mesh.intend("dpcaller", "dpdb", "deny")
    wait_until("the denial", lambda: is_denied(caller), MENDED_S)
    last = dataplane_pid(caller)
    assert sidecar.stop() == 0
    assert not is_running(last)
