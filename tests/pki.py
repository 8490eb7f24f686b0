"""Throw-away CAs and SPIFFE leaves as Consul makes them (EC P-256, one URI SAN, empty subject)."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"


def service_uri(service: str, datacenter: str = "dc1") -> str:
    return f"spiffe://{TRUST_DOMAIN}/ns/default/dc/{datacenter}/svc/{service}"


@dataclass(frozen=True)
class IssuedLeaf:
    """One leaf: `combined_pem` is certificate and key, as HAProxy's `crt` wants them."""

    certificate: x509.Certificate
    key_pem: str

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def cert_pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def combined_pem(self) -> str:
        return self.cert_pem + self.key_pem

    @property
    def fingerprint(self) -> str:
        """SHA-1 in upper-case hex, as HAProxy's `show ssl cert` prints it."""
        return sha1(self.certificate)


def sha1(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA1()).hex().upper()  # noqa: S303 - HAProxy prints SHA-1


class Authority:
    """A CA with one EC key, made at first use. Without a name it is as Consul's in a secondary datacenter."""

    def __init__(self, name: str = "Test CA") -> None:
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
        self._key = ec.generate_private_key(ec.SECP256R1())

    @classmethod
    def of(cls, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Authority:
        """Whoever has this certificate and key, whether it may sign or not."""
        made = cls()
        made._name, made._key = certificate.subject, key
        return made

    def authority(
        self,
        other: Authority,
        *,
        ca: bool = True,
        path_length: int | None = None,
        days: int = 1,
        may_sign: bool | None = None,
    ) -> str:
        """Another CA's certificate that this one signed, as PEM; with a key usage unless `may_sign` is None."""
        usage = x509.BasicConstraints(ca=ca, path_length=path_length)
        builder = _builder(other._name, self._name, other._key.public_key(), days).add_extension(usage, critical=True)
        if may_sign is not None:
            builder = builder.add_extension(_key_usage(may_sign), critical=True)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    @cached_property
    def certificate(self) -> x509.Certificate:
        builder = _builder(self._name, self._name, self._key.public_key())
        usage = x509.BasicConstraints(ca=True, path_length=None)
        return builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def certificate_der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def fingerprint(self) -> str:
        return sha1(self.certificate)

    def leaf(self, *uris: str, days: int = 1, key: Key | None = None, server: bool = True) -> IssuedLeaf:
        """A leaf with these names that is valid from a minute ago, or was until so many days ago if negative."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = _builder(x509.Name([]), self._name, key.public_key(), days)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if server else [])]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if uris:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
            builder = builder.add_extension(names, critical=True)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        return IssuedLeaf(builder.sign(self._key, hashes.SHA256()), pem.decode())


def _key_usage(may_sign: bool) -> x509.KeyUsage:
    used = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(digital_signature=True, key_cert_sign=may_sign, crl_sign=may_sign, **used)


def rsa_leaf(authority: Authority, *uris: str) -> IssuedLeaf:
    """A leaf with an RSA key."""
    return authority.leaf(*uris, key=rsa.generate_private_key(65537, 2048))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, days: int = 1
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    start = now - dt.timedelta(minutes=1) if days > 0 else now + dt.timedelta(days=days - 1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(now + dt.timedelta(days=days))
    )
