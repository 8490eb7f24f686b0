"""What the listeners of several kinds are decided by alike: modes, addresses, TLS, timeouts. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

from hcc.haproxy import words
from hcc.haproxy.desired_terms import Certificates, Problem
from hcc.haproxy.model import FOR_EVER_MS, Bind, Mode, TcpBind, Timeouts, Tls, WayChanges
from hcc.mesh.snapshot import Protocol
from hcc.mesh.tls import DEFAULT_MIN_VERSION, TlsLimits

HOUR_MS = 3_600_000
HTTP_TIMEOUT_MS = 60_000
CONNECT_TIMEOUT_MS = 5_000


def mode_of(protocol: Protocol) -> Mode:
    """How HAProxy is to take what comes by that protocol."""
    return Mode.HTTP if protocol.is_http else Mode.TCP


def tls_of(certificates: Certificates, alpn: tuple[str, ...], limits: TlsLimits) -> Tls | None:
    """TLS of a listener or of servers; None until there are a leaf and roots."""
    if certificates.leaf is None or certificates.ca is None:
        return None
    return Tls(certificates.leaf.name, certificates.ca.name, alpn, limits)


def possible(limits: TlsLimits, where: str, problems: list[Problem]) -> TlsLimits:
    """The same; a maximum that leaves no version is passed over, as HAProxy would refuse all of its configuration."""
    if limits.max_version is None or limits.max_version.at_least(limits.min_version or DEFAULT_MIN_VERSION):
        return limits
    lowest = limits.min_version or DEFAULT_MIN_VERSION
    text = f"{where}: TLSMaxVersion {limits.max_version.value} is below {lowest.value}, which is the least; ignored"
    problems.append(Problem("mesh entry", text))
    return replace(limits, max_version=None)


def tcp_bind(address: str, port: int) -> TcpBind | None:
    """The address, in its usual form; None where HAProxy cannot listen there."""
    try:
        words.address(address, port)
    except words.WordError:
        return None
    return TcpBind(str(ip_address(address)), port) if port else None


def owner_of(bind: Bind, taken: list[tuple[Bind, str]]) -> str | None:
    """Who listens there already, or in its way."""
    return next((name for other, name in taken if bind.clashes(other)), None)


def idle_ms(protocol: Protocol, read_timeout_ms: int) -> int:
    """How long nothing may come; as registered, or what suits the protocol."""
    return read_timeout_ms or (HTTP_TIMEOUT_MS if protocol.is_http else HOUR_MS)


def timeouts_of(protocol: Protocol, connect_ms: int, read_timeout_ms: int) -> Timeouts:
    """Those of a backend; 0 of either time for the usual one."""
    idle = idle_ms(protocol, read_timeout_ms)
    return Timeouts(connect_ms or CONNECT_TIMEOUT_MS, idle, HOUR_MS if protocol.is_http else idle)


def client_ms(read_timeout_ms: int, timeouts: Timeouts, changes: Iterable[WayChanges] = ()) -> int:
    """How long an http client may be silent in a request: as long as whoever answers it, if that is longer.

    While the client has not ended a call, such as a stream of gRPC, nothing but this time ends it (2.8 to 3.4).
    """
    routes = (change.timeout_ms for one in changes for change in one.changes)
    longest = max(FOR_EVER_MS if asked < 0 else asked for asked in (timeouts.server_ms, *routes))
    return max(idle_ms(Protocol.HTTP, read_timeout_ms), longest)
