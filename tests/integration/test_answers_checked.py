"""Answers of a server that is not who it should be, on every HAProxy that can look: nothing of them comes through."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from hcc.haproxy import stopping
from hcc.haproxy.backend_counts import BackendCounts
from hcc.haproxy.capabilities import Feature
from hcc.haproxy.leaf_map import LeafMap
from hcc.haproxy.map_text import MapChange
from hcc.haproxy.names import backend_name
from hcc.haproxy.render import Rendered
from hcc.haproxy.runtime import RuntimeSocket
from hcc.haproxy.stats import RowKind
from hcc.haproxy.stats_reader import BACKENDS, EVERYTHING, SUMMARY, StatsReader, servers_of
from hcc.mesh.caller_certificate import certificate_digest
from hcc.mesh.snapshot import Endpoint, Protocol, Snapshot, TargetEndpoints, UpstreamState
from tests.binaries import HAPROXY_BRANCHES
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.haproxy_stage import DEADLINE_S, HttpServer, Server, Stage, greeting, http_answer, stage, wait_until
from tests.pki import IssuedLeaf, rsa_leaf, service_uri
from tests.ports import free_port

pytestmark = pytest.mark.integration
EVIL = service_uri("evil")


@pytest.fixture(params=HAPROXY_BRANCHES)
def there(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage(request.param) as made:
        assert made.capabilities.has(Feature.SERVER_CERTIFICATE)
        yield made


def calling(port: int, protocol: str, *endpoints: Endpoint, identity: str = service_uri("web")) -> Snapshot:
    state = upstream_state(upstream("web", port), endpoints, protocol=protocol)
    targets = tuple(TargetEndpoints(one.target_id, one.endpoints, identity=identity) for one in state.targets)
    return snapshot(replace(state, targets=targets), proxy_=proxy(local_port=0, upstreams=(state.upstream,)))


def at(server: Server) -> Endpoint:
    return endpoint("127.0.0.1", server.port, identity=service_uri("web"))


def cuts(there: Stage) -> int:
    """Answers that were not let through, as HAProxy counts them."""
    rows = StatsReader(there.layout.stats_socket, SUMMARY).read().rows
    return sum(row.denied_responses for row in rows if row.kind is RowKind.BACKEND)


@pytest.mark.parametrize("protocol", ["tcp", "http"])
def test_haproxy_counts_whose_answers_it_cut(there: Stage, protocol: str) -> None:
    kind = HttpServer if protocol == "http" else Server
    port, right = free_port(), there.peer("right", kind=kind)
    impostor = there.peer("impostor", kind=kind, leaf=there.authority.leaf(EVIL))
    there.converge(there.rendered(calling(port, protocol, at(right), at(impostor))))
    path = there.layout.stats_socket
    counts = BackendCounts(
        lambda: StatsReader(path, BACKENDS).read(), lambda backend: StatsReader(path, servers_of(backend)).read()
    )
    counts.look(lambda _: True)

    answers = [http_answer(port)[0] if protocol == "http" else greeting(port) for _ in range(6)]

    assert set(answers) == ({200, 502} if protocol == "http" else {"right", ""})
    (liars,) = counts.look(lambda _: True).liars
    assert liars[1] == {f"127.0.0.1:{impostor.port}"}


def unanswered(there: Stage, server: Server) -> int:
    rows = StatsReader(there.layout.stats_socket, EVERYTHING).read().rows
    return next(row.unanswered for row in rows if row.address == f"127.0.0.1:{server.port}")


def digest(leaf: IssuedLeaf) -> str:
    return certificate_digest(leaf.der)


def test_over_tcp_only_the_right_server_is_heard(there: Stage) -> None:
    port = free_port()
    there.converge(there.rendered(calling(port, "tcp", at(there.peer("right")))))
    assert greeting(port) == "right"
    impostor = there.peer("impostor", leaf=there.authority.leaf(EVIL))
    there.converge(there.rendered(calling(port, "tcp", at(impostor))))

    assert greeting(port) == ""

    wait_until(lambda: cuts(there) == 1, "the cut to be counted")


def test_over_http_an_impostors_answer_is_502(there: Stage) -> None:
    port = free_port()
    there.converge(there.rendered(calling(port, "http", at(there.peer("right", http=True)))))
    assert http_answer(port)[0] == 200
    impostor = there.peer("impostor", http=True, leaf=there.authority.leaf(EVIL))
    there.converge(there.rendered(calling(port, "http", at(impostor))))

    status, text = http_answer(port)

    assert status == 502
    assert "impostor" not in text
    wait_until(lambda: cuts(there) == 1, "the cut to be counted")


class Early(HttpServer):
    """Says something before its answer."""

    def __init__(self, said: bytes, context: ssl.SSLContext) -> None:
        self._said = said
        super().__init__("early", context)

    def talk(self, connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(self._said + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly")


def asked(port: int) -> bytes:
    """All that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_what_an_impostor_says_before_its_answer_does_not_come_through_either(there: Stage) -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </early>\r\n\r\n"
    for said in (hint, b"HTTP/1.1 100 Continue\r\nX-Early: early\r\n\r\n"):
        port = free_port()
        impostor = Early(said, there.context(ssl.PROTOCOL_TLS_SERVER, there.authority.leaf(EVIL)))
        there.servers.append(impostor)
        there.converge(there.rendered(calling(port, "http", at(impostor))))
        assert b"early" not in asked(port)
    honest = Early(hint, there.context(ssl.PROTOCOL_TLS_SERVER, there.authority.leaf(service_uri("web"))))
    there.servers.append(honest)
    port = free_port()
    there.converge(there.rendered(calling(port, "http", at(honest))))

    answer = asked(port)

    assert answer.startswith(b"HTTP/1.1 103 ")
    assert answer.endswith(b"\r\n\r\nearly")
    # Such an answer is one: it makes up for no other one that does not come.
    wait_until(lambda: unanswered(there, honest) == 0, "the answer to be counted")


