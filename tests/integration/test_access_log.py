"""HAProxy's access log on every version that is served: one JSON object for each connection or request."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from hcc.haproxy.capabilities import Feature
from hcc.mesh.snapshot import Endpoint, Protocol
from hcc.settings import Enforcement
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.haproxy_examples import examples
from tests.haproxy_stage import DEADLINE_S, Server, Stage, greeting, http_answer, stage
from tests.ports import free_port

pytestmark = pytest.mark.integration


# The oldest, the one that most have, the newest.
@pytest.fixture(params=("2.2", "2.8", "3.4"))
def there(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage(request.param) as made:
        yield made


class Syslog:
    """A syslog socket that a test reads."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.settimeout(DEADLINE_S)

    def close(self) -> None:
        self._socket.close()

    def line(self) -> dict[str, Any]:
        """The next line about us; HAProxy's own notices, which are no JSON, are passed over."""
        while True:
            text = self._socket.recv(65536).decode()
            if "{" in text:
                found: dict[str, Any] = json.loads(text[text.index("{") :])
                return found


@pytest.fixture
def syslog(there: Stage) -> Iterator[Syslog]:
    made = Syslog(f"{there.directory}/syslog.sock")
    yield made
    made.close()


def at(server: Server) -> Endpoint:
    return endpoint("127.0.0.1", server.port)


def test_calls_through_upstreams_are_logged_with_their_names(there: Stage, syslog: Syslog) -> None:
    plain, web = there.peer("plain"), there.peer("web", http=True)
    tcp_port, http_port = free_port(), free_port()
    states = (
        upstream_state(upstream("db", tcp_port, datacenter="dc2"), [at(plain)]),
        upstream_state(upstream('we"i\\rd', http_port), [at(web)], protocol="http"),
    )
    there.converge(there.rendered(snapshot(*states, proxy_=proxy(local_port=0)), access_log=syslog.path))

    assert greeting(tcp_port) == "plain"
    tcp = syslog.line()
    assert (tcp["direction"], tcp["upstream"], tcp["instance"]) == ("out", "db.dc2", f"127.0.0.1:{plain.port}")
    assert tcp["bytes_out"] == len("plain\n")
    assert tcp["time"] > 1_700_000_000

    assert http_answer(http_port)[0] == 200
    http = syslog.line()
    assert http["upstream"] == "we::22i::5Crd"
    assert (http["method"], http["path"], http["status"]) == ("GET", "/", 200)


def test_a_path_cannot_break_the_line_and_its_query_is_not_logged(there: Stage, syslog: Syslog) -> None:
    web, port = there.peer("web", http=True), free_port()
    state = upstream_state(upstream("web", port), [at(web)], protocol="http")
    there.converge(there.rendered(snapshot(state, proxy_=proxy(local_port=0)), access_log=syslog.path))
    request = f'GET /a"b%0A\\{"x" * 3000}?token=s3cret HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n'

    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        client.sendall(request.encode())
        while client.recv(65536):
            pass

    line = syslog.line()
    assert line["path"].startswith('/a"b%0A\\xxx')
    assert len(line["path"]) <= 1024
    assert "s3cret" not in str(line)


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.HTTP])
def test_callers_are_logged_and_so_is_a_handshake_that_fails(there: Stage, syslog: Syslog, protocol: Protocol) -> None:
    app, public = there.app(http=protocol.is_http), free_port()
    ours = proxy(protocol=protocol, bind_address="127.0.0.1", bind_port=public, local_port=app.port)
    there.converge(there.rendered(snapshot(proxy_=ours), access_log=syslog.path))
    context = there.context(ssl.PROTOCOL_TLS_CLIENT, there.leaf)

    with (
        socket.create_connection(("127.0.0.1", public), timeout=DEADLINE_S) as raw,
        context.wrap_socket(raw) as client,
    ):
        client.sendall(b"GET /who HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
        assert client.recv(100)

    line = syslog.line()
    # Who called is the authoriser's answer; without intentions nobody asks it.
    assert (line["direction"], line["caller"]) == ("in", "-")
    assert line.get("status", 200) == 200
    if protocol.is_http:
        # No tunnel, also where nobody is asked about callers.
        with (
            socket.create_connection(("127.0.0.1", public), timeout=DEADLINE_S) as raw,
            context.wrap_socket(raw) as client,
        ):
            client.sendall(b"CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 405 ")
        refused = syslog.line()
        assert (refused["direction"], refused["method"], refused["status"]) == ("in", "CONNECT", 405)
    if there.capabilities.has(Feature.ERROR_LOG_FORMAT):
        nobody = there.context(ssl.PROTOCOL_TLS_CLIENT, None)
        with (
            pytest.raises(OSError, match=r"(?i)certificate required"),
            socket.create_connection(("127.0.0.1", public), timeout=DEADLINE_S) as raw,
            nobody.wrap_socket(raw) as client,
        ):
            client.recv(1)
        assert "SSL" in syslog.line()["error"]


@pytest.mark.parametrize("target", ["stdout", "/dev/log", "127.0.0.1:514", "[::1]:514"])
def test_haproxy_accepts_each_target_without_a_warning(there: Stage, target: str) -> None:
    applied = there.control.apply(
        there.plan(there.rendered(examples()["http2"], intentions=Enforcement.ENFORCE, access_log=target))
    )
    assert applied.failure is None
    said = subprocess.run(
        [there.binary, "-c", "-f", there.layout.config], capture_output=True, text=True, check=True, timeout=30
    )
    assert "WARNING" not in said.stderr + said.stdout
