"""A worker in a real process, driven over its sockets by a small client."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from hcc.mesh.intentions import Action, Intention, Policy
from hcc.mesh.permissions import PathMatch, PathRule, Permission
from hcc.mesh.rules import compiled_rules
from hcc.spoe.counters import CounterMemory, CounterSlots
from hcc.spoe.events import Denied, Met, PolicyApplied, PoolEvent, WorkerExited
from hcc.spoe.frames import FIN, LENGTH_BYTES, Frame, FrameType, decode_frame
from hcc.spoe.payloads import Message
from hcc.spoe.pool import WorkerPool
from hcc.spoe.values import NULL, Kind, Value
from hcc.spoe.worker import MAX_DENIALS_TOLD, Worker
from tests.forgeries import ALLOWED, forgeries, genuine
from tests.integration.spoe_frontend import events_until, wait_for
from tests.spoe_certificates import TRUST_DOMAIN, Authority, service_uri
from tests.spop_frames import (
    called,
    caller,
    farewell,
    frames_of,
    health_check,
    hello,
    notify,
    status_of,
    text,
    variables,
)

pytestmark = pytest.mark.integration

MESH = Authority()
WEB = MESH.service("web", serial=0xAB).der()
DB = MESH.service("db", serial=0xCD).der()


def told(service: str) -> bytes:
    """What the worker says of a caller."""
    return f"{service}:dc1|{service_uri(service)}|{service}".encode()


def policy(version: int, *allowed: str) -> Policy:
    intentions = tuple(Intention(name, Action.ALLOW, 9) for name in allowed)
    return Policy("server", TRUST_DOMAIN, intentions, False, version)


class Client:
    """HAProxy's side of one SPOP connection."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(path)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self) -> Frame:
        return decode_frame(self._exactly(int.from_bytes(self._exactly(LENGTH_BYTES), "big")))

    def greet(self) -> Client:
        self.send(hello())
        assert self.receive().kind == FrameType.AGENT_HELLO
        return self

    def ask(self, der: bytes) -> dict[str, object]:
        self.send(caller(der, 5, 1))
        return variables(self.receive())

    def at_end(self) -> bool:
        return self.sock.recv(1) == b""

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            assert piece, "the agent closed the connection"
            data += piece
        return data


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[WorkerPool]:
    made = WorkerPool((str(tmp_path / "w.sock"),))
    try:
        made.start()
        events_until(made, lambda seen: len(seen) == 1)
        yield made
    finally:
        made.close(0)


@pytest.fixture
def clients(pool: WorkerPool) -> Iterator[list[Client]]:
    made: list[Client] = []
    yield made
    for client in made:
        client.sock.close()


@pytest.fixture
def client(pool: WorkerPool, clients: list[Client]) -> Client:
    clients.append(Client(pool.workers()[0].socket_path))
    return clients[0]


def apply(pool: WorkerPool, wanted: Policy) -> None:
    pool.set_policy(wanted)
    events_until(pool, lambda seen: PolicyApplied(0, wanted.version) in seen)


def test_answers_follow_the_policy_and_each_denial_is_told(pool: WorkerPool, client: Client) -> None:
    client.greet()
    assert client.ask(WEB) == {"allowed": False}
    apply(pool, policy(1, "web"))
    for _ in range(3):
        assert client.ask(WEB) == {"allowed": True, "caller": told("web")}
        assert client.ask(DB) == {"allowed": False, "caller": told("db")}
    seen: list[PoolEvent] = []
    pool.set_policy(policy(2, "db"))
    events_until(pool, lambda news: PolicyApplied(0, 2) in news, seen)
    assert [(event.source, event.serial) for event in seen if isinstance(event, Denied)] == [("db", "cd")] * 3
    assert client.ask(WEB) == {"allowed": False, "caller": told("web")}
    assert client.ask(DB) == {"allowed": True, "caller": told("db")}
    assert pool.workers()[0].policy_version == 2


