"""A worker in a real process, driven over its sockets by a small client; in a thread where its limits are set."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography import x509

from hcc.mesh.intentions import Action, Intention, Policy
from hcc.mesh.permissions import PathMatch, PathRule, Permission
from hcc.mesh.rules import compiled_rules
from hcc.spoe import worker
from hcc.spoe.channel import Channel
from hcc.spoe.control import MAX_ORDER_BYTES, ControlMessage, Topic, encode_control
from hcc.spoe.counters import CounterMemory, CounterSlots, WorkerCounters
from hcc.spoe.events import Denied, Met, PolicyApplied, PoolEvent, WorkerExited, worker_event
from hcc.spoe.frames import FIN, LENGTH_BYTES, Frame, FrameType, decode_frame
from hcc.spoe.listener import Listener
from hcc.spoe.payloads import Message
from hcc.spoe.policy_codec import encode_policy
from hcc.spoe.pool import WorkerPool
from hcc.spoe.values import NULL, Kind, Value
from hcc.spoe.worker import DRAIN_S, LINGER_S, MAX_DENIALS_TOLD, MAX_MET_BYTES, STAND_IN_S, Worker
from tests.forgeries import ALLOWED, forgeries, genuine
from tests.integration.spoe_frontend import events_until, wait_for
from tests.spoe_certificates import TRUST_DOMAIN, Authority, service_uri, uri_names
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
WEB = MESH.service("web").der()
DB = MESH.service("db").der()


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


class Clock:
    """A worker's time, set by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def perf_counter_ns(self) -> int:
        return time.perf_counter_ns()


class Inside:
    """A worker in a thread of the test, which is its main process."""

    def __init__(self, path: str, others: tuple[socket.socket, ...] = ()) -> None:
        self._path = path
        self._memory = CounterMemory(1)
        self._listener = Listener(path)
        ours, self._theirs = socket.socketpair()
        self._pidfd = os.pidfd_open(os.getpid())
        self._clients: list[Client] = []
        self._news: list[ControlMessage] = []
        self.channel = Channel(ours, MAX_ORDER_BYTES)
        slots = CounterSlots(self._memory.fd, 0)
        self.worker = Worker(self._listener.sock.dup(), others, self._theirs, slots, self._pidfd)
        self.thread = threading.Thread(target=self.worker.run, daemon=True)
        self.thread.start()

    def client(self) -> Client:
        self._clients.append(Client(self._path))
        return self._clients[-1]

    def counters(self) -> WorkerCounters:
        return self._memory.read()[0]

    def heard(self, topic: Topic) -> list[ControlMessage]:
        """All that it told of that so far."""
        self._news += self.channel.receive()
        return [news for news in self._news if news.topic is topic]

    def order(self, topic: Topic, body: bytes = b"") -> None:
        self.channel.send(ControlMessage(topic, body))

    def apply(self, wanted: Policy) -> None:
        self.order(Topic.POLICY, encode_policy(wanted))
        wait_for("the policy", lambda: self.heard(Topic.POLICY_APPLIED))

    def turn(self) -> None:
        """Return once it has looked at everything that was there, at the time that it is now."""
        for _ in range(2):
            heard = len(self.heard(Topic.PONG))
            self.order(Topic.PING)
            wait_for("a sign of life", partial(self._heard_more, Topic.PONG, heard))

    def flood(self, client: Client, questions: int) -> None:
        """Ask so much at once that the answers do not all go out until somebody reads them."""
        client.send(b"".join(caller(WEB, number, 1) for number in range(questions)))
        wait_for("all is read", lambda: self.counters().requests == questions)
        self.turn()
        assert any(peer.unsent for peer in self.worker._peers.values())

    def close(self) -> None:
        for client in self._clients:
            client.sock.close()
        self.order(Topic.STOP)
        self.thread.join(10)
        self.channel.close()
        self.thread.join(10)
        alive = self.thread.is_alive()
        # The end of its process would.
        for peer in self.worker._peers.values():
            peer.sock.close()
        self._theirs.close()
        self._listener.close()
        os.close(self._pidfd)
        self._memory.close()
        assert not alive

    def _heard_more(self, topic: Topic, than: int) -> bool:
        return len(self.heard(topic)) > than


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(worker, "time", made)
    return made


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    made = Inside(str(tmp_path / "w.sock"))
    yield made
    made.close()


