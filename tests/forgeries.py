"""Certificates that want to pass for another service's, all signed by the mesh's own authority.

Each is of a service that may not come in, or of none, and carries the URI of one that may somewhere else.
"""

from __future__ import annotations

from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from tests.spoe_certificates import TRUST_DOMAIN, Authority, service_uri, uri_names

MESH = Authority()
ALLOWED = "web"
WEB = service_uri(ALLOWED)
_EVIL = uri_names(service_uri("evil"))
# The bytes of an alternative name of web as a naive search would look for them: [SEQUENCE,] [6] URI.
_NAME = b"\x86" + bytes((len(WEB),)) + WEB.encode()
_NAMES = b"\x30" + bytes((len(_NAME),)) + _NAME


def genuine() -> bytes:
    """The certificate of the service that may come in."""
    return MESH.service(ALLOWED).der()


@cache
def forgeries() -> dict[str, bytes]:
    """Certificates by what is wrong with them; none may come in where only web may."""
    return {
        "in the subject": MESH.leaf(*_EVIL, subject=_subject(NameOID.ORGANIZATION_NAME, WEB[:64])).der(),
        "in the subject, as the bytes of a name": MESH.leaf(
            *_EVIL, subject=_subject(NameOID.USER_ID, _NAMES.decode("latin-1"))
        ).der(),
        "in the serial": MESH.leaf(*_EVIL, serial=int.from_bytes(b"\x01" + WEB.encode()[:19], "big")).der(),
        "in the key": MESH.leaf(*_EVIL, public_key=_planted_key()).der(),
        "in a foreign extension": MESH.leaf(
            *_EVIL, extensions=(x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17.1"), _NAMES),)
        ).der(),
        "in the issuer's alternative names": MESH.leaf(
            *_EVIL, extensions=(x509.IssuerAlternativeName(uri_names(WEB)),)
        ).der(),
        "in a DNS name": MESH.leaf(x509.DNSName(WEB), *_EVIL).der(),
        "in a mail address": MESH.leaf(x509.RFC822Name(WEB), *_EVIL).der(),
        "in a DNS name, and no URI": MESH.leaf(x509.DNSName(WEB)).der(),
        "in another kind of name": MESH.leaf(
            x509.OtherName(x509.ObjectIdentifier("1.2.3.4"), b"\x04" + bytes((len(_NAME),)) + _NAME), *_EVIL
        ).der(),
        "as the second URI": MESH.leaf(*_EVIL, *uri_names(WEB)).der(),
        "as the first of two URIs": MESH.leaf(*uri_names(WEB), *_EVIL).der(),
        "twice": MESH.leaf(*uri_names(WEB, WEB)).der(),
        "no URI at all": MESH.leaf().der(),
        "in another trust domain": MESH.leaf(*uri_names(service_uri(ALLOWED, "other.consul"))).der(),
        "in a trust domain that starts like ours": MESH.leaf(
            *uri_names(service_uri(ALLOWED, f"{TRUST_DOMAIN}.example"))
        ).der(),
        "in a trust domain with a user": MESH.leaf(*uri_names(f"spiffe://{TRUST_DOMAIN}@x/{_path(WEB)}")).der(),
        "in a trust domain with a port": MESH.leaf(*uri_names(f"spiffe://{TRUST_DOMAIN}:1/{_path(WEB)}")).der(),
        "with another case": MESH.leaf(*uri_names(service_uri("Web"))).der(),
        "with more behind it": MESH.leaf(*uri_names(f"{WEB}-2")).der(),
        "with a path behind it": MESH.leaf(*uri_names(f"{WEB}/svc/evil")).der(),
        "with a slash behind it": MESH.leaf(*uri_names(f"{WEB}/")).der(),
        "with a query": MESH.leaf(*uri_names(f"{WEB}?evil")).der(),
        "with a fragment": MESH.leaf(*uri_names(f"{WEB}#evil")).der(),
        "with an escaped slash": MESH.leaf(*uri_names(service_uri("web%2Fevil"))).der(),
        "with an escaped NUL": MESH.leaf(*uri_names(service_uri("web%00"))).der(),
        "with a NUL": MESH.leaf(*uri_names(service_uri("web\x00"))).der(),
        "with dot segments": MESH.leaf(*uri_names(service_uri("evil/../web"))).der(),
        "with a doubled slash": MESH.leaf(*uri_names(WEB.replace("/svc/", "/svc//"))).der(),
        "of another scheme": MESH.leaf(*uri_names(WEB.replace("spiffe", "https"))).der(),
        "of a scheme in capitals": MESH.leaf(*uri_names(WEB.replace("spiffe", "SPIFFE"))).der(),
        "of another namespace": MESH.leaf(*uri_names(WEB.replace("/ns/default/", "/ns/other/"))).der(),
        "of another partition": MESH.leaf(*uri_names(WEB.replace("/ns/", "/ap/other/ns/"))).der(),
        "of an agent": MESH.leaf(*uri_names(f"spiffe://{TRUST_DOMAIN}/agent/client/dc/dc1/id/{ALLOWED}")).der(),
        "of a gateway": MESH.leaf(*uri_names(f"spiffe://{TRUST_DOMAIN}/gateway/mesh/dc/dc1")).der(),
        "of the authority itself": MESH.certificate.public_bytes(serialization.Encoding.DER),
    }


def _planted_key() -> rsa.RSAPublicKey:
    modulus = b"\xc0" + _NAMES + bytes(254 - len(_NAMES)) + b"\x01"
    return rsa.RSAPublicNumbers(65537, int.from_bytes(modulus, "big")).public_key()


def _path(uri: str) -> str:
    return uri.split("/", 3)[3]


def _subject(oid: x509.ObjectIdentifier, value: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value)])