def test_of_a_flood_of_denials_the_first_are_told_and_all_are_counted(pool: WorkerPool, client: Client) -> None:
    apply(pool, policy(1, "web"))
    client.send(hello() + b"".join(caller(DB, number, 1) for number in range(300)))
    for _ in range(301):
        client.receive()
    seen: list[PoolEvent] = []
    pool.set_policy(policy(2, "db"))
    events_until(pool, lambda news: PolicyApplied(0, 2) in news, seen)
    told_of = [event for event in seen if isinstance(event, Denied)]
    assert MAX_DENIALS_TOLD <= len(told_of) < 300
    assert pool.counters()[0].denied == 300
    assert pool.counters()[0].notices_dropped == 300 - len(told_of)


def test_of_callers_let_in_the_main_process_hears_with_certificate_and_origin(pool: WorkerPool, client: Client) -> None:
    apply(pool, policy(1, "web"))
    client.greet()
    for host, port in (("10.0.0.1", 4711), ("::1", 65535), ("::ffff:10.0.0.1", 1)):
        client.send(called(WEB, host, port))
        assert variables(client.receive())["allowed"] is True
    client.send(called(DB, "10.0.0.1", 4711))
    assert variables(client.receive())["allowed"] is False
    seen: list[PoolEvent] = []
    pool.set_policy(policy(2, "db"))
    events_until(pool, lambda news: PolicyApplied(0, 2) in news, seen)
    met = [event for event in seen if isinstance(event, Met)]
    assert met == [Met(0, WEB, peer) for peer in ("10.0.0.1:4711", "::1:65535", "::ffff:10.0.0.1:1")]


def test_a_request_that_rules_refuse_is_told_and_counted(pool: WorkerPool, client: Client) -> None:
    apply(pool, policy(1, "web"))
    client.greet()
    words = ((b"caller", text(told("web") + b"|1764000000")), (b"method", text(b"PUT")), (b"path", text(b"/a\n")))
    client.send(notify(Message(b"refused", words)))
    assert variables(client.receive()) == {"allowed": False}
    seen: list[PoolEvent] = []
    pool.set_policy(policy(2, "db"))
    events_until(pool, lambda news: PolicyApplied(0, 2) in news, seen)
    assert Denied(0, "web", "no permission allows PUT /a\n") in seen
    assert pool.counters()[0].denied == 1


def test_questions_sent_at_once_are_answered_in_order(pool: WorkerPool, client: Client) -> None:
    apply(pool, policy(1, "web"))
    questions = [caller(WEB, number, 1) for number in range(500)]
    client.send(hello() + b"".join(questions))
    assert client.receive().kind == FrameType.AGENT_HELLO
    acks = [client.receive() for _ in questions]
    assert [ack.stream_id for ack in acks] == list(range(500))
    assert all(variables(ack)["allowed"] is True for ack in acks)


def test_a_question_byte_by_byte_is_answered(pool: WorkerPool, client: Client) -> None:
    apply(pool, policy(1, "web"))
    for byte in hello() + caller(WEB):
        client.send(bytes((byte,)))
    assert client.receive().kind == FrameType.AGENT_HELLO
    assert variables(client.receive())["allowed"] is True


def test_no_certificate_and_no_readable_one_are_denied(pool: WorkerPool, client: Client) -> None:
    apply(pool, policy(1, "web"))
    client.greet()
    client.send(notify(Message(b"caller", ((b"der", NULL),))))
    assert variables(client.receive()) == {"allowed": False}
    assert client.ask(WEB[:-1]) == {"allowed": False}
    client.send(notify(Message(b"unknown", ((b"x", NULL),))))
    assert variables(client.receive()) == {"allowed": False}
    wait_for("three errors are counted", lambda: pool.counters()[0].errors == 3)


def test_every_forgery_is_denied_at_first_and_ever_after(pool: WorkerPool, client: Client) -> None:
    apply(pool, policy(1, ALLOWED))
    client.greet()
    for _ in range(2):
        assert client.ask(genuine()) == {"allowed": True, "caller": told("web")}
        for name, der in forgeries().items():
            answer = client.ask(der)
            assert answer["allowed"] is False, name
            assert answer.get("caller") != told("web"), name


