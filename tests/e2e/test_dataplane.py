"""hcc with HAProxy behind a real Data Plane API, from its start to its end, and the example's cases through it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hcc.haproxy.capabilities import Feature
from hcc.haproxy.dataplane_program import find_dataplane
from tests.binaries import dataplaneapi
from tests.e2e.cases import cases
from tests.e2e.clients import tcp_ask
from tests.e2e.mesh import Member, Mesh, Service, upstream
from tests.e2e.namespaces import is_running
from tests.e2e.versions import DATAPLANE, can, on_combinations
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
PORT, OTHER_PORT = 9471, 9472
MENDED_S = 30.0


@dataclass
class Pair:
    mesh: Mesh
    called: Member
    caller: Member


@pytest.fixture
def pair(mesh: Mesh) -> Pair:
    called = mesh.add(Service("dpdb"))
    caller = mesh.add(Service("dpcaller", host="b", app=False, upstreams=(upstream("dpdb", PORT),)))
    called.wait_ready()
    caller.wait_ready()
    called.wait_healthy(mesh.site.client)
    wait_until("an answer", lambda: tcp_ask(caller.namespace, PORT) == "dpdb", MENDED_S)
    return Pair(mesh, called, caller)


def dataplane_pid(member: Member) -> int:
    return int((member.sidecar.state_dir / "dataplane.pid").read_text().split()[0])


def _servers(config: Path, service: str) -> str:
    """The part of haproxy.cfg that lists an upstream's servers."""
    return config.read_text().partition(f"\nbackend up:{service}:")[2].partition("\n\n")[0] + "\n"


def is_denied(caller: Member, port: int) -> bool:
    try:
        tcp_ask(caller.namespace, port)
    except ConnectionError:
        return True
    return False


@pytest.mark.timeout(300)
@on_combinations(DATAPLANE)
def test_the_example_s_cases_hold_or_the_pair_is_refused_by_name(
    mesh: Mesh, haproxy_version: str, tmp_path: Path
) -> None:
    program = find_dataplane(dataplaneapi())
    if program.generation == 1 and can(haproxy_version, Feature.NO_SNI_AUTO):
        refused = mesh.add(Service("refused", app=False)).sidecar.process
        assert refused.wait(20) == 2
        said = refused.log_text()
        assert f"HAProxy {haproxy_version}" in said
        assert "no-sni-auto" in said
        assert "--control direct" in said
    else:
        cases(mesh, haproxy_version, tmp_path).run()


@pytest.mark.parametrize(("haproxy_version", "control"), [("2.6", DATAPLANE)], indirect=True, ids=["2.6"])
def test_it_serves_survives_kills_and_ends_without_a_trace(pair: Pair) -> None:
    caller = pair.caller
    sidecar, worker = caller.sidecar, caller.sidecar.worker_pid()
    assert f"control: Data Plane API {find_dataplane(dataplaneapi()).generation}.x" in sidecar.log_text()
    assert any('control="dataplane"' in name for name in sidecar.metrics())
    assert "put right" not in sidecar.log_text() + pair.called.sidecar.log_text()

    # At run time first; what is posted then is what runs, and our reload command leaves it alone.
    pair.called.set_health("critical")
    wait_until("no answer", lambda: is_denied(caller, PORT), MENDED_S)
    config = sidecar.state_dir / "haproxy.cfg"
    wait_until("its maintenance on disk", lambda: " disabled" in _servers(config, "dpdb"), MENDED_S)
    pair.called.set_health("passing")
    pair.called.wait_healthy(pair.called.agent)
    wait_until("an answer", lambda: tcp_ask(caller.namespace, PORT) == "dpdb", MENDED_S)
    wait_until("its return on disk", lambda: " disabled" not in _servers(config, "dpdb"), MENDED_S)
    assert sidecar.worker_pid() == worker
    assert sidecar.metrics()["hcc_reloads_total"] == 0

    first = dataplane_pid(caller)
    os.kill(first, signal.SIGKILL)
    wait_until("another Data Plane API", lambda: dataplane_pid(caller) != first, MENDED_S)
    assert tcp_ask(caller.namespace, PORT) == "dpdb"
    assert sidecar.worker_pid() == worker

    caller.register(replace(caller.service, upstreams=(upstream("dpdb", OTHER_PORT),)))
    wait_until("the upstream at its new port", lambda: tcp_ask(caller.namespace, OTHER_PORT) == "dpdb", MENDED_S)
    sidecar.wait_rest()
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
    wait_until("the denial", lambda: is_denied(caller, OTHER_PORT), MENDED_S)
    last = dataplane_pid(caller)
    assert sidecar.stop() == 0
    assert not is_running(last)
