"""Load from one process with epoll: requests over kept-alive connections, or a new connection for each.

Only plain http/1.1 to 127.0.0.1 with answers of one fixed size, so that little Python runs for each request.
`Load.busy` says how much of one core it took: near 1 the generator was the limit, not what was measured.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

_KEEP = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
_CLOSE = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
_ANSWER_BYTES = 65536
_WARM_UP_S = 5.0


@dataclass(frozen=True)
class Load:
    """What was asked and answered within `seconds`."""

    done: int
    failed: int
    seconds: float
    busy: float

    @property
    def per_second(self) -> float:
        return self.done / self.seconds


def kept_alive(port: int, connections: int, seconds: float) -> Load:
    """Requests one after the other over each of so many connections, which are open before the clock starts."""
    slots = {}
    try:
        for _ in range(connections):
            connection = _warm(port)
            slots[connection.fileno()] = connection
        size = _answer_size(slots)
        return _timed(seconds, lambda end: _keep_asking(slots, size, end))
    finally:
        for connection in slots.values():
            connection.close()


def connecting(port: int, parallel: int, seconds: float) -> Load:
    """A new connection for each request, so many at a time."""
    return _timed(seconds, lambda end: _keep_connecting(port, parallel, end))


def _timed(seconds: float, run: Callable[[float], tuple[int, int]]) -> Load:
    cpu, started = time.process_time(), time.perf_counter()
    done, failed = run(started + seconds)
    passed = time.perf_counter() - started
    return Load(done, failed, passed, (time.process_time() - cpu) / passed)


def _warm(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), _WARM_UP_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _answer_size(slots: dict[int, socket.socket]) -> int:
    """Bytes of one answer; asks once on every connection, so that the way behind it is open, too."""
    sizes = {_ask(connection) for connection in slots.values()}
    assert len(sizes) == 1, f"expected answers of one size, found {sizes}"
    return sizes.pop()


def _ask(connection: socket.socket) -> int:
    connection.sendall(_KEEP)
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


def _keep_asking(slots: dict[int, socket.socket], size: int, end: float) -> tuple[int, int]:
    done = failed = 0
    missing = dict.fromkeys(slots, size)
    with select.epoll() as poll:
        for fd, connection in slots.items():
            poll.register(fd, select.EPOLLIN)
            connection.send(_KEEP)
        while time.perf_counter() < end and slots:
            for fd, _ in poll.poll(1.0):
                data = _received(slots[fd])
                missing[fd] -= len(data)
                if not data or missing[fd] < 0:
                    # Refused or broken: counted, and one connection less from now on.
                    failed += 1
                    poll.unregister(fd)
                    slots.pop(fd).close()
                elif not missing[fd]:
                    done += 1
                    missing[fd] = size
                    slots[fd].send(_KEEP)
    return done, failed


def _keep_connecting(port: int, parallel: int, end: float) -> tuple[int, int]:
    done = failed = 0
    answers: dict[int, tuple[socket.socket, bytes]] = {}
    with select.epoll() as poll:
        for _ in range(parallel):
            _connect(port, poll, answers)
        while time.perf_counter() < end:
            for fd, _ in poll.poll(1.0):
                connection, answer = answers[fd]
                data = _received(connection)
                if data:
                    answers[fd] = connection, answer + data
                    continue
                done, failed = (done + 1, failed) if _whole(answer) else (done, failed + 1)
                del answers[fd]
                connection.close()
                _connect(port, poll, answers)
    for connection, _ in answers.values():
        connection.close()
    return done, failed


def _connect(port: int, poll: select.epoll, answers: dict[int, tuple[socket.socket, bytes]]) -> None:
    # On loopback this does not wait: the listening side's queue takes the connection.
    connection = socket.create_connection(("127.0.0.1", port), _WARM_UP_S)
    connection.sendall(_CLOSE)
    connection.setblocking(False)
    answers[connection.fileno()] = connection, b""
    poll.register(connection.fileno(), select.EPOLLIN)


def _whole(answer: bytes) -> bool:
    return answer.startswith(b"HTTP/1.1 200 ") and len(answer) == _declared(answer)


def _received(connection: socket.socket) -> bytes:
    with suppress(OSError):
        return connection.recv(_ANSWER_BYTES)
    return b""
