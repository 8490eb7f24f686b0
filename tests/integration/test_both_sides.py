"""What an application notices of a caller's and a called sidecar together; one HAProxy is both."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event, RequestReceived, ResponseReceived, StreamEnded, StreamReset

from hcc.haproxy.capabilities import Feature
from hcc.haproxy.render import Rendered, render
from hcc.mesh.snapshot import Protocol
from tests.binaries import HAPROXY_BRANCHES
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.haproxy_stage import DEADLINE_S, Server, Stage, stage, wait_until
from tests.pki import service_uri
from tests.ports import free_port

pytestmark = pytest.mark.integration
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
# More than all buffers on the way hold, in whichever way HAProxy is told to make them.
LARGE = 100_000_000


@dataclass
class Sides:
    """A running pair: where its application calls, and where its public listener is."""

    stage: Stage
    port: int
    public: int
    rendered: Rendered

    def call(self) -> socket.socket:
        return _connected(self.port)


def both(
    made: Stage, protocol: Protocol, app_port: int, *, client_timeout_ms: int = 0, answer_timeout_ms: int = 0
) -> Sides:
    """The pair before an application; listeners with another timeout for clients than usual if one is given."""
    made.leaf = made.authority.leaf(service_uri("web"))
    public, port = free_port(), free_port()
    calls = upstream("web", port)
    us = endpoint("127.0.0.1", public, identity=service_uri("web"))
    state = upstream_state(calls, [us], protocol=protocol.value)
    registered = proxy("web", bind_port=public, local_port=app_port, protocol=protocol, upstreams=(calls,))
    registered = replace(registered, local_answer_timeout_ms=answer_timeout_ms)
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


def test_an_application_learns_that_its_http_client_has_gone(newer: Stage, repeater: Repeater) -> None:
    sides = both(newer, Protocol.HTTP, repeater.port)
    with sides.call() as client:
        client.sendall(GET)
        until(client, b"\r\n\r\n")
    assert repeater.gone.wait(DEADLINE_S)


class Late(Server):
    """Answers after 1.5 s."""

    def talk(self, connection: socket.socket) -> None:
        until(connection, b"\r\n\r\n")
        threading.Event().wait(1.5)
        connection.sendall(HEAD + b"0\r\n\r\n")


@pytest.mark.parametrize(("answer_timeout_ms", "status"), [(0, b"200"), (500, b"504"), (5_000, b"200")])
def test_an_application_is_waited_for_as_long_as_its_registration_says(
    made: Stage, answer_timeout_ms: int, status: bytes
) -> None:
    app = Late("late")
    # However long the listeners wait for a client that is silent: it is not its turn.
    sides = both(made, Protocol.HTTP, app.port, client_timeout_ms=1_000, answer_timeout_ms=answer_timeout_ms)
    with contextlib.closing(app), sides.call() as client:
        client.sendall(GET)
        assert until(client, b"\r\n\r\n").split()[1] == status


class Last(Server):
    """Says its name once the client has ended its side."""

    def talk(self, connection: socket.socket) -> None:
        while connection.recv(1000):
            pass
        connection.sendall(self.name.encode())


def test_a_tcp_client_that_ends_its_side_at_once_is_answered(made: Stage) -> None:
    app = Last("last")
    with contextlib.closing(app), both(made, Protocol.TCP, app.port).call() as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        assert until(client, b"last") == b"last"


@dataclass
class Http2End:
    """One end of an HTTP/2 connection in clear text."""

    sock: socket.socket
    h2: H2Connection
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def ask(self, path: str = "/") -> int:
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", "GET"), (":path", path), (":scheme", "http"), (":authority", "test")]
        self.h2.send_headers(stream, head, end_stream=True)
        self.flush()
        return stream

    def streams(self, kind: type[Event]) -> set[int]:
        return {event.stream_id for event in self.events if isinstance(event, kind)}  # type: ignore[attr-defined]

    def wait(self, kind: type[Event], *streams: int) -> None:
        while not self.streams(kind) >= set(streams):
            data = self.sock.recv(65536)
            assert data, f"the connection ended, {self.events}"
            self.events += self.h2.receive_data(data)
            self.flush()


def http2_client(port: int) -> Http2End:
    return Http2End(_connected(port), H2Connection(H2Configuration(client_side=True)))


class Http2Server(Server):
    """Answers `/large` with as much as its windows allow, `/silent` with a head only, all else with that and an end."""

    resets: list[int]
    # Bytes of all large answers.
    poured: int

    def talk(self, connection: socket.socket) -> None:
        end = Http2End(connection, H2Connection(H2Configuration(client_side=False, header_encoding="utf-8")))
        large: dict[int, int] = {}
        while data := connection.recv(65536):
            for event in end.h2.receive_data(data):
                if isinstance(event, RequestReceived):
                    path: str = dict(event.headers)[":path"]  # type: ignore[assignment,index]  # utf-8
                    end.h2.send_headers(event.stream_id, [(":status", "200")], end_stream=path == "/")
                    if path == "/large":
                        large[event.stream_id] = LARGE
                elif isinstance(event, StreamReset):
                    large.pop(event.stream_id, None)
                    self.resets.append(event.stream_id)
            self._pour(end, large)
            end.flush()

    def _pour(self, end: Http2End, large: dict[int, int]) -> None:
        for stream, left in large.items():
            rest = left
            while size := min(end.h2.local_flow_control_window(stream), end.h2.max_outbound_frame_size, rest):
                end.h2.send_data(stream, bytes(size))
                rest -= size
            large[stream] = rest
            self.poured += left - rest


@pytest.fixture
def pages() -> Iterator[Http2Server]:
    app = Http2Server("pages")
    app.resets, app.poured = [], 0
    yield app
    app.close()


def test_an_application_learns_that_its_http2_client_has_gone(made: Stage, pages: Http2Server) -> None:
    client = http2_client(both(made, Protocol.HTTP2, pages.port).port)
    client.wait(ResponseReceived, client.ask("/silent"))
    client.sock.close()
    wait_until(lambda: pages.resets, "the end to be known")


def test_a_client_that_does_not_read_holds_up_no_other(newer: Stage, pages: Http2Server) -> None:
    sides = both(newer, Protocol.HTTP2, pages.port)
    # There is a connection that might be shared.
    first = http2_client(sides.port)
    first.wait(StreamEnded, first.ask())
    idler = http2_client(sides.port)
    idler.h2.increment_flow_control_window(LARGE)
    idler.wait(ResponseReceived, idler.ask("/large"))
    wait_until(lambda: _is_full(pages), "all buffers on the way to be full")
    ends = [first, idler, http2_client(sides.port), http2_client(sides.port)]
    if newer.capabilities.has(Feature.STREAMS_TO_SERVERS):
        # Nor what is asked on the same connection.
        idler.wait(StreamEnded, idler.ask())
    for other in ends[2:]:
        other.wait(StreamEnded, other.ask())
    for end in ends:
        end.sock.close()


def _is_full(pages: Http2Server) -> bool:
    """Whether what the application sends is held up."""
    seen = [pages.poured]
    # Not for a moment in which one of those on the way had no core.
    for _ in range(2):
        threading.Event().wait(0.5)
        seen.append(pages.poured)
    return len(set(seen)) == 1 and 0 < seen[0] < LARGE


def test_more_calls_than_haproxy_takes_by_itself_are_in_progress_on_one_connection(
    made: Stage, pages: Http2Server
) -> None:
    client = http2_client(both(made, Protocol.HTTP2, pages.port).port)
    client.wait(StreamEnded, client.ask())
    streams = [client.ask("/silent") for _ in range(150)]
    client.wait(ResponseReceived, *streams)
    client.sock.close()


def test_a_caller_that_begins_no_handshake_is_closed_and_a_silent_session_is_not(made: Stage) -> None:
    app = Server("app")
    sides = both(made, Protocol.TCP, app.port, client_timeout_ms=1_000)
    with contextlib.closing(app), sides.call() as client, _connected(sides.public) as silent:
        assert until(client, b"\n") == b"app\n"
        assert silent.recv(1) == b""
        with pytest.raises(TimeoutError):
            _until_silent(client)
        client.sendall(b"still there\n")
        assert until(client, b"\n") == b"still there\n"


def _until_silent(client: socket.socket) -> bytes:
    client.settimeout(1.5)
    try:
        while data := client.recv(1000):
            pass
        return data
    finally:
        client.settimeout(DEADLINE_S)


def test_a_connection_that_nothing_was_asked_on_gets_no_answer(made: Stage) -> None:
    sides = both(made, Protocol.HTTP, made.app(http=True).port, client_timeout_ms=1_000)
    with sides.call() as early:
        assert early.recv(1000) == b""


def test_an_application_keeps_a_connection_to_an_upstream_for_longer_than_an_answer_may_take(newest: Stage) -> None:
    sides = both(newest, Protocol.HTTP, newest.app(http=True).port, client_timeout_ms=1_000)
    with sides.call() as kept:
        for _ in range(2):
            kept.sendall(GET)
            assert until(kept, b"\r\n\r\n").split()[1] == b"200"
            with pytest.raises(TimeoutError):
                _until_silent(kept)


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.HTTP])
def test_both_ends_of_an_idle_connection_between_sidecars_ask_whether_the_other_is_there(
    newer: Stage, protocol: Protocol
) -> None:
    app = newer.app(http=protocol is Protocol.HTTP)
    sides = both(newer, protocol, app.port)
    with sides.call() as client:
        client.sendall(GET)
        until(client, b"\n")
        wait_until(lambda: _timers(sides.public) == [KEEPALIVE] * 2, "the kernel to be told for both ends")


# The kind of timer that the kernel shows of a connection. Source: Linux, Documentation/networking/proc_net_tcp.rst.
KEEPALIVE, ESTABLISHED = "02", "01"


def _timers(port: int) -> list[str]:
    """Those of all ends of connections to that port of this machine."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = [row for row in rows if row[3] == ESTABLISHED and f":{port:04X}" in row[1] + row[2]]
    return [row[5].partition(":")[0] for row in ends]


def test_a_connection_that_a_caller_keeps_outlives_a_reload_by_one_answer(made: Stage) -> None:
    sides = both(made, Protocol.HTTP, made.app(http=True).port)
    context = made.context(ssl.PROTOCOL_TLS_CLIENT, made.authority.leaf(service_uri("caller")))
    with context.wrap_socket(_connected(sides.public)) as caller:
        assert b" 200 " in _asked(caller, "GET")
        public = sides.rendered.desired.public
        assert public is not None
        other = replace(public, client_timeout_ms=public.client_timeout_ms + 1)
        before = made.worker()
        made.converge(render(replace(sides.rendered.desired, public=other), made.capabilities))
        assert made.worker() != before
        # This one could have been on its way when the worker was told to stop, and may not be repeated.
        time.sleep(0.5)
        answer = _asked(caller, "POST")
        assert b" 200 " in answer
        assert b"connection: close" in answer.lower()


def _asked(caller: socket.socket, method: str) -> bytes:
    """The head of the answer; its body is read, too."""
    caller.sendall(f"{method} / HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n".encode())
    head = until(caller, b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while length > 0 and (data := caller.recv(length)):
        length -= len(data)
    return head
