"""A caller as HAProxy remembers it: short names for its service, and the URI its certificate says.

The text form `NAME|URI|SOURCE` stands in HAProxy's variables and, with the certificate's end, in its map of identities.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from hcc.mesh.identity import DEFAULT_NAMESPACE, DEFAULT_PARTITION, IdentityError, ServiceIdentity, parse_service_uri
from hcc.mesh.naming import joined, parts

# The header of a request by which the application is told whose it is.
CLIENT_CERT_HEADER = "X-Forwarded-Client-Cert"
SEPARATOR = "|"
# Services whose texts are kept: each has as many certificates as instances, and a new one every few days.
MAX_KEPT = 1024
known_service = lru_cache(MAX_KEPT)(parse_service_uri)


def caller_name(identity: ServiceIdentity) -> str:
    """The name of a calling service: `web:dc1`; namespace and partition are parts when either is no default."""
    if (identity.namespace, identity.partition) == (DEFAULT_NAMESPACE, DEFAULT_PARTITION):
        return joined(identity.service, identity.datacenter)
    return joined(identity.service, identity.datacenter, identity.namespace, identity.partition)


@lru_cache(MAX_KEPT)
def caller_key(identity: ServiceIdentity) -> str:
    """What verdicts on a caller are found by: the URI of `caller_text`, as a name does not tell the trust domain."""
    return in_a_list(identity.uri())


def keyed_caller(key: str, trust_domain: str) -> ServiceIdentity | None:
    """The service with that `caller_key`, of whatever trust domain; None where it is none.

    Maps that an earlier hcc left have `caller_name` as key; that is one of this trust domain.
    """
    try:
        return known_service(key)
    except IdentityError:
        return named_caller(key, trust_domain)


def key_name(key: str) -> str:
    """The `caller_name` of a service with that `caller_key`; of an earlier hcc it is the key itself."""
    try:
        return caller_name(known_service(key))
    except IdentityError:
        return key


def named_caller(name: str, trust_domain: str) -> ServiceIdentity | None:
    """The service of this trust domain with that `caller_name`; None where it is no such name."""
    match parts(name):
        case [service, datacenter]:
            found = ServiceIdentity(trust_domain, service, datacenter)
        case [service, datacenter, namespace, partition]:
            found = ServiceIdentity(trust_domain, service, datacenter, namespace, partition)
        case _:
            return None
    return found if caller_name(found) == name else None


@lru_cache(MAX_KEPT)
def caller_text(identity: ServiceIdentity) -> str:
    """`NAME|URI|SOURCE`; none of them holds a blank or the separator, which URIs have percent-encoded."""
    return SEPARATOR.join((caller_name(identity), caller_key(identity), in_a_list(identity.source())))


def told_source(text: str) -> str:
    """The SOURCE in what should be a `caller_text`, for people; empty where it has none."""
    return (*text.split(SEPARATOR), "", "")[2]


def in_a_list(text: str) -> str:
    """A URI, or part of one, with what separates the elements of X-Forwarded-Client-Cert percent-encoded."""
    return text.replace(",", "%2C").replace(";", "%3B")


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a certificate's digest stands for.

    Args:
        expires_s: end of the certificate's validity, seconds since 1970.
    """

    identity: ServiceIdentity
    expires_s: int

    def text(self) -> str:
        """`NAME|URI|SOURCE|SECONDS`, as the map of identities has it."""
        return f"{caller_text(self.identity)}{SEPARATOR}{self.expires_s}"


def parse_remembered(text: str) -> Remembered | None:
    """What `Remembered.text` gave; None for anything else."""
    caller, _, expires = text.rpartition(SEPARATOR)
    uri = caller.partition(SEPARATOR)[2].partition(SEPARATOR)[0]
    try:
        found = Remembered(parse_service_uri(uri), int(expires))
    except (IdentityError, ValueError):
        return None
    return found if found.text() == text else None
