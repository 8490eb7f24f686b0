"""What applications see when all is well: every protocol, large bodies, many connections, odd settings."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pytest

from tests.e2e.clients import (
    grpc_call,
    http2_client,
    http_digest,
    http_get,
    http_put,
    is_refused,
    kept_get,
    read_line,
    tcp_ask,
    tcp_digest,
    tcp_put,
)
from tests.e2e.mesh import Mesh, Service, upstream
from tests.e2e.namespaces import Namespace
from tests.e2e.payload import digest
from tests.e2e.sidecar import Sidecar
from tests.e2e.standing import (
    ABROAD_PORT,
    DB_PORT,
    GHOST_HTTP_PORT,
    GHOST_TCP_PORT,
    H2_PORT,
    RPC_PORT,
    WEB_PORT,
    Standing,
)
from tests.e2e.versions import on_2_6, on_2_8
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
LARGE = 100_000_000


def test_a_tcp_service_answers_through_both_sidecars(standing: Standing) -> None:
    assert tcp_ask(standing.client, DB_PORT) == "db"


def test_an_http_service_answers_through_both_sidecars(standing: Standing) -> None:
    assert http_get(standing.client, WEB_PORT).text == "web"


def test_an_http_connection_is_kept_alive_through_both_sidecars(standing: Standing) -> None:
    connection = standing.client.http(WEB_PORT)
    try:
        assert kept_get(connection).text == "web"
        first = connection.sock
        assert [kept_get(connection).status for _ in range(20)] == [200] * 20
        assert connection.sock is first
    finally:
        connection.close()


def test_http2_streams_share_one_connection_through_both_sidecars(standing: Standing) -> None:
    with http2_client(standing.client, H2_PORT) as client:
        answers = client.get(*(f"/{number}" for number in range(20)))
        assert {(answer.status, answer.body) for answer in answers} == {(200, b"pages\n")}
        assert client.put("/sum", b"x" * 10_000).status == 200


def test_grpc_calls_streams_and_trailers_pass_both_sidecars(standing: Standing) -> None:
    assert grpc_call(standing.client, RPC_PORT, "hi") == {"who": "rpc hi", "count": 100, "trailer": "rpc"}


def test_the_application_learns_who_calls_and_a_forged_name_does_not_pass(standing: Standing) -> None:
    connection = standing.client.http(WEB_PORT)
    try:
        connection.request("GET", "/headers", headers={"X-Caller": "admin"})
        sent = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    headers = {name.lower(): value for name, value in sent.items()}
    assert headers["x-caller"] == "caller"
    assert headers["x-forwarded-for"]


def test_100_mb_pass_a_tcp_service_both_ways_unharmed(standing: Standing) -> None:
    assert tcp_put(standing.client, DB_PORT, LARGE) == digest(LARGE)
    assert tcp_digest(standing.client, DB_PORT, LARGE) == digest(LARGE)


def test_100_mb_pass_an_http_service_both_ways_unharmed(standing: Standing) -> None:
    assert http_put(standing.client, WEB_PORT, LARGE).text == digest(LARGE)
    assert http_digest(standing.client, WEB_PORT, LARGE) == digest(LARGE)


def test_500_tcp_connections_are_open_at_once(standing: Standing) -> None:
    with ExitStack() as stack:
        socks = [stack.enter_context(standing.client.connect("127.0.0.1", DB_PORT, 30)) for _ in range(500)]
        for sock in socks:
            sock.sendall(b"WHO\n")
        assert {read_line(sock) for sock in socks} == {"db"}
        for sock in socks:
            sock.sendall(b"WHO\n")
        assert [read_line(sock) for sock in socks] == ["db"] * 500


def test_500_http_requests_at_once_are_all_answered(standing: Standing) -> None:
    gate = threading.Barrier(50)

    def ten_requests(_: int) -> list[int]:
        gate.wait(20)
        return [http_get(standing.client, WEB_PORT).status for _ in range(10)]

    with ThreadPoolExecutor(50) as pool:
        statuses = [status for some in pool.map(ten_requests, range(50)) for status in some]
    assert statuses == [200] * 500


def test_an_http_upstream_without_instances_says_so_and_holds_up_nothing(standing: Standing) -> None:
    reply = http_get(standing.client, GHOST_HTTP_PORT)
    assert (reply.status, reply.text) == (503, "no healthy upstream")
    assert http_get(standing.client, WEB_PORT).status == 200


def test_a_tcp_upstream_without_instances_is_closed_and_holds_up_nothing(standing: Standing) -> None:
    assert is_refused(lambda: tcp_ask(standing.client, GHOST_TCP_PORT))
    assert tcp_ask(standing.client, DB_PORT) == "db"


def test_one_name_in_two_datacenters_is_two_upstreams(standing: Standing) -> None:
    assert tcp_ask(standing.client, DB_PORT) == "db"
    assert is_refused(lambda: tcp_ask(standing.client, ABROAD_PORT))
    assert standing.client.listening(ABROAD_PORT)


@on_2_6
def test_names_with_dots_underscores_and_capitals_work_everywhere(mesh: Mesh) -> None:
    name = "My_Svc.with-Dots"
    caller = Service("Caller_B.x", host="b", id="Caller_B.x-1", upstreams=(upstream(name, 9201),))
    service, client = mesh.join(Service(name, "http", id=f"{name}_7"), caller)
    assert http_get(client.namespace, 9201).text == f"{name}_7"
    mesh.intend("Caller_B.x", name, "deny")
    wait_until("the refusal", lambda: http_get(client.namespace, 9201).status == 403)
    assert service.sidecar.ready()[0] == 200


@on_2_6
def test_a_bad_value_in_config_is_warned_about_and_the_default_used(mesh: Mesh) -> None:
    config = {
        "local_connect_timeout_ms": "soon",
        "max_inbound_connections": "many",
        "protocol": "carrier-pigeon",
        "appname_header": "two words",
    }
    bad = upstream("odd", 9202, Config={"connect_timeout_ms": [], "limits": {"max_connections": "lots"}})
    service, client = mesh.join(Service("odd", config=config), Service("odd-caller", host="b", upstreams=(bad,)))
    assert tcp_ask(client.namespace, 9202) == "odd"
    for key in ("local_connect_timeout_ms", "max_inbound_connections", "carrier-pigeon", "appname_header"):
        wait_until(f"a warning about {key}", partial(_warned, service.sidecar, key))
    for key in ("connect_timeout_ms", "max_connections"):
        wait_until(f"a warning about {key}", partial(_warned, client.sidecar, key))


@on_2_8
def test_the_second_upstream_on_one_port_is_reported_and_the_first_works(mesh: Mesh) -> None:
    # Consul refuses one address and port twice, but not one port of which one address is a wildcard.
    wide = upstream("ghost-tcp", 9203, LocalBindAddress="0.0.0.0")
    twice = (upstream("first", 9203), wide, upstream("first", 9204, Datacenter="dc1"))
    client = mesh.join(Service("first"), Service("clash", host="b", upstreams=twice))[1]
    assert tcp_ask(client.namespace, 9203) == "first"
    assert tcp_ask(client.namespace, 9204) == "first"
    wait_until("the clash in the log", lambda: _warned(client.sidecar, "9203"))


@on_2_8
def test_an_upstream_on_the_public_port_is_reported_and_the_public_side_works(mesh: Mesh) -> None:
    service = mesh.join(Service("own", "http"))[0]
    port = service.public_port
    clashing = (upstream("own", port), upstream("own", 9205, Datacenter="dc1"))
    service.register(replace(service.service, upstreams=clashing))
    wait_until("the other upstream", lambda: http_get(service.namespace, 9205).text == "own")
    wait_until("the clash in the log", lambda: _warned(service.sidecar, str(port)))
    assert service.sidecar.ready()[0] == 200


@on_2_8
def test_exposed_paths_come_move_and_go_and_are_nobodys_but_the_registrations(mesh: Mesh) -> None:
    service, client = mesh.join(
        Service("open", "http"), Service("open-caller", host="b", upstreams=(upstream("open", 9208),))
    )
    mesh.intend("*", "open", "deny")

    def expose(*ports: int) -> None:
        paths = tuple({"Path": "/who", "ListenerPort": port, "LocalPathPort": service.app_port} for port in ports)
        service.register(replace(service.service, exposed=paths))

    def at(port: int, path: str = "/who") -> int:
        try:
            return http_get(service.namespace, port, path).status
        except ConnectionRefusedError:
            return 0

    expose(9301)
    wait_until("the path", lambda: at(9301) == 200)
    assert at(9301, "/headers") == 404
    wait_until("the refusal", lambda: http_get(client.namespace, 9208).status == 403)
    expose(9302, service.public_port)
    wait_until("the path at the other port alone", lambda: (at(9302), at(9301)) == (200, 0))
    wait_until("the clash in the log", lambda: _warned(service.sidecar, "exposed path /who"))
    expose()
    wait_until("no path", lambda: at(9302) == 0)
    assert service.sidecar.ready()[0] == 200


@on_2_6
def test_limits_of_connections_are_kept(mesh: Mesh) -> None:
    limited = upstream("narrow", 9206, Config={"limits": {"max_connections": 1}})
    client = mesh.join(Service("narrow"), Service("narrow-caller", host="b", upstreams=(limited,)))[1]
    with wait_until("a connection", lambda: _answered_connection(client.namespace, 9206)):
        assert is_refused(lambda: tcp_ask(client.namespace, 9206))
    wait_until("room again", lambda: tcp_ask(client.namespace, 9206) == "narrow")


@on_2_6
def test_inbound_connections_are_limited(mesh: Mesh) -> None:
    service = Service("shy", config={"max_inbound_connections": 1})
    client = mesh.join(service, Service("shy-caller", host="b", upstreams=(upstream("shy", 9207),)))[1]
    with wait_until("a connection", lambda: _answered_connection(client.namespace, 9207)):
        assert is_refused(lambda: tcp_ask(client.namespace, 9207))
    wait_until("room again", lambda: tcp_ask(client.namespace, 9207) == "shy")


def _answered_connection(namespace: Namespace, port: int) -> socket.socket:
    """A connection that got its answer and stays open; OSError when there is no room for it (yet)."""
    with ExitStack() as stack:
        sock = stack.enter_context(namespace.connect("127.0.0.1", port))
        sock.sendall(b"WHO\n")
        read_line(sock)
        stack.pop_all()
        return sock


def _warned(sidecar: Sidecar, text: str) -> bool:
    lines = sidecar.log_text().splitlines()
    return any(text in line for line in lines if '"level": "warning"' in line or '"level": "error"' in line)
