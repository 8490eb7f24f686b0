"""TLS clients of the public listener: with a certificate of the mesh, of a stranger, or without one."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.e2e.agents import ConsulAgent
from tests.e2e.namespaces import Namespace

DAY = dt.timedelta(days=1)


def mesh_certificate(agent: ConsulAgent, service: str, directory: Path) -> Path:
    """PEM file with the certificate and key of a service, as Consul issues them."""
    leaf = agent.leaf(service)
    return _written(directory, leaf["CertPEM"] + leaf["PrivateKeyPEM"])


def bare_certificate(agent: ConsulAgent, service: str, directory: Path) -> Path:
    """As `mesh_certificate` without the intermediate that lets holders of older roots verify it."""
    leaf = agent.leaf(service)
    first = x509.load_pem_x509_certificate(leaf["CertPEM"].encode())
    return _written(directory, first.public_bytes(Encoding.PEM).decode() + leaf["PrivateKeyPEM"])


def foreign_certificate(uri: str, issuer: str, directory: Path) -> Path:
    """PEM file with a certificate that claims the SPIFFE URI, from a CA that merely has the issuer's name."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)])
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ca_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(san, critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return _written(directory, (certificate.public_bytes(Encoding.PEM) + key_pem).decode())


@contextmanager
def handshake(
    namespace: Namespace,
    host: str,
    port: int,
    roots: str,
    certificate: Path | None,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
) -> Iterator[ssl.SSLSocket]:
    """A connection of TLS 1.2, where the server's opinion of the certificate is part of the handshake.

    With TLS 1.3 the client hears of it only when it reads.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = newest
    context.load_verify_locations(cadata=roots)
    if certificate:
        context.load_cert_chain(certificate)
    with namespace.connect(host, port) as raw, context.wrap_socket(raw) as sock:
        yield sock


def served_certificate(namespace: Namespace, host: str, port: int, roots: str, certificate: Path) -> x509.Certificate:
    """The certificate that the listener shows."""
    with handshake(namespace, host, port, roots, certificate) as sock:
        der = sock.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def answer(sock: socket.socket, question: bytes) -> bytes:
    """The first bytes of the answer, empty when the connection was ended instead."""
    try:
        sock.sendall(question)
        return sock.recv(4096)
    except (ConnectionError, ssl.SSLError):
        return b""


def change_ca(server: ConsulAgent) -> None:
    """Give Consul another private key, and thereby another root."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
    config: dict[str, Any] = server.get("/v1/connect/ca/configuration")
    config["Config"] |= {"PrivateKey": pem, "RootCert": ""}
    server.put("/v1/connect/ca/configuration", config)


def _written(directory: Path, pem: str) -> Path:
    file = directory / "client.pem"
    file.touch(mode=0o600)
    file.write_text(pem)
    return file