def test_a_caller_whose_requests_rules_decide_is_answered_with_their_name(pool: WorkerPool, client: Client) -> None:
    permission = Permission(allow=True, path=PathRule(PathMatch.PREFIX, "/api"))
    rules = compiled_rules((permission,), default_allow=False)
    intention = Intention("web", Action.PERMISSIONS, 9, (permission,))
    apply(pool, Policy("server", TRUST_DOMAIN, (intention,), False, 1, http=True))
    assert client.greet().ask(WEB) == {"allowed": False, "caller": told("web"), "rules": rules.name.encode()}
    wait_for("it does not count as denied", lambda: pool.counters()[0].allowed == 1)
    assert pool.counters()[0].denied == 0


def test_a_health_check_is_answered_and_closed(client: Client) -> None:
    client.send(health_check())
    assert client.receive().kind == FrameType.AGENT_HELLO
    assert client.at_end()


def test_a_bad_frame_is_told_its_status_counted_and_harms_no_other(
    pool: WorkerPool, clients: list[Client], client: Client
) -> None:
    clients.append(Client(pool.workers()[0].socket_path))
    other = clients[1].greet()
    client.greet()
    client.send(caller(WEB, 9) + b"\xff\xff\xff\xff" + bytes(100_000))
    assert client.receive().kind == FrameType.ACK
    assert status_of(client.receive()) == 3
    assert client.at_end()
    assert other.ask(WEB) == {"allowed": False}
    wait_for("both answers are counted", lambda: pool.counters()[0].requests == 2)
    assert pool.counters()[0].frames_bad == 1
    assert pool.counters()[0].connections_total == 2


def test_fragments_are_refused_with_code_10(client: Client) -> None:
    client.greet()
    client.send(notify(flags=0))
    assert status_of(client.receive()) == 10


def test_a_farewell_is_returned_and_the_connection_closed(pool: WorkerPool, client: Client) -> None:
    client.greet()
    client.send(farewell())
    assert status_of(client.receive()) == 0
    assert client.at_end()
    client.sock.close()
    wait_for("the connection is gone", lambda: pool.counters()[0].connections_open == 0)


