"""A compiled discovery chain from Consul's JSON, its references checked, so that walking it cannot fail.

Source: GET /v1/discovery-chain/:service; reference/consul.md section 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hcc.consul.errors import ConsulAnswerError
from hcc.consul.fields import Fields, fields
from hcc.consul.options import MAX_TIMEOUT_MS
from hcc.consul.routes import leg_changes, match, route_changes
from hcc.mesh.chain import Chain, LoadBalancer, Node, NodeType, Route, Split, Target
from hcc.mesh.identity import DEFAULT_NAMESPACE, DEFAULT_PARTITION


def chain(data: object) -> Chain:
    """The chain of an answer.

    Raises:
        ConsulAnswerError: another shape, a reference to nothing, or a loop.
    """
    body = fields(data, "").child("Chain")
    nodes = tuple(_node(name, node) for name, node in body.entries("Nodes"))
    targets = tuple(_target(name, target) for name, target in body.entries("Targets"))
    found = Chain(
        service=body.required("ServiceName"),
        datacenter=body.required("Datacenter"),
        protocol=body.text("Protocol") or "tcp",
        start_node=body.required("StartNode"),
        nodes=nodes,
        targets=targets,
    )
    _check_references(found)
    _check_loops(found.start_node, {node.name: _next_nodes(node) for node in nodes}, ())
    return found


def _node(name: str, node: Fields) -> Node:
    kinds = {kind.value: kind for kind in NodeType}
    kind = kinds.get(node.text("Type"))
    if kind is None:
        raise node.error("Type", " or ".join(kinds))
    resolver = node.child("Resolver")
    return Node(
        name=name,
        type=kind,
        routes=tuple(_route(route) for route in node.children("Routes")),
        splits=tuple(_split(split) for split in node.children("Splits")),
        target=resolver.text("Target"),
        failover=resolver.child("Failover").texts("Targets"),
        connect_timeout_ms=min(max(0, resolver.duration_ms("ConnectTimeout")), MAX_TIMEOUT_MS),
        request_timeout_ms=min(max(0, resolver.duration_ms("RequestTimeout")), MAX_TIMEOUT_MS),
        load_balancer=_load_balancer(node.child("LoadBalancer")),
    )


def _load_balancer(found: Fields) -> LoadBalancer | None:
    policy = found.text("Policy")
    if not policy:
        return None
    return LoadBalancer(policy, max(0, found.child("LeastRequestConfig").number("ChoiceCount")))


def _route(route: Fields) -> Route:
    definition = route.child("Definition")
    found = match(definition)
    return Route(
        route.required("NextNode"), route.json("Definition", "{}"), found, route_changes(definition, found.path)
    )


def _split(split: Fields) -> Split:
    return Split(
        split.required("NextNode"),
        split.decimal("Weight"),
        split.json("Definition", "{}"),
        leg_changes(split.child("Definition")),
    )


def _target(name: str, target: Fields) -> Target:
    subset = target.child("Subset")
    return Target(
        id=name,
        service=target.required("Service"),
        datacenter=target.text("Datacenter"),
        namespace=target.text("Namespace") or DEFAULT_NAMESPACE,
        partition=target.text("Partition") or DEFAULT_PARTITION,
        peer=target.text("Peer"),
        subset=target.text("ServiceSubset"),
        subset_filter=subset.text("Filter"),
        only_passing=subset.flag("OnlyPassing"),
        mesh_gateway=target.child("MeshGateway").text("Mode"),
        sni=target.text("SNI"),
        external=target.flag("External"),
    )


def _check_references(found: Chain) -> None:
    nodes = {node.name for node in found.nodes}
    targets = {target.id for target in found.targets}
    if found.start_node not in nodes:
        raise ConsulAnswerError("Chain.StartNode", "one of the nodes", found.start_node)
    for node in found.nodes:
        path = f"Chain.Nodes[{node.name}]"
        if node.type is NodeType.RESOLVER:
            missing = next((target for target in (node.target, *node.failover) if target not in targets), None)
            expected = "one of the targets"
        else:
            missing = next((name for name in _next_nodes(node) if name not in nodes), None)
            expected = "one of the nodes"
            if not _next_nodes(node):
                raise ConsulAnswerError(path, f"a {node.type.value} with legs", "none")
        if missing is not None:
            raise ConsulAnswerError(path, expected, missing or "nothing")


def _next_nodes(node: Node) -> tuple[str, ...]:
    legs: Iterator[Route | Split] = iter(node.routes if node.type is NodeType.ROUTER else node.splits)
    return () if node.type is NodeType.RESOLVER else tuple(leg.next_node for leg in legs)


def _check_loops(name: str, legs: Mapping[str, tuple[str, ...]], seen: tuple[str, ...]) -> None:
    # Consul flattens splitters, so a chain is three or four nodes deep.
    if name in seen:
        raise ConsulAnswerError("Chain.Nodes", "no loop", " -> ".join((*seen, name)))
    for leg in set(legs[name]):
        _check_loops(leg, legs, (*seen, name))
