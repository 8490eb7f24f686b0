from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from hcc.actors import web
from hcc.actors.web import IDLE_TIMEOUT_S, MAX_CONNECTIONS, Response, WebServer, serve_tcp, serve_unix
from hcc.settings import ListenAddress
from tests.ports import free_port


def _status(port: int, host: str = "127.0.0.1") -> int:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("dual", [True, False])
def test_no_host_is_every_address_of_ipv6_too_where_there_is_that(monkeypatch: pytest.MonkeyPatch, dual: bool) -> None:
    port = free_port()
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: dual)
    server = serve_tcp(ListenAddress("", port), lambda *_: Response(200, b"ok"))
    try:
        assert _status(port) == 200
        if dual:
            assert _status(port, "::1") == 200
        else:
            with pytest.raises(ConnectionRefusedError):
                _status(port, "::1")
    finally:
        server.close()


def test_a_lack_of_threads_costs_no_place_for_later_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    server = serve_tcp(ListenAddress("127.0.0.1", port), lambda *_: Response(200, b"ok"))

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    try:
        assert _status(port) == 200
        with monkeypatch.context() as lacking:
            lacking.setattr(threading.Thread, "start", start)
            for _ in range(MAX_CONNECTIONS):
                with pytest.raises((http.client.HTTPException, OSError)):
                    _status(port)
        assert _status(port) == 200
    finally:
        server.close()


@pytest.mark.parametrize("length", ["65537", "-1", "1_0", "9" * 5000])
def test_a_body_that_is_too_long_or_has_no_length_is_refused(length: str) -> None:
    port = free_port()
    server = serve_tcp(ListenAddress("127.0.0.1", port), lambda *_: Response(200, b"ok"))
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(f"POST /v1/plan HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
            assert connection.recv(1024).startswith(b"HTTP/1.1 413 ")
    finally:
        server.close()


def test_what_the_library_refuses_is_a_line_of_text() -> None:
    port = free_port()
    server = serve_tcp(ListenAddress("127.0.0.1", port), lambda *_: Response(200, b"ok"))
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(b"GET /".ljust(65_537, b"x"))
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert (answer.status, answer.read()) == (414, b"Request-URI Too Long\n")
            assert answer.headers.get_content_type() == "text/plain"
    finally:
        server.close()


def test_who_is_slow_to_ask_or_to_read_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_PLACE_WITHIN_S", 10.0)
    port = free_port()
    long = b"x" * 16_000_000
    server = serve_tcp(
        ListenAddress("127.0.0.1", port), lambda _, path, *__: Response(200, b"ok" if path == "/health" else long)
    )
    try:
        with ExitStack() as held:
            slow = [
                held.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(MAX_CONNECTIONS)
            ]
            for number, one in enumerate(slow):
                # Half of them ask, and do not read the answer.
                one.sendall(b"GET /long HTTP/1.1\r\n\r\n" if number % 2 else b"GET /health HTTP/1.1\r\nX: ")
            time.sleep(0.1)
            assert [_status(port) for _ in range(8)] == [200] * 8
            # Who kept the server waiting longest was in the way, and nobody without need.
            assert slow[0].recv(1) == b""
            slow[-2].sendall(b"y\r\n\r\n")
            assert slow[-2].recv(12) == b"HTTP/1.1 200"
    finally:
        server.close()


def test_who_is_being_answered_is_let_to_the_end() -> None:
    port = free_port()
    come, go_on = threading.Semaphore(0), threading.Event()

    def answer(*_: str) -> Response:
        come.release()
        go_on.wait(10)
        return Response(200, b"ok")

    server = serve_tcp(ListenAddress("127.0.0.1", port), answer)
    try:
        with ThreadPoolExecutor(MAX_CONNECTIONS) as callers:
            asked = [callers.submit(_status, port) for _ in range(MAX_CONNECTIONS)]
            assert all(come.acquire(timeout=10) for _ in asked)
            with pytest.raises((http.client.HTTPException, OSError)):
                _status(port)
            go_on.set()
            assert [one.result() for one in asked] == [200] * MAX_CONNECTIONS
    finally:
        server.close()


def _asked(kept: http.client.HTTPConnection) -> tuple[int, str | None]:
    """Status and Connection header of an answer that was read to its end."""
    kept.request("GET", "/ready")
    response = kept.getresponse()
    response.read()
    return response.status, response.headers["Connection"]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_connection_that_is_kept_ends_with_the_server(kind: str, tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "control.sock"

    def serve(status: int) -> WebServer:
        def answer(*_: str) -> Response:
            return Response(status, b"ready?")

        return serve_tcp(ListenAddress("127.0.0.1", port), answer) if kind == "tcp" else serve_unix(path, answer)

    def connected() -> socket.socket:
        client = socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX)
        # Sooner than it ends for having said nothing.
        client.settimeout(IDLE_TIMEOUT_S / 2)
        client.connect(("127.0.0.1", port) if kind == "tcp" else str(path))
        return client

    server = serve(200)
    kept = http.client.HTTPConnection("hcc")
    # Who came first was taken first: one that still waits for that is reset with the listener.
    silent, kept.sock = connected(), connected()
    try:
        assert [_asked(kept) for _ in "12"] == [(200, None)] * 2
        server.close()
        server = serve(503)

        assert kept.sock.recv(1) == b""
        assert silent.recv(1) == b""
        kept.close()
        kept.sock = connected()
        assert _asked(kept) == (503, None)
    finally:
        kept.close()
        silent.close()
        server.close()


def test_who_is_being_answered_as_the_server_ends_is_answered_and_told_to_leave() -> None:
    port = free_port()
    asked, go_on = threading.Event(), threading.Event()

    def answer(_: str, path: str, *__: str) -> Response:
        if path == "/ready":
            asked.set()
            go_on.wait(10)
        return Response(200, b"x" * 16_000_000 if path == "/long" else b"ok")

    server = serve_tcp(ListenAddress("127.0.0.1", port), answer)
    kept = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    reading = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        # The first bytes of a long answer are there, the rest waits for us.
        reading.request("GET", "/long")
        long = reading.getresponse()
        with ThreadPoolExecutor(1) as callers:
            answered = callers.submit(_asked, kept)
            assert asked.wait(10)

            server.close()

            go_on.set()
            assert answered.result() == (200, "close")
        assert len(long.read()) == 16_000_000
    finally:
        kept.close()
        reading.close()


def _naps(name: str) -> int:
    """How often the thread of that name went to sleep so far."""
    (thread,) = (one for one in threading.enumerate() if one.name == name)
    text = Path(f"/proc/self/task/{thread.native_id}/status").read_text(encoding="ascii")
    found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.MULTILINE)
    assert found
    return int(found[1])


def test_a_server_that_nobody_asks_sleeps_and_still_ends_at_once() -> None:
    port = free_port()
    server = serve_tcp(ListenAddress("127.0.0.1", port), lambda *_: Response(200, b"ok"))
    try:
        assert _status(port) == 200
        time.sleep(0.1)
        before = _naps("web-tcp")
        time.sleep(0.7)
        assert _naps("web-tcp") - before <= 1
        assert _status(port) == 200
    finally:
        server.close()
    # It was waited for, for two seconds at most.
    assert not any(one.name == "web-tcp" for one in threading.enumerate())
    with pytest.raises(ConnectionRefusedError):
        _status(port)
