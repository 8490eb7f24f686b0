"""Which targets of a leg get the traffic, and which stand by. Pure.

Consul's health decides (`Leg.tried`), as with its Envoy: failover begins where a target has no healthy instance left
(reference/consul.md section 4). And where none of those that it calls healthy can be called.
"""

from __future__ import annotations

from collections.abc import Collection, Container
from typing import NamedTuple

from hcc.mesh.peer_book import Peer, peer_of
from hcc.mesh.snapshot import Leg, TargetEndpoints


class Order(NamedTuple):
    """The targets of a leg, in order. Of those `passed` no instance can be called."""

    passed: tuple[TargetEndpoints, ...]
    serving: tuple[TargetEndpoints, ...]
    standby: tuple[TargetEndpoints, ...]


def order(leg: Leg, admitted: Container[Peer] | None, silent: Collection[Peer]) -> Order:
    """One target serves, unless there is none at all.

    Args:
        leg: what Consul says.
        admitted: endpoints that may get traffic; None where their identity is not looked at.
        silent: those, and others, that do not answer, or not as who they should be.
    """
    targets = leg.targets
    at = _serving_at(leg, admitted, frozenset(silent)) if silent else len(leg.tried) - 1
    return Order(targets[: max(at, 0)], targets[max(at, 0) : at + 1], targets[at + 1 :])


def _serving_at(leg: Leg, admitted: Container[Peer] | None, silent: frozenset[Peer]) -> int:
    """The first target with somebody who may be called and answers; if there is none, with somebody who may be called.

    Who waits for the first probe is no reason to leave a target, nor to go back to one of which nobody can be called.
    """
    by_health = len(leg.tried) - 1
    healthy = [[peer_of(one) for one in target.endpoints if one.serves] for target in leg.targets[by_health:]]
    if not healthy or silent.isdisjoint(healthy[0]):
        return by_health
    known = [[peer for peer in peers if admitted is None or peer in admitted] for peers in healthy]
    answering = (at for at, peers in enumerate(known, by_health) if not silent.issuperset(peers))
    return next(answering, next((at for at, peers in enumerate(known, by_health) if peers), by_health))
