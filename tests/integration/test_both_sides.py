"""What an application notices of a caller's and a called sidecar together; one HAProxy is both."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from hcc.haproxy.render import Rendered, render
from hcc.mesh.snapshot import Protocol
from tests.binaries import HAPROXY_BRANCHES
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.haproxy_stage import DEADLINE_S, Server, Stage, stage
from tests.pki import service_uri
from tests.ports import free_port

pytestmark = pytest.mark.integration
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
LARGE = 3_000_000


@dataclass
class Sides:
    """A running pair: where its application calls, and where its public listener is."""

    stage: Stage
    port: int
    public: int
    rendered: Rendered

    def call(self) -> socket.socket:
        return _connected(self.port)


def both(made: Stage, protocol: Protocol, app_port: int, *, client_timeout_ms: int = 0) -> Sides:
    """The pair before an application; listeners with another timeout for clients than usual if one is given."""
    made.leaf = made.authority.leaf(service_uri("web"))
    public, port = free_port(), free_port()
    calls = upstream("web", port)
    us = endpoint("127.0.0.1", public, identity=service_uri("web"))
    state = upstream_state(calls, [us], protocol=protocol.value)
    registered = proxy("web", bind_port=public, local_port=app_port, protocol=protocol, upstreams=(calls,))
    rendered = made.rendered(snapshot(state, proxy_=registered))
    if client_timeout_ms:
        wanted = rendered.desired
        assert wanted.public is not None
        listeners = tuple(replace(one, client_timeout_ms=client_timeout_ms) for one in wanted.upstreams)
        shorter = replace(wanted.public, client_timeout_ms=client_timeout_ms)
        rendered = render(replace(wanted, public=shorter, upstreams=listeners), made.capabilities)
    made.converge(rendered)
    return Sides(made, port, public, rendered)


def _connected(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def until(client: socket.socket, end: bytes) -> bytes:
    """What comes, up to those bytes; less where the connection ends before."""
    received = b""
    while not received.endswith(end) and (data := client.recv(1)):
        received += data
    return received


@pytest.fixture(params=HAPROXY_BRANCHES)
def made(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage(request.param) as running:
        yield running


@pytest.fixture(params=[branch for branch in HAPROXY_BRANCHES if branch != "2.2"])
def newer(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Not 2.2, which cannot do it whatever it is told."""
    with stage(request.param) as running:
        yield running


@pytest.fixture(params=[branch for branch in HAPROXY_BRANCHES if branch not in ("2.2", "2.6")])
def newest(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage(request.param) as running:
        yield running


class Repeater(Server):
    """Answers each http request with a head and then whatever comes as it is; tells when its caller has gone."""

    gone: threading.Event

    def talk(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        until(connection, b"\r\n\r\n")
        connection.sendall(HEAD)
        try:
            while data := connection.recv(1000):
                connection.sendall(data)
        finally:
            self.gone.set()


@pytest.fixture
def repeater() -> Iterator[Repeater]:
    app = Repeater("repeater")
    app.gone = threading.Event()
    yield app
    app.close()


def test_a_chunk_waits_for_no_other(made: Stage, repeater: Repeater) -> None:
    sides = both(made, Protocol.HTTP, repeater.port)
    with sides.call() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
        until(client, b"\r\n\r\n")
        told = threading.Timer(DEADLINE_S, client.shutdown, (socket.SHUT_RDWR,))
        told.start()
        # With 0.4 s each, as it was, these would take 24 s.
        for _ in range(60):
            client.sendall(b"2\r\nok\r\n")
            assert until(client, b"ok\r\n") == b"2\r\nok\r\n"
        told.cancel()
