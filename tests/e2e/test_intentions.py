"""Who may come in: intentions of the mesh, and clients that are not of the mesh at all."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from tests.e2e.certificates import (
    answer,
    foreign_certificate,
    handshake,
    mesh_certificate,
    served_certificate,
)
from tests.e2e.clients import grpc_call, http2_client, http_get, is_refused, kept_get, tcp_ask
from tests.e2e.mesh import Member
from tests.e2e.standing import DB_PORT, H2_PORT, RPC_PORT, WEB_PORT, Standing
from tests.e2e.versions import on_2_8
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e


@contextmanager
def _denied(standing: Standing, destination: str, source: str = "caller") -> Iterator[None]:
    server = standing.site.server
    server.set_intention(source, destination, "deny")
    try:
        yield
    finally:
        server.remove_intention(source, destination)


def test_a_tcp_connection_follows_the_intention_both_ways(standing: Standing) -> None:
    assert tcp_ask(standing.client, DB_PORT) == "db"
    with _denied(standing, "db"):
        wait_until("tcp to be refused", lambda: is_refused(lambda: tcp_ask(standing.client, DB_PORT)))
        standing.site.server.set_intention("caller", "db", "allow")
        wait_until("tcp to be allowed", lambda: tcp_ask(standing.client, DB_PORT) == "db")
        standing.site.server.set_intention("caller", "db", "deny")
        wait_until("tcp to be refused", lambda: is_refused(lambda: tcp_ask(standing.client, DB_PORT)))
    wait_until("tcp to be allowed by default", lambda: tcp_ask(standing.client, DB_PORT) == "db")


def test_an_http_request_follows_the_intention_both_ways(standing: Standing) -> None:
    with _denied(standing, "web"):
        wait_until("http to be refused", lambda: http_get(standing.client, WEB_PORT).status == 403)
        standing.site.server.set_intention("caller", "web", "allow")
        wait_until("http to be allowed", lambda: http_get(standing.client, WEB_PORT).status == 200)
    assert http_get(standing.client, WEB_PORT).status == 200


def test_a_kept_http_connection_is_refused_from_the_first_request_after_the_flip(standing: Standing) -> None:
    connection = standing.client.http(WEB_PORT)
    try:
        assert kept_get(connection).status == 200
        with _denied(standing, "web"):
            wait_until("another connection to be refused", lambda: http_get(standing.client, WEB_PORT).status == 403)
            assert kept_get(connection).status == 403
        wait_until("the kept connection to be allowed again", lambda: kept_get(connection).status == 200)
    finally:
        connection.close()


def test_http2_streams_of_an_open_connection_follow_the_intention(standing: Standing) -> None:
    with http2_client(standing.client, H2_PORT) as client:
        assert client.get("/")[0].status == 200
        with _denied(standing, "pages"):
            wait_until("the streams to be refused", lambda: client.get("/")[0].status == 403)
        wait_until("the streams to be allowed again", lambda: client.get("/")[0].status == 200)


def test_a_denied_grpc_call_fails_with_permission_denied(standing: Standing) -> None:
    with _denied(standing, "rpc"):
        wait_until(
            "the call to be refused",
            lambda: grpc_call(standing.client, RPC_PORT, "hi").get("code") == "PERMISSION_DENIED",
        )
    wait_until("the call to be allowed", lambda: "who" in grpc_call(standing.client, RPC_PORT, "hi"))


@on_2_8
def test_a_wildcard_denies_and_an_exact_intention_goes_before_it(standing: Standing) -> None:
    with _denied(standing, "web", source="*"):
        wait_until("everybody to be refused", lambda: http_get(standing.client, WEB_PORT).status == 403)
        standing.site.server.set_intention("caller", "web", "allow")
        try:
            wait_until("the caller to be allowed", lambda: http_get(standing.client, WEB_PORT).status == 200)
        finally:
            standing.site.server.remove_intention("caller", "web")
        wait_until("the caller to be refused", lambda: http_get(standing.client, WEB_PORT).status == 403)
    wait_until("everybody to be allowed", lambda: http_get(standing.client, WEB_PORT).status == 200)


def test_a_refused_request_never_reaches_the_application(standing: Standing) -> None:
    app = standing.web
    with _denied(standing, "web"):
        wait_until("http to be refused", lambda: http_get(standing.client, WEB_PORT).status == 403)
        before = int(http_get(app.namespace, app.app_port, "/seen").text)
        assert [http_get(standing.client, WEB_PORT).status for _ in range(10)] == [403] * 10
        assert int(http_get(app.namespace, app.app_port, "/seen").text) == before + 1
    wait_until("http to be allowed", lambda: http_get(standing.client, WEB_PORT).status == 200)


def test_the_public_listener_shows_the_service_s_certificate(standing: Standing, tmp_path: Path) -> None:
    host, port, roots = _public(standing, standing.db)
    own = mesh_certificate(standing.site.client, "probe", tmp_path)
    shown = served_certificate(standing.client, host, port, roots, own)
    san = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [uri.rpartition("/")[2] for uri in san.get_values_for_type(x509.UniformResourceIdentifier)] == ["db"]


@pytest.mark.parametrize("service", ["db", "web"])
def test_a_client_without_a_certificate_is_refused_at_the_handshake(standing: Standing, service: str) -> None:
    host, port, roots = _public(standing, getattr(standing, service))
    with pytest.raises((ssl.SSLError, ConnectionError)), handshake(standing.client, host, port, roots, None):
        pass
    with handshake(standing.client, host, port, roots, None, ssl.TLSVersion.TLSv1_3) as sock:
        assert answer(sock, b"WHO\n") == b""


def test_a_client_of_a_foreign_ca_is_refused_at_the_handshake(standing: Standing, tmp_path: Path) -> None:
    host, port, roots = _public(standing, standing.db)
    uri = standing.site.client.leaf("caller")["ServiceURI"]
    root = x509.load_pem_x509_certificate(roots.encode())
    issuer = root.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    forged = foreign_certificate(uri, str(issuer), tmp_path)
    with (
        pytest.raises((ssl.SSLError, ConnectionError)),
        handshake(standing.client, host, port, roots, forged),
    ):
        pass
    with handshake(standing.client, host, port, roots, forged, ssl.TLSVersion.TLSv1_3) as sock:
        assert answer(sock, b"WHO\n") == b""


def test_a_certificate_of_the_mesh_alone_lets_in_only_whom_intentions_allow(standing: Standing, tmp_path: Path) -> None:
    host, port, roots = _public(standing, standing.db)
    certificate = mesh_certificate(standing.site.client, "intruder", tmp_path)

    def asked() -> bytes:
        with handshake(standing.client, host, port, roots, certificate) as sock:
            return answer(sock, b"WHO\n")

    wait_until("the intruder to be let in", lambda: asked() == b"db\n")
    with _denied(standing, "db", source="intruder"):
        wait_until("the intruder to be refused", lambda: asked() == b"")
        assert tcp_ask(standing.client, DB_PORT) == "db"
    wait_until("the intruder to be allowed", lambda: asked() == b"db\n")


def _public(standing: Standing, member: Member) -> tuple[str, int, str]:
    return member.namespace.address, member.public_port, standing.site.client.root_pems()
