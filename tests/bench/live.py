"""A steady load that goes on while something changes: which endpoint answered when, and what failed.

Half of the clients keep their connection, half make a new one for each request. `load.py` asks as fast as it can.
"""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType
from typing import Self

CLIENTS = 8
TIMEOUT_S = 10.0
_KINDS = (b"", b"Connection: close\r\n")


class Caller:
    """Asks one port over http/1.1; `kept` over one connection as long as it lasts."""

    def __init__(self, port: int, *, kept: bool) -> None:
        self._port = port
        self._kept = kept
        self._question = b"GET / HTTP/1.1\r\nHost: bench\r\n" + _KINDS[not kept] + b"\r\n"
        self._socket: socket.socket | None = None

    def ask(self) -> str:
        """The endpoint that answered; OSError on whatever is not a 200 with an empty body."""
        connection = self._socket or socket.create_connection(("127.0.0.1", self._port), TIMEOUT_S)
        self._socket = connection
        try:
            connection.sendall(self._question)
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                data = connection.recv(65536)
                if not data:
                    raise ConnectionError(f"closed after {answer!r}")
                answer += data
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise ConnectionError(answer.partition(b"\r\n")[0].decode())
        except OSError:
            self.close()
            raise
        if not self._kept or b"\r\nconnection: close" in answer.lower():
            self.close()
        return answer.partition(b"x-endpoint: ")[2].partition(b"\r\n")[0].decode()

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class LiveLoad:
    """Clients that ask one port `per_second` times together, until the context is left.

    `first` and `last` say when an endpoint answered, by `time.perf_counter`; `failures` why a request failed.
    """

    def __init__(self, port: int, per_second: float) -> None:
        self.done = 0
        self.failures: list[str] = []
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.slowest_s = 0.0
        self._pause_s = CLIENTS / per_second
        self._ended = threading.Event()
        self._own = Caller(port, kept=True)
        self._threads = [
            threading.Thread(target=self._run, args=(Caller(port, kept=number % 2 == 0), number), daemon=True)
            for number in range(CLIENTS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._own.close()

    def until_served_by(self, endpoint: str, timeout_s: float) -> float:
        """When the endpoint answered first; asks besides the clients, as a turn of all endpoints takes them long."""
        end = time.perf_counter() + timeout_s
        while endpoint not in self.first:
            assert time.perf_counter() < end, f"{endpoint} served nothing within {timeout_s:g} s"
            self._ask(self._own)
        return self.first[endpoint]

    def _run(self, caller: Caller, number: int) -> None:
        due = time.perf_counter() + self._pause_s * number / CLIENTS
        while not self._ended.wait(max(0.0, due - time.perf_counter())):
            self._ask(caller)
            # Never to catch up in a rush after a request that took long.
            due = max(due + self._pause_s, time.perf_counter())
        caller.close()

    def _ask(self, caller: Caller) -> None:
        began = time.perf_counter()
        try:
            endpoint = caller.ask()
        except OSError as exc:
            self.failures.append(f"{type(exc).__name__}: {exc}")
            return
        now = time.perf_counter()
        self.done += 1
        self.slowest_s = max(self.slowest_s, now - began)
        self.first.setdefault(endpoint, now)
        self.last[endpoint] = now
