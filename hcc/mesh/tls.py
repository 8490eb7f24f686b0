"""Which TLS the sidecars of a mesh may speak, as the mesh entry says for both directions.

Source: hashicorp/consul agent/structs/config_entry_mesh.go, types/tls.go (1.20.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class TlsVersion(Enum):
    """By Consul's names, the oldest first."""

    TLS_1_0 = "TLSv1_0"
    TLS_1_1 = "TLSv1_1"
    TLS_1_2 = "TLSv1_2"
    TLS_1_3 = "TLSv1_3"

    def at_least(self, other: TlsVersion) -> bool:
        """Whether it is that one, or newer."""
        versions = list(TlsVersion)
        return versions.index(self) >= versions.index(other)


@dataclass(frozen=True, slots=True)
class TlsLimits:
    """Of one direction; None and nothing leave it to the proxy.

    Args:
        ciphers: Consul's (IANA's) names of cipher suites up to TLS 1.2, the preferred one first.
    """

    min_version: TlsVersion | None = None
    max_version: TlsVersion | None = None
    ciphers: tuple[str, ...] = ()


UNLIMITED = TlsLimits()
# Where nothing is said of the least.
DEFAULT_MIN_VERSION = TlsVersion.TLS_1_2


@dataclass(frozen=True, slots=True)
class MeshTls:
    """What callers may speak to us, and we to upstreams."""

    incoming: TlsLimits = UNLIMITED
    outgoing: TlsLimits = UNLIMITED


LEFT_TO_PROXIES = MeshTls()
