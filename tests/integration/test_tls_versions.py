"""TLS as the mesh entry says, on real HAProxys: which versions and cipher suites, from whom and to whom."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress

import pytest

from hcc.mesh.tls import LEFT_TO_PROXIES, MeshTls, TlsLimits, TlsVersion
from tests.binaries import HAPROXY_BRANCHES
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.haproxy_stage import Server, Stage, greeting, stage
from tests.pki import service_uri
from tests.ports import free_port

pytestmark = pytest.mark.integration

CHACHA = TlsLimits(ciphers=("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",))


class Telling(Server):
    """Greets with the version of TLS."""

    def talk(self, connection: socket.socket) -> None:
        assert isinstance(connection, ssl.SSLSocket)
        connection.sendall(f"{connection.version()}\n".encode())


@pytest.fixture(params=HAPROXY_BRANCHES)
def made(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage(request.param) as running:
        yield running


def answered(made: Stage, tls: MeshTls, highest: ssl.TLSVersion) -> tuple[str, str]:
    """Version and cipher suite that a caller gets who speaks no newer than this; empty when refused."""
    port, app = free_port(), made.app()
    made.converge(made.rendered(snapshot(proxy_=proxy(bind_port=port, local_port=app.port), tls=tls)))
    context = made.context(ssl.PROTOCOL_TLS_CLIENT, made.authority.leaf(service_uri("web")))
    context.maximum_version = highest
    with (
        suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        context.wrap_socket(raw) as connection,
    ):
        cipher = connection.cipher()
        assert connection.recv(100)
        return str(connection.version()), cipher[0] if cipher else ""
    return "", ""


def test_callers_get_what_both_speak_and_no_older_than_the_mesh_entry_says(made: Stage) -> None:
    newest = MeshTls(incoming=TlsLimits(min_version=TlsVersion.TLS_1_3))
    assert answered(made, LEFT_TO_PROXIES, ssl.TLSVersion.TLSv1_3)[0] == "TLSv1.3"
    assert answered(made, LEFT_TO_PROXIES, ssl.TLSVersion.TLSv1_2)[0] == "TLSv1.2"
    assert answered(made, newest, ssl.TLSVersion.TLSv1_3)[0] == "TLSv1.3"
    assert answered(made, newest, ssl.TLSVersion.TLSv1_2)[0] == ""
    chosen = answered(made, MeshTls(incoming=CHACHA), ssl.TLSVersion.TLSv1_2)
    assert chosen == ("TLSv1.2", "ECDHE-ECDSA-CHACHA20-POLY1305")


def test_upstreams_get_the_same(made: Stage) -> None:
    peer, port = made.peer("any", kind=Telling), free_port()
    older = MeshTls(outgoing=TlsLimits(max_version=TlsVersion.TLS_1_2, ciphers=CHACHA.ciphers))
    for tls, expected in ((LEFT_TO_PROXIES, "TLSv1.3"), (older, "TLSv1.2")):
        # First without servers: they are created at run time then, where that is possible.
        for endpoints in ((), (endpoint("127.0.0.1", port=peer.port),)):
            state = upstream_state(upstream(port=port), endpoints)
            made.converge(made.rendered(snapshot(state, proxy_=proxy(local_port=0), tls=tls)))
        assert greeting(port) == expected
