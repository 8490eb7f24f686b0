"""Endpoints in slots, on the oldest HAProxy that can be had here; it cannot create servers at run time."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection

import pytest

from hcc.haproxy.direct import DirectControl
from hcc.haproxy.plan import FreeSlot
from hcc.haproxy.slots import is_spare
from hcc.mesh.snapshot import Endpoint, Health, Snapshot
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.dataplane_stage import dataplane_stage
from tests.e2e.load import Load
from tests.haproxy_stage import DEADLINE_S, HttpServer, Server, Stage, greeting, http_answer, stage, wait_until
from tests.pki import service_uri
from tests.ports import free_port

pytestmark = pytest.mark.integration

OLD = "2.2"


@pytest.fixture
def old() -> Iterator[Stage]:
    with stage(OLD) as made:
        yield made


@pytest.fixture(params=["direct", "dataplane"])
def either(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage(OLD) if request.param == "direct" else dataplane_stage(OLD) as made:
        yield made


def at(server: Server, weight: int = 1, health: Health = Health.PASSING) -> Endpoint:
    return endpoint("127.0.0.1", server.port, weight=weight, health=health)


def client(port: int, *endpoints: Endpoint, protocol: str = "http") -> Snapshot:
    state = upstream_state(upstream("web", port, connect_timeout_ms=500), endpoints, protocol=protocol)
    return snapshot(state, proxy_=proxy(local_port=0, upstreams=(state.upstream,)))


def homes(there: Stage) -> dict[int, str]:
    """The slot of each endpoint, by its port."""
    slots = [s for name, servers in there.control.servers() if name.startswith("up:") for s in servers]
    return {slot.port: slot.name for slot in slots if not is_spare(slot)}


@contextlib.contextmanager
def kept_alive(port: int) -> Iterator[Callable[[], str]]:
    """Requests on one connection, each gives the name of who answered; a failed one raises."""
    connection = HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)

    def ask() -> str:
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode().partition("\n")[0]

    with contextlib.closing(connection):
        yield ask


@contextlib.contextmanager
def load(port: int) -> Iterator[Callable[[], None]]:
    with kept_alive(port) as ask:

        def request() -> None:
            ask()

        yield request


def test_endpoints_come_go_fail_and_return_without_a_reload_or_a_failed_request(either: Stage) -> None:
    a, b, c = (either.peer(name, http=True) for name in "abc")
    port = free_port()
    either.converge(either.rendered(client(port, at(a))))
    worker = either.worker()
    steps = (
        ([at(a), at(b)], "ab"),
        ([at(a), at(b, 7), at(c)], "abc"),
        ([at(a, health=Health.CRITICAL), at(b), at(c)], "bc"),
        ([at(a), at(b), at(c)], "abc"),
        ([at(b), at(c)], "bc"),
        ([at(a)], "a"),
    )
    with Load(lambda: load(port), threads=4) as requests, kept_alive(port) as ask:
        # Twice, so that slots are taken again.
        for endpoints, names in (*steps, *steps):
            either.converge(either.rendered(client(port, *endpoints)))
            requests.go_on(10)
            _settle(either, client(port, *endpoints))
            assert set(homes(either)) == {each.port for each in endpoints}
            # Nor does a connection to who left serve a caller that was there before.
            assert {ask() for _ in range(12)} <= set(names)
    assert not requests.failed, requests.failed
    assert either.worker() == worker


def _settle(there: Stage, wanted: Snapshot) -> None:
    """Apply until nothing is pending, as the reconciler does."""
    wait_until(lambda: not there.converge(there.rendered(wanted)).pending, "the slots are free")
    assert not there.plan(there.rendered(wanted))


def test_growing_reloads_seldom_and_a_reload_keeps_who_is_in_which_slot(old: Stage) -> None:
    peer = old.peer("peer")
    port, reloads = free_port(), 0
    made_up = [endpoint("127.0.0.1", 30_000 + n, health=Health.CRITICAL) for n in range(20)]
    old.converge(old.rendered(client(port, at(peer), protocol="tcp")))
    for count in range(1, len(made_up) + 1):
        before = homes(old)
        applied = old.converge(old.rendered(client(port, at(peer), *made_up[:count], protocol="tcp")))
        reloads += applied.reloaded
        assert homes(old).items() >= before.items()
        assert greeting(port) == "peer"
    assert reloads == 3  # 4, 8, 16, 32 slots


def test_a_restarted_hcc_and_a_restarted_haproxy_both_find_everybody_in_place(old: Stage) -> None:
    a, b, c = (old.peer(name) for name in "abc")
    port = free_port()
    old.converge(old.rendered(client(port, at(a), at(b), protocol="tcp")))
    wanted = client(port, at(b), at(c), protocol="tcp")
    old.converge(old.rendered(wanted))
    found = homes(old)
    old.control = DirectControl(old.binary, old.layout, old.capabilities)
    assert not old.plan(old.rendered(wanted))

    old.process.kill()
    wait_until(lambda: not old.process.alive(), "HAProxy ends")
    old.process.forget()
    old.process.launch()
    old.process.wait_ready(timeout_s=DEADLINE_S)
    assert homes(old) == found
    assert not old.plan(old.rendered(wanted))
    assert {greeting(port) for _ in range(4)} == {"b", "c"}


def test_a_slot_goes_from_one_address_family_to_the_other_and_back(old: Stage) -> None:
    peer = old.peer("peer")
    port = free_port()
    for endpoints in ([at(peer)], [endpoint("::1", 4)], [at(peer)]):
        old.converge(old.rendered(client(port, *endpoints, protocol="tcp")))
        assert not old.plan(old.rendered(client(port, *endpoints, protocol="tcp")))
    assert greeting(port) == "peer"


class SlowServer(HttpServer):
    """Answers when it is told to."""

    def __init__(self, name: str, tls: ssl.SSLContext) -> None:
        self.asked, self.go = threading.Event(), threading.Event()
        super().__init__(name, tls)

    def talk(self, connection: socket.socket) -> None:
        self.asked.set()
        assert self.go.wait(DEADLINE_S)
        super().talk(connection)


def test_a_request_to_who_left_ends_in_peace_and_its_connection_serves_nobody_after_it(old: Stage) -> None:
    context = old.context(ssl.PROTOCOL_TLS_SERVER, old.authority.leaf(service_uri("web")))
    slow = SlowServer("slow", context)
    old.servers.append(slow)
    others = [old.peer(f"other{n}", http=True) for n in range(4)]
    port = free_port()
    old.converge(old.rendered(client(port, at(slow))))
    answers: list[tuple[int, str]] = []
    caller = threading.Thread(target=lambda: answers.append(http_answer(port)))
    caller.start()
    assert slow.asked.wait(DEADLINE_S)

    applied = old.converge(old.rendered(client(port, at(others[0]))))
    assert [type(operation) for operation in applied.pending] == [FreeSlot]
    # All other slots taken: the one that is left is not, so a reload is due; it is not applied here.
    full = old.rendered(client(port, *(at(other) for other in others)))
    assert old.plan(full).reloads
    slow.go.set()
    caller.join(DEADLINE_S)
    assert answers[0][1].startswith("slow")

    wanted = client(port, at(others[0]))
    _settle(old, wanted)
    for other in others[1:]:
        wanted = client(port, *(at(each) for each in others[: others.index(other) + 1]))
        assert not old.converge(old.rendered(wanted)).reloaded
    assert {http_answer(port)[1].split("\n")[0] for _ in range(16)} == {other.name for other in others}
