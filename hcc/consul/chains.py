"""A compiled discovery chain from Consul's JSON, its references checked, so that walking it cannot fail.

Source: GET /v1/discovery-chain/:service; reference/consul.md section 4.
"""

from __future__ import annotations

from hcc.consul.errors import ConsulAnswerError
from hcc.consul.fields import Fields, fields
from hcc.consul.options import MAX_TIMEOUT_MS
from hcc.consul.routes import leg_changes, match, route_changes
from hcc.mesh.chain import Chain, ChainError, LoadBalancer, Node, NodeType, Route, Split, Target, check_chain
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
    try:
        check_chain(found)
    except ChainError as exc:
        raise ConsulAnswerError(exc.path, exc.expected, exc.found) from exc
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
    return Route(route.required("NextNode"), found, route_changes(definition, found.path))


def _split(split: Fields) -> Split:
    return Split(split.required("NextNode"), split.decimal("Weight"), leg_changes(split.child("Definition")))


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
        external=target.flag("External"),
    )
