"""What an application does through its sidecar: HTTP and TCP requests from inside a namespace."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, RemoteDisconnected

from tests.e2e.http2 import Http2Client
from tests.e2e.load import Client
from tests.e2e.namespaces import Namespace
from tests.e2e.payload import BLOCK, chunks
from tests.e2e.processes import ROOT


@dataclass(frozen=True)
class Reply:
    """Status and text of one HTTP answer."""

    status: int
    text: str


def http_get(namespace: Namespace, port: int, path: str = "/who", host: str = "127.0.0.1") -> Reply:
    """One request on a connection of its own."""
    connection = namespace.http(port, host)
    try:
        return kept_get(connection, path)
    finally:
        connection.close()


def kept_get(connection: HTTPConnection, path: str = "/who") -> Reply:
    """One request on a connection that stays open."""
    connection.request("GET", path)
    response = connection.getresponse()
    return Reply(response.status, response.read().decode().strip())


def http_put(namespace: Namespace, port: int, size: int) -> Reply:
    """The answer to a body of `size` bytes: its hash."""
    connection = namespace.http(port, timeout_s=60)
    try:
        connection.request("PUT", "/sum", chunks(size), {"Content-Length": str(size)})
        response = connection.getresponse()
        return Reply(response.status, response.read().decode().strip())
    finally:
        connection.close()


def http_digest(namespace: Namespace, port: int, size: int) -> str:
    """SHA-256 of the `size` bytes that the application gives."""
    connection = namespace.http(port, timeout_s=60)
    try:
        connection.request("GET", f"/bytes/{size}")
        response = connection.getresponse()
        total = hashlib.sha256()
        while piece := response.read(BLOCK):
            total.update(piece)
        return total.hexdigest()
    finally:
        connection.close()


def tcp_ask(namespace: Namespace, port: int, question: str = "WHO", host: str = "127.0.0.1") -> str:
    """The line that answers one line; ConnectionError when the connection ends before it."""
    with namespace.connect(host, port) as sock:
        sock.sendall(f"{question}\n".encode())
        return read_line(sock)


def read_line(sock: socket.socket) -> str:
    """The next line; ConnectionError when the connection ends before it."""
    line = b""
    while not line.endswith(b"\n"):
        data = sock.recv(4096)
        if not data:
            raise ConnectionError(f"closed without an answer (after {line!r})")
        line += data
    return line.decode().strip()


def tcp_put(namespace: Namespace, port: int, size: int) -> str:
    """The hash of `size` bytes as the application computed it."""
    with namespace.connect("127.0.0.1", port, timeout_s=60) as sock:
        sock.sendall(f"PUT {size}\n".encode())
        for piece in chunks(size):
            sock.sendall(piece)
        return read_line(sock)


def tcp_digest(namespace: Namespace, port: int, size: int) -> str:
    """SHA-256 of the `size` bytes that the application gives."""
    total, left = hashlib.sha256(), size
    with namespace.connect("127.0.0.1", port, timeout_s=60) as sock:
        sock.sendall(f"GET {size}\n".encode())
        while left and (piece := sock.recv(min(left, BLOCK))):
            total.update(piece)
            left -= len(piece)
    return total.hexdigest()


@contextlib.contextmanager
def http2_client(namespace: Namespace, port: int) -> Iterator[Http2Client]:
    """A clear-text HTTP/2 connection with prior knowledge."""
    client = Http2Client(namespace.connect("127.0.0.1", port), f"127.0.0.1:{port}")
    try:
        yield client
    finally:
        client.close()


def grpc_call(namespace: Namespace, port: int, text: str) -> dict[str, str | int]:
    """What a gRPC client in the namespace got (see grpc_peer)."""
    command = namespace.command(sys.executable, "-m", "tests.e2e.grpc_peer", f"127.0.0.1:{port}", text)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"grpc client: exit {done.returncode}: {done.stderr}"
    result: dict[str, str | int] = json.loads(done.stdout)
    return result


def is_answered(namespace: Namespace, port: int, kind: str) -> bool:
    """Whether an application of that kind answers through the port; OSError may say no, too."""
    if kind == "tcp":
        return bool(tcp_ask(namespace, port))
    if kind == "grpc":
        return "who" in grpc_call(namespace, port, "anybody")
    if kind == "http":
        return http_get(namespace, port).status == 200
    with http2_client(namespace, port) as client:
        return client.get("/")[0].status == 200


def is_refused(request: Callable[[], object]) -> bool:
    """Whether a tcp request ended without an answer; a time-out is no refusal."""
    try:
        request()
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return False


def fresh_requests(namespace: Namespace, port: int, *expected: str) -> Client:
    """For Load: every http request on a new connection, answered by one of the expected instances."""

    def request() -> None:
        reply = http_get(namespace, port)
        assert reply.status == 200, f"{reply.status} {reply.text}"
        assert reply.text in expected, reply.text

    return lambda: contextlib.nullcontext(request)


def kept_requests(namespace: Namespace, port: int, *expected: str) -> Client:
    """For Load: http requests on one kept connection per client.

    A connection that the proxy closed while idle is opened anew, once, as every HTTP client does for requests
    that may be repeated (RFC 9110, 9.2.2).
    """

    @contextlib.contextmanager
    def client() -> Iterator[Callable[[], None]]:
        with contextlib.closing(namespace.http(port)) as connection:
            yield lambda: _kept_request(connection, expected)

    return client


def tcp_requests(namespace: Namespace, port: int, *expected: str) -> Client:
    """For Load: every tcp question on a new connection."""

    def request() -> None:
        answer = tcp_ask(namespace, port)
        assert answer in expected, answer

    return lambda: contextlib.nullcontext(request)


def _kept_request(connection: HTTPConnection, expected: tuple[str, ...]) -> None:
    reused = connection.sock is not None
    try:
        try:
            reply = kept_get(connection)
        except (RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            connection.close()
            if not reused:
                raise
            reply = kept_get(connection)
    except (OSError, HTTPException):
        # Its state is of no use any more.
        connection.close()
        raise
    assert reply.status == 200, f"{reply.status} {reply.text}"
    assert reply.text in expected, reply.text
