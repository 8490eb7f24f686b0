"""The ways that requests take through a chain: its router and splitters, laid out flat. Pure.

A request takes the first way whose match speaks of it and whose share its draw falls into. Where a match is not
understood nobody can tell which way a request should take: then the chain's default path serves all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hcc.mesh.chain import Balancing, Chain, Node, NodeType, Route, Split, Target, start_resolver, targets_in_order
from hcc.mesh.permissions import PathMatch, PathRule
from hcc.mesh.routes import EVERY_REQUEST, NO_CHANGES, Changes, Match

# A share is a number of these: Consul has weights in steps of 0.01 %.
SHARES = 10_000
_WITH_REQUESTS = ("http", "http2", "grpc")
_TAKES_ALL = (EVERY_REQUEST, Match(PathRule(PathMatch.PREFIX, "/")))
# What fits into lines of HAProxy's configuration, of 64 words.
MOST_CONDITIONS, MOST_METHODS = 20, 40


@dataclass(frozen=True, slots=True)
class Way:
    """One way to a resolver.

    Args:
        below: of each request a number from 0 to `SHARES` - 1 is drawn; those below this one take the way, if no way
            before took them.
        changes: in the order in which they are made.
    """

    match: Match
    below: int
    resolver: str
    changes: tuple[Changes, ...] = ()


def ways(chain: Chain) -> tuple[Way, ...]:
    """All of them, in order; none where one resolver is all that there is, or the default path has to serve all."""
    start = chain.node(chain.start_node)
    if start.type is NodeType.RESOLVER or unrouted(chain):
        return ()
    return tuple(way for route in _routes(start) for way in _legs(chain, route))


def served_resolvers(chain: Chain) -> tuple[Node, ...]:
    """Those that some requests go to; the one of the default path first."""
    names = (start_resolver(chain).name, *(way.resolver for way in ways(chain)))
    return tuple(chain.node(name) for name in dict.fromkeys(names))


def reached_resolvers(chain: Chain) -> frozenset[str]:
    """Names of those that a request can come to: not what stands behind a way that takes all that is left."""
    found = ways(chain)
    if not found:
        return frozenset((start_resolver(chain).name,))
    last = next((way for way in found if way.below == SHARES and way.match in _TAKES_ALL), found[-1])
    return frozenset(way.resolver for way in found[: found.index(last) + 1])


def served_targets(chain: Chain) -> tuple[Target, ...]:
    """All targets of these."""
    return tuple(
        dict.fromkeys(target for resolver in served_resolvers(chain) for target in targets_in_order(chain, resolver))
    )


def unrouted(chain: Chain) -> tuple[str, ...]:
    """Why the default path serves all of a chain that asks for more, a phrase each; empty when routes are served."""
    start = chain.node(chain.start_node)
    if start.type is NodeType.RESOLVER:
        return ()
    found = [f"a {start.type.value} for {chain.protocol}"] if chain.protocol.lower() not in _WITH_REQUESTS else []
    for route in _routes(start):
        match = route.match
        if match.fault:
            found.append(f"a route that is not understood ({match.fault})")
        if len(match.headers) + len(match.query) > MOST_CONDITIONS or len(match.methods) > MOST_METHODS:
            found.append(f"a route with more than {MOST_CONDITIONS} conditions or {MOST_METHODS} methods")
        last = [chain.node(split.next_node).type for split in _splits(chain, route)]
        found += [f"a {kind.value} below a {NodeType.SPLITTER.value}" for kind in last if kind is not NodeType.RESOLVER]
    return tuple(dict.fromkeys(found))


def unserved(chain: Chain, datacenter: str, partition: str) -> tuple[str, ...]:
    """What the chain asks for and does not get, a phrase each; empty: all is served.

    Nothing in our own `datacenter` and `partition` is called by a mesh gateway, whatever a target's mode.
    """
    phrases = list(unrouted(chain))
    phrases += (phrase for way in ways(chain) for change in way.changes for phrase in change.unserved)
    for resolver in served_resolvers(chain):
        policy = balancer.policy if (balancer := resolver.load_balancer) else Balancing.ROUND_ROBIN
        if policy not in tuple(Balancing):
            phrases.append(f"the load balancer policy {policy}")
    for target in served_targets(chain):
        away = bool(target.peer) or (target.datacenter, target.partition) != (datacenter, partition)
        asked = (
            (away and target.mesh_gateway in ("local", "remote"), f"mesh gateway mode {target.mesh_gateway}"),
            (bool(target.peer), f"the cluster peer {target.peer}"),
            (target.external, "an external target"),
        )
        phrases += (phrase for applies, phrase in asked if applies)
    return tuple(dict.fromkeys(phrases))


def _routes(start: Node) -> tuple[Route, ...]:
    """Those of a router; a splitter at the start is one for every request."""
    return start.routes if start.type is NodeType.ROUTER else (Route(start.name, match=EVERY_REQUEST),)


def _splits(chain: Chain, route: Route) -> tuple[Split, ...]:
    """The legs of the splitter that a route leads to, those that get anything; without one, one leg."""
    node = chain.node(route.next_node)
    if node.type is not NodeType.SPLITTER:
        return (Split(node.name, 100.0),)
    return tuple(split for split in node.splits if _share(split)) or node.splits[:1]


def _legs(chain: Chain, route: Route) -> Iterator[Way]:
    splits = _splits(chain, route)
    below = 0
    for split in splits:
        # What is missing of the whole after Consul's roundings is the last one's.
        below = SHARES if split is splits[-1] else min(below + _share(split), SHARES)
        # As Envoy does: the leg's come before the route's.
        changes = tuple(one for one in (split.changes, route.changes) if one != NO_CHANGES)
        yield Way(route.match, below, split.next_node, changes)


def _share(split: Split) -> int:
    return max(0, round(split.weight * SHARES / 100))
