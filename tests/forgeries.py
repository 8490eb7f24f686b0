"""Certificates that want to pass for another service's, all signed by the mesh's own authority.

Each is of a service that may not come in, or of none, and carries the URI of one that may somewhere else.
"""

from __future__ import annotations

import math
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from tests.spoe_certificates import TRUST_DOMAIN, Authority, Leaf, service_uri, uri_names

MESH = Authority()
ALLOWED = "web"
WEB = service_uri(ALLOWED)
_EVIL = uri_names(service_uri("evil"))
# The bytes of an alternative name of web as a naive search would look for them: [SEQUENCE,] [6] URI.
_NAME = b"\x86" + bytes((len(WEB),)) + WEB.encode()
_SMALL = math.factorial(2000)
_NAMES = b"\x30" + bytes((len(_NAME),)) + _NAME


def genuine() -> bytes:
    """The certificate of the service that may come in."""
    return MESH.service(ALLOWED).der()


def forgeries() -> dict[str, bytes]:
    """Certificates by what is wrong with them; none may come in where only web may."""
    return {what: leaf.der() for what, leaf in forged_leaves().items()}


@cache
def forged_leaves() -> dict[str, Leaf]:
    """The same with their keys, so that a handshake can be made with each."""
    key = _planted_key()
    return {
        "in the subject": MESH.leaf(*_EVIL, subject=_subject(NameOID.ORGANIZATION_NAME, WEB[:64])),
        "in the subject, as the bytes of a name": MESH.leaf(
            *_EVIL, subject=_subject(NameOID.USER_ID, _NAMES.decode("latin-1"))
        ),
        "in the serial": MESH.leaf(*_EVIL, serial=int.from_bytes(b"\x01" + WEB.encode()[:19], "big")),
        "in the key": MESH.leaf(*_EVIL, key=key),
        "in a foreign extension": MESH.leaf(
            *_EVIL, extensions=(x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17.1"), _NAMES),)
        ),
        "in the issuer's alternative names": MESH.leaf(
            *_EVIL, extensions=(x509.IssuerAlternativeName(uri_names(WEB)),)
        ),
        "in a DNS name": MESH.leaf(x509.DNSName(WEB), *_EVIL),
        "in a mail address": MESH.leaf(x509.RFC822Name(WEB), *_EVIL),
        "in a DNS name, and no URI": MESH.leaf(x509.DNSName(WEB)),
        "in another kind of name": MESH.leaf(
            x509.OtherName(x509.ObjectIdentifier("1.2.3.4"), b"\x04" + bytes((len(_NAME),)) + _NAME), *_EVIL
        ),
        "as the second URI": MESH.leaf(*_EVIL, *uri_names(WEB)),
        "as the first of two URIs": MESH.leaf(*uri_names(WEB), *_EVIL),
        "twice": MESH.leaf(*uri_names(WEB, WEB)),
        "no URI at all": MESH.leaf(),
        "in another trust domain": MESH.leaf(*uri_names(service_uri(ALLOWED, "other.consul"))),
        "in a trust domain that starts like ours": MESH.leaf(
            *uri_names(service_uri(ALLOWED, f"{TRUST_DOMAIN}.example"))
        ),
        "in a trust domain with a user": MESH.leaf(*uri_names(f"spiffe://{TRUST_DOMAIN}@x/{_path(WEB)}")),
        "in a trust domain with a port": MESH.leaf(*uri_names(f"spiffe://{TRUST_DOMAIN}:1/{_path(WEB)}")),
        "with another case": MESH.leaf(*uri_names(service_uri("Web"))),
        "with more behind it": MESH.leaf(*uri_names(f"{WEB}-2")),
        "with a path behind it": MESH.leaf(*uri_names(f"{WEB}/svc/evil")),
        "with a slash behind it": MESH.leaf(*uri_names(f"{WEB}/")),
        "with a query": MESH.leaf(*uri_names(f"{WEB}?evil")),
        "with a fragment": MESH.leaf(*uri_names(f"{WEB}#evil")),
        "with an escaped slash": MESH.leaf(*uri_names(service_uri("web%2Fevil"))),
        "with an escaped NUL": MESH.leaf(*uri_names(service_uri("web%00"))),
        "with a NUL": MESH.leaf(*uri_names(service_uri("web\x00"))),
        "with dot segments": MESH.leaf(*uri_names(service_uri("evil/../web"))),
        "with a doubled slash": MESH.leaf(*uri_names(WEB.replace("/svc/", "/svc//"))),
        "of another scheme": MESH.leaf(*uri_names(WEB.replace("spiffe", "https"))),
        "of a scheme in capitals": MESH.leaf(*uri_names(WEB.replace("spiffe", "SPIFFE"))),
        "of another namespace": MESH.leaf(*uri_names(WEB.replace("/ns/default/", "/ns/other/"))),
        "of another partition": MESH.leaf(*uri_names(WEB.replace("/ns/", "/ap/other/ns/"))),
        "of an agent": MESH.leaf(*uri_names(f"spiffe://{TRUST_DOMAIN}/agent/client/dc/dc1/id/{ALLOWED}")),
        "of a gateway": MESH.leaf(*uri_names(f"spiffe://{TRUST_DOMAIN}/gateway/mesh/dc/dc1")),
        "of the authority itself": MESH.itself(),
    }


def _planted_key() -> rsa.RSAPrivateKey:
    """A key whose modulus begins with the bytes of web's name: one prime is random, the other makes the product so."""
    wanted = int.from_bytes(b"\xc0" + _NAMES + bytes(255 - len(_NAMES)), "big")
    p = rsa.generate_private_key(65537, 2048).private_numbers().p
    q = wanted // p | 1
    while not _is_prime(q) or (q - 1) % 65537 == 0:
        q += 2
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    numbers = rsa.RSAPrivateNumbers(
        p, q, d, rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q), public
    )
    return numbers.private_key()


def _is_prime(number: int) -> bool:
    """Fermat's test, which random odd numbers of this size do not pass by chance."""
    return math.gcd(number, _SMALL) == 1 and all(pow(base, number - 1, number) == 1 for base in (2, 3, 5, 7))


def _path(uri: str) -> str:
    return uri.split("/", 3)[3]


def _subject(oid: x509.ObjectIdentifier, value: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value)])
