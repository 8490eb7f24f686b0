"""That whoever hangs, however many requests wait for it, takes nobody else's place in HAProxy."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace

import pytest
from h2.events import ResponseReceived

from hcc.haproxy.render import render
from hcc.haproxy.room import UPSTREAM_REQUESTS
from hcc.haproxy.stats import RowKind
from hcc.haproxy.stats_reader import SUMMARY, StatsReader
from hcc.mesh.snapshot import Protocol
from tests.binaries import HAPROXY_BRANCHES
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.haproxy_stage import DEADLINE_S, Stage, http_answer, read_http, stage, wait_until
from tests.integration.test_both_sides import GET, Http2End, Http2Server, both, http2_client
from tests.pki import service_uri
from tests.ports import free_port

pytestmark = pytest.mark.integration
# Of each of two clients; together more than an upstream takes.
ASKED = 900


@pytest.fixture(params=HAPROXY_BRANCHES)
def made(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage(request.param) as running:
        yield running


def test_an_upstream_that_hangs_takes_no_descriptors_of_others(made: Stage) -> None:
    app, peer = made.app(http=True), made.peer("one", http=True)
    public, to_hung, to_peer = free_port(), free_port(), free_port()
    with contextlib.ExitStack() as stack:
        # The kernel takes connections for it, and nobody says anything on them.
        hung = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2 * ASKED))
        registered = (upstream("hung", to_hung, connect_timeout_ms=60_000), upstream("web", to_peer))
        states = (
            upstream_state(registered[0], [endpoint("127.0.0.1", port=hung.getsockname()[1])], protocol="grpc"),
            upstream_state(registered[1], [endpoint("127.0.0.1", port=peer.port)], protocol="http"),
        )
        here = proxy(bind_port=public, local_port=app.port, protocol=Protocol.HTTP, upstreams=registered)
        rendered = made.rendered(snapshot(*states, proxy_=here))
        made.converge(rendered)
        first, second = (_client(to_hung, stack) for _ in range(2))
        for _ in range(ASKED):
            first.ask()
        # Of two that wait to be read HAProxy takes some of each by turns.
        wait_until(lambda: _counted(made) == ASKED, "all of the first one's are there")
        streams = [second.ask() for _ in range(ASKED)]
        beyond = 2 * ASKED - UPSTREAM_REQUESTS
        second.wait(ResponseReceived, *streams[-beyond:])
        assert _statuses(second) == [b"503"] * beyond
        # Nobody else is held up: no upstream, no caller, not hcc.
        assert http_answer(to_peer)[0] == 200
        context = made.context(ssl.PROTOCOL_TLS_CLIENT, made.authority.leaf(service_uri("caller")))
        with socket.create_connection(("127.0.0.1", public), DEADLINE_S) as sock, context.wrap_socket(sock) as caller:
            caller.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert read_http(caller)[0] == 200
        assert made.process.look(2.0).silent == ""
        assert made.plan(rendered).operations == ()


# On 2.2 callers have no lines of their own.
@pytest.mark.parametrize("made", [branch for branch in HAPROXY_BRANCHES if branch != "2.2"], indirect=True)
def test_callers_together_take_no_more_of_an_application_than_there_are_descriptors_for(made: Stage) -> None:
    with contextlib.ExitStack() as stack:
        pages = stack.enter_context(contextlib.closing(Http2Server("pages")))
        pages.resets, pages.poured = [], 0
        sides = both(made, Protocol.HTTP2, pages.port)
        app = sides.rendered.desired.app
        assert app is not None
        few = replace(sides.rendered.desired, app=replace(app, most_connections=3, most_together=2))
        made.converge(render(few, made.capabilities))
        client = _client(sides.port, stack)
        streams = [client.ask("/silent") for _ in range(3)]
        client.wait(ResponseReceived, *streams)
        assert sorted(_statuses(client)) == [b"200", b"200", b"503"]
        # Who waits for its own line is not counted.
        waiting = replace(sides.rendered.desired, app=replace(app, most_connections=1, most_together=2))
        made.converge(render(waiting, made.capabilities))
        client = _client(sides.port, stack)
        client.wait(ResponseReceived, client.ask("/silent"))
        streams = [client.ask() for _ in range(3)]
        client.h2.reset_stream(1)
        client.flush()
        client.wait(ResponseReceived, *streams)
        assert _statuses(client) == [b"200"] * 4


def _counted(made: Stage) -> int:
    """The most requests that a frontend has had."""
    rows = StatsReader(made.layout.stats_socket, SUMMARY).read().rows
    return max(row.requests for row in rows if row.kind is RowKind.FRONTEND)


def _client(port: int, stack: contextlib.ExitStack) -> Http2End:
    client = http2_client(port)
    stack.callback(client.sock.close)
    return client


def _statuses(client: Http2End) -> list[bytes]:
    events = (event for event in client.events if isinstance(event, ResponseReceived))
    return [dict(event.headers or ())[b":status"] for event in events]
