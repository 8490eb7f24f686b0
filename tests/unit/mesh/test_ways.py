from dataclasses import replace

import pytest

from hcc.mesh.chain import Chain, LoadBalancer, Node, NodeType, Route, Split, Target
from hcc.mesh.json_form import from_json, to_json
from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule
from hcc.mesh.routes import EVERY_REQUEST, Changes, HeaderChanges, Match
from hcc.mesh.snapshot import TargetEndpoints, UpstreamState
from hcc.mesh.ways import (
    MOST_CONDITIONS,
    SHARES,
    Way,
    reached_resolvers,
    served_resolvers,
    served_targets,
    unrouted,
    unserved,
    ways,
)
from tests.builders import chain, endpoint, resolver, routed_chain, routed_state

V1, V2, V3 = resolver("v1"), resolver("v2"), resolver("v3", failover=("v1.web",))
API, ALL = Match(PathRule(PathMatch.PREFIX, "/api")), Match(PathRule(PathMatch.PREFIX, "/"))
SET = Changes(request=HeaderChanges(set=(("a", "b"),)))
TIMED = Changes(timeout_ms=5)


def lacks(found: Chain) -> tuple[str, ...]:
    """What is not served of a chain for a sidecar in dc1."""
    return unserved(found, "dc1", "default")


def resolved(node: Node, *targets: Target) -> Chain:
    return Chain("web", "dc1", "http", node.name, (node,), targets)


def test_one_resolver_is_no_way_and_serves_all() -> None:
    assert (ways(chain()), unrouted(chain()), lacks(chain())) == ((), (), ())
    assert [one.target for one in served_resolvers(chain())] == [chain().targets[0].id]


def test_routes_come_in_order_and_end_at_legs() -> None:
    found = routed_chain(
        Route("v3", match=API, changes=TIMED),
        Route("splitter", match=ALL, changes=TIMED),
        splits=(Split("v1", 90.5), Split("v2", 9.5, changes=SET)),
        legs=(V1, V2, V3),
    )

    assert ways(found) == (
        Way(API, SHARES, "resolver:v3", (TIMED,)),
        Way(ALL, 9_050, "resolver:v1", (TIMED,)),
        Way(ALL, SHARES, "resolver:v2", (SET, TIMED)),
    )
    assert lacks(found) == ()
    assert [one.name for one in served_resolvers(found)] == ["resolver:v1", "resolver:v3", "resolver:v2"]
    assert [one.id for one in served_targets(found)] == ["v1.web", "v3.web", "v2.web"]


@pytest.mark.parametrize("everything", [ALL, EVERY_REQUEST])
def test_nothing_is_reached_behind_a_route_that_takes_every_request(everything: Match) -> None:
    splits = (Split("v1", 50), Split("v2", 50))
    ends = (Route("splitter", match=everything), Route("v3", match=EVERY_REQUEST))
    found = routed_chain(Route("v4", match=API), *ends, splits=splits, legs=(V1, V2, V3, resolver("v4")))

    assert reached_resolvers(found) == {"resolver:v1", "resolver:v2", "resolver:v4"}
    # The one of the default path is there all the same.
    assert served_resolvers(found)[0].name == "resolver:v3"
    assert reached_resolvers(chain()) == {one.name for one in served_resolvers(chain())}


@pytest.mark.parametrize(
    ("weights", "below"),
    [
        ((99.99, 0.01), [9_999, SHARES]),
        ((33.33, 33.33, 33.34), [3_333, 6_666, SHARES]),
        ((50.0, 49.98), [5_000, SHARES]),
        ((0.0, 100.0), [SHARES]),
        ((0.0, 0.0), [SHARES]),
    ],
)
def test_each_leg_has_its_share_in_steps_of_a_hundredth_of_a_percent(
    weights: tuple[float, ...], below: list[int]
) -> None:
    names = ("v1", "v2", "v3")[: len(weights)]
    splits = [Split(name, weight) for name, weight in zip(names, weights, strict=True)]
    found = ways(routed_chain(splits=splits, legs=(V1, V2, V3)))

    assert [way.below for way in found] == below
    assert {way.match for way in found} == {EVERY_REQUEST}


@pytest.mark.parametrize(
    ("route", "phrase"),
    [
        (Route("v1"), "a route that is not understood (a match that was not read)"),
        (Route("v1", match=Match(fault="the field Moon is not known")), "(the field Moon is not known)"),
        (
            Route(
                "v1",
                match=Match(
                    headers=tuple(HeaderRule(f"x{n}", HeaderMatch.PRESENT) for n in range(MOST_CONDITIONS + 1))
                ),
            ),
            "more than 20 conditions",
        ),
    ],
)
def test_where_a_match_is_not_understood_the_default_path_serves_all(route: Route, phrase: str) -> None:
    found = routed_chain(route, Route("v2", match=ALL), legs=(V1, V2))

    assert ways(found) == ()
    assert len(unrouted(found)) == 1
    assert phrase in unrouted(found)[0]
    assert lacks(found) == unrouted(found)
    assert served_resolvers(found) == (V2,)


def test_tcp_has_no_requests_to_route() -> None:
    assert unrouted(routed_chain(Route("v1", match=API), Route("v2", match=ALL), legs=(V1, V2), protocol="tcp")) == (
        "a router for tcp",
    )


