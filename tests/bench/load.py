"""Load from one process with epoll: requests over kept-alive connections, or a new connection for each.

Only plain http/1.1 to 127.0.0.1 with answers of one fixed size, so that little Python runs for each request.
`Load.busy` says how much of one core it took: near 1 the generator was the limit, not what was measured.
"""

from __future__ import annotations

import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_KEEP = "GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n"
_CLOSE = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
_ANSWER_BYTES = 65536
_WARM_UP_S = 5.0


@dataclass(frozen=True)
class Load:
    """What was asked and answered within `seconds`; `times_s`: how long each answer took, sorted."""

    done: int
    failed: int
    seconds: float
    busy: float
    times_s: array[float] = field(default_factory=lambda: array("d"))

    @property
    def per_second(self) -> float:
        return self.done / self.seconds

    def quantile_ms(self, part: float) -> float | None:
        """The time within which that part of the answers came; None without answers."""
        return self.times_s[int(part * (len(self.times_s) - 1))] * 1000 if self.times_s else None


def kept_alive(port: int, connections: int, seconds: float, path: str = "/") -> Load:
    """Requests one after the other over each of so many connections, which are open before the clock starts."""
    request = _KEEP.format(path=path).encode()
    with _slots(port, connections) as slots:
        size = _answer_size(slots, request)
        return _timed(seconds, lambda end, times: _keep_asking(slots, request, size, end, times))


def paced(port: int, connections: int, seconds: float, rate: float) -> Load:
    """So many requests a second at even intervals, kept alive; a late one counts from when it was due."""
    request = _KEEP.format(path="/").encode()
    with _slots(port, connections) as slots:
        size = _answer_size(slots, request)
        return _timed(seconds, lambda end, times: _ask_at(slots, request, size, rate, end, times))


def connecting(port: int, parallel: int, seconds: float) -> Load:
    """A new connection for each request, so many at a time."""
    return _timed(seconds, lambda end, times: _keep_connecting(port, parallel, end, times))


def _timed(seconds: float, run: Callable[[float, array[float]], int]) -> Load:
    times = array("d")
    cpu, started = time.process_time(), time.perf_counter()
    failed = run(started + seconds, times)
    passed = time.perf_counter() - started
    busy = (time.process_time() - cpu) / passed
    return Load(len(times), failed, passed, busy, array("d", sorted(times)))


@contextmanager
def _slots(port: int, connections: int) -> Iterator[dict[int, socket.socket]]:
    """Open connections by file descriptor."""
    slots: dict[int, socket.socket] = {}
    try:
        for _ in range(connections):
            connection = _warm(port)
            slots[connection.fileno()] = connection
        yield slots
    finally:
        for connection in slots.values():
            connection.close()


def _warm(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), _WARM_UP_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _answer_size(slots: dict[int, socket.socket], request: bytes) -> int:
    """Bytes of one answer; asks once on every connection, so that the way behind it is open, too."""
    sizes = {_ask(connection, request) for connection in slots.values()}
    assert len(sizes) == 1, f"expected answers of one size, found {sizes}"
    return sizes.pop()


def _ask(connection: socket.socket, request: bytes) -> int:
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer or len(answer) < _declared(answer):
        data = connection.recv(_ANSWER_BYTES)
        assert data, f"closed after {answer!r}"
        answer += data
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    connection.setblocking(False)
    return len(answer)


def _declared(answer: bytes) -> int:
    head, _, _ = answer.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return len(head) + 4 + int(length)


def _keep_asking(slots: dict[int, socket.socket], request: bytes, size: int, end: float, times: array[float]) -> int:
    """How many failed: refused or broken, and one connection less from then on."""
    failed = 0
    missing = dict.fromkeys(slots, size)
    asked = {}
    with select.epoll() as poll:
        for fd, connection in slots.items():
            poll.register(fd, select.EPOLLIN)
            asked[fd] = time.perf_counter()
            connection.send(request)
        while time.perf_counter() < end and slots:
            for fd, _ in poll.poll(1.0):
                data = _received(slots[fd])
                missing[fd] -= len(data)
                if not data or missing[fd] < 0:
                    failed += 1
                    poll.unregister(fd)
                    slots.pop(fd).close()
                elif not missing[fd]:
                    now = time.perf_counter()
                    times.append(now - asked[fd])
                    missing[fd], asked[fd] = size, now
                    slots[fd].send(request)
    return failed


def _ask_at(
    slots: dict[int, socket.socket], request: bytes, size: int, rate: float, end: float, times: array[float]
) -> int:
    """As `_keep_asking`, but when it is time and a connection is free."""
    failed = 0
    free = deque(slots)
    missing: dict[int, int] = {}
    asked: dict[int, float] = {}
    due = time.perf_counter()
    while (now := time.perf_counter()) < end and slots:
        while free and due <= now:
            fd = free.popleft()
            missing[fd], asked[fd] = size, due
            slots[fd].send(request)
            due += 1 / rate
        # Not by epoll, which waits for whole milliseconds: what it is late would count as the answer's time.
        wait_s = max(0.0, due - time.perf_counter()) if free else 1.0
        for fd in select.select(list(slots), [], [], wait_s)[0]:
            data = _received(slots[fd])
            missing[fd] = missing.get(fd, 0) - len(data)
            if not data or missing[fd] < 0:
                failed += 1
                slots.pop(fd).close()
            elif not missing[fd]:
                times.append(time.perf_counter() - asked[fd])
                free.append(fd)
    return failed


def _keep_connecting(port: int, parallel: int, end: float, times: array[float]) -> int:
    failed = 0
    answers: dict[int, tuple[socket.socket, float, bytes]] = {}
    with select.epoll() as poll:
        for _ in range(parallel):
            _connect(port, poll, answers)
        while time.perf_counter() < end:
            for fd, _ in poll.poll(1.0):
                connection, begun, answer = answers[fd]
                data = _received(connection)
                if data:
                    answers[fd] = connection, begun, answer + data
                    continue
                if _whole(answer):
                    times.append(time.perf_counter() - begun)
                else:
                    failed += 1
                del answers[fd]
                connection.close()
                _connect(port, poll, answers)
    for connection, _, _ in answers.values():
        connection.close()
    return failed


def _connect(port: int, poll: select.epoll, answers: dict[int, tuple[socket.socket, float, bytes]]) -> None:
    begun = time.perf_counter()
    # On loopback this does not wait: the listening side's queue takes the connection.
    connection = socket.create_connection(("127.0.0.1", port), _WARM_UP_S)
    connection.sendall(_CLOSE)
    connection.setblocking(False)
    answers[connection.fileno()] = connection, begun, b""
    poll.register(connection.fileno(), select.EPOLLIN)


def _whole(answer: bytes) -> bool:
    return answer.startswith(b"HTTP/1.1 200 ") and len(answer) == _declared(answer)


def _received(connection: socket.socket) -> bytes:
    with suppress(OSError):
        return connection.recv(_ANSWER_BYTES)
    return b""
