"""A small HTTP server for /metrics, health and the control verbs, on TCP and on a unix socket.

Not prometheus_client's own: that has neither a limit on connections nor a timeout. Answers come from a function
of method, path and query, so that its owner (`hcc.actors.admin`) decides what may be asked on which socket.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

from hcc.errors import HccError
from hcc.settings import ListenAddress, whole_number
from hcc.spoe.listener import inode_of

MAX_CONNECTIONS = 32
IDLE_TIMEOUT_S = 10.0
# Requests have no body worth reading; more than this is somebody's mistake.
MAX_BODY_BYTES = 65_536
TEXT = "text/plain; charset=utf-8"
_BACKLOG_PAUSE_S = 0.1
# For whom another connection was ended.
_PLACE_WITHIN_S = 0.5

_log = logging.getLogger(__name__)


class ListenError(HccError):
    """The address cannot be listened on."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; `body` is bytes so that encoded metrics pass through."""

    status: int
    body: bytes
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()


Answer = Callable[[str, str, str, str], Response]
"""Method, path, query, Accept header -> response."""


class _Handler(BaseHTTPRequestHandler):
    """One connection. HTTP/1.1, so that a scraper may keep it."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_TIMEOUT_S
    # Without a write buffer header and body go out as two packets, and Nagle's algorithm waits 40 ms between.
    wbufsize = 65_536
    # What the library refuses by itself, such as a request that is too long: one line, as all else, and no page.
    error_content_type = TEXT
    error_message_format = "%(message)s\n"
    server: _Server

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def _respond(self) -> None:
        length = whole_number(self.headers.get("Content-Length", "0"), 0, MAX_BODY_BYTES)
        if length is None:
            self.close_connection = True
            self._send(Response(413, b"expected no body\n"))
            return
        self.rfile.read(length)
        path, _, query = self.path.partition("?")
        asked = (self.command, path, query, self.headers.get("Accept", ""))
        self._send(self.server.answered(self.connection, *asked))

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        if self.server.closing:
            # Whoever keeps it would ask us, and not our successor.
            self.send_header("Connection", "close")
        for name, value in response.headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    def version_string(self) -> str:
        return "hcc"

    def address_string(self) -> str:
        # The default looks into client_address, which is empty on a unix socket.
        return "peer"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's name)
        _log.debug(format, *args)


class _Server(ThreadingHTTPServer):
    """The library's threaded server with a bound on connections and quiet errors."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = MAX_CONNECTIONS
    # Who came and went before we looked is not waited for.
    timeout = 0.0

    def __init__(self, address: object, answer: Answer) -> None:
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        # Connections whose other side is waited for, longest first.
        self._waiting: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        self._answer = answer
        # No connection is kept any more.
        self.closing = False
        super().__init__(address, _Handler)  # type: ignore[arg-type]  # a path, for a unix socket

    def answered(self, connection: socket.socket, method: str, path: str, query: str, accept: str) -> Response:
        with self._lock:
            self._waiting.pop(connection, None)
        try:
            return self._answer(method, path, query, accept)
        except Exception:  # noqa: BLE001 (where a connection ends)
            # A connection ends here; the server must go on.
            _log.exception("answering %s %s failed", method, path)
            return Response(500, b"internal error, see the log\n")
        finally:
            with self._lock:
                self._waiting[connection] = None

    def server_bind(self) -> None:
        # The library's own looks up the host's full name, which can hang on a broken resolver.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", 0

    def get_request(self) -> tuple[socket.socket, object]:
        try:
            return super().get_request()
        except OSError:
            # Somebody gave up waiting. Or there is no file left, and who waits will be found waiting again at once.
            time.sleep(_BACKLOG_PAUSE_S)
            raise

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        if not self._slots.acquire(blocking=False) and not self._place_made():
            self.shutdown_request(request)
            return
        connection = cast("socket.socket", request)
        with self._lock:
            self._waiting[connection] = None
        try:
            super().process_request(request, client_address)
        except BaseException:
            # No thread could be started that would do it.
            self._gone(connection)
            raise

    def _place_made(self) -> bool:
        """Whether there is a place now: who keeps us waiting longest has to go, or some could keep out all others."""
        with self._lock:
            slowest = next(iter(self._waiting), None)
            if slowest is None:
                return False
            del self._waiting[slowest]
        with suppress(OSError):
            # Its thread sees the end.
            slowest.shutdown(socket.SHUT_RDWR)
        return self._slots.acquire(timeout=_PLACE_WITHIN_S)

    def end_kept(self) -> None:
        """End connections that wait for a request, and let no other wait for one again.

        What came in already is still answered, and what is being sent goes on: only our receiving side is closed.
        """
        with self._lock:
            self.closing = True
            for connection in self._waiting:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)

    def _gone(self, connection: socket.socket) -> None:
        with self._lock:
            self._waiting.pop(connection, None)
        self._slots.release()

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._gone(cast("socket.socket", request))

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        _log.debug("a connection ended with an error", exc_info=True)


