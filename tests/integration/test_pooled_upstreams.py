"""Requests over connections that are there already: fewer handshakes, and none that may not be repeated is."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from hcc.mesh.snapshot import Protocol
from tests.binaries import HAPROXY_BRANCHES
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.haproxy_stage import HttpServer, Server, Stage, stage
from tests.ports import free_port

pytestmark = pytest.mark.integration


class ClosingServer(HttpServer):
    """Answers the first request of each connection, and closes at the second as if it had not seen it come."""

    def talk(self, connection: socket.socket) -> None:
        for answers in (True, False):
            head = b""
            while b"\r\n\r\n" not in head:
                chunk = connection.recv(65536)
                if not chunk:
                    return
                head += chunk
            self.seen.append(head.decode().split("\r\n")[0])
            if answers:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    seen: list[str]


@pytest.fixture(params=HAPROXY_BRANCHES)
def made(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage(request.param) as running:
        yield running


def upstream_port(made: Stage, peer: Server) -> int:
    """Where a running HAProxy serves that peer as an http upstream."""
    port = free_port()
    state = upstream_state(
        upstream(port=port, protocol=Protocol.HTTP),
        endpoints=[endpoint("127.0.0.1", port=peer.port)],
        protocol="http",
    )
    made.converge(made.rendered(snapshot(state, proxy_=proxy(local_port=0))))
    return port


def status(port: int, method: str) -> int:
    """Of a request on a connection of its own; 0 when it is closed without a word."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(f"{method} / HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
        answer = client.makefile("rb").readline().split()
        return int(answer[1]) if answer else 0


def test_requests_of_several_clients_share_a_connection(made: Stage) -> None:
    peer = made.peer("one", http=True)
    port = upstream_port(made, peer)
    assert [status(port, "GET") for _ in range(4)] == [200] * 4
    assert len(peer.caller_serials) == 1


# Python 3.11 leaves a connection that is reset before the peer's handshake unclosed, and warns of itself.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_request_that_may_be_repeated_survives_a_peer_that_closes(made: Stage) -> None:
    peer = made.peer("one", kind=ClosingServer)
    assert isinstance(peer, ClosingServer)
    peer.seen = []
    port = upstream_port(made, peer)
    assert [status(port, "GET") for _ in range(3)] == [200] * 3
    assert len(peer.seen) > 3


def test_a_request_that_may_not_be_repeated_is_sent_once(made: Stage) -> None:
    peer = made.peer("one", kind=ClosingServer)
    assert isinstance(peer, ClosingServer)
    peer.seen = []
    port = upstream_port(made, peer)
    # As on any kept-alive connection that is closed: the client has to know whether it may ask again.
    assert status(port, "POST") == 200
    assert status(port, "POST") in (0, 502)
    assert len(peer.seen) == 2
