"""What breaks is mended as traffic goes on: actors, HAProxy, SPOE workers, hcc itself, the Consul agent."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import pytest

from tests.e2e.clients import fresh_requests, http_get, kept_requests, tcp_ask, tcp_requests
from tests.e2e.load import Load
from tests.e2e.mesh import Member, Mesh, Service, Site, upstream
from tests.e2e.namespaces import Namespace, is_running
from tests.e2e.sidecar import ACTORS, Sidecar
from tests.e2e.versions import on_2_6, on_2_8
from tests.e2e.waiting import stays, wait_until

pytestmark = pytest.mark.e2e
WEB_PORT, DB_PORT, NEW_PORT = 9401, 9402, 9403
MENDED_S = 5.0


@dataclass
class Pair:
    """An http and a tcp service on one side, one caller of both on the other."""

    mesh: Mesh
    web: Member
    db: Member
    caller: Member

    def loads(self) -> tuple[Load, Load, Load]:
        """Http on new connections, http on kept ones, tcp on new ones."""
        client = self.caller.namespace
        return (
            Load(fresh_requests(client, WEB_PORT, "fweb")),
            Load(kept_requests(client, WEB_PORT, "fweb")),
            Load(tcp_requests(client, DB_PORT, "fdb")),
        )

    def wait_answers(self) -> None:
        """Return when both services answer again."""
        client = self.caller.namespace
        wait_until("http to be answered", lambda: http_get(client, WEB_PORT).text == "fweb", MENDED_S)
        wait_until("tcp to be answered", lambda: tcp_ask(client, DB_PORT) == "fdb", MENDED_S)

    def sidecars(self) -> dict[str, Sidecar]:
        return {"web": self.web.sidecar, "caller": self.caller.sidecar}


@pytest.fixture(scope="module")
def pair(site: Site, haproxy: str) -> Iterator[Pair]:
    mesh = Mesh(site, haproxy)
    try:
        caller = Service("fcaller", host="b", upstreams=(upstream("fweb", WEB_PORT), upstream("fdb", DB_PORT)))
        yield Pair(mesh, *mesh.join(Service("fweb", "http"), Service("fdb"), caller, flags=("--on-exit", "leave")))
    finally:
        mesh.close()


@pytest.mark.parametrize("side", ["web", "caller"])
def test_every_actor_can_be_restarted_under_load_without_a_failed_request(pair: Pair, side: str) -> None:
    sidecar = pair.sidecars()[side]
    worker = sidecar.worker_pid()
    with ExitStack() as stack:
        loads = [stack.enter_context(load) for load in pair.loads()]
        for actor in ACTORS:
            before = sidecar.actors()[actor]["generation"]
            sidecar.restart(actor)
            wait_until(f"{actor} to run again", partial(_runs_anew, sidecar, actor, before), 10)
            for load in loads:
                load.go_on(20)
        wait_until("readiness", lambda: sidecar.ready()[0] == 200)
    for load in loads:
        load.assert_clean()
    assert sidecar.worker_pid() == worker


@on_2_8
def test_after_all_those_restarts_changes_still_arrive(pair: Pair) -> None:
    client, server = pair.caller.namespace, pair.mesh.site.server
    for sidecar in pair.sidecars().values():
        for actor in ACTORS:
            sidecar.restart(actor)
    server.set_intention("fcaller", "fweb", "deny")
    try:
        wait_until("the refusal", lambda: http_get(client, WEB_PORT).status == 403)
    finally:
        server.remove_intention("fcaller", "fweb")
    wait_until("the permission", lambda: http_get(client, WEB_PORT).status == 200)
    usual = pair.caller.service
    try:
        pair.caller.register(replace(usual, upstreams=(*usual.upstreams, upstream("fdb", NEW_PORT, Datacenter="dc1"))))
        wait_until("the added upstream", lambda: tcp_ask(client, NEW_PORT) == "fdb")
    finally:
        pair.caller.register(usual)
    wait_until("the removed upstream to close", lambda: not client.listening(NEW_PORT))


@on_2_8
def test_an_actor_that_does_not_exist_cannot_be_restarted_and_the_answer_names_those_that_do(
    pair: Pair,
) -> None:
    done = pair.web.sidecar.command("restart", "Nobody")
    assert done.returncode != 0
    assert all(actor in done.stderr + done.stdout for actor in ACTORS)


@pytest.mark.parametrize("side", ["web", "caller"])
def test_a_killed_haproxy_worker_is_back_soon(pair: Pair, side: str) -> None:
    sidecar = pair.sidecars()[side]
    old = sidecar.worker_pid()
    os.kill(old, signal.SIGKILL)
    wait_until("another worker", lambda: sidecar.worker_pid() != old, MENDED_S)
    pair.wait_answers()
    wait_until("readiness", lambda: sidecar.ready()[0] == 200, MENDED_S)


@pytest.mark.parametrize("side", ["web", "caller"])
def test_a_killed_haproxy_master_is_back_soon(pair: Pair, side: str) -> None:
    sidecar = pair.sidecars()[side]
    masters = sidecar.haproxy_masters()
    assert masters
    for pid in masters:
        os.kill(pid, signal.SIGKILL)
    wait_until(
        "another master",
        lambda: set(sidecar.haproxy_masters()).isdisjoint(masters) and sidecar.worker_pid(),
        MENDED_S,
    )
    pair.wait_answers()
    wait_until("readiness", lambda: sidecar.ready()[0] == 200, MENDED_S)


def test_a_killed_spoe_worker_costs_no_allowed_request_for_long(pair: Pair) -> None:
    sidecar = pair.web.sidecar
    workers = sidecar.spoe_workers()
    assert len(workers) >= 2
    os.kill(workers[0], signal.SIGKILL)
    wait_until("its successor", lambda: len(sidecar.spoe_workers()) == len(workers), MENDED_S)
    pair.wait_answers()
    with Load(fresh_requests(pair.caller.namespace, WEB_PORT, "fweb")) as load:
        load.go_on(100)
    load.assert_clean()


def test_all_spoe_workers_killed_at_once_come_back_and_nobody_is_let_in_meanwhile_who_is_denied(
    pair: Pair,
) -> None:
    sidecar, server = pair.web.sidecar, pair.mesh.site.server
    client = pair.caller.namespace
    server.set_intention("fcaller", "fweb", "deny")
    try:
        wait_until("the refusal", lambda: http_get(client, WEB_PORT).status == 403)
        for pid in sidecar.spoe_workers():
            os.kill(pid, signal.SIGKILL)
        stays("no request let in", lambda: _status(client, WEB_PORT) != 200, 1.0)
    finally:
        server.remove_intention("fcaller", "fweb")
    pair.wait_answers()


def test_sigterm_under_load_finishes_what_is_in_flight_exits_0_and_leaves_nothing(mesh: Mesh) -> None:
    web, caller = mesh.join(
        Service("gone", "http"), Service("stays", host="b", upstreams=(upstream("gone", NEW_PORT),))
    )
    others = web.namespace.pids()
    answers: list[str] = []
    started = web.sidecar.descendants() | {web.sidecar.process.pid}
    slow = threading.Thread(target=lambda: answers.append(http_get(caller.namespace, NEW_PORT, "/slow/1").text))
    with Load(fresh_requests(caller.namespace, NEW_PORT, "gone")):
        slow.start()
        time.sleep(0.3)  # The request must be in the application when the signal comes.
        assert web.sidecar.stop(15) == 0
        slow.join(10)
    assert answers == ["gone"]
    wait_until("its processes to be gone", lambda: not [pid for pid in started if is_running(pid)], 2)
    assert web.namespace.pids() <= others - started
    assert not web.namespace.listening(web.public_port, web.namespace.address)
    assert not list(web.sidecar.state_base.rglob("*")), "the state directory is not empty"


@on_2_8
def test_sigterm_before_anything_is_ready_exits_0_too(mesh: Mesh) -> None:
    member = mesh.add(Service("hasty", app=False))
    wait_until("the first page", lambda: member.sidecar.fetch("/health")[0] == 200)
    assert member.sidecar.stop(15) == 0
    assert not list(member.sidecar.state_base.rglob("*")), "the state directory is not empty"


def test_hcc_killed_on_the_calling_side_costs_no_request_and_its_successor_adopts_haproxy(pair: Pair) -> None:
    sidecar = pair.caller.sidecar
    masters, worker = sidecar.haproxy_masters(), sidecar.worker_pid()
    with ExitStack() as stack:
        loads = [stack.enter_context(load) for load in pair.loads()]
        sidecar.kill()
        for load in loads:
            load.go_on(100)
        sidecar.start()
        sidecar.wait_ready()
        for load in loads:
            load.go_on(50)
    for load in loads:
        load.assert_clean()
    assert sidecar.haproxy_masters() == masters
    assert sidecar.worker_pid() == worker


def test_hcc_killed_on_the_called_side_costs_no_request_and_its_successor_relieves_the_spoe_workers(
    pair: Pair,
) -> None:
    pair.wait_answers()
    sidecar = pair.web.sidecar
    masters, worker, spoe = sidecar.haproxy_masters(), sidecar.worker_pid(), sidecar.spoe_workers()
    with ExitStack() as stack:
        loads = [stack.enter_context(load) for load in pair.loads()]
        sidecar.kill()
        for load in loads:
            load.go_on(100)
        assert [pid for pid in spoe if is_running(pid)] == list(spoe)
        sidecar.start()
        sidecar.wait_ready()
        wait_until("the old SPOE workers to end", lambda: not [pid for pid in spoe if is_running(pid)], MENDED_S)
        for load in loads:
            load.go_on(50)
    for load in loads:
        load.assert_clean()
    assert sidecar.haproxy_masters() == masters
    assert sidecar.worker_pid() == worker
    assert len(sidecar.spoe_workers()) == len(spoe)
    assert not list(sidecar.state_dir.glob("*~"))


@pytest.mark.parametrize("side", ["web", "caller"])
def test_an_upgrade_by_sigterm_and_start_costs_no_request(pair: Pair, side: str) -> None:
    sidecar = pair.sidecars()[side]
    masters, worker = sidecar.haproxy_masters(), sidecar.worker_pid()
    spoe, started = sidecar.spoe_workers(), sidecar.descendants()
    with ExitStack() as stack:
        loads = [stack.enter_context(load) for load in pair.loads()]
        assert sidecar.stop(15) == 0
        for load in loads:
            load.go_on(50)
        sidecar.start()
        sidecar.wait_ready()
        wait_until("the old SPOE workers to end", lambda: not [pid for pid in spoe if is_running(pid)], MENDED_S)
        for load in loads:
            load.go_on(50)
    for load in loads:
        load.assert_clean()
    assert sidecar.haproxy_masters() == masters
    assert sidecar.worker_pid() == worker
    assert not [pid for pid in started - {*masters, worker} if is_running(pid)]


@on_2_8
def test_with_the_agent_down_hcc_starts_from_its_last_answers_and_says_that_they_are_stale(pair: Pair) -> None:
    agent, sidecar, client = pair.mesh.site.client, pair.caller.sidecar, pair.caller.namespace
    agent.stop()
    try:
        sidecar.clear()
        wait_until("HAProxy to be gone", lambda: not client.listening(WEB_PORT))
        sidecar.start()
        sidecar.wait_ready()
        status, text = sidecar.ready()
        assert status == 200
        assert "stale: from an earlier run" in text
        assert sidecar.metrics()["hcc_stale_answers"] > 0
        with ExitStack() as stack:
            for load in [stack.enter_context(load) for load in pair.loads()]:
                load.go_on(20)
    finally:
        agent.start()
        agent.wait_ready()
    wait_until("Consul to confirm all", lambda: sidecar.ready() == (200, "ready\n"), 30)
    assert sidecar.metrics()["hcc_stale_answers"] == 0
    pair.wait_answers()


@on_2_6
def test_the_consul_agent_stops_and_starts_and_traffic_never_notices(pair: Pair) -> None:
    agent, sidecar = pair.mesh.site.client, pair.caller.sidecar
    worker = sidecar.worker_pid()
    with ExitStack() as stack:
        loads = [stack.enter_context(load) for load in pair.loads()]
        agent.stop()
        for load in loads:
            load.go_on(300)
        agent.start()
        agent.wait_ready()
        usual = pair.caller.service
        pair.caller.register(replace(usual, upstreams=(*usual.upstreams, upstream("late-db", NEW_PORT))))
        wait_until("the added upstream", lambda: pair.caller.namespace.listening(NEW_PORT), 20)
        for load in loads:
            load.go_on(50)
        pair.caller.register(usual)
        wait_until("the removed upstream to close", lambda: not pair.caller.namespace.listening(NEW_PORT), 20)
    for load in loads:
        load.assert_clean()
    assert is_running(sidecar.process.pid)
    assert sidecar.worker_pid() != worker, "a new listener comes by a reload"


def _runs_anew(sidecar: Sidecar, actor: str, before: int) -> bool:
    status = sidecar.actors()[actor]
    return bool(status["state"] == "running" and status["generation"] > before)


def _status(namespace: Namespace, port: int) -> int:
    try:
        return http_get(namespace, port).status
    except OSError:
        return 0
