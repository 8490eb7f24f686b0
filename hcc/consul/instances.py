"""The instances of a service from Consul's JSON: where each sidecar is, how well, and whom it stands for.

Source: GET /v1/health/connect/:service, GET /v1/query/:id/execute; reference/consul.md section 4.
"""

from __future__ import annotations

from operator import attrgetter

from hcc.consul.answers import Instance
from hcc.consul.fields import Fields, fields, fields_list
from hcc.mesh.identity import DEFAULT_NAMESPACE, DEFAULT_PARTITION
from hcc.mesh.snapshot import Health
from hcc.settings import MAX_PORT

_PROXY, _GATEWAY = "connect-proxy", "terminating-gateway"
# Every field, so that equal instances and no others are neighbours.
in_order = attrgetter(
    "address", "port", "service", "datacenter", "namespace", "partition", "weight", "health", "is_gateway"
)


def instances(data: object, *, wan: bool) -> tuple[Instance, ...]:
    """The instances of a health answer, sorted.

    Entries without address or port, or of what is not in the mesh, are left out: they cannot be connected to.

    Args:
        data: a list of `{Node, Service, Checks}`, or null.
        wan: take the addresses meant for callers of another datacenter.

    Raises:
        ConsulAnswerError: another shape.
    """
    return _sorted(tuple(instance(entry, wan) for entry in fields_list(data, "")))


def query_instances(data: object, home: str) -> tuple[Instance, ...]:
    """The instances that a prepared query found, sorted; as `instances`.

    Args:
        data: `{Nodes: [{Node, Service, Checks}]}`.
        home: our datacenter; instances of another one are reached by their WAN address.
    """
    body = fields(data, "")
    if "Nodes" not in body.values:
        raise body.error("Nodes", "a list")
    entries = body.children("Nodes")
    return _sorted(tuple(instance(entry, _is_elsewhere(entry, home)) for entry in entries))


def _is_elsewhere(entry: Fields, home: str) -> bool:
    datacenter = entry.child("Node").text("Datacenter")
    return bool(datacenter) and datacenter != home


def _sorted(found: tuple[Instance | None, ...]) -> tuple[Instance, ...]:
    return tuple(sorted({one for one in found if one is not None}, key=in_order))


def instance(entry: Fields, wan: bool) -> Instance | None:
    """The instance of one entry, None when it is left out."""
    node, service = entry.required_child("Node"), entry.required_child("Service")
    address, port = _address(node, service, wan)
    if not address or not 0 < port <= MAX_PORT or not _speaks_connect(service):
        return None
    health = _health(entry)
    is_proxy = service.text("Kind") == _PROXY
    return Instance(
        address=address,
        port=port,
        weight=_weight(service, health),
        health=health,
        service=service.child("Proxy").text("DestinationServiceName") if is_proxy else service.text("Service"),
        datacenter=node.text("Datacenter"),
        namespace=service.text("Namespace") or DEFAULT_NAMESPACE,
        partition=service.text("Partition") or DEFAULT_PARTITION,
        is_gateway=service.text("Kind") == _GATEWAY,
    )


def _speaks_connect(service: Fields) -> bool:
    return service.text("Kind") in (_PROXY, _GATEWAY) or service.child("Connect").flag("Native")


def _address(node: Fields, service: Fields, wan: bool) -> tuple[str, int]:
    port = service.number("Port")
    if wan:
        tagged = service.child("TaggedAddresses").child("wan")
        if tagged.text("Address"):
            return tagged.text("Address"), tagged.number("Port") or port
    if service.text("Address"):
        return service.text("Address"), port
    of_node = node.child("TaggedAddresses").text("wan") if wan else ""
    return of_node or node.text("Address"), port


def _health(entry: Fields) -> Health:
    # Consul knows a fourth state, maintenance, and may learn more: whatever is not well is not used.
    found = {check.text("Status") for check in entry.children("Checks")}
    if found <= {Health.PASSING.value}:
        return Health.PASSING
    return Health.WARNING if found <= {Health.PASSING.value, Health.WARNING.value} else Health.CRITICAL


def _weight(service: Fields, health: Health) -> int:
    # One that is down keeps its passing weight, so that it comes back as it went.
    name = "Warning" if health is Health.WARNING else "Passing"
    weights = service.child("Weights")
    return max(0, weights.number(name)) if name in weights.values else 1
