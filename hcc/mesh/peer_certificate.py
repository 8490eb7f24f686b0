"""The certificate of another sidecar: by which digest HAProxy knows it, and whom it names."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509

from hcc.errors import HccError
from hcc.mesh.caller_certificate import UNREADABLE, certificate_digest


class PeerCertificateError(HccError):
    """A certificate cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What matters of a certificate that was verified.

    Args:
        digest: SHA-256 of its DER, upper-case hexadecimal, as HAProxy makes it.
        uris: all URIs among its alternative names, in order.
        expires_s: end of its validity, seconds since 1970.
    """

    digest: str
    uris: tuple[str, ...]
    expires_s: int

    def names_only(self, identity: str) -> bool:
        """Whether it names this SPIFFE URI and no other URI."""
        return self.uris == (identity,)


def peer_certificate(der: bytes) -> PeerCertificate:
    """What a certificate says.

    Raises:
        PeerCertificateError: it, or its list of names, cannot be read.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        expires_s = int(certificate.not_valid_after_utc.timestamp())
        return PeerCertificate(certificate_digest(der), _uris(certificate), expires_s)
    except UNREADABLE as exc:
        raise PeerCertificateError(f"expected a readable certificate, found one that is not: {exc}") from exc


def _uris(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
