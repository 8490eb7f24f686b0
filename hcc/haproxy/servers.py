"""The servers of one upstream, made from its endpoints."""

from __future__ import annotations

from collections.abc import Container, Iterable
from ipaddress import ip_address

from hcc.haproxy.model import MAX_WEIGHT, Server
from hcc.haproxy.names import server_name
from hcc.mesh.peer_book import Peer
from hcc.mesh.snapshot import Endpoint


def servers(endpoints: Iterable[Endpoint], admitted: Container[Peer] | None = None) -> tuple[Server, ...]:
    """One server per address and port, sorted by name.

    Args:
        endpoints: those of one upstream.
        admitted: who was seen to be who it should be; None where that is not looked at.

    An endpoint that does not serve now, or is not admitted, stays, in maintenance: its return is then one command.
    Of two endpoints with one address and port the better one counts. An address that is no IP address is left out
    (they are resolved, and what cannot be is reported, where Consul is read).
    """
    best: dict[tuple[str, int], Endpoint] = {}
    for endpoint in endpoints:
        address = _ip(endpoint.address)
        if address and 0 < endpoint.port <= MAX_PORT:
            key = (address, endpoint.port)
            if key not in best or _worth(endpoint, admitted) > _worth(best[key], admitted):
                best[key] = endpoint
    heaviest = max((endpoint.weight for endpoint in best.values() if endpoint.serves), default=1)
    return tuple(
        sorted(
            Server(
                server_name(address, port),
                address,
                port,
                scaled(endpoint.weight, heaviest),
                _enabled(endpoint, admitted),
            )
            for (address, port), endpoint in best.items()
        )
    )


def scaled(weight: int, heaviest: int) -> int:
    """HAProxy's weight, 1 to 256, for one of Consul's (up to 65535); ratios stay when all are scaled."""
    if heaviest > MAX_WEIGHT:
        weight = round(weight * MAX_WEIGHT / heaviest)
    return min(max(weight, 1), MAX_WEIGHT)


MAX_PORT = 65535


def _worth(endpoint: Endpoint, admitted: Container[Peer] | None) -> tuple[bool, int]:
    return _enabled(endpoint, admitted), endpoint.weight


def _enabled(endpoint: Endpoint, admitted: Container[Peer] | None) -> bool:
    known = admitted is None or Peer(endpoint.address, endpoint.port, endpoint.identity) in admitted
    return endpoint.serves and known


def _ip(address: str) -> str:
    try:
        return str(ip_address(address)) if "%" not in address else ""
    except ValueError:
        return ""
