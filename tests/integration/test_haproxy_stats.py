"""HAProxy's statistics: from the real one, of every version; and from one that hangs."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hcc.haproxy.backend_counts import BackendCounts
from hcc.haproxy.names import PUBLIC
from hcc.haproxy.owners import Owners
from hcc.haproxy.stats import RowKind, Stats
from hcc.haproxy.stats_reader import BACKENDS, EVERYTHING, SUMMARY, StatsReader, StatsUnavailableError, servers_of
from hcc.mesh.snapshot import Protocol
from tests.binaries import HAPROXY_BRANCHES
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.haproxy_stage import DEADLINE_S, HttpServer, Stage, http_answer, stage, wait_until
from tests.ports import free_port

pytestmark = pytest.mark.integration

REQUESTS = 3


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_what_went_through_is_counted_for_upstream_and_endpoint(branch: str) -> None:
    with stage(branch) as scene:
        peer, port, public = scene.peer("web-1", http=True), free_port(), free_port()
        web = upstream_state(
            upstream("web", port), (endpoint("127.0.0.1", peer.port), endpoint("127.0.0.1", 1)), protocol="http"
        )
        ours = proxy(bind_port=public, local_port=scene.app().port, protocol=Protocol.HTTP)
        scene.converge(scene.rendered(snapshot(web, proxy_=ours)))
        for _ in range(REQUESTS):
            wait_until(lambda: http_answer(port)[0] == 200, "the peer answers")

        summary = StatsReader(scene.layout.stats_socket, SUMMARY).read()
        everything = StatsReader(scene.layout.stats_socket, EVERYTHING).read()

        owners = Owners((web,))
        mine = {row.kind: row for row in summary.rows if owners.of(row.proxy) is web}
        assert mine[RowKind.FRONTEND].requests >= REQUESTS
        assert mine[RowKind.FRONTEND].sessions >= REQUESTS
        assert dict(mine[RowKind.FRONTEND].responses)["2xx"] == REQUESTS
        assert mine[RowKind.FRONTEND].bytes_in > 0
        assert mine[RowKind.FRONTEND].bytes_out > mine[RowKind.FRONTEND].bytes_in
        assert mine[RowKind.BACKEND].active_servers == 2
        assert [row.proxy for row in summary.rows if row.kind is RowKind.SERVER] == ["app"]
        assert served(everything, f"127.0.0.1:{peer.port}") == REQUESTS
        assert everything.process.max_connections == 500


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_handshakes_that_fail_are_counted_where_haproxy_counts_them(branch: str) -> None:
    with stage(branch) as scene:
        public = free_port()
        scene.converge(scene.rendered(snapshot(proxy_=proxy(bind_port=public, local_port=scene.app().port))))

        def failed() -> int | None:
            rows = StatsReader(scene.layout.stats_socket, SUMMARY).read().rows
            return next(row.failed_handshakes for row in rows if (row.kind, row.proxy) == (RowKind.FRONTEND, PUBLIC))

        context = scene.context(ssl.PROTOCOL_TLS_CLIENT, None)
        for _ in range(3):
            # Without a certificate.
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", public), DEADLINE_S) as plain,
                context.wrap_socket(plain) as client,
            ):
                client.recv(1)
        wait_until(lambda: failed() == (None if branch == "2.2" else 3), "three were counted")


def served(stats: Stats, address: str) -> int:
    return next(row.sessions for row in stats.rows if row.kind is RowKind.SERVER and row.address == address)


class StallingServer(HttpServer):
    """Answers the first request of each connection, and no other one."""

    def __init__(self, name: str, tls: ssl.SSLContext | None = None) -> None:
        self.stalls = threading.Event()
        super().__init__(name, tls)

    def talk(self, connection: socket.socket) -> None:
        heard = connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        while heard:
            heard = connection.recv(65536)
            if heard:
                self.stalls.set()


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_a_server_is_doubted_that_hangs_on_a_connection_that_is_there_until_haproxy_gives_up(branch: str) -> None:
    with stage(branch) as scene:
        port = connected_to_stalling(scene, read_timeout_ms=3_000)
        counts = looked(scene)
        assert http_answer(port)[0] == 504
        wait_doubted(scene, counts)


# 2.2 does not see that an http/1.1 client leaves.
@pytest.mark.parametrize("branch", [branch for branch in HAPROXY_BRANCHES if branch != "2.2"])
def test_a_server_is_doubted_that_hangs_on_a_connection_that_is_there_until_the_client_gives_up(branch: str) -> None:
    with stage(branch) as scene:
        port = connected_to_stalling(scene)
        counts = looked(scene)
        (peer,) = scene.servers
        assert isinstance(peer, StallingServer)
        give_up(port, peer.stalls)
        wait_doubted(scene, counts)


def connected_to_stalling(scene: Stage, *, read_timeout_ms: int = 0) -> int:
    """The port of an upstream to whose one server HAProxy has a connection, on which no more answers will come."""
    peer, port = scene.peer("web-1", kind=StallingServer), free_port()
    registered = upstream("web", port, read_timeout_ms=read_timeout_ms)
    web = upstream_state(registered, (endpoint("127.0.0.1", peer.port),), protocol="http")
    scene.converge(scene.rendered(snapshot(web, proxy_=proxy(local_port=0))))
    wait_until(lambda: http_answer(port)[0] == 200, "the peer answers")
    return port


def looked(scene: Stage) -> BackendCounts:
    path = scene.layout.stats_socket
    counts = BackendCounts(
        StatsReader(path, BACKENDS).read, lambda backend: StatsReader(path, servers_of(backend)).read()
    )
    counts.look(lambda _: True)
    return counts


def wait_doubted(scene: Stage, counts: BackendCounts) -> None:
    """Return when it is known that the server, to which there was one connection, did not answer."""
    (peer,) = scene.servers
    assert peer.accepted == 1
    places = frozenset({f"127.0.0.1:{peer.port}"})
    wait_until(lambda: places in dict(counts.look(lambda _: True).quiet).values(), "the server is doubted")


def give_up(port: int, stalls: threading.Event) -> None:
    """A client that asks, and leaves once its request has come to the server."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        assert stalls.wait(DEADLINE_S)