class Replaced(Server):
    """Honest on its first connection, which it closes at the second request; later ones are an impostor's."""

    def __init__(self, honest: ssl.SSLContext, impostor: ssl.SSLContext) -> None:
        self._next = iter((honest,))
        self._impostor = impostor
        super().__init__("replaced", honest)

    def _serve(self, connection: socket.socket) -> None:
        self._tls = next(self._next, self._impostor)
        super()._serve(connection)

    def talk(self, connection: socket.socket) -> None:
        assert connection.recv(65536)
        if self.accepted == 1:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            connection.recv(65536)
        else:
            connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </early>\r\n\r\n")
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly")
            connection.recv(65536)


def test_a_request_that_is_repeated_on_a_new_connection_is_answered_by_nobody_else(there: Stage) -> None:
    contexts = [there.context(ssl.PROTOCOL_TLS_SERVER, there.authority.leaf(uri)) for uri in (service_uri("web"), EVIL)]
    server = Replaced(*contexts)
    there.servers.append(server)
    port = free_port()
    there.converge(there.rendered(calling(port, "http", at(server))))
    assert asked(port).endswith(b"\r\n\r\nok")

    answer = asked(port)

    assert b"early" not in answer
    assert not answer.startswith(b"HTTP/1.1 200")
    assert server.accepted > 1


def test_kept_and_resumed_connections_go_on_being_answered(there: Stage) -> None:
    port = free_port()
    peer = there.peer("right", http=True)
    there.converge(there.rendered(calling(port, "http", at(peer))))
    request = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        for _ in range(3):
            client.sendall(request)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
    # Each new connection is resumed where HAProxy kept a session.
    for _ in range(3):
        for connection in list(peer.open):
            connection.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: not peer.open, "the connections to end")
        assert http_answer(port)[0] == 200
    assert any(peer.resumed), "no session was resumed"
    assert cuts(there) == 0


def table(port: int) -> str:
    """Where connections of the upstream on that port are remembered."""
    return f"up:web:{port}:to"


def looked_at(there: Stage, port: int) -> list[str]:
    """Connections whose certificate was found right: the random bytes of our ClientHello, in hex."""
    said = RuntimeSocket(there.layout.stats_socket).send(f"show table {table(port)}")
    return re.findall(r"key=([0-9A-F]+)", said)


def exchange(client: socket.socket) -> bytes:
    """A request and all of its answer that arrives at once."""
    client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    return client.recv(65536)


def test_a_certificate_is_looked_at_once_for_each_connection_and_again_if_that_is_forgotten(there: Stage) -> None:
    port = free_port()
    peer = there.peer("right", http=True)
    there.converge(there.rendered(calling(port, "http", at(peer))))
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        assert exchange(client).startswith(b"HTTP/1.1 200")
        (first,) = looked_at(there, port)
        assert (len(first), peer.accepted) == (64, 1)
        assert exchange(client).startswith(b"HTTP/1.1 200")
        assert looked_at(there, port) == [first]
        RuntimeSocket(there.layout.stats_socket).send(f"clear table {table(port)}")
        assert exchange(client).startswith(b"HTTP/1.1 200")
        assert looked_at(there, port) == [first]
        for connection in list(peer.open):
            connection.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: not peer.open, "the connections to end")
        assert exchange(client).startswith(b"HTTP/1.1 200")
    assert len(set(looked_at(there, port))) == peer.accepted == 2


