"""Between one sidecar and its Consul agent: passes on what is said, or spoils it in a chosen way."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from tests.e2e.agents import HTTP_PORT
from tests.e2e.namespaces import Namespace

HELD_S = 90.0


@dataclass(frozen=True)
class Said:
    """An answer on its way. `cut` bytes of the body are announced and not sent."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    cut: int = 0


Spoil = Callable[[Said], Said]


def status(code: int, text: str = "spoiled") -> Spoil:
    """Every answer has that status instead."""
    return lambda said: Said(code, (), text.encode())


def body(data: bytes) -> Spoil:
    """Every good answer has that body instead."""
    return lambda said: replace(said, body=data) if said.status == 200 else said


def truncated(said: Said) -> Said:
    """Half of the body, then the end."""
    return replace(said, body=said.body[: len(said.body) // 2], cut=len(said.body) - len(said.body) // 2)


def backwards(said: Said) -> Said:
    """Consul's index starts again from a small number, as after a restore of its data."""
    return replace(said, headers=tuple((k, "1" if k.lower() == "x-consul-index" else v) for k, v in said.headers))


def reshaped(said: Said) -> Said:
    """JSON, but of another shape: what was a list is an object, and the other way round."""
    try:
        value = json.loads(said.body)
    except ValueError:
        return said
    return replace(said, body=json.dumps({"was": 1} if isinstance(value, list) else [value]).encode())


def wordless(said: Said) -> Said:
    """Nothing: the connection is closed."""
    raise ConnectionError(f"instead of {said.status}")


class AgentProxy:
    """Listens on a free port of the namespace; `spoiling` is done to every answer that comes from then on."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._held: set[HTTPConnection] = set()
        self._lock = threading.Lock()
        self._spoil: Spoil | None = None
        self.delay = threading.Event()
        self.delay.set()
        self._server = _Server(self)
        self.port = self._server.listen_in(namespace)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="agent-proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.delay.set()
        self._server.shutdown()
        self._thread.join(5)
        self._break_held()
        self._server.server_close()

    @contextlib.contextmanager
    def spoiling(self, spoil: Spoil) -> Iterator[None]:
        """Spoil from now on; questions that wait at the agent are broken off, so that new ones come at once."""
        self._spoil = spoil
        self._break_held()
        try:
            yield
        finally:
            self._spoil = None

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Take questions, and answer none of them until the end of the block."""
        self.delay.clear()
        self._break_held()
        try:
            yield
        finally:
            self.delay.set()

    def answer(self, method: str, path: str, headers: dict[str, str], data: bytes) -> Said:
        """What the agent says, spoiled. OSError or HTTPException when it says nothing."""
        self.delay.wait(HELD_S)
        connection = self._namespace.http(HTTP_PORT, timeout_s=HELD_S)
        with self._lock:
            self._held.add(connection)
        try:
            connection.request(method, path, data or None, headers)
            response = connection.getresponse()
            said = Said(response.status, tuple(response.getheaders()), response.read())
        finally:
            with self._lock:
                self._held.discard(connection)
            connection.close()
        self.delay.wait(HELD_S)
        return self._spoil(said) if self._spoil else said

    def _break_held(self) -> None:
        with self._lock:
            held = list(self._held)
        for connection in held:
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, proxy: AgentProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.proxy = proxy

    def listen_in(self, namespace: Namespace) -> int:
        """The port, once a socket of that namespace listens."""
        self.socket.close()
        self.socket = namespace.tcp_socket()
        self.server_bind()
        self.server_activate()
        return int(self.server_address[1])

    def server_bind(self) -> None:
        # Not http.server's own: it looks up the host's name.
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: hcc breaks off questions."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._pass_on()

    do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 (the names are http.server's)

    def _pass_on(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        try:
            said = self.server.proxy.answer(self.command, self.path, dict(self.headers), data)
        except (OSError, HTTPException):
            self.close_connection = True
            return
        self.send_response(said.status)
        for name, value in said.headers:
            if name.lower() not in {"content-length", "transfer-encoding", "connection", "date", "server"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(said.body) + said.cut))
        self.end_headers()
        self.wfile.write(said.body)
        self.close_connection = self.close_connection or bool(said.cut)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name is http.server's)
        """Nothing."""
