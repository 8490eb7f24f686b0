"""A compiled discovery chain: how one upstream is reached, as Consul compiled it.

The whole graph is kept: routers, splitters, resolvers. Leaves to others: reading it from JSON (`hcc.consul.chains`),
the ways that requests take through it (`hcc.mesh.ways`) and turning these into backends (`hcc.haproxy.desired`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum

from hcc.errors import HccError
from hcc.mesh.routes import NO_CHANGES, NOT_READ, Changes, Match


class ChainError(HccError):
    """A chain cannot be walked.

    Args:
        path: where, such as `Chain.Nodes[resolver:db]`.
        expected, found: for people.
    """

    def __init__(self, path: str, expected: str, found: str) -> None:
        super().__init__(f"{path}: expected {expected}, found {found}")
        self.path = path
        self.expected = expected
        self.found = found


class NodeType(Enum):
    """The three kinds of node, by Consul's names."""

    ROUTER = "router"
    SPLITTER = "splitter"
    RESOLVER = "resolver"


@dataclass(frozen=True, slots=True)
class Route:
    """One leg of a router."""

    next_node: str
    match: Match = NOT_READ
    changes: Changes = NO_CHANGES


@dataclass(frozen=True, slots=True)
class Split:
    """One leg of a splitter; `weight` is a percentage, 0 to 100 in steps of 0.01."""

    next_node: str
    weight: float
    changes: Changes = NO_CHANGES


class Balancing(StrEnum):
    """How a resolver's instances are chosen, as far as it is served."""

    ROUND_ROBIN = "round_robin"
    RANDOM = "random"
    LEAST_REQUEST = "least_request"


@dataclass(frozen=True, slots=True)
class LoadBalancer:
    """A resolver's policy, by Consul's word.

    Args:
        choices: of `least_request`: of so many instances the one with the fewest requests is taken; 0 when not given.
    """

    policy: str
    choices: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the chain; which fields count depends on `type`.

    Args:
        target: a resolver's target ID.
        failover: target IDs to try after it, in order.
        connect_timeout_ms: a resolver's, 0 when not given.
        request_timeout_ms: a resolver's, 0 when not given.
        load_balancer: None when not given.
    """

    name: str
    type: NodeType
    routes: tuple[Route, ...] = ()
    splits: tuple[Split, ...] = ()
    target: str = ""
    failover: tuple[str, ...] = ()
    connect_timeout_ms: int = 0
    request_timeout_ms: int = 0
    load_balancer: LoadBalancer | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One set of instances that a chain may send traffic to.

    Args:
        id: opaque; its form differs between Consul versions.
        subset_filter: Consul's filter expression of a subset, empty for all instances.
        mesh_gateway: mode `none`, `local`, `remote`, or empty.
    """

    id: str
    service: str
    datacenter: str
    namespace: str = "default"
    partition: str = "default"
    peer: str = ""
    subset: str = ""
    subset_filter: str = ""
    only_passing: bool = False
    mesh_gateway: str = ""
    external: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """A compiled chain. Nodes and targets are sorted by name; `node` and `target` look one up.

    Source: GET /v1/discovery-chain/:service; reference/consul.md section 4.
    """

    service: str
    datacenter: str
    protocol: str
    start_node: str
    nodes: tuple[Node, ...]
    targets: tuple[Target, ...]

    def node(self, name: str) -> Node:
        """The node of that name; KeyError when the chain has none (`check_chain` sees to all references)."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def target(self, target_id: str) -> Target:
        """The target of that ID; KeyError when the chain has none."""
        for target in self.targets:
            if target.id == target_id:
                return target
        raise KeyError(target_id)


def start_resolver(chain: Chain) -> Node:
    """The resolver that the chain's default path ends at: it serves all where routes cannot be served.

    A router ends with Consul's catch-all route, so its last leg is taken; of a splitter the heaviest leg.
    """
    node = chain.node(chain.start_node)
    while node.type is not NodeType.RESOLVER:
        if node.type is NodeType.ROUTER:
            node = chain.node(node.routes[-1].next_node)
        else:
            node = chain.node(max(node.splits, key=lambda split: split.weight).next_node)
    return node


def start_target(chain: Chain) -> Target:
    """The target of `start_resolver`."""
    return chain.target(start_resolver(chain).target)


def targets_in_order(chain: Chain, resolver: Node) -> tuple[Target, ...]:
    """The target of a resolver and those to fail over to, in the order in which they are tried."""
    return tuple(chain.target(each) for each in dict.fromkeys((resolver.target, *resolver.failover)))


def check_chain(chain: Chain) -> None:
    """Nothing, when the chain can be walked: `node`, `target` and what walks by them do not fail then, and end.

    Raises:
        ChainError: a reference to nothing, or a loop.
    """
    _check_references(chain)
    _check_loops(chain.start_node, {node.name: _next_nodes(node) for node in chain.nodes}, ())


def _check_references(found: Chain) -> None:
    nodes = {node.name for node in found.nodes}
    targets = {target.id for target in found.targets}
    if found.start_node not in nodes:
        raise ChainError("Chain.StartNode", "one of the nodes", found.start_node)
    for node in found.nodes:
        path = f"Chain.Nodes[{node.name}]"
        if node.type is NodeType.RESOLVER:
            missing = next((target for target in (node.target, *node.failover) if target not in targets), None)
            expected = "one of the targets"
        else:
            missing = next((name for name in _next_nodes(node) if name not in nodes), None)
            expected = "one of the nodes"
            if not _next_nodes(node):
                raise ChainError(path, f"a {node.type.value} with legs", "none")
        if missing is not None:
            raise ChainError(path, expected, missing or "nothing")


def _next_nodes(node: Node) -> tuple[str, ...]:
    legs: Iterator[Route | Split] = iter(node.routes if node.type is NodeType.ROUTER else node.splits)
    return () if node.type is NodeType.RESOLVER else tuple(leg.next_node for leg in legs)


def _check_loops(name: str, legs: Mapping[str, tuple[str, ...]], seen: tuple[str, ...]) -> None:
    # Consul flattens splitters, so a chain is three or four nodes deep.
    if name in seen:
        raise ChainError("Chain.Nodes", "no loop", " -> ".join((*seen, name)))
    for leg in set(legs[name]):
        _check_loops(leg, legs, (*seen, name))