def test_an_impostors_connection_is_looked_at_for_every_answer(there: Stage) -> None:
    port = free_port()
    impostor = there.peer("impostor", http=True, leaf=there.authority.leaf(EVIL))
    there.converge(there.rendered(calling(port, "http", at(impostor))))
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
            for _ in range(2):
                with suppress(ConnectionError):
                    assert not exchange(client).startswith(b"HTTP/1.1 200")
    assert looked_at(there, port) == []
    wait_until(lambda: cuts(there) >= 5, "the cuts to be counted")


def test_a_leaf_that_a_probe_has_seen_is_known_by_its_digest(there: Stage) -> None:
    # Of a key that could hide a name nothing counts but the digest.
    leaf = rsa_leaf(there.authority, service_uri("web"))
    port = free_port()
    there.converge(there.rendered(calling(port, "tcp", at(there.peer("right", leaf=leaf)))))
    assert greeting(port) == ""
    leaves = LeafMap(there.layout, there.capabilities)

    assert leaves.change(MapChange(added=((digest(leaf), service_uri("web")),)))

    assert leaves.entries() == {digest(leaf): service_uri("web")}
    assert greeting(port) == "right"


def test_a_known_leaf_of_another_service_is_cut_all_the_same(there: Stage) -> None:
    leaf = there.authority.leaf(EVIL)
    port = free_port()
    there.converge(there.rendered(calling(port, "tcp", at(there.peer("impostor", leaf=leaf)))))
    assert LeafMap(there.layout, there.capabilities).change(MapChange(added=((digest(leaf), EVIL),)))

    assert greeting(port) == ""


def test_a_name_beside_another_one_and_a_longer_name_do_not_count(there: Stage) -> None:
    right = service_uri("web")
    for uris in ((right, EVIL), (EVIL, right), (f"{right}-too",), (f"x{right}",), ()):
        port = free_port()
        server = there.peer("impostor", leaf=there.authority.leaf(*uris))
        there.converge(there.rendered(calling(port, "tcp", at(server))))
        assert greeting(port) == "", uris


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.HTTP])
def test_names_of_every_length_and_as_many_services_as_a_query_may_find_are_understood(
    there: Stage, protocol: Protocol
) -> None:
    identities = tuple(service_uri("s" * length) for length in (1, 20, 30, 50, 63, *range(100, 110)))
    identities += tuple(service_uri(name) for name in ("a+b", "a$b=c", "a%20b", "a~b", "a@b,c;d"))
    port = free_port()
    for identity in identities:
        server = there.peer("right", http=protocol.is_http, leaf=there.authority.leaf(identity))
        here = upstream_state(
            upstream("web", port, query=True, protocol=protocol),
            [
                replace(endpoint("127.0.0.1", 1 + number), identity=one, weight=0)
                for number, one in enumerate(identities)
            ],
        )
        served = replace(endpoint("127.0.0.1", server.port), identity=identity)
        targets = (TargetEndpoints(here.targets[0].target_id, (*here.targets[0].endpoints, served)),)
        here = replace(here, targets=targets)
        there.converge(there.rendered(snapshot(here, proxy_=proxy(local_port=0, upstreams=(here.upstream,)))))
        answer = http_answer(port)[1] if protocol.is_http else greeting(port)
        assert answer.partition("\n")[0] == "right", identity


def test_an_endpoint_is_taken_out_with_its_sessions_and_no_other(there: Stage) -> None:
    # The third upstream is rightly at the address of the first one's endpoint.
    ports = free_port(), free_port(), free_port()
    one, other = there.peer("one"), there.peer("other")
    states = [upstream_state(upstream(name, port)) for name, port in zip(("a", "b", "c"), ports, strict=True)]
    found = [
        replace(state, targets=(TargetEndpoints(state.targets[0].target_id, (at(server),)),))
        for state, server in zip(states, (one, other, one), strict=True)
    ]
    there.converge(there.rendered(snapshot(*found, proxy_=proxy(local_port=0, upstreams=(s.upstream for s in found)))))
    with (
        socket.create_connection(("127.0.0.1", ports[0]), timeout=DEADLINE_S) as first,
        socket.create_connection(("127.0.0.1", ports[1]), timeout=DEADLINE_S) as second,
        socket.create_connection(("127.0.0.1", ports[2]), timeout=DEADLINE_S) as third,
    ):
        assert (first.recv(100), second.recv(100), third.recv(100)) == (b"one\n", b"other\n", b"one\n")

        leaves = LeafMap(there.layout, there.capabilities)
        assert leaves.take_out({("127.0.0.1", one.port): backend_name(found[0].upstream).__eq__})

        assert first.recv(100) == b""
        assert greeting(ports[0]) == ""
        for other_session in (second, third):
            other_session.sendall(b"still here")
            assert other_session.recv(100) == b"still here"
        assert greeting(ports[2]) == "one"


