"""A caller's certificate read for the memory of HAProxy, by the library and not by the worker's quick reader.

What a worker tells is checked here once more: it reads what strangers send.
"""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from hcc.mesh.caller import Remembered, known_service
from hcc.mesh.identity import IdentityError

# What the library says of a certificate that it cannot read, some of it only when that part is asked for.
UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


def certificate_digest(der: bytes) -> str:
    """The key of a certificate in HAProxy's map: SHA-256, upper-case hexadecimal (`sha2(256),hex`)."""
    return hashlib.sha256(der).hexdigest().upper()


def remembered_caller(der: bytes) -> Remembered | None:
    """Who holds a certificate, and until when; None unless it has exactly one URI, that of a service."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        if len(uris) != 1:
            return None
        return Remembered(known_service(uris[0]), int(certificate.not_valid_after_utc.timestamp()))
    except (*UNREADABLE, x509.ExtensionNotFound, IdentityError):
        return None