class StandIn(Inside):
    """One beside another worker, which takes nobody: the test is to take who waits for that one."""

    def __init__(self, directory: Path) -> None:
        self._other = Listener(str(directory / "other.sock"))
        super().__init__(str(directory / "w.sock"), (self._other.sock.dup(),))

    def client_of_other(self) -> Client:
        self._clients.append(Client(self._other.path))
        return self._clients[-1]

    def take_from_other(self) -> None:
        self._other.sock.accept()[0].close()

    def close(self) -> None:
        super().close()
        self._other.close()


@pytest.fixture
def stand_in(clock: Clock, tmp_path: Path) -> Iterator[StandIn]:
    made = StandIn(tmp_path)
    yield made
    made.close()


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
    assert [event.source for event in seen if isinstance(event, Denied)] == ["db"] * 3
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


def certificate_of(length_bytes: int) -> bytes:
    """A certificate of the service web with so many bytes."""
    der, padding_bytes = b"", length_bytes // 2
    # Signatures differ in length by a byte or two.
    while len(der) != length_bytes:
        padding_bytes += length_bytes - len(der) if der else 0
        padding = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), bytes(padding_bytes))
        der = MESH.leaf(*uri_names(service_uri("web")), extensions=(padding,)).der()
    return der


def test_of_a_caller_with_a_certificate_that_is_too_long_to_be_told_the_main_process_does_not_hear(
    pool: WorkerPool, client: Client
) -> None:
    longest = certificate_of(MAX_MET_BYTES)
    apply(pool, policy(1, "web"))
    client.greet()
    for der in (longest, certificate_of(MAX_MET_BYTES + 1), WEB):
        client.send(called(der, "10.0.0.1", 4711))
        assert variables(client.receive()) == {"allowed": True, "caller": told("web")}
    seen: list[PoolEvent] = []
    pool.set_policy(policy(2, "db"))
    events_until(pool, lambda news: PolicyApplied(0, 2) in news, seen)
    assert [event.der for event in seen if isinstance(event, Met)] == [longest, WEB]
    assert pool.counters()[0].notices_dropped == 0


def test_with_a_new_policy_no_decision_is_remembered(pool: WorkerPool, client: Client) -> None:
    apply(pool, policy(1, "web"))
    client.greet()
    for der in (WEB, DB, WEB):
        client.ask(der)
    assert pool.counters()[0].cached == 2
    apply(pool, policy(2, "web"))
    assert pool.counters()[0].cached == 0
    client.ask(WEB)
    assert pool.counters()[0].cached == 1


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
    # Now remembered.
    assert client.ask(WEB[:-1]) == {"allowed": False}
    wait_for("the fourth is counted, too", lambda: pool.counters()[0].errors == 4)


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
        made = Worker(listener, (), theirs, CounterSlots(memory.fd, 0), main_pidfd)
        thread = threading.Thread(target=made.run)
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


# In a thread, with limits and a clock that are set.


