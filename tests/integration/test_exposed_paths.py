"""Paths that a registration exposes (`Proxy.Expose.Paths`), on every HAProxy that is served."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived, ResponseReceived

from hcc.mesh.snapshot import ExposedPath
from hcc.settings import Enforcement
from tests.binaries import HAPROXY_BRANCHES
from tests.builders import proxy, snapshot
from tests.haproxy_stage import DEADLINE_S, Server, Stage, read_http, stage
from tests.integration.test_both_sides import Http2End
from tests.ports import free_port, free_ports

pytestmark = pytest.mark.integration
CLAIMS = ("X-Forwarded-Client-Cert: By=me;URI=spiffe://x/svc/admin", "X-App: admin")


@dataclass
class Exposing:
    """A sidecar that exposes paths of two applications at one port, and `/metrics` at another."""

    stage: Stage
    port: int
    metrics: int

    def ask(self, target: str, *headers: str, port: int = 0, method: str = "GET") -> tuple[int, str]:
        head = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: t", *headers, "Connection: close", "", ""])
        with socket.create_connection(("127.0.0.1", port or self.port), timeout=DEADLINE_S) as client:
            client.sendall(head.encode())
            return read_http(client)


@pytest.fixture(params=HAPROXY_BRANCHES)
def exposing(request: pytest.FixtureRequest) -> Iterator[Exposing]:
    with stage(request.param) as made:
        app, other = made.app("app", http=True), made.app("other", http=True)
        public, port, metrics = free_ports(3)
        paths = (
            ExposedPath("/health", port, app.port),
            ExposedPath("/it's", port, app.port),
            ExposedPath("/other", port, other.port),
            ExposedPath("/metrics", metrics, other.port),
        )
        ours = proxy(bind_port=public, local_port=app.port, appname_header="X-App", exposed=paths)
        made.converge(made.rendered(snapshot(proxy_=ours), intentions=Enforcement.ENFORCE))
        yield Exposing(made, port, metrics)


def test_an_exposed_path_is_answered_without_a_certificate(exposing: Exposing) -> None:
    status, text = exposing.ask("/health?full=1")
    assert (status, text.splitlines()[:2]) == (200, ["app", "GET /health?full=1 HTTP/1.1"])
    assert exposing.ask("/it's")[0] == 200
    assert exposing.ask("/other")[1].startswith("other\n")
    assert exposing.ask("/metrics", port=exposing.metrics)[1].startswith("other\n")


@pytest.mark.parametrize(
    "target",
    ["/", "/healt", "/health/", "/health/x", "//health", "/HEALTH", "/%68ealth", "/x/../health", "/metrics", "/it%27s"],
)
def test_nothing_else_is(exposing: Exposing, target: str) -> None:
    assert exposing.ask(target)[0] == 404
    assert exposing.ask("/health", port=exposing.metrics)[0] == 404


def test_nobody_says_there_who_calls(exposing: Exposing) -> None:
    _, text = exposing.ask("/health", *CLAIMS, "X-Kept: 1")
    assert "x-kept: 1" in text.lower()
    assert "admin" not in text


@pytest.mark.parametrize("target", ["t:80", "/health"])
def test_no_tunnel_begins_there(exposing: Exposing, target: str) -> None:
    assert exposing.ask(target, method="CONNECT")[0] in (400, 405)


def test_no_clear_text_http2_tunnel_begins_there(exposing: Exposing) -> None:
    _, text = exposing.ask("/health", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    assert "h2c" not in text


def test_no_http2_is_spoken_where_no_application_speaks_it(exposing: Exposing) -> None:
    with socket.create_connection(("127.0.0.1", exposing.port), timeout=DEADLINE_S) as client:
        # RFC 9113 section 3.4, and a SETTINGS frame without settings.
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")
        assert client.recv(100).startswith(b"HTTP/1.1 40")


class Http2App(Server):
    """Answers each request with 200 and an end."""

    def talk(self, connection: socket.socket) -> None:
        end = Http2End(connection, H2Connection(H2Configuration(client_side=False)))
        while data := connection.recv(65536):
            for event in end.h2.receive_data(data):
                if isinstance(event, RequestReceived):
                    end.h2.send_headers(event.stream_id, [(":status", "200")], end_stream=True)
            end.flush()


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_one_of_http2_is_asked_for_and_answered_in_http2(branch: str) -> None:
    app, port = Http2App("pages"), free_port()
    try:
        with stage(branch) as made:
            exposed = (ExposedPath("/health", port, app.port, h2=True),)
            made.converge(made.rendered(snapshot(proxy_=proxy(local_port=0, exposed=exposed))))
            client = Http2End(
                socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S),
                H2Connection(H2Configuration(client_side=True)),
            )
            asked = [client.ask(path) for path in ("/health", "/other")]
            client.wait(ResponseReceived, *asked)
            answers = [event for event in client.events if isinstance(event, ResponseReceived)]
            found = {one.stream_id: dict(one.headers)[b":status"] for one in answers}
            assert [found[stream] for stream in asked] == [b"200", b"404"]
            client.sock.close()
    finally:
        app.close()


def test_a_request_for_one_is_logged(tmp_path: Path) -> None:
    log, port = tmp_path / "log.sock", free_port()
    with stage("2.8") as made, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(log))
        syslog.settimeout(DEADLINE_S)
        app = made.app(http=True)
        exposed = (ExposedPath("/health", port, app.port),)
        made.converge(made.rendered(snapshot(proxy_=proxy(local_port=0, exposed=exposed)), access_log=str(log)))
        Exposing(made, port, port).ask("/health")
        text = next(line for line in iter(lambda: syslog.recv(65536).decode(), "") if "{" in line)
        found = json.loads(text[text.index("{") :])
    assert (found["direction"], found["path"], found["status"]) == ("exposed", "/health", 200)
