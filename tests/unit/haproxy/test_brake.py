from __future__ import annotations

from dataclasses import replace

import pytest

from hcc.haproxy.brake import braked, is_astray, is_guessed
from hcc.haproxy.capabilities import Version, capabilities
from hcc.haproxy.desired import desired
from hcc.haproxy.desired_terms import Certificates
from hcc.haproxy.model import ActualServers, Desired, Server, WayChanges
from hcc.haproxy.render import render
from hcc.mesh.chain import Route, Split
from hcc.mesh.peer_book import Vetted
from hcc.mesh.permissions import PathMatch, PathRule
from hcc.mesh.routes import EVERY_REQUEST, Changes, HeaderChanges, Match
from hcc.mesh.snapshot import TargetEndpoints, UpstreamState
from tests.builders import (
    certificates,
    endpoint,
    options,
    resolver,
    result,
    routed_chain,
    routed_state,
    service_uri,
    snapshot,
    upstream,
    upstream_state,
)

WEB, API = upstream("web", 9191), upstream("api", 9292)
NAME = "up:web:9191:to"


def wanted(*, known: bool, certificates: Certificates | None = None) -> Desired:
    """An upstream without an endpoint, and one with."""
    web = upstream_state(WEB, [])
    web = replace(web, targets=tuple(replace(target, known=known) for target in web.targets))
    return result(web, upstream_state(API, [endpoint()]), certificates_=certificates).desired


def running(*servers: Server) -> ActualServers:
    return ((NAME, servers),)


def test_an_empty_list_is_believed_and_one_that_is_not_there_is_not() -> None:
    one = Server("10.0.0.1:80", "10.0.0.1", 80)
    assert braked(wanted(known=True), running(one)).backend(NAME).servers == ()
    assert braked(wanted(known=False), running(one)).backend(NAME).servers == (one,)
    assert not is_guessed(wanted(known=True))


def test_what_is_known_is_left_alone() -> None:
    made = braked(wanted(known=False), (("up:api:9292:to", (Server("10.9.9.9:1", "10.9.9.9", 1),)),))
    assert [server.address for server in made.backend("up:api:9292:to").servers] == ["10.0.0.1"]


def test_where_nothing_runs_there_is_nothing_to_stay() -> None:
    assert braked(wanted(known=False), ()).backend(NAME).servers == ()
    assert (
        braked(wanted(known=False, certificates=Certificates()), running(Server("a", "10.0.0.1", 80)))
        .backends[0]
        .servers
        == ()
    )


def test_while_nobody_who_is_new_was_probed_those_that_run_stay_with_the_check_of_their_answers() -> None:
    def led_to(service: str, *, probing: bool) -> Desired:
        state = upstream_state(WEB)
        target = TargetEndpoints(state.targets[0].target_id, (endpoint("10.0.0.2"),), identity=service_uri(service))
        state = replace(state, targets=(target,))
        return desired(snapshot(state), options(), certificates(), (), Vetted(frozenset(), probing=probing)).desired

    one, before = Server("10.0.0.1:80", "10.0.0.1", 80), led_to("old", probing=False)
    new = led_to("new", probing=True)
    assert new.backend(NAME).check != before.backend(NAME).check
    kept = braked(new, running(one), before).backend(NAME)
    assert (kept.servers, kept.check) == ((one,), before.backend(NAME).check)
    assert braked(new, (), before).backend(NAME).servers == new.backend(NAME).servers
    assert not is_guessed(led_to("new", probing=False))


V1, V2 = resolver("v1"), resolver("v2")
ALONE = upstream_state(WEB, [endpoint()], protocol="http")
V1_SERVER = Server("10.0.0.1:21000", "10.0.0.1", 21000)


def split(*splits: Split, unknown: str = "") -> UpstreamState:
    legs = [one for one in (V1, V2) if one.name.removeprefix("resolver:") in {each.next_node for each in splits}]
    found = routed_state(
        routed_chain(splits=splits, legs=legs), {"v1.web": [endpoint()], "v2.web": [endpoint("10.0.0.2")]}, WEB
    )
    targets = tuple(
        replace(one, endpoints=(), known=False) if one.target_id == unknown else one for one in found.targets
    )
    return replace(found, targets=targets)


HALVES = (Split("v1", 50.0), Split("v2", 50.0))


def test_requests_are_sent_as_before_until_it_is_known_who_serves_in_a_new_leg() -> None:
    before, runs = result(ALONE).desired, running(V1_SERVER)
    kept = braked(result(split(*HALVES, unknown="v2.web")).desired, runs, before)

    assert (kept.upstreams, kept.backends[0].servers) == (before.upstreams, (V1_SERVER,))
    assert [one.name for one in kept.backends] == [NAME]
    kept.check()
    # And again, from what was kept.
    assert braked(result(split(*HALVES, unknown="v2.web")).desired, runs, kept).upstreams == before.upstreams
    there = result(split(*HALVES)).desired
    assert braked(there, runs, kept) == there


def test_requests_would_go_astray_where_nothing_runs_and_nobody_knows_who_serves() -> None:
    first, second = ((f"{NAME}:{leg}", ()) for leg in ("v1", "v2"))
    unknown = result(split(*HALVES, unknown="v2.web")).desired
    assert is_astray(unknown, (first,))
    assert not is_astray(unknown, (first, second))
    assert not is_astray(result(split(*HALVES)).desired, ())


