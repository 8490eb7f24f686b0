"""SPIFFE identities of services: who a certificate says its holder is.

Leaves to others: finding the URI inside a certificate (`hcc.spoe.der`, `hcc.actors.cert_manager`).
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from hcc.errors import HccError

DEFAULT_PARTITION = "default"
DEFAULT_NAMESPACE = "default"
# Longest URI accepted: RFC 5280 has no limit, the SPIFFE ID standard (section 2.3) has 2048 bytes.
MAX_URI_BYTES = 2048


class IdentityError(HccError):
    """A URI is not the SPIFFE identity of a service."""


@dataclass(frozen=True, slots=True, order=True)
class ServiceIdentity:
    """One service of one trust domain. Names keep their case: Consul compares them case-sensitively."""

    trust_domain: str
    service: str
    datacenter: str
    namespace: str = DEFAULT_NAMESPACE
    partition: str = DEFAULT_PARTITION

    def uri(self) -> str:
        """The SPIFFE URI of the service, its path segments percent-encoded."""
        partition = "" if self.partition == DEFAULT_PARTITION else f"/ap/{_encode(self.partition)}"
        return (
            f"spiffe://{self.trust_domain}{partition}/ns/{_encode(self.namespace)}"
            f"/dc/{_encode(self.datacenter)}/svc/{_encode(self.service)}"
        )

    def source(self) -> str:
        """What intentions tell apart, in one printable ASCII word: the datacenter and the trust domain are not in it.

        The percent-encoded name alone in the default namespace and partition, `web`; elsewhere all three,
        `ap/default/ns/team/svc/web`, so that no service can pass for another one of its name.
        """
        name = _encode(self.service)
        if (self.partition, self.namespace) == (DEFAULT_PARTITION, DEFAULT_NAMESPACE):
            return name
        return f"ap/{_encode(self.partition)}/ns/{_encode(self.namespace)}/svc/{name}"


def parse_service_uri(uri: str) -> ServiceIdentity:
    """The service that a SPIFFE URI names.

    Args:
        uri: as it stands in a certificate's subject alternative name.

    Raises:
        IdentityError: not a SPIFFE URI of a service (a gateway, an agent, a signing CA, anything malformed).

    Source: hashicorp/consul agent/connect/uri.go; reference/consul.md section 5.
    """
    if len(uri) > MAX_URI_BYTES:
        msg = f"expected a SPIFFE URI of at most {MAX_URI_BYTES} bytes, found {len(uri)}"
        raise IdentityError(msg)
    if not uri.startswith("spiffe://"):
        msg = f"expected a URI that starts with spiffe://, found {uri!r}"
        raise IdentityError(msg)
    trust_domain, *segments = uri.removeprefix("spiffe://").split("/")
    values = _named_segments(uri, segments)
    if not trust_domain or any(character in trust_domain for character in "@:?#%"):
        msg = f"expected a plain trust domain in {uri!r}"
        raise IdentityError(msg)
    return ServiceIdentity(
        trust_domain=trust_domain.lower(),
        service=values["svc"],
        datacenter=values["dc"],
        namespace=values["ns"],
        partition=values.get("ap", DEFAULT_PARTITION),
    )


def parse_source(text: str, trust_domain: str, datacenter: str) -> ServiceIdentity:
    """The service that a person names: `web`, `ap/default/ns/team/svc/web` as `source` has it, or a whole SPIFFE URI.

    One that is not named by its URI is of this trust domain and datacenter.

    Raises:
        IdentityError: it is none of these.
    """
    if "://" in text:
        return parse_service_uri(text)
    match text.split("/"):
        case [name]:
            place = f"ns/{DEFAULT_NAMESPACE}"
        case ["ap", partition, "ns", namespace, "svc", name]:
            place = f"ap/{partition}/ns/{namespace}"
        case _:
            msg = f"expected a service's name, ap/PARTITION/ns/NAMESPACE/svc/NAME or a SPIFFE URI, found {text!r}"
            raise IdentityError(msg)
    return parse_service_uri(f"spiffe://{trust_domain}/{place}/dc/{_encode(datacenter)}/svc/{name}")


def _named_segments(uri: str, segments: list[str]) -> dict[str, str]:
    keys, values = tuple(segments[0::2]), segments[1::2]
    if len(segments) % 2 or keys not in (("ns", "dc", "svc"), ("ap", "ns", "dc", "svc")):
        msg = f"expected spiffe://DOMAIN[/ap/..]/ns/../dc/../svc/.., found {uri!r}"
        raise IdentityError(msg)
    return dict(zip(keys, (_decode(uri, value) for value in values), strict=True))


def _encode(name: str) -> str:
    # Go's URL leaves these alone in a path; nothing else may differ, or the same service gets two URIs.
    return quote(name, safe="$&+,;=:@~-._")


def _decode(uri: str, segment: str) -> str:
    try:
        value = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError as exc:
        msg = f"expected UTF-8 after percent-decoding in {uri!r}"
        raise IdentityError(msg) from exc
    if not value or not value.isprintable() or any(mark in segment for mark in "?#"):
        msg = f"expected non-empty printable path segments in {uri!r}"
        raise IdentityError(msg)
    return value
