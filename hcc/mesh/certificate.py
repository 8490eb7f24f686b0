"""A leaf certificate and its roots, checked before HAProxy sees them. The only heavy module of `hcc.mesh`.

Leaves to others: writing files (`hcc.actors.cert_manager`) and looking at callers (`hcc.spoe.der`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from hcc.errors import HccError
from hcc.mesh.caller_certificate import UNREADABLE
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import RENEWED_BY, Leaf, Root, Roots


class CertificateError(HccError):
    """What Consul gave as a certificate, a key or a root cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A root to trust: its common name, for people, and when it is valid."""

    name: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Credentials:
    """A checked leaf with its key, and every root to trust.

    Args:
        leaf_pem: leaf, intermediates and private key, as HAProxy's `crt` wants them; no blank lines.
        leaf_serial: upper-case hexadecimal, as HAProxy prints it.
        leaf_sha1: SHA-1 of the leaf, upper-case hexadecimal: how HAProxy names it; nothing is trusted by it.
        roots_pem: the roots one after another, oldest first as Consul lists them.
        roots_sha1: SHA-1 of each root.
        roots: the same, for people.
    """

    uri: str
    leaf_pem: Secret
    leaf_serial: str
    leaf_sha1: str
    not_before: datetime
    not_after: datetime
    roots_pem: str
    roots_sha1: frozenset[str]
    roots: tuple[Authority, ...]


def checked_credentials(leaf: Leaf, roots: Roots, now: datetime) -> Credentials:
    """The credentials in Consul's answers, once everything about them was checked at time `now` (aware, UTC).

    Raises:
        CertificateError: unreadable, key of another certificate, not valid now, another service's URI, or no
            chain to one of the roots.
    """
    try:
        return _checked(leaf, roots, now)
    except UNREADABLE as exc:
        raise CertificateError(f"expected certificates that can be read, found one that cannot: {exc}") from exc


def stored_credentials(leaf_pem: str, roots_pem: str, uri: str, now: datetime) -> Credentials:
    """The credentials whose texts are on disk, as `Credentials` has them, checked anew.

    Raises:
        CertificateError: as `checked_credentials`.
    """
    # The key comes last.
    key_at = max(leaf_pem.rfind("-----BEGIN "), 0)
    leaf = Leaf("", uri, leaf_pem[:key_at], Secret(leaf_pem[key_at:]), "", "")
    return checked_credentials(leaf, Roots("", (Root("on disk", roots_pem),)), now)


def warning_time(credentials: Credentials) -> datetime:
    """When an unrenewed leaf becomes worth a warning."""
    life = credentials.not_after - credentials.not_before
    return credentials.not_before + life * RENEWED_BY


def _checked(leaf: Leaf, roots: Roots, now: datetime) -> Credentials:
    chain = _certificates(leaf.cert_pem, "the leaf")
    authorities = _root_certificates(roots)
    certificate, intermediates = chain[0], chain[1:]
    _check_key(certificate, leaf.key_pem)
    _check_dates(certificate, now)
    _check_uri(certificate, leaf.uri)
    _check_chain(certificate, intermediates, authorities, now)
    return Credentials(
        uri=leaf.uri,
        leaf_pem=Secret(_joined([_pem(item) for item in chain] + [leaf.key_pem.reveal()])),
        leaf_serial=f"{certificate.serial_number:X}",
        leaf_sha1=_sha1(certificate),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        roots_pem=_joined([_pem(item) for item in authorities]),
        roots_sha1=frozenset(_sha1(item) for item in authorities),
        roots=tuple(_authority(item) for item in authorities),
    )


def _certificates(pem: str, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError as exc:
        raise CertificateError(f"expected PEM certificates in {what}, found something else: {exc}") from exc


def _root_certificates(roots: Roots) -> list[x509.Certificate]:
    found: dict[str, x509.Certificate] = {}
    for root in roots.roots:
        for certificate in _certificates(root.cert_pem, f"root {root.id}"):
            found.setdefault(_sha1(certificate), certificate)
    if not found:
        raise CertificateError("expected at least one root certificate, found none")
    return list(found.values())


def _authority(certificate: x509.Certificate) -> Authority:
    return Authority(_name(certificate), certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def _name(certificate: x509.Certificate) -> str:
    try:
        names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(names[0].value) if names else certificate.subject.rfc4514_string()
    except ValueError:
        # Accents in a T61String, such as those of older CAs: Consul and HAProxy read them. Nothing depends on the name.
        return f"serial number {certificate.serial_number:X}"


def _check_key(certificate: x509.Certificate, key_pem: Secret) -> None:
    try:
        key = load_pem_private_key(key_pem.reveal().encode(), password=None)
    except (ValueError, TypeError) as exc:
        raise CertificateError("expected an unencrypted PEM private key beside the leaf") from exc
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*spki) != certificate.public_key().public_bytes(*spki):
        raise CertificateError("expected the leaf's own private key, found the key of another certificate")


def _check_dates(certificate: x509.Certificate, now: datetime) -> None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not start <= now <= end:
        # Without the time: what is found again and again is one and the same problem.
        found = f"found one valid {start:%FT%TZ} to {end:%FT%TZ}"
        raise CertificateError(f"expected a leaf that is valid now, by this machine's clock, {found}")


def _check_uri(certificate: x509.Certificate, uri: str) -> None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as exc:
        raise CertificateError(f"expected a leaf for {uri}, found one without a SPIFFE URI") from exc
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if uris != [uri]:
        raise CertificateError(f"expected a leaf for {uri}, found {', '.join(uris) or 'no URI'}")


def _check_chain(
    certificate: x509.Certificate,
    intermediates: list[x509.Certificate],
    authorities: list[x509.Certificate],
    now: datetime,
) -> None:
    # Not by the library's verifier: it follows the rules of the public web, and wants issuers to have a name, which
    # Consul's of secondary datacenters have not (1.8.7, 1.20.1). What counts is what HAProxy checks, too: signatures,
    # dates, that issuers are CAs.
    if not _chains(certificate, intermediates, authorities, now):
        issuer = certificate.issuer.rfc4514_string() or "a CA without a name"
        raise CertificateError(
            f"expected a leaf that chains to one of Consul's roots by CAs that are valid now, found one of {issuer}"
        )


def _chains(
    certificate: x509.Certificate,
    intermediates: list[x509.Certificate],
    authorities: list[x509.Certificate],
    now: datetime,
    below: int = 0,
) -> bool:
    """Whether there is a way to an authority; `below` CAs are on it already. RFC 5280 section 6.1, without policies."""
    if any(_issued(certificate, authority, now, below) for authority in authorities):
        return True
    return any(
        _issued(certificate, one, now, below)
        and _chains(one, [other for other in intermediates if other != one], authorities, now, below + 1)
        for one in intermediates
    )


def _issued(certificate: x509.Certificate, issuer: x509.Certificate, now: datetime, below: int) -> bool:
    if not issuer.not_valid_before_utc <= now <= issuer.not_valid_after_utc or not _may_issue(issuer, below):
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        # Also when the names differ.
        return False
    return True


def _may_issue(issuer: x509.Certificate, below: int) -> bool:
    extensions = issuer.extensions
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    length = constraints.path_length
    if not constraints.ca or (length is not None and below > length):
        return False
    try:
        return extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        return True


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _joined(blocks: list[str]) -> str:
    # HAProxy's command line ends a payload at the first blank line, so none may stand inside.
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    return "\n".join(lines) + "\n"


def _sha1(certificate: x509.Certificate) -> str:
    return hashlib.sha1(certificate.public_bytes(Encoding.DER), usedforsecurity=False).hexdigest().upper()