class Hanging:
    """Takes connections and never answers."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._held: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        for held in (self._listener, *self._held):
            held.close()

    def asked(self) -> int:
        """How many connections there were before this one of our own, which is taken after them; to be called once."""
        with socket.socket(socket.AF_UNIX) as last:
            last.bind(f"{self.path}-last")
            last.connect(self.path)
            wait_until(lambda: self._held and self._held[-1].getpeername() == last.getsockname(), "all were taken")
        return len(self._held) - 1

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._held.append(connection)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Hanging]:
    made = Hanging(tmp_path / "s")
    try:
        yield made
    finally:
        made.close()


def test_a_haproxy_that_hangs_costs_one_question_a_second_however_many_ask(hanging: Hanging) -> None:
    reader = StatsReader(hanging.path, SUMMARY, timeout_s=0.3)
    failures: list[str] = []

    def ask() -> None:
        try:
            reader.read()
        except StatsUnavailableError as exc:
            failures.append(str(exc))

    askers = [threading.Thread(target=ask) for _ in range(20)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(10)

    assert len(failures) == 20
    assert hanging.asked() <= 2
    assert any("does not answer" in failure for failure in failures)


def test_no_haproxy_is_no_statistics(tmp_path: Path) -> None:
    with pytest.raises(StatsUnavailableError, match="nobody listens"):
        StatsReader(str(tmp_path / "s"), SUMMARY).read()


def test_an_answer_is_kept_for_a_second_and_then_asked_for_anew(hanging: Hanging) -> None:
    now = [time.monotonic()]
    reader = StatsReader(hanging.path, SUMMARY, timeout_s=0.05, clock=lambda: now[0])
    for passed_s in (0.0, 0.5, 1.0):
        now[0] += passed_s
        with pytest.raises(StatsUnavailableError):
            reader.read()
    assert hanging.asked() == 2
