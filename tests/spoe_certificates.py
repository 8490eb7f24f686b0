"""Certificates for SPOE tests: a mesh authority, and leaves as odd as a test wants them.

Keys never leave memory but for a test's own directory.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
_START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_END = dt.datetime(2056, 1, 1, tzinfo=dt.UTC)


def service_uri(service: str, trust_domain: str = TRUST_DOMAIN) -> str:
    return f"spiffe://{trust_domain}/ns/default/dc/dc1/svc/{service}"


def uri_names(*uris: str) -> tuple[x509.GeneralName, ...]:
    return tuple(x509.UniformResourceIdentifier(uri) for uri in uris)


@dataclass(frozen=True)
class Leaf:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def write_pem(self, path: Path) -> Path:
        """Certificate and key in one file, as HAProxy and Python's ssl take it."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM) + key)
        path.chmod(0o600)
        return path


class Authority:
    """A mesh CA with a P-256 key, as Consul's."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("Consul CA")
        builder = _builder(self._name, self._name, self._key, 1)
        self.certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
            self._key, hashes.SHA256()
        )

    def leaf(
        self,
        *names: x509.GeneralName,
        serial: int = 0x1234,
        subject: x509.Name | None = None,
        extensions: tuple[x509.ExtensionType, ...] = (),
    ) -> Leaf:
        """A leaf with these alternative names; without any, without the extension."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(subject or x509.Name([]), self._name, key, serial).add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return Leaf(builder.sign(self._key, hashes.SHA256()), key)

    def service(self, service: str, serial: int = 0x1234) -> Leaf:
        return self.leaf(*uri_names(service_uri(service)), serial=serial)

    def write_pem(self, path: Path) -> Path:
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return path


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, serial: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(_START)
        .not_valid_after(_END)
    )
