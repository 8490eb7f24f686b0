"""Which targets of a leg get the traffic, and which stand by. Pure.

Consul's health decides (`Leg.tried`), as with its Envoy: failover begins where a target has no healthy instance left
(reference/consul.md section 4). And where none of those that it calls healthy answers.
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
        silent: those of them that answer neither HAProxy nor probes.
    """
    targets = leg.targets
    at = _serving_at(leg, admitted, frozenset(silent)) if silent else len(leg.tried) - 1
    return Order(targets[: max(at, 0)], targets[max(at, 0) : at + 1], targets[at + 1 :])


def _serving_at(leg: Leg, admitted: Container[Peer] | None, silent: frozenset[Peer]) -> int:
    """The first that has somebody who answers or is not known not to; by Consul's word alone if nobody does."""
    by_health = len(leg.tried) - 1
    for at, target in enumerate(leg.targets[by_health:], start=by_health):
        able = [peer_of(one) for one in target.endpoints if one.serves]
        if at > by_health:
            # Who is not admitted yet gets nothing: that is no reason to leave the one before.
            able = [peer for peer in able if admitted is None or peer in admitted]
        if not silent.issuperset(able) or (at == by_health and not able):
            return at
    return by_health
