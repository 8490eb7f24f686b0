from __future__ import annotations

import copy
from typing import Any

import pytest

from hcc.consul.chains import chain
from hcc.consul.errors import ConsulAnswerError
from hcc.mesh.chain import LoadBalancer, NodeType, start_target
from hcc.mesh.permissions import PathMatch, PathRule
from hcc.mesh.routes import Match
from hcc.mesh.ways import unserved

# As Consul 1.20.1 compiled it: router, splitter, subset with failover, another service.
LARGE: dict[str, Any] = {
    "Chain": {
        "ServiceName": "db",
        "Datacenter": "dc1",
        "Protocol": "http",
        "StartNode": "router:db",
        "Nodes": {
            "router:db": {
                "Type": "router",
                "Name": "db",
                "Routes": [
                    {"Definition": {"Match": {"HTTP": {"PathPrefix": "/x"}}}, "NextNode": "resolver:web2"},
                    {"Definition": {"Match": {"HTTP": {"PathPrefix": "/"}}}, "NextNode": "splitter:db"},
                ],
            },
            "splitter:db": {
                "Type": "splitter",
                "Name": "db",
                "Splits": [
                    {"Definition": {"Weight": 90.5}, "Weight": 90.5, "NextNode": "resolver:v1.db"},
                    {"Weight": 9.5, "NextNode": "resolver:web2"},
                ],
            },
            "resolver:v1.db": {
                "Type": "resolver",
                "Name": "v1.db",
                "Resolver": {
                    "ConnectTimeout": "2s",
                    "RequestTimeout": 3000000000,
                    "Target": "v1.db.dc1",
                    "Failover": {"Targets": ["v1.db.dc2"]},
                },
                "LoadBalancer": {"Policy": "least_request", "LeastRequestConfig": {"ChoiceCount": 3}},
            },
            "resolver:web2": {"Type": "resolver", "Name": "web2", "Resolver": {"Target": "web2.dc1", "Failover": None}},
        },
        "Targets": {
            "v1.db.dc1": {
                "ID": "v1.db.dc1",
                "Service": "db",
                "ServiceSubset": "v1",
                "Datacenter": "dc1",
                "Subset": {"Filter": "Service.Meta.v == 1", "OnlyPassing": True},
                "MeshGateway": {"Mode": "local"},
            },
            "v1.db.dc2": {"ID": "v1.db.dc2", "Service": "db", "Datacenter": "dc2", "MeshGateway": {}},
            "web2.dc1": {"ID": "web2.dc1", "Service": "web2", "Datacenter": "dc1", "Namespace": "default"},
        },
    }
}


def changed(*path: str, value: Any) -> dict[str, Any]:
    body = copy.deepcopy(LARGE)
    place = body["Chain"]
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return body


def test_a_large_chain_is_read_whole() -> None:
    found = chain(LARGE)
    assert (found.service, found.protocol, found.start_node) == ("db", "http", "router:db")
    assert [route.next_node for route in found.node("router:db").routes] == ["resolver:web2", "splitter:db"]
    assert [split.weight for split in found.node("splitter:db").splits] == [90.5, 9.5]
    resolver = found.node("resolver:v1.db")
    assert resolver.type is NodeType.RESOLVER
    assert (resolver.connect_timeout_ms, resolver.request_timeout_ms) == (2000, 3000)
    assert (resolver.failover, resolver.load_balancer) == (("v1.db.dc2",), LoadBalancer("least_request", 3))
    assert [route.match for route in found.node("router:db").routes] == [
        Match(PathRule(PathMatch.PREFIX, path)) for path in ("/x", "/")
    ]
    target = start_target(found)
    assert (target.id, target.subset_filter, target.only_passing) == ("v1.db.dc1", "Service.Meta.v == 1", True)
    assert (target.mesh_gateway, target.namespace, target.partition) == ("local", "default", "default")
    assert unserved(found, "dc1", "default") == ()
    assert unserved(found, "dc3", "default") == ("mesh gateway mode local",)


def test_the_same_chain_is_the_same_value_whatever_the_order_of_its_json() -> None:
    body = copy.deepcopy(LARGE)
    body["Chain"]["Nodes"] = dict(reversed(body["Chain"]["Nodes"].items()))
    body["Chain"]["AutoVirtualIPs"] = ["240.0.0.1"]
    assert chain(body) == chain(LARGE)


def test_a_chain_without_protocol_is_tcp() -> None:
    assert chain(changed("Protocol", value="")).protocol == "tcp"


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        (("StartNode",), "router:nothing", "StartNode"),
        (("StartNode",), None, "StartNode"),
        (("Nodes", "router:db", "Type"), "joiner", r"Nodes\[router:db\].Type"),
        (("Nodes", "router:db", "Routes"), None, "router with legs"),
        (("Nodes", "splitter:db", "Splits"), [], "splitter with legs"),
        (("Nodes", "splitter:db", "Splits"), [{"Weight": 100, "NextNode": "resolver:gone"}], "resolver:gone"),
        (("Nodes", "splitter:db", "Splits"), [{"Weight": 100}], "NextNode"),
        (("Nodes", "resolver:web2", "Resolver"), {"Target": "gone"}, "gone"),
        (("Nodes", "resolver:web2", "Resolver"), None, "found nothing"),
        (("Nodes", "resolver:v1.db", "Resolver"), {"Target": "v1.db.dc1", "Failover": {"Targets": ["gone"]}}, "gone"),
        (("Nodes", "resolver:v1.db", "Resolver"), {"Target": "v1.db.dc1", "ConnectTimeout": "soon"}, "ConnectTimeout"),
        (("Nodes", "splitter:db", "Splits"), [{"Weight": 100, "NextNode": "router:db"}], "no loop"),
        (("Targets", "web2.dc1", "Service"), "", "Service"),
        (("Targets",), None, "one of the targets"),
        (("Nodes",), {}, "StartNode"),
    ],
)
def test_a_broken_chain_is_an_error_that_names_the_place(path: tuple[str, ...], value: Any, place: str) -> None:
    with pytest.raises(ConsulAnswerError, match=place):
        chain(changed(*path, value=value))


@pytest.mark.parametrize("body", [None, [], {}, {"Chain": None}, {"Chain": []}, {"Chain": "x"}])
def test_an_answer_without_a_chain_is_an_error(body: object) -> None:
    with pytest.raises(ConsulAnswerError):
        chain(body)
