"""That whoever takes all connections of one listener leaves the others theirs, on every HAProxy that is served."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterator

import pytest

from hcc.haproxy.stats_reader import SUMMARY, StatsReader
from hcc.mesh.intentions import Action, Intention
from hcc.mesh.snapshot import ExposedPath, Protocol
from hcc.settings import Enforcement
from tests.binaries import HAPROXY_BRANCHES
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.forgeries import MESH
from tests.haproxy_stage import DEADLINE_S, Stage, greeting, stage, wait_until
from tests.integration.gate import gate
from tests.pki import service_uri
from tests.ports import free_port, free_ports

pytestmark = pytest.mark.integration
# More than the stage's HAProxy takes, which are 500.
TOO_MANY = 520
# More than half of it.
MANY = 260
KEPT, CLOSED = "kept", "closed"


class Caller:
    """One that asks again and again on one connection."""

    def __init__(self, port: int, context: ssl.SSLContext, stack: contextlib.ExitStack) -> None:
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE_S))
        self._sock = stack.enter_context(context.wrap_socket(plain))

    def ask(self) -> tuple[int, str]:
        """The status, and whether the connection is there after it."""
        self._sock.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        answer = http.client.HTTPResponse(self._sock)
        answer.begin()
        answer.read()
        if not answer.will_close:
            return answer.status, KEPT
        assert self._sock.recv(1) == b""
        return answer.status, CLOSED


@pytest.fixture(params=HAPROXY_BRANCHES)
def made(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage(request.param) as running:
        yield running


def test_connections_from_outside_leave_those_to_upstreams(made: Stage) -> None:
    app, peer = made.app(), made.peer("peer")
    public, exposed, port = free_ports(3)
    state = upstream_state(upstream("web", port), [endpoint("127.0.0.1", port=peer.port)])
    paths = (ExposedPath("/health", exposed, app.port),)
    made.converge(made.rendered(snapshot(state, proxy_=proxy(bind_port=public, local_port=app.port, exposed=paths))))
    with contextlib.ExitStack() as stack:
        for taken in (exposed, public):
            # The first that is too many is closed, which may be seen at once.
            with contextlib.suppress(ConnectionResetError):
                assert connections(taken, TOO_MANY, stack)[-1].recv(1) == b""
        assert greeting(port) == "peer"


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_callers_that_are_denied_keep_no_connection_where_there_are_many(branch: str) -> None:
    with gate(branch, Protocol.HTTP) as opened, contextlib.ExitStack() as stack:
        db = Intention("db", Action.ALLOW, 9)
        opened.decide_by(Intention("web", Action.ALLOW, 9), db)
        denied, allowed = (Caller(opened.port, opened.context(MESH.service(one)), stack) for one in ("web", "db"))
        assert denied.ask() == allowed.ask() == (200, KEPT)
        wait_until(lambda: len(opened.remembered()) == 2, "HAProxy knows both")
        opened.decide_by(Intention("web", Action.DENY, 9), db)
        assert denied.ask() == (403, KEPT)
        crowd(opened.stage, opened.port, stack)
        assert allowed.ask() == (200, KEPT)
        assert denied.ask() == (403, CLOSED)


def test_nor_do_those_of_whom_nobody_can_tell(made: Stage) -> None:
    public = free_port()
    here = proxy(bind_port=public, local_port=made.app(http=True).port, protocol=Protocol.HTTP)
    made.converge(made.rendered(snapshot(proxy_=here), intentions=Enforcement.ENFORCE))
    context = made.context(ssl.PROTOCOL_TLS_CLIENT, made.authority.leaf(service_uri("caller")))
    with contextlib.ExitStack() as stack:
        caller = Caller(public, context, stack)
        assert caller.ask() == (403, KEPT)
        crowd(made, public, stack)
        assert caller.ask() == (403, CLOSED)


def crowd(made: Stage, port: int, stack: contextlib.ExitStack) -> None:
    """More than half of all connections that HAProxy takes, once it has them."""
    connections(port, MANY, stack)
    stats = StatsReader(made.layout.stats_socket, SUMMARY)
    wait_until(lambda: stats.read().process.connections > MANY, "HAProxy has taken them")


def connections(port: int, number: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """So many, which say nothing."""
    return [stack.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE_S)) for _ in range(number)]
