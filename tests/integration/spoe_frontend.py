"""A real HAProxy with a public mTLS listener that asks our SPOE workers, for tests."""

from __future__ import annotations

import http.client
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hcc.spoe.events import PoolEvent
from hcc.spoe.pool import WorkerPool
from tests.spoe_certificates import Authority, Leaf
from tests.spop_frames import ARGUMENTS

GREETING = b"hello from the app\n"
# Long, as a worker may wait for a core.
PROCESSING_TIMEOUT_MS = 5_000

_CONFIG = """
global
  nbthread {threads}
defaults
  mode {mode}
  timeout client 10s
  timeout server 10s
  timeout connect 2s
  timeout http-request 10s
frontend public
  bind fd@{fd} ssl crt {directory}/server.pem ca-file {directory}/roots.pem verify required
  filter spoe engine hcc config {directory}/spoe.cfg
  {rule}
  default_backend app
backend app
  server app 127.0.0.1:{app_port}
backend spoe_agents
  mode tcp
  timeout server 5m
  timeout connect 1s
  option spop-check
{servers}
"""

_SPOE_CONFIG = """
[hcc]
spoe-agent agent
  messages caller
  option var-prefix hcc
  option set-on-error error
  timeout hello {processing_ms}ms
  timeout idle 5m
  timeout processing {processing_ms}ms
  use-backend spoe_agents
spoe-message caller
  args {arguments}
  event on-frontend-{mode}-request
"""

_RULES = {
    "tcp": "tcp-request content reject unless {{ var(txn.hcc.allowed) -m bool }}",
    "http": "http-request deny deny_status 403 unless {{ var(txn.hcc.allowed) -m bool }}",
}


class _App(socketserver.StreamRequestHandler):
    """Answers http when it is spoken to in http, else greets and echoes."""

    def handle(self) -> None:
        mode = self.server.mode  # type: ignore[attr-defined]  # set by running_app
        with suppress(ConnectionError):
            if mode == "tcp":
                self.wfile.write(GREETING)
                while line := self.rfile.readline():
                    self.wfile.write(line)
            else:
                self._answer_http()

    def _answer_http(self) -> None:
        while self.rfile.readline():
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(GREETING) + GREETING)


class _AppServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@contextmanager
def running_app(mode: str) -> Iterator[int]:
    """The port of an application behind HAProxy."""
    with _AppServer(("127.0.0.1", 0), _App) as server:
        server.mode = mode  # type: ignore[attr-defined]  # read by _App
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


class Frontend:
    """The public listener: `ask` comes in with a certificate and tells what happened."""

    def __init__(self, mode: str, port: int, authority: Authority, directory: Path) -> None:
        self.mode = mode
        self.port = port
        self._authority = authority
        self._directory = directory

    def context(self, leaf: Leaf | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(self._directory / "roots.pem")
        if leaf is not None:
            context.load_cert_chain(leaf.write_pem(self._directory / "client.pem"))
        return context

    def ask(self, leaf: Leaf | None) -> str:
        """`allowed`, `denied` (closed, or 403), or what else came."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain:
                return self.ask_on(plain, self.context(leaf))
        except (ConnectionError, ssl.SSLEOFError):
            return "denied"

    def ask_on(self, plain: socket.socket, context: ssl.SSLContext) -> str:
        with context.wrap_socket(plain, server_hostname="localhost") as tls:
            if self.mode == "http":
                return "/".join(http_answers(tls, 1))
            received = tls.recv(100)
        return {GREETING: "allowed", b"": "denied"}.get(received, repr(received))


def http_answers(tls: ssl.SSLSocket, requests: int) -> list[str]:
    """The answers to so many requests on one connection."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = tls
    answers = []
    for _ in range(requests):
        connection.request("GET", "/")
        response = connection.getresponse()
        body = response.read()
        answers.append(
            {(200, GREETING): "allowed", (403, body): "denied"}.get((response.status, body), str(response.status))
        )
    return answers


@contextmanager
def running_frontend(
    binary: str,
    mode: str,
    directory: Path,
    authority: Authority,
    sockets: tuple[str, ...],
    threads: int = 1,
    processing_ms: int = PROCESSING_TIMEOUT_MS,
) -> Iterator[Frontend]:
    """HAProxy in front of an application, asking the agents at these sockets."""
    directory.mkdir()
    authority.service("server").write_pem(directory / "server.pem")
    authority.write_pem(directory / "roots.pem")
    lines = [f"  server w{number} unix@{path} check inter 1s pool-low-conn 64" for number, path in enumerate(sockets)]
    spoe = _SPOE_CONFIG.format(mode=mode, processing_ms=processing_ms, arguments=ARGUMENTS)
    (directory / "spoe.cfg").write_text(spoe)
    with running_app(mode) as app_port, socket.create_server(("127.0.0.1", 0)) as listener:
        config = _CONFIG.format(
            mode=mode,
            threads=threads,
            fd=listener.fileno(),
            directory=directory,
            rule=_RULES[mode].format(),
            app_port=app_port,
            servers="\n".join(lines),
        )
        (directory / "haproxy.cfg").write_text(config)
        with _running_haproxy(binary, directory, listener.fileno()):
            yield Frontend(mode, listener.getsockname()[1], authority, directory)


@contextmanager
def _running_haproxy(binary: str, directory: Path, fd: int) -> Iterator[None]:
    log = directory / "haproxy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binary, "-db", "-f", str(directory / "haproxy.cfg")], stdout=output, stderr=output, pass_fds=(fd,)
        )
    try:
        yield
        assert process.poll() is None, f"HAProxy has ended:\n{log.read_text()}"
    finally:
        process.kill()
        process.wait()


def wait_for(what: str, true: Callable[[], Any], seconds: float = 10.0) -> None:
    """Return as soon as it is true; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.02)


def events_until(
    pool: WorkerPool,
    enough: Callable[[list[PoolEvent]], bool],
    seen: list[PoolEvent] | None = None,
    seconds: float = 10.0,
) -> list[PoolEvent]:
    """The pool's events, polled until they are enough; fails after so many seconds."""
    seen = [] if seen is None else seen
    deadline = time.monotonic() + seconds
    while not enough(seen):
        assert time.monotonic() < deadline, f"not in {seconds} s; seen: {seen}"
        seen += pool.poll(0.1)
    return seen
