from dataclasses import replace

import pytest

from hcc.mesh.chain import (
    Chain,
    LoadBalancer,
    Node,
    NodeType,
    Route,
    Split,
    Target,
    start_target,
    targets_in_order,
    unserved,
)

WEB = Target("web.default.default.dc1", "web", "dc1")
V2 = Target("v2.web.default.default.dc1", "web", "dc1", subset="v2")
RESOLVE_WEB = Node("resolver:web", NodeType.RESOLVER, target=WEB.id)
RESOLVE_V2 = Node("resolver:v2", NodeType.RESOLVER, target=V2.id)
SPLIT = Node("splitter:web", NodeType.SPLITTER, splits=(Split("resolver:web", 10.0), Split("resolver:v2", 90.0)))
ROUTE = Node("router:web", NodeType.ROUTER, routes=(Route("resolver:v2"), Route("resolver:web")))


def chain(start: str, *nodes: Node) -> Chain:
    return Chain("web", "dc1", "http", start, nodes, (V2, WEB))


def test_a_resolver_at_the_start_gives_its_target_and_leaves_nothing_unserved() -> None:
    simple = chain("resolver:web", RESOLVE_WEB)

    assert start_target(simple) == WEB
    assert unserved(simple) == ()


def test_a_router_serves_its_catch_all_route() -> None:
    routed = chain("router:web", ROUTE, RESOLVE_WEB, RESOLVE_V2)

    assert start_target(routed) == WEB
    assert unserved(routed) == ("a router of 2 routes",)


def test_a_splitter_serves_its_heaviest_leg() -> None:
    split = chain("splitter:web", SPLIT, RESOLVE_WEB, RESOLVE_V2)

    assert start_target(split) == V2
    assert unserved(split) == ("a splitter",)


@pytest.mark.parametrize(
    ("target", "phrase"),
    [
        (replace(WEB, mesh_gateway="local"), "mesh gateway mode local"),
        (replace(WEB, mesh_gateway="remote"), "mesh gateway mode remote"),
        (replace(WEB, peer="east"), "the cluster peer east"),
        (replace(WEB, external=True), "an external target"),
    ],
)
def test_what_the_target_asks_for_beyond_direct_connections_is_named(target: Target, phrase: str) -> None:
    asked = Chain("web", "dc1", "tcp", "resolver:web", (RESOLVE_WEB,), (target,))

    assert unserved(asked) == (phrase,)


def test_of_a_target_that_asks_for_no_gateway_nothing_is_unserved() -> None:
    asked = Chain("web", "dc1", "tcp", "resolver:web", (RESOLVE_WEB,), (replace(WEB, mesh_gateway="none"),))

    assert unserved(asked) == ()


def test_what_else_a_resolver_asks_for_is_named() -> None:
    resolver = replace(RESOLVE_WEB, failover=(V2.id,), load_balancer=LoadBalancer("maglev"), request_timeout_ms=100)

    assert unserved(chain("resolver:web", resolver)) == ("the load balancer policy maglev",)


@pytest.mark.parametrize("policy", ["round_robin", "random", "least_request"])
def test_policies_that_look_at_no_request_are_served(policy: str) -> None:
    assert unserved(chain("resolver:web", replace(RESOLVE_WEB, load_balancer=LoadBalancer(policy)))) == ()


def test_targets_are_tried_in_the_order_of_the_resolvers_failover() -> None:
    resolver = replace(RESOLVE_WEB, failover=(V2.id, WEB.id))

    assert targets_in_order(chain("resolver:web", RESOLVE_WEB)) == (WEB,)
    assert targets_in_order(chain("resolver:web", resolver)) == (WEB, V2)
    assert targets_in_order(chain("router:web", ROUTE, resolver, RESOLVE_V2)) == (WEB, V2)


def test_what_a_target_to_fail_over_to_asks_for_is_named_too() -> None:
    east = Target("web.default.default.external.east", "web", "", peer="east")
    abroad = Target("web.default.default.dc2", "web", "dc2", mesh_gateway="local")
    resolver = replace(RESOLVE_WEB, failover=(abroad.id, V2.id, east.id))
    asked = Chain("web", "dc1", "tcp", "resolver:web", (resolver,), (V2, WEB, abroad, east))

    assert unserved(asked) == ("mesh gateway mode local", "the cluster peer east")
