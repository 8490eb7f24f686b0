"""Real HAProxy, real mTLS, our workers: who comes in, and what happens when workers are gone."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from hcc.mesh.intentions import Action, Intention, Policy
from hcc.spoe.events import PolicyApplied, PoolEvent, WorkerExited, WorkerReady
from hcc.spoe.pool import WorkerPool
from tests import binaries
from tests.integration.spoe_frontend import (
    GREETING,
    PROCESSING_TIMEOUT_MS,
    Frontend,
    events_until,
    http_answers,
    running_frontend,
    wait_for,
)
from tests.spoe_certificates import TRUST_DOMAIN, Authority, service_uri, uri_names

pytestmark = pytest.mark.integration

MESH = Authority()
WEB = MESH.service("web")
DB = MESH.service("db")
BINARIES: dict[str, Callable[[], str]] = {
    branch: partial(binaries.haproxy, branch) for branch in binaries.HAPROXY_BRANCHES
}


def policy(version: int, *allowed: str) -> Policy:
    intentions = tuple(Intention(name, Action.ALLOW, 9) for name in allowed)
    return Policy("server", TRUST_DOMAIN, intentions, False, version)


def apply(pool: WorkerPool, wanted: Policy) -> None:
    pool.set_policy(wanted)
    everywhere = {PolicyApplied(state.index, wanted.version) for state in pool.workers()}
    events_until(pool, lambda seen: everywhere <= set(seen))


def contains(event: PoolEvent, seen: list[PoolEvent]) -> bool:
    return event in seen


def was_started(pool: WorkerPool, index: int, times: int) -> bool:
    return pool.workers()[index].starts == times


def has_policy(pool: WorkerPool, index: int, version: int) -> bool:
    return pool.workers()[index].policy_version == version


def requests(pool: WorkerPool) -> int:
    return sum(worker.requests for worker in pool.counters())


def kill(pool: WorkerPool, *indexes: int) -> None:
    for index in indexes:
        pid = pool.workers()[index].pid
        os.kill(pid, signal.SIGKILL)
        events_until(pool, partial(contains, WorkerExited(index, pid, -9)))


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[WorkerPool]:
    made = WorkerPool((str(tmp_path / "w0.sock"), str(tmp_path / "w1.sock")))
    try:
        made.start()
        events_until(made, lambda seen: len(seen) == 2)
        yield made
    finally:
        made.close(0)


@pytest.fixture
def processing_ms() -> int:
    """How long HAProxy waits for an answer."""
    return PROCESSING_TIMEOUT_MS


# Where none comes, so that it is not waited for long.
no_answer = pytest.mark.parametrize("processing_ms", [500])


@pytest.fixture(params=[f"{branch}-{mode}" for branch in BINARIES for mode in ("tcp", "http")])
def frontend(
    request: pytest.FixtureRequest, tmp_path: Path, pool: WorkerPool, processing_ms: int
) -> Iterator[Frontend]:
    branch, mode = request.param.split("-")
    sockets = tuple(state.socket_path for state in pool.workers())
    binary, directory = BINARIES[branch](), tmp_path / "haproxy"
    with running_frontend(binary, mode, directory, MESH, sockets, processing_ms=processing_ms) as made:
        yield made


def test_the_policy_decides_who_comes_in_and_is_followed_when_it_changes(pool: WorkerPool, frontend: Frontend) -> None:
    assert frontend.ask(WEB) == "denied"
    apply(pool, policy(1, "web"))
    assert frontend.ask(WEB) == "allowed"
    assert frontend.ask(DB) == "denied"
    apply(pool, policy(2, "db"))
    assert frontend.ask(WEB) == "denied"
    assert frontend.ask(DB) == "allowed"
    apply(pool, policy(3, "web", "db"))
    assert frontend.ask(WEB) == frontend.ask(DB) == "allowed"


def test_strange_certificates_of_our_own_authority_are_denied(pool: WorkerPool, frontend: Frontend) -> None:
    apply(pool, policy(1, "web"))
    web = uri_names(service_uri("web"))
    assert frontend.ask(MESH.leaf(*web)) == "allowed"
    assert frontend.ask(MESH.leaf(*web, *web)) == "denied"
    assert frontend.ask(MESH.leaf(*web, *uri_names(service_uri("db")))) == "denied"
    assert frontend.ask(MESH.leaf(*uri_names(service_uri("web", "other.consul")))) == "denied"
    assert frontend.ask(MESH.leaf()) == "denied"


def test_a_killed_worker_costs_nothing_when_it_is_started_again(pool: WorkerPool, frontend: Frontend) -> None:
    apply(pool, policy(1, "web"))
    stopping = threading.Event()

    def look_after() -> None:
        while not stopping.is_set():
            for event in pool.poll(0.1):
                if isinstance(event, WorkerExited):
                    pool.respawn(event.index)

    keeper = threading.Thread(target=look_after)
    keeper.start()
    try:
        for number in range(10):
            index, starts = number % 2, number // 2 + 2
            assert frontend.ask(WEB) == "allowed"
            # A question on its way to a worker at the moment of its death is lost (and denied): HAProxy does not
            # ask twice. So here it dies idle, and the next question may find it still being started.
            os.kill(pool.workers()[index].pid, signal.SIGKILL)
            wait_for("it is started", partial(was_started, pool, index, starts))
            assert frontend.ask(WEB) == "allowed"
            wait_for("it serves", partial(has_policy, pool, index, 1))
    finally:
        stopping.set()
        keeper.join()


@no_answer
def test_the_other_worker_answers_for_one_that_stays_dead(pool: WorkerPool, frontend: Frontend) -> None:
    apply(pool, policy(1, "web"))
    assert frontend.ask(WEB) == "allowed"
    kill(pool, 0)
    # Until the check has found out, a question may wait in the dead worker's queue: denied, never let in.
    wait_for("ten in a row", lambda: all(frontend.ask(WEB) == "allowed" for _ in range(10)), 30)
    assert all(frontend.ask(DB) == "denied" for _ in range(3))
    pool.respawn(0)
    events_until(pool, lambda seen: any(isinstance(event, WorkerReady) for event in seen))
    before = pool.counters()[0].connections_total
    wait_for("checked again", lambda: pool.counters()[0].connections_total > before)
    assert frontend.ask(WEB) == "allowed"


@no_answer
def test_with_all_workers_gone_nobody_comes_in(pool: WorkerPool, frontend: Frontend) -> None:
    apply(pool, policy(1, "web"))
    assert frontend.ask(WEB) == "allowed"
    kill(pool, 0, 1)
    assert [frontend.ask(WEB) for _ in range(4)] == ["denied"] * 4
    pool.respawn(0)
    pool.respawn(1)
    wait_for("back in", lambda: frontend.ask(WEB) == "allowed", 20)


def test_stopping_parts_from_haproxy_and_closes_the_door(pool: WorkerPool, frontend: Frontend) -> None:
    apply(pool, policy(1, "web"))
    assert frontend.ask(WEB) == "allowed"
    pool.close(5)
    exits = [event for event in pool.poll(0) if isinstance(event, WorkerExited)]
    assert [event.status for event in exits] == [0, 0]
    assert frontend.ask(WEB) == "denied"


def test_many_at_once_all_get_their_own_answer(pool: WorkerPool, frontend: Frontend) -> None:
    apply(pool, policy(1, "web"))
    contexts = {"allowed": frontend.context(WEB), "denied": frontend.context(DB)}
    wrong: list[str] = []

    def ask(expected: str) -> None:
        for _ in range(5):
            try:
                with socket.create_connection(("127.0.0.1", frontend.port), timeout=10) as plain:
                    found = frontend.ask_on(plain, contexts[expected])
            except ConnectionError:
                found = "denied"
            if found != expected:
                wrong.append(f"{expected}: {found}")

    threads = [threading.Thread(target=ask, args=(name,)) for name in contexts for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    wait_for("all questions are counted", lambda: requests(pool) >= 100)
    assert sum(worker.frames_bad for worker in pool.counters()) == 0


@pytest.mark.parametrize("branch", BINARIES)
def test_each_request_of_a_kept_alive_connection_is_asked_for(branch: str, tmp_path: Path, pool: WorkerPool) -> None:
    sockets = tuple(state.socket_path for state in pool.workers())
    apply(pool, policy(1, "web"))
    with (
        running_frontend(BINARIES[branch](), "http", tmp_path / "haproxy", MESH, sockets) as frontend,
        socket.create_connection(("127.0.0.1", frontend.port), timeout=10) as plain,
        frontend.context(WEB).wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        assert http_answers(tls, 3) == ["allowed"] * 3
        wait_for("three questions are counted", lambda: requests(pool) == 3)
        apply(pool, policy(2))
        assert http_answers(tls, 1) == ["denied"]


@pytest.mark.parametrize("branch", BINARIES)
def test_a_tcp_connection_that_is_in_stays_in(branch: str, tmp_path: Path, pool: WorkerPool) -> None:
    sockets = tuple(state.socket_path for state in pool.workers())
    apply(pool, policy(1, "web"))
    with (
        running_frontend(BINARIES[branch](), "tcp", tmp_path / "haproxy", MESH, sockets) as frontend,
        socket.create_connection(("127.0.0.1", frontend.port), timeout=10) as plain,
        frontend.context(WEB).wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        assert tls.recv(100) == GREETING
        kill(pool, 0, 1)
        tls.sendall(b"still here\n")
        assert tls.recv(100) == b"still here\n"


@pytest.mark.parametrize("branch", BINARIES)
def test_several_threads_of_haproxy_are_served(branch: str, tmp_path: Path, pool: WorkerPool) -> None:
    sockets = tuple(state.socket_path for state in pool.workers())
    apply(pool, policy(1, "web"))
    with running_frontend(BINARIES[branch](), "tcp", tmp_path / "haproxy", MESH, sockets, threads=4) as frontend:
        assert [frontend.ask(WEB) for _ in range(20)] == ["allowed"] * 20
        assert [frontend.ask(DB) for _ in range(5)] == ["denied"] * 5