class _TcpServer6(_Server):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        # `::` is every address, those of IPv4 among them, whatever net.ipv6.bindv6only says.
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _UnixServer(_Server):
    address_family = socket.AF_UNIX


class WebServer:
    """A running server; `close` ends it, and connections that merely wait. Who is being answered is let to the end.

    Args:
        path: of its unix socket, empty on TCP.

    Raises:
        ListenError: no thread is left to answer in.
    """

    def __init__(self, server: _Server, name: str, path: str = "") -> None:
        self._server = server
        self._path = path
        self._inode = inode_of(path)
        with ExitStack() as failed:
            failed.callback(server.socket.close)
            self._closing = os.eventfd(0)
            failed.callback(os.close, self._closing)
            self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
            try:
                self._thread.start()
            except RuntimeError as exc:
                raise ListenError(f"cannot answer on {path or name}: {exc}") from exc
            failed.pop_all()

    def lost(self) -> bool:
        """Whether somebody removed its unix socket, or put another in its place."""
        return inode_of(self._path) != self._inode

    def close(self) -> None:
        os.eventfd_write(self._closing, 1)
        self._thread.join(timeout=2)
        self._server.socket.close()
        self._server.end_kept()
        os.close(self._closing)

    def _serve(self) -> None:
        # Not by `serve_forever`, which wakes ten times a second to see whether it is to end.
        poll = select.poll()
        for descriptor in (self._server.fileno(), self._closing):
            poll.register(descriptor, select.POLLIN)
        while self._closing not in {descriptor for descriptor, _ in poll.poll()}:
            self._server.handle_request()


def serve_tcp(address: ListenAddress, answer: Answer) -> WebServer:
    """A server on a TCP address.

    Raises:
        ListenError: the address is taken or is not ours, or no thread is left.
    """
    host = address.host or ("::" if socket.has_dualstack_ipv6() else "")
    kind = _TcpServer6 if ":" in host else _Server
    try:
        return WebServer(kind((host, address.port), answer), "web-tcp")
    except OSError as exc:
        raise ListenError(f"cannot listen on {address.host}:{address.port}: {exc.strerror}") from exc


def serve_unix(path: Path, answer: Answer) -> WebServer:
    """A server on a unix socket of mode 0600; what was left at `path` is replaced.

    Raises:
        ListenError: the path cannot be bound, or no thread is left.
    """
    try:
        path.unlink(missing_ok=True)
        server = _UnixServer(str(path), answer)
    except OSError as exc:
        raise ListenError(f"cannot listen on {path}: {exc.strerror or exc}") from exc
    # The directory is 0700, so nobody else can come in between bind and chmod.
    os.chmod(path, 0o600)  # noqa: PTH101 (a socket, not a file to open)
    return WebServer(server, "web-control", str(path))
