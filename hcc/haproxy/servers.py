"""The servers of one upstream, made from its endpoints."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from hashlib import blake2b
from ipaddress import ip_address
from operator import attrgetter

from hcc.haproxy.model import MAX_WEIGHT, Server
from hcc.haproxy.names import server_name
from hcc.mesh.peer_book import Peer, peer_of
from hcc.mesh.remembered import remembered
from hcc.mesh.snapshot import Endpoint
from hcc.settings import MAX_PORT


def servers(
    endpoints: Iterable[Endpoint],
    admitted: Container[Peer] | None = None,
    standby: Iterable[Endpoint] = (),
    silent: Sequence[Peer] = (),
) -> tuple[Server, ...]:
    """One server per address and port, sorted by name.

    Args:
        endpoints: those of one upstream.
        admitted: who was seen to be who it should be; None where that is not looked at.
        standby: those that are to serve when none of the others can.
        silent: who answers neither HAProxy nor probes, who fell silent first coming first.

    An endpoint that does not serve now, or is not admitted, stays, in maintenance: its return is then one command. So
    does one that is silent, but of all that could serve never more than half are left out for that.
    Of two endpoints with one address and port the better one counts. An address that is no IP address is left out
    (they are resolved, and what cannot be is reported, where Consul is read).
    """
    best: dict[str, Endpoint] = {}
    for endpoint in endpoints:
        name = _name(endpoint.address, endpoint.port)
        if name and (name not in best or _worth(endpoint, admitted) > _worth(best[name], admitted)):
            best[name] = endpoint
    waiting = {name: endpoint for endpoint in standby if (name := _name(endpoint.address, endpoint.port)) not in best}
    waiting.pop("", None)
    heaviest = max([MAX_WEIGHT, *(endpoint.weight for endpoint in best.values() if endpoint.serves)])
    spared = _spared(best, admitted, silent)
    found = [_server(name, one, heaviest, _enabled(one, admitted) and name not in spared) for name, one in best.items()]
    found += (_server(name, one, heaviest, False) for name, one in waiting.items())
    return tuple(sorted(found, key=attrgetter("name")))


def _spared(best: Mapping[str, Endpoint], admitted: Container[Peer] | None, silent: Sequence[Peer]) -> frozenset[str]:
    """Names of those that could serve and are left out as they are silent.

    Where most do not answer, that may be the network's fault or ours, and the rest could not bear what all got.
    """
    if not silent:
        return frozenset()
    able = {name for name, one in best.items() if _enabled(one, admitted)}
    # Another service may be listed at the same place, and be refused there.
    quiet = [
        name
        for peer in silent
        if (name := _name(peer.address, peer.port)) in able and best[name].identity == peer.identity
    ]
    return frozenset(quiet[: len(able) // 2])


def in_turn(some: Iterable[Server], seed: str) -> list[Server]:
    """The same in the order in which HAProxy is told of them, another one for each seed.

    Its round robin begins with the first. Were that the same everywhere, it would get the few connections that each of
    many sidecars opens.
    """
    return sorted(some, key=lambda server: blake2b(f"{seed}{server.name}".encode(), digest_size=8).digest())


@remembered
def _name(address: str, port: int) -> str:
    """Empty when it is no server."""
    found = _ip(address)
    return server_name(found, port) if found and 0 < port <= MAX_PORT else ""


# The same object for the same endpoint: of ten thousand servers those that did not change are told by identity.
@remembered
def _server(name: str, endpoint: Endpoint, heaviest: int, enabled: bool) -> Server:
    return Server(name, _ip(endpoint.address), endpoint.port, scaled(endpoint.weight, heaviest), enabled)


def scaled(weight: int, heaviest: int) -> int:
    """HAProxy's weight, 1 to 256, for one of Consul's (up to 65535); ratios stay when all are scaled."""
    if heaviest > MAX_WEIGHT:
        weight = round(weight * MAX_WEIGHT / heaviest)
    return min(max(weight, 1), MAX_WEIGHT)


def _worth(endpoint: Endpoint, admitted: Container[Peer] | None) -> tuple[bool, int]:
    return _enabled(endpoint, admitted), endpoint.weight


def _enabled(endpoint: Endpoint, admitted: Container[Peer] | None) -> bool:
    known = admitted is None or peer_of(endpoint) in admitted
    return endpoint.serves and known


def _ip(address: str) -> str:
    try:
        return str(ip_address(address)) if "%" not in address else ""
    except ValueError:
        return ""