def test_a_connection_beyond_the_limit_waits_until_another_one_closes(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MAX_CONNECTIONS", 2)
    served = [inside.client().greet(), inside.client().greet()]
    for waiting in (inside.client(), inside.client()):
        waiting.send(hello())
        served.append(waiting)

    for accepted in (2, 3):
        inside.turn()
        assert inside.counters().connections_total == accepted
        assert inside.counters().connections_open == 2
        served[accepted - 2].sock.close()
        assert served[accepted].receive().kind == FrameType.AGENT_HELLO


SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@pytest.mark.parametrize("scarce_for", SCARCE)
def test_a_worker_that_has_no_file_left_sleeps_until_a_connection_closes(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, scarce_for: int
) -> None:
    def refuse(_: socket.socket) -> NoReturn:
        tried.set()
        raise OSError(scarce_for, os.strerror(scarce_for))

    served, tried = inside.client().greet(), threading.Event()
    with monkeypatch.context() as scarce:
        scarce.setattr(socket.socket, "accept", refuse)
        waiting = inside.client()
        waiting.send(hello())
        assert tried.wait(10)
        inside.turn()
        tried.clear()
        assert not tried.wait(0.2)
    assert inside.counters().connections_total == 1

    served.sock.close()

    assert waiting.receive().kind == FrameType.AGENT_HELLO


@pytest.mark.parametrize("scarce_for", SCARCE)
def test_a_worker_that_has_no_file_for_its_first_connection_sleeps_and_tries_again(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, scarce_for: int
) -> None:
    tries = []

    def refuse(_: socket.socket) -> NoReturn:
        tries.append(time.monotonic())
        raise OSError(scarce_for, os.strerror(scarce_for))

    with monkeypatch.context() as scarce:
        scarce.setattr(socket.socket, "accept", refuse)
        waiting = inside.client()
        waiting.send(hello())
        wait_for("the second try", lambda: len(tries) > 1)
    assert tries[1] - tries[0] >= worker.SCARCE_S
    assert waiting.receive().kind == FrameType.AGENT_HELLO


def test_a_worker_without_room_stops_as_any_other_and_leaves_who_waits_to_its_successor(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MAX_CONNECTIONS", 1)
    client, waiting = inside.client().greet(), inside.client()
    waiting.send(hello())

    inside.order(Topic.STOP)

    assert status_of(client.receive()) == 0
    assert client.at_end()
    client.sock.close()
    inside.thread.join(10)
    assert not inside.thread.is_alive()
    assert inside.counters().connections_total == 1
    waiting.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        waiting.sock.recv(1)


def test_a_worker_that_stops_is_not_woken_by_who_waits_for_its_successor(inside: Inside, clock: Clock) -> None:
    client = inside.client().greet()
    inside.order(Topic.STOP)
    assert status_of(client.receive()) == 0
    inside.client().send(hello())

    inside.turn()

    assert inside.worker._epoll.poll(0) == []
    assert inside.counters().connections_total == 1


def test_a_connection_that_is_over_is_closed_when_its_peer_has_closed_it(inside: Inside, clock: Clock) -> None:
    client = inside.client().greet()
    client.send(farewell())
    assert status_of(client.receive()) == 0
    assert client.at_end()
    inside.turn()
    clock.now_s += LINGER_S
    # What is on its way is neither answered nor met by a reset.
    client.send(caller(WEB) * 3)
    inside.turn()
    assert inside.counters().connections_open == 1
    assert inside.counters().requests == inside.counters().frames_bad == 0

    client.sock.close()

    wait_for("the connection is gone", lambda: inside.counters().connections_open == 0)


def test_a_connection_that_is_over_is_closed_after_a_while_though_its_peer_keeps_it(
    inside: Inside, clock: Clock
) -> None:
    client = inside.client().greet()
    client.send(farewell())
    assert status_of(client.receive()) == 0
    assert client.at_end()
    inside.turn()
    clock.now_s += LINGER_S
    inside.turn()
    assert inside.counters().connections_open == 1

    clock.now_s += 0.001

    wait_for("the connection is gone", lambda: inside.counters().connections_open == 0)
    with pytest.raises(BrokenPipeError):
        client.send(farewell())


@pytest.mark.parametrize("limit_bytes", [0, 50_000])
def test_notices_wait_for_the_main_process_up_to_a_limit_and_answers_do_not(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, limit_bytes: int
) -> None:
    monkeypatch.setattr(worker, "MAX_NOTICE_BYTES", limit_bytes)
    inside.apply(policy(1, "web"))
    client = inside.client().greet()
    # More than the socket and the limit together take.
    for port in range(1, 501):
        client.send(called(WEB, "10.0.0.1", port))
        assert variables(client.receive())["allowed"] is True
    client.ask(WEB)
    waiting_bytes = inside.worker._channel.waiting_bytes
    dropped = inside.counters().notices_dropped

    wait_for("all that was not dropped", lambda: len(inside.heard(Topic.MET)) == 500 - dropped)

    heard = inside.heard(Topic.MET)
    assert limit_bytes < waiting_bytes <= limit_bytes + max(len(encode_control(notice)) for notice in heard)
    assert [worker_event(0, notice) for notice in heard] == [
        Met(0, WEB, f"10.0.0.1:{port}") for port in range(1, 501 - dropped)
    ]
    client.send(called(WEB, "10.0.0.1", 501))
    assert variables(client.receive())["allowed"] is True
    wait_for("the next one", lambda: worker_event(0, inside.heard(Topic.MET)[-1]) == Met(0, WEB, "10.0.0.1:501"))
    assert inside.counters().notices_dropped == dropped


def test_so_many_denials_are_told_in_a_second_and_faults_are_none(
    inside: Inside, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MAX_DENIALS_TOLD", 2)
    inside.apply(policy(1, "web"))
    client = inside.client().greet()
    words = ((b"caller", text(told("db") + b"|1764000000")), (b"method", text(b"PUT")), (b"path", text(b"/a")))
    fault, refused = notify(Message(b"unknown", ((b"x", NULL),))), notify(Message(b"refused", words))

    def denied(*questions: bytes) -> tuple[int, int]:
        """How many denials are told and dropped, after these."""
        for question in questions:
            client.send(question)
            assert variables(client.receive())["allowed"] is False
        inside.turn()
        return len(inside.heard(Topic.DENIED)), inside.counters().notices_dropped

    assert denied(fault, fault, fault) == (0, 0)
    assert denied(caller(DB), refused) == (2, 0)
    assert denied(caller(DB), refused, fault) == (2, 2)
    clock.now_s += 1.0
    assert denied(caller(DB)) == (2, 3)
    clock.now_s += 0.001
    assert denied(refused, caller(DB), caller(DB)) == (4, 4)


def test_a_worker_that_stops_goes_at_its_deadline_though_a_peer_does_not_read(inside: Inside, clock: Clock) -> None:
    inside.apply(policy(1, "web"))
    inside.flood(inside.client().greet(), 3000)
    inside.order(Topic.STOP)
    inside.turn()
    clock.now_s += DRAIN_S
    inside.turn()
    assert inside.thread.is_alive()

    clock.now_s += 0.001

    inside.thread.join(10)
    assert not inside.thread.is_alive()
    assert inside.counters().connections_open == 1


# Beside another worker.


def test_who_waits_for_another_worker_is_taken_after_a_while(stand_in: StandIn, clock: Clock) -> None:
    stand_in.apply(policy(1, "web"))
    waiting = [stand_in.client_of_other() for _ in range(3)]
    stand_in.turn()
    clock.now_s += STAND_IN_S - 0.001
    stand_in.turn()
    assert stand_in.counters().connections_total == 0

    clock.now_s += 0.002

    for client in waiting:
        assert client.greet().ask(WEB) == {"allowed": True, "caller": told("web")}
    assert stand_in.counters().connections_open == 3
    # And so again, for whoever comes later.
    late = stand_in.client_of_other()
    stand_in.turn()
    clock.now_s += 2 * STAND_IN_S
    assert late.greet().ask(DB) == {"allowed": False, "caller": told("db")}


def test_whom_another_worker_takes_is_left_to_it(stand_in: StandIn, clock: Clock) -> None:
    stand_in.apply(policy(1, "web"))
    stand_in.client_of_other()
    stand_in.turn()
    stand_in.take_from_other()
    clock.now_s += 2 * STAND_IN_S
    stand_in.turn()
    assert stand_in.counters().connections_total == 0
    assert stand_in.worker._timeout_s() == -1, "it goes on looking"


def test_a_worker_without_a_policy_stands_in_for_nobody_until_it_has_one(stand_in: StandIn, clock: Clock) -> None:
    waiting = stand_in.client_of_other()
    stand_in.turn()
    for _ in range(3):
        clock.now_s += 2 * STAND_IN_S
        stand_in.turn()
    assert stand_in.counters().connections_total == 0
    assert stand_in.worker._timeout_s() == -1, "it goes on looking"

    stand_in.apply(policy(1, "web"))
    clock.now_s += 2 * STAND_IN_S

    assert waiting.greet().ask(WEB) == {"allowed": True, "caller": told("web")}


def test_a_worker_that_has_too_many_stands_in_when_one_goes(
    stand_in: StandIn, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MAX_CONNECTIONS", 2)
    stand_in.apply(policy(1, "web"))
    own = stand_in.client().greet()
    first, second = stand_in.client_of_other(), stand_in.client_of_other()
    stand_in.turn()
    clock.now_s += 2 * STAND_IN_S
    first.greet()
    stand_in.turn()
    assert stand_in.counters().connections_open == 2

    own.sock.close()
    stand_in.turn()
    clock.now_s += 2 * STAND_IN_S

    second.greet()
    assert stand_in.counters().connections_open == 2


def test_a_worker_that_has_no_file_left_stands_in_when_one_goes(
    stand_in: StandIn, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: socket.socket) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    stand_in.apply(policy(1, "web"))
    own, waiting = stand_in.client().greet(), stand_in.client_of_other()
    stand_in.turn()
    with monkeypatch.context() as scarce:
        scarce.setattr(socket.socket, "accept", refuse)
        clock.now_s += 2 * STAND_IN_S
        stand_in.turn()
    assert stand_in.counters().connections_total == 1

    own.sock.close()
    stand_in.turn()
    clock.now_s += 2 * STAND_IN_S

    waiting.greet()


def test_a_worker_that_stops_stands_in_for_nobody(stand_in: StandIn, clock: Clock) -> None:
    stand_in.apply(policy(1, "web"))
    client = stand_in.client().greet()
    stand_in.client_of_other()
    stand_in.turn()
    stand_in.order(Topic.STOP)
    assert client.receive().kind == FrameType.AGENT_DISCONNECT
    clock.now_s += 2 * STAND_IN_S
    client.sock.close()
    stand_in.thread.join(10)
    assert not stand_in.thread.is_alive()
    assert stand_in.counters().connections_total == 1
    stand_in.take_from_other()


@pytest.mark.parametrize("reads", [15, 16, 17])
def test_a_worker_that_stops_survives_a_peer_that_leaves_at_its_last_read(
    reads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "w.sock")
    memory, listener = CounterMemory(1), Listener(path)
    ours, theirs = socket.socketpair()
    pidfd = os.pidfd_open(os.getpid())
    stopping = Worker(listener.sock.dup(), (), theirs, CounterSlots(memory.fd, 0), pidfd)
    data = hello() + b"".join(caller(b"", number, 1) for number in range(600))
    monkeypatch.setattr(worker, "RECEIVE_BYTES", -(-len(data) // (reads - 1)))
    assert stopping._listener is not None
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            stopping._accept_more()
            stopping._accept(stopping._listener)
            (peer,) = stopping._peers.values()
            # Its answers do not all go out.
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

            stopping._stop()

            # What is left after sixteen reads is read in the time to drain.
            assert list(stopping._peers.values()) == ([] if reads <= 16 else [peer])
            peer.sock.close()
    finally:
        for sock in (ours, theirs, stopping._epoll):
            sock.close()
        os.close(pidfd)
        memory.close()
        listener.close()


def test_a_worker_that_stops_waits_for_a_peer_that_reads_late_and_answers_no_more(inside: Inside, clock: Clock) -> None:
    inside.apply(policy(1, "web"))
    client = inside.client().greet()
    inside.flood(client, 3000)
    inside.order(Topic.STOP)
    inside.turn()
    client.send(caller(WEB, 3000, 1))

    assert [client.receive().stream_id for _ in range(3000)] == list(range(3000))
    assert status_of(client.receive()) == 0
    assert client.at_end()
    inside.turn()
    client.sock.close()

    inside.thread.join(10)
    assert not inside.thread.is_alive()
    assert inside.counters().requests == 3000