def test_a_peer_that_does_not_read_is_not_read_either_and_loses_nothing(client: Client) -> None:
    client.greet()
    question = caller(b"", 1, 1)
    sent_bytes = sent_until_full(client.sock, question * 1000, limit_bytes=64 * 1024 * 1024)
    for _ in range(sent_bytes // len(question)):
        assert client.receive().kind == FrameType.ACK


def sent_until_full(sock: socket.socket, chunk: bytes, limit_bytes: int) -> int:
    """Send the chunk again and again until nothing goes out for a while; fails if that does not happen."""
    sent_bytes, rest = 0, b""
    sock.settimeout(0.5)
    while sent_bytes < limit_bytes:
        rest = rest or chunk
        try:
            count = sock.send(rest)
        except TimeoutError:
            sock.settimeout(10)
            return sent_bytes
        rest = rest[count:]
        sent_bytes += count
    raise AssertionError("the worker reads without end")


def test_stopping_answers_parts_and_exits_with_0(pool: WorkerPool, clients: list[Client], client: Client) -> None:
    apply(pool, policy(1, "web"))
    client.greet()
    pid = pool.workers()[0].pid
    path = pool.workers()[0].socket_path
    client.send(caller(WEB, 1) + caller(WEB, 2))
    pool.close(5)
    answers = b""
    while piece := client.sock.recv(65_536):
        answers += piece
    frames = frames_of(answers)
    assert [frame.kind for frame in frames] == [FrameType.ACK, FrameType.ACK, FrameType.AGENT_DISCONNECT]
    assert [status_of(frame) for frame in frames[2:]] == [0]
    assert not Path(path).exists()
    assert WorkerExited(0, pid, 0) in pool.poll(0)


def test_a_connection_waits_for_the_successor_of_a_killed_worker(pool: WorkerPool, clients: list[Client]) -> None:
    apply(pool, policy(1, "web"))
    pid = pool.workers()[0].pid
    os.kill(pid, 9)
    events_until(pool, lambda seen: WorkerExited(0, pid, -9) in seen)
    clients.append(Client(pool.workers()[0].socket_path))
    clients[0].send(hello() + caller(WEB))
    pool.respawn(0)
    assert clients[0].receive().kind == FrameType.AGENT_HELLO
    assert variables(clients[0].receive()) == {"allowed": True, "caller": told("web")}


def test_a_successor_answers_nothing_before_it_has_the_policy(pool: WorkerPool, clients: list[Client]) -> None:
    # More than a socket holds, so that it comes piece by piece.
    others = tuple(Intention(f"s{number}", Action.DENY, 9) for number in range(20_000))
    small = policy(7, "web")
    apply(pool, replace(small, intentions=small.intentions + others))
    for _ in range(3):
        pid = pool.workers()[0].pid
        os.kill(pid, signal.SIGKILL)
        events_until(pool, partial(exited, pid))
        # They wait in its socket, and are the first thing that it finds.
        for _ in range(5):
            clients.append(Client(pool.workers()[0].socket_path))
            clients[-1].send(hello() + caller(WEB, 5, 1))
        pool.respawn(0)
        with ThreadPoolExecutor(1) as looking_after:
            looking_after.submit(events_until, pool, partial(applied, 7))
            for waiting in clients[-5:]:
                assert waiting.receive().kind == FrameType.AGENT_HELLO
                assert variables(waiting.receive())["allowed"] is True


def exited(pid: int, seen: list[PoolEvent]) -> bool:
    return any(isinstance(event, WorkerExited) and event.pid == pid for event in seen)


def applied(version: int, seen: list[PoolEvent]) -> bool:
    return PolicyApplied(0, version) in seen


def test_denials_nobody_reads_are_dropped_and_counted(pool: WorkerPool, client: Client) -> None:
    client.greet()
    for number in range(20_000):
        client.send(caller(b"certificate %d" % number, 1, 1))
        assert variables(client.receive()) == {"allowed": False}
        if pool.counters()[0].notices_dropped:
            break
    assert pool.counters()[0].notices_dropped
    assert pool.counters()[0].cached <= 4096


def test_frames_of_the_smallest_agreed_size_are_kept(client: Client) -> None:
    client.send(hello(max_frame_size=Value(Kind.UINT32, 256)))
    assert client.receive().kind == FrameType.AGENT_HELLO
    client.send(notify(flags=FIN))
    assert variables(client.receive()) == {"allowed": False}


def test_the_answers_to_what_came_together_leave_in_one_send(tmp_path: Path) -> None:
    """With sockets that keep packets apart, each send is seen as one."""
    memory = CounterMemory(1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, ours:
        listener.bind(str(tmp_path / "w.sock"))
        listener.listen()
        main_pidfd = os.pidfd_open(os.getpid())
        worker = Worker(listener, theirs, CounterSlots(memory.fd, 0), main_pidfd)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.settimeout(10)
                client.connect(str(tmp_path / "w.sock"))
                client.send(hello())
                assert len(frames_of(client.recv(65536))) == 1
                client.send(caller(WEB, 1))
                assert [frame.stream_id for frame in frames_of(client.recv(65536))] == [1]
                client.send(caller(WEB, 2) + caller(DB, 3) + farewell())
                kinds = [frame.kind for frame in frames_of(client.recv(65536))]
                assert kinds == [FrameType.ACK, FrameType.ACK, FrameType.AGENT_DISCONNECT]
            wait_for("the connection is gone", lambda: memory.read()[0].connections_open == 0)
        finally:
            ours.close()
            thread.join(10)
            theirs.close()
            memory.close()
            os.close(main_pidfd)
