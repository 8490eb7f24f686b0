"""What is said of TLS that does not come to pass: what was expected and found, in words for operators."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from hcc.consul.agent_tls import AgentTls
from hcc.consul.client import ConsulClient
from hcc.consul.environment import consul_settings
from hcc.consul.errors import ConsulUnavailableError
from hcc.consul.sockets import tls_context
from hcc.diagnosis.consul import Known, check_agent
from hcc.errors import SettingError
from hcc.settings import Selection

HTTPS = "https://127.0.0.1:8501"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "expected CA certificates in PEM, found No such file or directory: {file}"),
        (
            "no PEM at all",
            "expected CA certificates in PEM, found something else in {file} (no certificate or crl found)",
        ),
    ],
)
def test_a_ca_file_that_is_none(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingError) as caught:
        tls_context(consul_settings(http_addr=HTTPS, ca_file=str(file)))
    assert str(caught.value) == f"TLS to Consul: {said.format(file=file)}"


def test_a_ca_directory_without_certificates_is_told(tmp_path: Path) -> None:
    (tmp_path / "readme").write_text("no PEM at all")
    with pytest.raises(SettingError, match=f"expected CA certificates in PEM, found none .* {tmp_path}"):
        tls_context(consul_settings(http_addr=HTTPS, ca_path=str(tmp_path)))
    with pytest.raises(SettingError, match="found No such file or directory: /nowhere"):
        tls_context(consul_settings(http_addr=HTTPS, ca_path="/nowhere"))


def test_a_ca_without_key_usage_is_taken_by_every_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_of_python_3_13(**_: object) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", as_of_python_3_13)
    context = tls_context(consul_settings(http_addr=HTTPS))
    assert context is not None
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_a_client_certificate_that_is_none(tmp_path: Path) -> None:
    for name in ("crt", "key"):
        (tmp_path / name).write_text("no PEM at all")
    crt, key = str(tmp_path / "crt"), str(tmp_path / "key")
    with pytest.raises(
        SettingError, match="expected a certificate and its key in PEM, found something else in"
    ) as caught:
        tls_context(consul_settings(http_addr=HTTPS, client_cert=crt, client_key=key))
    assert "_ssl.c" not in str(caught.value)
    assert "()" not in str(caught.value)


def test_a_client_key_with_a_passphrase_is_told_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    crt, key = tmp_path / "crt", tmp_path / "key"
    issued = trustme.CA().issue_cert("client")
    issued.cert_chain_pems[0].write_to_path(str(crt))
    private = load_pem_private_key(issued.private_key_pem.bytes(), None)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")))
    with pytest.raises(SettingError, match=f"expected a client key without a passphrase, found an encrypted .* {key}"):
        tls_context(consul_settings(http_addr=HTTPS, client_cert=str(crt), client_key=str(key)))


@pytest.mark.parametrize(
    ("trusts", "said"),
    [
        (True, "found that the agent refuses TLS with us: certificate required"),
        (False, "found certificate verify failed: "),
    ],
)
def test_which_side_does_not_take_the_others_certificate_is_told_with_what_to_do(
    tmp_path: Path, trusts: bool, said: str
) -> None:
    ca, other = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    (ca if trusts else other).cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            with context.wrap_socket(server.accept()[0], server_side=True, do_handshake_on_connect=False) as tls:
                with contextlib.suppress(OSError):
                    tls.do_handshake()
                # As Consul's, it sends its alert and does not tear the connection down at once.
                done.wait(10)

        threading.Thread(target=refuse, daemon=True).start()
        address = f"https://127.0.0.1:{server.getsockname()[1]}"
        client = ConsulClient(consul_settings(http_addr=address, ca_file=str(tmp_path / "ca.pem")), lambda: None)
        (finding,) = check_agent(client, Selection(), Known())
        done.set()
        client.close()
    assert said in finding.text
    assert "_ssl.c" not in finding.text
    assert "--ca-file, --client-cert" in finding.remedy


def test_who_speaks_plain_http_to_a_tls_port_is_told_to_say_https() -> None:
    body = b"Client sent an HTTP request to an HTTPS server.\n"
    answer = b"HTTP/1.0 400 Bad Request\r\n\r\n" + body
    with socket.create_server(("127.0.0.1", 0)) as server:
        _answering(server, answer)
        client = ConsulClient(consul_settings(http_addr=f"127.0.0.1:{server.getsockname()[1]}"), lambda: None)
        (finding,) = check_agent(client, Selection(), Known())
        client.close()
    assert (body.decode().strip() in finding.text, finding.remedy) == (
        True,
        "name the agent as https://.. with --http-addr",
    )


def test_a_port_that_speaks_plain_http_is_told_as_such() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        _answering(server, b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        settings = consul_settings(http_addr=f"https://127.0.0.1:{server.getsockname()[1]}")
        client = ConsulClient(settings, lambda: None, tls=AgentTls(settings))
        with pytest.raises(ConsulUnavailableError, match="found no TLS there: that port speaks plain HTTP"):
            client.services()
        client.close()


def _answering(server: socket.socket, answer: bytes) -> None:
    """Answer the first who comes."""

    def answer_one() -> None:
        client, _ = server.accept()
        with client:
            client.recv(4096)
            client.sendall(answer)

    threading.Thread(target=answer_one, daemon=True).start()