def test_legs_that_are_served_already_have_new_servers_while_a_new_one_is_awaited() -> None:
    three = routed_chain(splits=(*HALVES, Split("v3", 0.0)), legs=(V1, V2, resolver("v3")))
    before = result(routed_state(three, {"v1.web": [endpoint("10.9.9.9")]}, WEB)).desired
    four = routed_chain(splits=(Split("v1", 50.0), Split("v3", 50.0)), legs=(V1, resolver("v3")))
    state = routed_state(four, {"v1.web": [endpoint()]}, WEB)
    state = replace(state, targets=(state.targets[0], replace(state.targets[1], known=False)))
    runs = (("up:web:9191:to:v1", (Server("10.9.9.9:21000", "10.9.9.9", 21000),)), ("up:web:9191:to:v2", (V1_SERVER,)))
    kept = braked(result(state).desired, runs, before)

    assert kept.upstreams == before.upstreams
    assert {one.name: [each.address for each in one.servers] for one in kept.backends} == {
        "up:web:9191:to:v1": ["10.0.0.1"],
        "up:web:9191:to:v2": ["10.0.0.1"],
    }


def test_requests_that_are_sent_as_before_are_changed_as_before() -> None:
    changed, other = (Changes(request=HeaderChanges(set=(("x-route", name),))) for name in ("changed", "other"))
    old = Route("v1", match=Match(path=PathRule(PathMatch.PREFIX, "/a")), changes=changed)
    new = Route("v3", match=Match(path=PathRule(PathMatch.PREFIX, "/b")), changes=other)
    last, endpoints = Route("v2", match=EVERY_REQUEST), {"v1.web": [endpoint()], "v2.web": [endpoint("10.0.0.2")]}
    before = result(routed_state(routed_chain(old, last, legs=(V1, V2)), endpoints, WEB)).desired
    chain = routed_chain(new, replace(old, changes=other), last, legs=(V1, V2, resolver("v3")))
    state = routed_state(chain, endpoints, WEB)
    unknown = (replace(one, known=one.target_id != "v3.web") for one in state.targets)
    there = result(replace(state, targets=tuple(unknown))).desired
    kept = braked(there, ((f"{NAME}:v1", (V1_SERVER,)),), before)

    assert kept.upstreams == before.upstreams
    assert kept.backend(f"{NAME}:v1").changes == (WayChanges(1, (changed,)),)
    assert there.backend(f"{NAME}:v1").changes == (WayChanges(2, (other,)),)


def test_endpoints_come_and_go_though_their_backend_has_another_name_until_a_new_leg_is_known() -> None:
    before = result(routed_state(routed_chain(legs=(V1,)), {"v1.web": [endpoint()]}, WEB)).desired
    new = routed_state(
        routed_chain(splits=HALVES, legs=(V1, V2)), {"v1.web": [endpoint("10.0.0.3"), endpoint("10.0.0.4")]}, WEB
    )
    one, other = new.targets
    there = result(replace(new, targets=(one, replace(other, known=False)))).desired
    kept = braked(there, running(V1_SERVER), before)

    assert kept.upstreams == before.upstreams
    assert [server.address for server in kept.backend(NAME).servers] == ["10.0.0.3", "10.0.0.4"]
    assert kept.backend(NAME).check == before.backend(NAME).check
    # And again, from what was kept.
    assert braked(there, running(V1_SERVER), kept) == kept
    # Of what is not known itself all stays.
    both = result(replace(new, targets=(replace(one, known=False), replace(other, known=False)))).desired
    assert braked(both, running(V1_SERVER), before).backend(NAME).servers == (V1_SERVER,)


@pytest.mark.parametrize(
    "before",
    [
        None,
        result(upstream_state(API, [endpoint()], protocol="http")).desired,
        result(upstream_state(WEB, [endpoint()])).desired,
    ],
)
def test_where_nothing_was_sent_before_the_new_way_is_taken_at_once(before: Desired | None) -> None:
    new = result(split(*HALVES, unknown="v2.web")).desired
    assert braked(new, running(V1_SERVER), before) == new


def test_where_nobody_served_before_the_new_way_is_taken_at_once() -> None:
    new = result(split(*HALVES, unknown="v2.web")).desired
    down = replace(V1_SERVER, enabled=False)
    assert braked(new, running(down), result(ALONE).desired) == new


def test_other_shares_are_taken_though_a_leg_that_is_no_new_one_is_not_known() -> None:
    before = result(split(*HALVES, unknown="v2.web")).desired
    new = result(split(Split("v1", 90.0), Split("v2", 10.0), unknown="v2.web")).desired
    assert braked(new, (("up:web:9191:to:v1", (V1_SERVER,)),), before) == new


@pytest.mark.parametrize("version", [Version(2, 2), Version(2, 8)])
def test_what_stays_can_be_rendered_whatever_somebody_did_to_it(version: Version) -> None:
    able = capabilities(version)
    found = running(
        Server("s1", "10.0.0.1", 80, 0),
        Server("s2", "127.127.127.127", 1, 1, False),
        Server("s3", "10.0.0.3", 80, 256, False),
        Server("s4", "127.127.127.127", 1, 1, False),
    )
    made = render(braked(wanted(known=False), found), able, found)
    addresses = {server.address for server in made.desired.backend(NAME).servers if server.enabled}
    assert addresses == {"10.0.0.1"}
    assert "10.0.0.3:80" in made.config
