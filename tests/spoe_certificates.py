"""Certificates for SPOE tests: a mesh authority, and leaves as odd as a test wants them.

Keys never leave memory but for a test's own directory.
"""

from __future__ import annotations

import datetime as dt
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID

from hcc.spoe.der import Certificate
from tests.pki import sha1

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
_X509_ERRORS = (x509.UnsupportedGeneralNameType, x509.InvalidVersion, x509.DuplicateExtension)
_START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_END = dt.datetime(2056, 1, 1, tzinfo=dt.UTC)


def service_uri(service: str, trust_domain: str = TRUST_DOMAIN) -> str:
    return f"spiffe://{trust_domain}/ns/default/dc/dc1/svc/{service}"


def uri_names(*uris: str) -> tuple[x509.GeneralName, ...]:
    return tuple(x509.UniformResourceIdentifier(uri) for uri in uris)


@dataclass(frozen=True)
class Leaf:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

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
        builder = _builder(self._name, self._name, self._key.public_key(), 1)
        self.certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
            self._key, hashes.SHA256()
        )

    def leaf(
        self,
        *names: x509.GeneralName,
        serial: int = 0x1234,
        subject: x509.Name | None = None,
        extensions: tuple[x509.ExtensionType, ...] = (),
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    ) -> Leaf:
        """A leaf with these alternative names; without any, without the extension."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = _builder(subject or x509.Name([]), self._name, key.public_key(), serial).add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return Leaf(builder.sign(self._key, hashes.SHA256()), key)

    def itself(self) -> Leaf:
        """The authority's own certificate."""
        return Leaf(self.certificate, self._key)

    def service(self, service: str, serial: int = 0x1234) -> Leaf:
        return self.leaf(*uri_names(service_uri(service)), serial=serial)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def fingerprint(self) -> str:
        """SHA-1 in upper-case hex, as HAProxy's `show ssl cert` prints it."""
        return sha1(self.certificate)

    def write_pem(self, path: Path) -> Path:
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return path


@cache
def odd_leaves() -> dict[str, bytes]:
    """Certificates that ask for confusion, by what is odd; those with a planted URI are of the service evil."""
    mesh = Authority()
    web = service_uri("web")
    planted = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, web[:64])])
    evil = uri_names(service_uri("evil"))
    raw_san = b"\x30" + bytes((len(web) + 2,)) + b"\x86" + bytes((len(web),)) + web.encode()
    return {
        "plain": mesh.service("web", serial=0x00FEDC).der(),
        "no alternative name": mesh.leaf().der(),
        "two names, one a URI": mesh.leaf(x509.DNSName("web.example"), *uri_names(web)).der(),
        "two URIs": mesh.leaf(*uri_names(web, service_uri("evil"))).der(),
        "no URI": mesh.leaf(x509.DNSName("web.example")).der(),
        "URI as DNS name": mesh.leaf(x509.DNSName(web), *evil).der(),
        "URI in the subject": mesh.leaf(*evil, subject=planted).der(),
        "URI in the serial": mesh.leaf(*evil, serial=int.from_bytes(b"\x01spiffe://x/ns", "big")).der(),
        "URI in the issuer's names": mesh.leaf(*evil, extensions=(x509.IssuerAlternativeName(uri_names(web)),)).der(),
        "alternative names in a foreign extension": mesh.leaf(
            *evil, extensions=(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), raw_san),)
        ).der(),
        "serial one": mesh.leaf(*evil, serial=1).der(),
        "serial of twenty bytes": mesh.leaf(*evil, serial=2**159 - 1).der(),
        "the authority": mesh.certificate.public_bytes(serialization.Encoding.DER),
        "other kinds of name": mesh.leaf(
            x509.RFC822Name("a@example.com"),
            x509.DirectoryName(planted),
            x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
            x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"),
            *uri_names(web),
        ).der(),
    }


def by_cryptography(der: bytes) -> Certificate | None:
    """What the well-known library finds; None if it refuses the certificate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            certificate = x509.load_der_x509_certificate(der)
            return Certificate(certificate.serial_number, tuple(_uris(certificate.extensions)))
        except (ValueError, *_X509_ERRORS):
            return None


def _uris(extensions: x509.Extensions) -> list[str]:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, serial: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(_START)
        .not_valid_after(_END)
    )