def test_an_endpoint_is_taken_out_in_a_worker_that_stops_too(there: Stage) -> None:
    one, other = there.peer("one"), there.peer("other")
    states = [upstream_state(upstream(name, free_port())) for name in ("a", "b", "c")]
    found = [
        replace(state, targets=(TargetEndpoints(state.targets[0].target_id, (at(server),)),))
        for state, server in zip(states, (one, other, other), strict=True)
    ]

    def serving(*those: UpstreamState) -> Rendered:
        return there.rendered(snapshot(*those, proxy_=proxy(local_port=0, upstreams=(s.upstream for s in those))))

    there.converge(serving(*found[:2]))
    worker = there.worker()
    ports = [state.upstream.local_bind_port for state in found]
    with (
        socket.create_connection(("127.0.0.1", ports[0]), timeout=DEADLINE_S) as first,
        socket.create_connection(("127.0.0.1", ports[1]), timeout=DEADLINE_S) as second,
    ):
        assert (first.recv(100), second.recv(100)) == (b"one\n", b"other\n")
        leaves = LeafMap(there.layout, there.capabilities)
        # While the master's socket is gone: with one worker none stops, with two it is not known which.
        master = Path(there.layout.master_socket)
        hidden = master.rename(master.with_suffix(".hidden"))
        assert leaves.take_out_of_stopping({}) is None
        hidden.rename(master)
        there.converge(serving(*found))
        assert there.worker() != worker
        hidden = master.rename(hidden)
        assert "which workers stop is not known" in str(leaves.take_out_of_stopping({}))
        hidden.rename(master)

        meant = {("127.0.0.1", one.port): backend_name(found[0].upstream).__eq__}
        assert leaves.take_out(meant)
        first.sendall(b"still here")
        assert first.recv(100) == b"still here"
        assert leaves.take_out_of_stopping(meant) is None

        assert first.recv(100) == b""
        # It was not the end of that worker.
        second.sendall(b"still here")
        assert second.recv(100) == b"still here"


@pytest.mark.parametrize("hanging", [0, 1])
def test_an_endpoint_is_taken_out_in_a_worker_that_stops_whichever_other_one_hangs(
    there: Stage, monkeypatch: pytest.MonkeyPatch, hanging: int
) -> None:
    monkeypatch.setattr(stopping, "TIMEOUT_S", 0.5)
    one = there.peer("one")
    here = upstream_state(upstream("a", free_port()))
    here = replace(here, targets=(TargetEndpoints(here.targets[0].target_id, (at(one),)),))
    others = [upstream_state(upstream(name, free_port())) for name in ("b", "c")]
    workers: list[int] = []
    clients: list[socket.socket] = []
    with ExitStack() as held:
        for count in range(3):
            states = (here, *others[:count])
            there.converge(
                there.rendered(snapshot(*states, proxy_=proxy(local_port=0, upstreams=(s.upstream for s in states))))
            )
            address = ("127.0.0.1", here.upstream.local_bind_port)
            clients.append(held.enter_context(socket.create_connection(address, timeout=DEADLINE_S)))
            assert clients[-1].recv(100) == b"one\n"
            workers.append(there.worker())

        def go_on() -> None:
            # It ends when its last session does.
            with suppress(ProcessLookupError):
                os.kill(workers[hanging], signal.SIGCONT)

        os.kill(workers[hanging], signal.SIGSTOP)
        held.callback(go_on)

        leaves = LeafMap(there.layout, there.capabilities)
        meant = {("127.0.0.1", one.port): backend_name(here.upstream).__eq__}
        assert leaves.take_out(meant)
        failure = str(leaves.take_out_of_stopping(meant))
        assert f"worker {workers[hanging]}: HAProxy does not answer" in failure
        # The other one, too, may have had no core in that time.
        other = f"worker {workers[1 - hanging]}:"
        wait_until(lambda: other not in str(leaves.take_out_of_stopping(meant)), "the other one is told")

        assert [clients[number].recv(100) for number in (1 - hanging, 2)] == [b"", b""]
        go_on()
        # The master knows it no more a moment before it has ended.
        leaves.take_out_of_stopping(meant)
        assert clients[hanging].recv(100) == b""