def test_a_splitter_below_a_splitter_is_not_served() -> None:
    lower = Node("splitter:low", NodeType.SPLITTER, splits=(Split(V1.name, 100.0),))
    upper = Node("splitter:web", NodeType.SPLITTER, splits=(Split(lower.name, 50.0), Split(V2.name, 50.0)))
    found = Chain("web", "dc1", "http", upper.name, (lower, upper, V1, V2), ())

    assert unrouted(found) == ("a splitter below a splitter",)


@pytest.mark.parametrize(
    ("changed", "phrase"),
    [
        ({"mesh_gateway": "local", "datacenter": "dc2"}, "mesh gateway mode local"),
        ({"mesh_gateway": "remote", "datacenter": "dc2"}, "mesh gateway mode remote"),
        ({"mesh_gateway": "local", "partition": "east"}, "mesh gateway mode local"),
        ({"peer": "east"}, "the cluster peer east"),
        ({"external": True}, "an external target"),
    ],
)
def test_what_a_target_asks_for_beyond_direct_connections_is_named(changed: dict[str, str], phrase: str) -> None:
    target = Target(V1.target, "web", "dc1")
    assert lacks(resolved(V1, target)) == lacks(resolved(V1, replace(target, mesh_gateway="none"))) == ()
    assert lacks(resolved(V1, replace(target, **changed))) == (phrase,)  # type: ignore[arg-type] # one field


@pytest.mark.parametrize("mode", ["local", "remote"])
def test_a_mesh_gateway_is_asked_for_elsewhere_alone(mode: str) -> None:
    target = Target(V1.target, "web", "dc1", mesh_gateway=mode)
    assert lacks(resolved(V1, target)) == ()
    assert unserved(resolved(V1, target), "dc2", "default") == (f"mesh gateway mode {mode}",)
    assert lacks(resolved(V1, replace(target, peer="east"))) == (f"mesh gateway mode {mode}", "the cluster peer east")


def test_what_any_leg_asks_for_is_named_once() -> None:
    maglev = replace(V1, load_balancer=LoadBalancer("maglev"))
    odd = Changes(unserved=("NumRetries of a route",))
    found = routed_chain(
        Route("v2", match=API, changes=odd), Route("v1", match=ALL, changes=odd), legs=(maglev, replace(V2))
    )
    abroad = tuple(replace(one, mesh_gateway="local", datacenter="dc2") for one in found.targets)

    assert lacks(replace(found, targets=abroad)) == (
        "NumRetries of a route",
        "the load balancer policy maglev",
        "mesh gateway mode local",
    )


@pytest.mark.parametrize("policy", ["round_robin", "random", "least_request"])
def test_policies_that_look_at_no_request_are_served(policy: str) -> None:
    found = replace(V1, load_balancer=LoadBalancer(policy))
    assert lacks(resolved(found, Target(V1.target, "web", "dc1"))) == ()


SPLIT = routed_chain(splits=(Split("v1", 90.0), Split("v3", 10.0)), legs=(V1, V3))


def test_each_leg_of_an_upstream_has_the_targets_of_its_resolver() -> None:
    first, second = routed_state(SPLIT, {"v1.web": [endpoint()]}).legs

    assert (first.name, first.resolver) == ("v1", V1)
    assert [target.target_id for target in first.targets] == ["v1.web"]
    assert (second.name, second.resolver) == ("v3", V3)
    assert [target.target_id for target in second.tried] == ["v3.web", "v1.web"]
    assert second.standby == ()


def test_an_upstream_is_known_when_each_leg_is() -> None:
    state = routed_state(SPLIT, {"v1.web": [endpoint()]})
    assert state.known
    one, other = state.targets
    assert not replace(state, targets=(one, replace(other, known=False))).known
    # As a file of an older hcc has it.
    old = replace(state, targets=(one,))
    assert old.legs[1].targets[0] == TargetEndpoints("v3.web", (), known=False)
    assert not old.known


def test_of_a_file_of_an_older_hcc_the_default_path_is_served() -> None:
    state = routed_state(routed_chain(Route("v1", match=API), Route("v3", match=ALL), legs=(V1, V3)), {})
    data = to_json(state)
    for node in data["chain"]["nodes"]:
        for leg in (*node["routes"], *node["splits"]):
            leg.pop("match")
            leg.pop("changes")
    old = from_json(UpstreamState, data)
    assert old.chain is not None
    assert ways(old.chain) == ()
    assert [leg.resolver for leg in old.legs] == [V3]


def test_of_legs_in_cluster_peers_nothing_is_asked() -> None:
    east = replace(SPLIT, targets=tuple(replace(one, peer="east" * (one.id == "v3.web")) for one in SPLIT.targets))
    state = replace(routed_state(SPLIT, {}), chain=east)
    assert [target.target_id for target in state.legs[1].targets] == ["v1.web"]


def test_an_upstream_with_one_resolver_has_one_leg_without_a_name() -> None:
    routed = routed_chain(Route("v1", match=API, changes=TIMED), Route("v1", match=ALL), legs=(V1,))
    (leg,) = routed_state(routed, {}).legs
    assert (leg.name, leg.resolver) == ("", V1)
