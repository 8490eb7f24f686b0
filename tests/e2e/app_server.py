"""Applications behind the sidecars: `python -m tests.e2e.app_server KIND PORT NAME [ADDRESS]`.

KIND is tcp, http, http2 or grpc. Each says its NAME; tcp and http take large bodies, answering with their
hash, and give large bodies. Nothing here is TLS: that is the sidecars' work.
"""

from __future__ import annotations

import hashlib
import json
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase

from tests.e2e.payload import BLOCK, chunks

RELAY_S = 3.0


def read_digest(stream: BufferedIOBase, size: int) -> str:
    """SHA-256 in hex of the next `size` bytes of the stream, or of what came before it ended."""
    total = hashlib.sha256()
    while size > 0 and (piece := stream.read(min(size, BLOCK))):
        total.update(piece)
        size -= len(piece)
    return total.hexdigest()


class TcpApp(socketserver.StreamRequestHandler):
    """One command a line: `WHO`, `PUT n` and n bytes, `GET n`, `ECHO` until the end.

    `RELAY port` gives, after RELAY_S seconds, what an http application there says.
    """

    disable_nagle_algorithm = True

    def __init__(self, name: str, *args: object) -> None:
        self.name = name
        super().__init__(*args)  # type: ignore[arg-type]  # socketserver's own three arguments, passed on

    def handle(self) -> None:
        for line in self.rfile:
            words = line.split()
            if words[0] == b"WHO":
                self._say(self.name)
            elif words[0] == b"PUT":
                self._say(read_digest(self.rfile, int(words[1])))
            elif words[0] == b"GET":
                self._send(chunks(int(words[1])))
            elif words[0] == b"RELAY":
                self._say(_relayed(int(words[1])))
            elif words[0] == b"ECHO":
                self._echo()

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\n".encode())

    def _send(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            self.wfile.write(piece)

    def _echo(self) -> None:
        while data := self.request.recv(BLOCK):
            self.wfile.write(data)


class HttpApp(BaseHTTPRequestHandler):
    """GET /who, /headers, /seen, /bytes/N, /slow/SECONDS; PUT anything gives the body's hash. Keeps alive.

    /relay/PORT gives, after RELAY_S seconds, who this is and what another application there says. /held says how many
    of these and of /slow are being answered.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    seen = 0
    held = 0
    _lock = threading.Lock()

    def __init__(self, name: str, *args: object) -> None:
        self.name = name
        super().__init__(*args)  # type: ignore[arg-type]  # socketserver's own three arguments, passed on

    def do_GET(self) -> None:
        with HttpApp._lock:
            HttpApp.seen += 1
        kind, _, value = self.path.strip("/").partition("/")
        if kind == "bytes":
            self._begin(int(value))
            for piece in chunks(int(value)):
                self.wfile.write(piece)
            return
        if kind in ("slow", "relay"):
            with self._holding():
                text = self._later(kind, value)
            self._answer(text)
            return
        told = {"headers": json.dumps(dict(self.headers)), "seen": str(HttpApp.seen), "held": str(HttpApp.held)}
        self._answer(told.get(kind, self.name))

    def _later(self, kind: str, value: str) -> str:
        if kind == "relay":
            return f"{self.name}: {_relayed(int(value))}"
        time.sleep(float(value))
        return self.name

    @contextmanager
    def _holding(self) -> Iterator[None]:
        with HttpApp._lock:
            HttpApp.held += 1
        try:
            yield
        finally:
            with HttpApp._lock:
                HttpApp.held -= 1

    def do_PUT(self) -> None:
        self._answer(read_digest(self.rfile, int(self.headers["Content-Length"])))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is http.server's
        """Nothing: the sidecars are under test."""

    def _answer(self, text: str) -> None:
        body = f"{text}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-App", self.name)
        # One write for head and body: two would wait for each other (Nagle).
        self._headers_buffer.append(b"\r\n" + body)  # type: ignore[attr-defined]  # not in the stubs
        self.flush_headers()

    def _begin(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()


def _relayed(port: int) -> str:
    time.sleep(RELAY_S)
    try:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/who")
        return connection.getresponse().read().decode().strip()
    except OSError as exc:
        return f"no upstream: {exc}"


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 2048

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: clients go away in the middle on purpose."""


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 2048

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: clients go away in the middle on purpose."""


def _serve_tcp(address: str, port: int, name: str) -> None:
    _Server((address, port), partial(TcpApp, name)).serve_forever()


def _serve_http(address: str, port: int, name: str) -> None:
    _HttpServer((address, port), partial(HttpApp, name)).serve_forever()


def _serve_http2(address: str, port: int, name: str) -> None:
    from tests.e2e.http2 import Http2App

    _Server((address, port), partial(Http2App, name)).serve_forever()


def _serve_grpc(address: str, port: int, name: str) -> None:
    from tests.e2e.grpc_peer import serve

    serve(address, port, name)


SERVERS: dict[str, Callable[[str, int, str], None]] = {
    "tcp": _serve_tcp,
    "http": _serve_http,
    "http2": _serve_http2,
    "grpc": _serve_grpc,
}


def main(kind: str, port: str, name: str, address: str = "127.0.0.1") -> None:
    """Serve until ended."""
    SERVERS[kind](address, int(port), name)


if __name__ == "__main__":
    main(*sys.argv[1:])
