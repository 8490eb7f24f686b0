from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from hcc.haproxy.desired import Result, desired
from hcc.haproxy.desired_terms import Certificates, Options
from hcc.haproxy.desired_upstreams import MAX_IDENTITIES
from hcc.haproxy.model import Mode, PeerCheck, TcpBind, Timeouts, UnixBind, WayChanges, WayTo
from hcc.haproxy.room import UPSTREAM_REQUESTS
from hcc.mesh.chain import LoadBalancer, Route, Split, Target
from hcc.mesh.peer_book import Vetted, peer_of
from hcc.mesh.permissions import PathMatch, PathRule
from hcc.mesh.routes import Changes, Match, Rewrite
from hcc.mesh.snapshot import Endpoint, ExposedPath, Health, Protocol, Proxy, TargetEndpoints, Upstream, UpstreamState
from hcc.mesh.tls import MeshTls, TlsLimits, TlsVersion
from hcc.mesh.ways import SHARES
from hcc.settings import Enforcement
from tests.builders import (
    certificates,
    chain,
    endpoint,
    options,
    proxy,
    resolver,
    result,
    routed_chain,
    routed_state,
    service_uri,
    snapshot,
    upstream,
    upstream_state,
)

STATE = options().process.state_directory


@pytest.mark.parametrize(
    ("protocol", "read_timeout_ms", "caller_ms", "idle_ms"),
    [
        (Protocol.TCP, 0, 60_000, 3_600_000),
        (Protocol.TCP, 5_000, 5_000, 5_000),
        (Protocol.HTTP, 90_000, 90_000, 90_000),
    ],
)
def test_a_caller_that_is_silent_before_there_is_a_session_is_not_waited_for_as_long_as_in_one(
    protocol: Protocol, read_timeout_ms: int, caller_ms: int, idle_ms: int
) -> None:
    wanted = result(proxy_=proxy(protocol=protocol, read_timeout_ms=read_timeout_ms)).desired
    assert wanted.public is not None
    assert wanted.app is not None
    assert (wanted.public.client_timeout_ms, wanted.app.timeouts.server_ms) == (caller_ms, idle_ms)


@pytest.mark.parametrize(
    ("protocol", "read_timeout_ms", "server_ms"),
    [(Protocol.HTTP, 0, 9_000), (Protocol.GRPC, 7_000, 7_000), (Protocol.TCP, 0, 3_600_000)],
)
def test_how_long_the_application_is_waited_for_is_said_for_http(
    protocol: Protocol, read_timeout_ms: int, server_ms: int
) -> None:
    ours = replace(proxy(protocol=protocol, read_timeout_ms=read_timeout_ms), local_answer_timeout_ms=9_000)
    app = result(proxy_=ours).desired.app
    assert app is not None
    assert app.timeouts.server_ms == server_ms


def test_a_service_with_everything_known_gets_its_public_listener() -> None:
    found = result()
    public = found.desired.public
    assert public is not None
    assert public.bind == TcpBind("127.0.0.1", 21000)
    assert public.authorised
    assert found.desired.authorisation is not None
    assert found.desired.authorisation.sockets == options().agent_sockets
    assert not found.problems


def test_without_policy_there_is_no_public_listener() -> None:
    unknown = replace(snapshot(), policy=None)
    assert desired(unknown, options(), certificates()).desired.public is None
    assert desired(unknown, options(intentions=Enforcement.OFF), certificates()).desired.public is not None


@pytest.mark.parametrize("missing", [replace(certificates(), leaf=None), replace(certificates(), ca=None)])
def test_without_leaf_or_roots_upstreams_listen_but_have_no_servers(missing: Certificates) -> None:
    found = result(upstream_state(endpoints=[endpoint()]), certificates_=missing).desired
    found.check()
    assert found.public is None
    assert [listener.name for listener in found.upstreams] == ["up:web:9191"]
    assert found.backends[0].servers == ()


def test_without_an_application_only_upstreams_are_served() -> None:
    found = result(upstream_state(), proxy_=proxy(local_port=0))
    assert found.desired.public is None
    assert found.desired.app is None
    assert len(found.desired.upstreams) == 1
    assert not found.problems


def test_with_intentions_off_nobody_is_asked() -> None:
    found = result(options_=options(intentions=Enforcement.OFF)).desired
    assert found.public is not None
    assert not found.public.authorised
    assert found.authorisation is None


@pytest.mark.parametrize(
    ("protocol", "mode", "public_alpn", "upstream_alpn", "h2"),
    [
        (Protocol.TCP, Mode.TCP, (), (), False),
        (Protocol.HTTP, Mode.HTTP, ("http/1.1",), ("http/1.1",), False),
        (Protocol.HTTP2, Mode.HTTP, ("h2", "http/1.1"), ("h2",), True),
        (Protocol.GRPC, Mode.HTTP, ("h2", "http/1.1"), ("h2",), True),
    ],
)
def test_each_protocol_has_its_mode_and_alpn(
    protocol: Protocol, mode: Mode, public_alpn: tuple[str, ...], upstream_alpn: tuple[str, ...], h2: bool
) -> None:
    state = upstream_state(endpoints=[endpoint()], protocol=protocol.value)
    found = result(state, proxy_=proxy(protocol=protocol)).desired
    assert found.public is not None
    assert found.app is not None
    assert found.backends[0].tls is not None
    assert (found.public.mode, found.public.tls.alpn) == (mode, public_alpn)
    assert (found.app.mode, found.app.h2) == (mode, h2)
    assert (found.backends[0].mode, found.backends[0].tls.alpn) == (mode, upstream_alpn)


def test_an_upstreams_protocol_comes_from_its_chain_when_there_is_one() -> None:
    service = upstream_state(upstream("web", protocol=Protocol.HTTP), protocol="tcp")
    query = upstream_state(upstream("db", 5432, query=True, protocol=Protocol.HTTP))
    found = result(service, query).desired
    assert [listener.mode for listener in found.upstreams] == [Mode.TCP, Mode.HTTP]


def test_an_unknown_protocol_counts_as_tcp() -> None:
    assert result(upstream_state(protocol="mqtt")).desired.upstreams[0].mode is Mode.TCP


def test_a_service_upstream_waits_for_its_chain_and_a_query_does_not() -> None:
    service = UpstreamState(upstream("web"), None, ())
    query = UpstreamState(upstream("db", 5432, query=True), None, ())
    assert [listener.name for listener in result(service, query).desired.upstreams] == ["query:db:5432"]


def test_one_name_in_two_datacenters_is_two_upstreams() -> None:
    states = (
        upstream_state(upstream("web", datacenter="dc1"), [endpoint("10.0.0.1")]),
        upstream_state(upstream("web", 9192, datacenter="dc2"), [endpoint("10.0.0.2")]),
    )
    found = result(*states)
    assert [backend.servers[0].address for backend in found.desired.backends] == ["10.0.0.1", "10.0.0.2"]
    assert not found.problems


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (upstream(), Timeouts(5_000, 3_600_000, 3_600_000)),
        (upstream(connect_timeout_ms=250, read_timeout_ms=9_000), Timeouts(250, 9_000, 9_000)),
    ],
)
def test_tcp_timeouts(given: Upstream, expected: Timeouts) -> None:
    assert result(upstream_state(given)).desired.backends[0].timeouts == expected


def test_http_timeouts() -> None:
    state = upstream_state(chain_=chain(protocol="http", connect_timeout_ms=7_000))
    found = result(state).desired
    assert found.backends[0].timeouts == Timeouts(7_000, 60_000, 3_600_000)
    assert found.upstreams[0].client_timeout_ms == 60_000


@pytest.mark.parametrize(
    ("resolver_ms", "route_ms", "registered_ms", "client_ms"),
    [
        (300_000, 0, 0, 300_000),
        (300_000, 400_000, 0, 400_000),
        (0, -1, 0, 86_400_000),
        (300_000, -1, 9_000, 9_000),
        (7_000, 0, 0, 60_000),
    ],
)
def test_a_client_is_waited_for_as_long_as_any_answer_that_its_upstream_may_give(
    resolver_ms: int, route_ms: int, registered_ms: int, client_ms: int
) -> None:
    legs = (resolver("v1"), resolver("v2", request_timeout_ms=resolver_ms))
    routes = (Route("v1", match=API, changes=Changes(timeout_ms=route_ms)), Route("v2", match=ALL))
    state = routed_state(routed_chain(*routes, legs=legs), ENDPOINTS, upstream(read_timeout_ms=registered_ms))
    assert result(state).desired.upstreams[0].client_timeout_ms == client_ms


def test_a_caller_is_waited_for_as_long_as_the_application() -> None:
    asked = proxy(protocol=Protocol.GRPC, exposed=(ExposedPath("/a", 9000, 8080),))
    found = result(proxy_=replace(asked, local_answer_timeout_ms=300_000, local_connect_timeout_ms=1_000)).desired
    assert found.public is not None
    (exposed,) = found.exposed
    assert (found.public.client_timeout_ms, exposed.client_timeout_ms) == (300_000, 300_000)


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (upstream("api", 9191), "upstream web has"),
        (upstream("api", 9191, address="0.0.0.0"), "upstream web has"),
        (upstream("api", 21000), "the public listener has"),
        (upstream("web", 9191, address="127.0.0.2"), "registered twice"),
        (upstream("api", 0), "expected an IP address and a port"),
        (upstream("api", 9193, address="localhost"), "expected an IP address"),
        (upstream("api", socket="relative.sock"), "absolute path"),
        (upstream("api", socket="/" + "x" * 120), "at most 97 bytes"),
        (upstream("api", socket="/a.sock,0.0.0.0:80"), "without a comma"),
        (upstream("api", socket="/a.sock", socket_mode="rw"), "octal"),
        (upstream("x" * 4_100, 9193), "a name of at most 4000 characters"),
    ],
)
def test_a_clash_or_a_bad_address_is_reported_and_the_first_one_serves(second: Upstream, why: str) -> None:
    states = (upstream_state(upstream("web")), upstream_state(second))
    found = result(*states, upstream_state(upstream("last", 9999)))
    found.desired.check()
    assert [listener.name for listener in found.desired.upstreams] == ["up:web:9191", "up:last:9999"]
    (problem,) = found.problems
    assert why in str(problem)


def test_a_clash_with_the_public_port_is_seen_before_the_public_listener_is_up() -> None:
    states = [upstream_state(upstream("web", 21000))]
    found = result(*states, certificates_=Certificates())
    assert found.desired.upstreams == ()
    assert "the public listener" in str(found.problems[0])


def exposing(*paths: ExposedPath, states: Iterable[UpstreamState] = (), **more: Any) -> Result:
    found = result(*states, proxy_=proxy(exposed=paths, **more))
    found.desired.check()
    return found


def test_exposed_paths_share_the_listener_of_their_port_and_need_neither_certificate_nor_policy() -> None:
    paths = (ExposedPath("/a", 22900, 8181), ExposedPath("/b", 22900, 8182, h2=True), ExposedPath("/c", 22901, 8181))
    empty = replace(snapshot(proxy_=proxy(exposed=paths, bind_address="0.0.0.0")), policy=None, leaf=None)
    found = desired(empty, options(), Certificates()).desired
    assert found.public is None
    assert [(one.bind.port, [path.path for path in one.paths]) for one in found.exposed] == [
        (22900, ["/a", "/b"]),
        (22901, ["/c"]),
    ]
    assert {(app.port, app.h2) for one in found.exposed for app in one.apps} == {(8181, False), (8182, True)}
    assert {one.bind.address for one in found.exposed} == {"0.0.0.0"}


def test_of_an_exposed_path_that_is_there_twice_the_first_one_serves() -> None:
    found = exposing(ExposedPath("/a", 22900, 8181), ExposedPath("/a", 22900, 8182), ExposedPath("/a", 22900, 8181))
    assert [path.app.port for path in found.desired.exposed[0].paths] == [8181]
    (problem,) = found.problems
    text = "is there twice at port 22900; the first one serves, the one of port 8182 does not"
    assert str(problem) == f"exposed path /a: {text}"


@pytest.mark.parametrize(
    ("port", "more", "why"),
    [
        (21000, {}, "the public listener has 127.0.0.1:21000"),
        (9191, {}, "upstream web has 127.0.0.1:9191"),
        (22900, {"bind_address": "here", "local_port": 0}, "expected an IP address to bind, found 'here'"),
        (22900, {"local_address": "a b", "local_port": 0}, "the application's address cannot be used: expected an IP"),
    ],
)
def test_an_exposed_path_that_cannot_be_served_is_reported(port: int, more: dict[str, Any], why: str) -> None:
    found = exposing(ExposedPath("/a", port, 8181), states=[upstream_state(upstream("web"))], **more)
    assert found.desired.exposed == ()
    (problem,) = found.problems
    assert str(problem).startswith(f"exposed path /a: cannot be served: {why}")


def test_an_exposed_path_whose_port_is_held_is_left_out_alone() -> None:
    wanted = exposing(ExposedPath("/a", 22900, 8181), ExposedPath("/b", 22901, 8181)).desired
    without = wanted.without([wanted.exposed[0].bind])
    assert [one.bind.port for one in without.exposed] == [22901]
    assert without.public is not None


def test_a_unix_socket_listener_keeps_its_mode() -> None:
    state = upstream_state(upstream("web", socket="/run/web.sock", socket_mode="0600"))
    assert result(state).desired.upstreams[0].bind == UnixBind("/run/web.sock", "0600")


def test_what_a_chain_asks_beyond_one_resolver_is_said_and_its_start_target_serves() -> None:
    asked = chain()
    asked = replace(asked, nodes=(replace(asked.nodes[0], load_balancer=LoadBalancer("ring_hash")),))
    found = result(upstream_state(endpoints=[endpoint()], chain_=asked))
    assert len(found.desired.backends[0].servers) == 1
    (problem,) = found.problems
    assert "the load balancer policy ring_hash" in problem.text
    assert found.desired.backends[0].draws == 0
    assert "web.default.default.dc1 serves" in problem.text


@pytest.mark.parametrize(
    ("balancer", "draws"),
    [
        (None, 0),
        (LoadBalancer("round_robin"), 0),
        (LoadBalancer("random"), 1),
        (LoadBalancer("least_request"), 2),
        (LoadBalancer("least_request", 5), 5),
        (LoadBalancer("least_request", 10**9), 32),
    ],
)
def test_instances_are_chosen_as_the_resolver_says(balancer: LoadBalancer | None, draws: int) -> None:
    asked = chain()
    asked = replace(asked, nodes=(replace(asked.nodes[0], load_balancer=balancer),))
    found = result(upstream_state(endpoints=[endpoint()], chain_=asked))
    assert found.desired.backends[0].draws == draws
    assert found.problems == ()


@pytest.mark.parametrize(
    ("protocol", "registered", "waited"), [("http", 0, 7_000), ("http", 9_000, 9_000), ("tcp", 0, 3_600_000)]
)
def test_an_answer_is_waited_for_as_long_as_the_registration_or_else_the_resolver_says(
    protocol: str, registered: int, waited: int
) -> None:
    asked = chain(protocol=protocol)
    asked = replace(asked, nodes=(replace(asked.nodes[0], request_timeout_ms=7_000),))
    state = upstream_state(upstream("web"), chain_=asked)
    state = replace(state, upstream=replace(state.upstream, read_timeout_ms=registered))
    assert result(state).desired.backends[0].timeouts.server_ms == waited


API, ALL = Match(PathRule(PathMatch.PREFIX, "/api")), Match(PathRule(PathMatch.PREFIX, "/"))
REWRITTEN = Changes(rewrite=Rewrite("/", "/api"), timeout_ms=3_000)
LEGS = (
    resolver("v1", connect_timeout_ms=1_000),
    resolver("v2", connect_timeout_ms=2_000, request_timeout_ms=9_000, load_balancer=LoadBalancer("random")),
    resolver("v3", service="shop"),
)
ROUTED = routed_chain(
    Route("v3", match=API, changes=REWRITTEN),
    Route("splitter", match=ALL),
    splits=(Split("v1", 90.0), Split("v2", 10.0)),
    legs=LEGS,
)
ENDPOINTS = {
    "v1.web": (endpoint("10.0.0.1"),),
    "v2.web": (endpoint("10.0.0.2"), endpoint("10.0.0.1")),
    "v3.shop": (endpoint("10.0.0.3"),),
}


def test_each_leg_has_a_backend_of_its_own_timed_balanced_and_checked_as_its_resolver_says() -> None:
    found = result(routed_state(ROUTED, ENDPOINTS, upstream(max_connections=5)))
    one, shop, two = found.desired.backends
    (listener,) = found.desired.upstreams

    assert found.problems == ()
    assert [one.name, shop.name, two.name] == ["up:web:9191:to:v1", "up:web:9191:to:v3", "up:web:9191:to:v2"]
    assert listener.backend == one.name
    assert listener.ways == (
        WayTo(API, SHARES, shop.name),
        WayTo(ALL, 9_000, one.name),
        WayTo(ALL, SHARES, two.name),
    )
    assert [each.timeouts.connect_ms for each in (one, shop, two)] == [1_000, 5_000, 2_000]
    assert [each.timeouts.server_ms for each in (one, shop, two)] == [60_000, 60_000, 9_000]
    assert [each.draws for each in (one, shop, two)] == [0, 0, 1]
    assert [[server.address for server in each.servers] for each in (one, shop, two)] == [
        ["10.0.0.1"],
        ["10.0.0.3"],
        ["10.0.0.1", "10.0.0.2"],
    ]
    assert [each.check and each.check.identities for each in (one, shop)] == [
        (service_uri("web"),),
        (service_uri("shop"),),
    ]
    assert [each.changes for each in (one, shop, two)] == [(), (WayChanges(1, (REWRITTEN,)),), ()]
    found.desired.check()


def test_each_leg_is_known_by_itself() -> None:
    state = routed_state(ROUTED, ENDPOINTS)
    state = replace(state, targets=tuple(replace(one, known=one.target_id != "v2.web") for one in state.targets))
    assert [one.known for one in result(state).desired.backends] == [True, True, False]


def test_what_the_registration_says_of_an_answers_time_goes_before_what_a_route_says() -> None:
    found = result(routed_state(ROUTED, ENDPOINTS, upstream(read_timeout_ms=4_000)))
    assert {one.timeouts.server_ms for one in found.desired.backends} == {4_000}
    assert found.desired.backends[1].changes == (WayChanges(1, (Changes(rewrite=Rewrite("/", "/api")),)),)


def test_routes_to_one_leg_that_change_nothing_are_none() -> None:
    chain_ = routed_chain(Route("v1", match=API), Route("v1", match=ALL), legs=LEGS[:1])
    found = result(routed_state(chain_, ENDPOINTS)).desired
    assert [(one.backend, one.ways) for one in found.upstreams] == [("up:web:9191:to", ())]
    changing = routed_chain(Route("v1", match=API, changes=REWRITTEN), Route("v1", match=ALL), legs=LEGS[:1])
    found = result(routed_state(changing, ENDPOINTS)).desired
    assert [(one.backend, len(one.ways)) for one in found.upstreams] == [("up:web:9191:to", 2)]


def test_what_is_not_served_of_routes_is_said_and_the_rest_is_served() -> None:
    odd = replace(REWRITTEN, unserved=("NumRetries of a route",))
    chain_ = routed_chain(Route("v3", match=API, changes=odd), Route("v1", match=ALL), legs=LEGS)
    found = result(routed_state(chain_, ENDPOINTS))
    assert [str(one) for one in found.problems] == [
        "upstream web: its chain asks for NumRetries of a route, which is not served; the rest of it is"
    ]
    assert len(found.desired.backends) == 2


def test_where_a_match_is_not_understood_the_default_path_serves_all() -> None:
    chain_ = routed_chain(Route("v3", match=Match(fault="odd")), Route("v1", match=ALL), legs=LEGS)
    found = result(routed_state(chain_, ENDPOINTS))
    (problem,) = found.problems
    assert problem.text == (
        "its chain asks for a route that is not understood (odd), which is not served yet; v1.web serves all of it"
    )
    assert [(one.name, len(one.servers)) for one in found.desired.backends] == [("up:web:9191:to", 1)]
    assert found.desired.upstreams[0].ways == ()


@pytest.mark.parametrize(
    ("failover", "serves"),
    [((), "nobody serves it"), ((Target("web.dc1", "web", "dc1"),), "web.dc1 serves all of it")],
)
def test_who_serves_for_a_target_in_a_cluster_peer_is_said(failover: tuple[Target, ...], serves: str) -> None:
    local = chain(failover=failover)
    peered = replace(local, targets=(replace(local.targets[0], peer="cloud"), *local.targets[1:]))
    watched = tuple(TargetEndpoints(one.id, (endpoint(),)) for one in failover)
    (problem,) = result(UpstreamState(upstream(), peered, watched)).problems
    assert problem.text == f"its chain asks for the cluster peer cloud, which is not served yet; {serves}"


def test_instances_behind_a_terminating_gateway_are_said_not_to_be_served() -> None:
    state = upstream_state(upstream(), [endpoint()])
    behind = replace(state, targets=tuple(replace(one, behind_gateway=True) for one in state.targets))
    (problem,) = result(behind).problems
    assert str(problem) == (
        "upstream web: instances of web.default.default.dc1 are behind a terminating gateway, which is not served"
    )


def test_what_this_haproxy_cannot_do_for_routes_is_said() -> None:
    pattern = Match(PathRule(PathMatch.REGEX, "/a+"))
    chain_ = routed_chain(Route("v3", match=pattern, changes=REWRITTEN), Route("v1", match=ALL), legs=LEGS)
    able = options()

    def wanted(options_: Options) -> Result:
        return result(routed_state(chain_, ENDPOINTS), options_=options_)

    assert wanted(able).problems == ()
    (problem,) = wanted(replace(able, route_timeouts=False)).problems
    assert "RequestTimeout of a route (before HAProxy 2.4), which is not served; the rest" in problem.text
    assert len(wanted(replace(able, route_timeouts=False)).desired.backends) == 2
    (problem,) = wanted(replace(able, patterns=False)).problems
    assert "(this HAProxy has no PCRE), which is not served" in problem.text
    assert "v1.web serves all of it" in problem.text
    assert [one.name for one in wanted(replace(able, patterns=False)).desired.backends] == ["up:web:9191:to:v1"]


def failing_over(*targets: TargetEndpoints) -> UpstreamState:
    """Web, which fails over to these after the first."""
    others = tuple(Target(one.target_id, "web", "dc1") for one in targets[1:])
    return UpstreamState(upstream("web"), chain("web", failover=others), targets)


def at(number: int, *endpoints: Endpoint, known: bool = True) -> TargetEndpoints:
    return TargetEndpoints(f"target-{number}", endpoints, known=known, identity=service_uri(f"web{number}"))


UP, DOWN = endpoint("10.0.0.1"), endpoint("10.0.0.1", health=Health.CRITICAL)
SECOND, THIRD = endpoint("10.0.0.2"), endpoint("10.0.0.3")


@pytest.mark.parametrize(
    ("targets", "serving"),
    [
        ((at(1, UP), at(2, SECOND), at(3, THIRD)), ["10.0.0.1:21000"]),
        ((at(1, DOWN), at(2, SECOND), at(3, THIRD)), ["10.0.0.2:21000"]),
        ((at(1, endpoint("10.0.0.1", weight=0)), at(2), at(3, THIRD)), ["10.0.0.3:21000"]),
        ((at(1, DOWN), at(2), at(3)), []),
        ((at(1, DOWN), at(2, UP)), ["10.0.0.1:21000"]),
    ],
)
def test_the_first_target_with_an_instance_that_can_take_it_gets_all_traffic_and_the_others_stand_by(
    targets: tuple[TargetEndpoints, ...], serving: list[str]
) -> None:
    found = result(failing_over(*targets))
    servers = found.desired.backends[0].servers
    assert [server.name for server in servers if server.enabled] == serving
    named = {f"{one.address}:{one.port}" for target in targets for one in target.endpoints}
    assert {server.name for server in servers} == named
    assert found.problems == ()


FIRST = (UP, endpoint("10.0.0.4"))


@pytest.mark.parametrize(
    ("silent", "admitted", "serving"),
    [
        # Of two, one is left out, and both are where another target has somebody who answers.
        (FIRST[:1], (*FIRST, SECOND), ["10.0.0.4:21000"]),
        (FIRST, (*FIRST, SECOND), ["10.0.0.2:21000"]),
        ((*FIRST, SECOND), (*FIRST, SECOND, THIRD), ["10.0.0.3:21000"]),
        # Where nobody answers, or whoever does is not admitted, it is Consul's word that counts.
        ((*FIRST, SECOND, THIRD), (*FIRST, SECOND, THIRD), ["10.0.0.4:21000"]),
        (FIRST, FIRST, ["10.0.0.4:21000"]),
        # Who waits for the first probe is no reason to pass a target, nor to stay where somebody else does not answer.
        ((THIRD,), (SECOND,), []),
        (FIRST[:1], (FIRST[0], SECOND), ["10.0.0.2:21000"]),
        # Who cannot be admitted is as one that is silent.
        (FIRST, (SECOND,), ["10.0.0.2:21000"]),
        ((*FIRST, SECOND), (SECOND,), ["10.0.0.2:21000"]),
    ],
)
def test_a_target_whose_every_instance_is_silent_is_passed_for_one_that_answers(
    silent: tuple[Endpoint, ...], admitted: tuple[Endpoint, ...], serving: list[str]
) -> None:
    state = failing_over(at(1, *FIRST), at(2, SECOND), at(3, THIRD))
    peers = frozenset(peer_of(one) for one in admitted)
    quiet = tuple(peer_of(one) for one in silent)

    made = desired(snapshot(state), options(), certificates(), (), Vetted(peers, quiet)).desired.backends[0]

    assert [server.name for server in made.servers if server.enabled] == serving
    assert len(made.servers) == 4


def test_failover_changes_neither_the_structure_nor_whose_answers_are_let_through() -> None:
    before, after = (result(failing_over(at(1, first), at(2))).desired.backends[0] for first in (UP, DOWN))
    assert replace(before, servers=()) == replace(after, servers=())
    assert before.check is not None
    assert {service_uri("web1"), service_uri("web2")} <= set(before.check.identities)


@pytest.mark.parametrize(
    ("targets", "known", "may_be_braked"),
    [
        ((at(1, UP), at(2, known=False)), True, False),
        ((at(1, DOWN), at(2, known=False)), False, False),
        ((at(1, DOWN), at(2, SECOND), at(3, known=False)), True, False),
        ((at(1, known=False), at(2, SECOND)), False, True),
    ],
)
def test_a_target_that_is_not_known_matters_where_it_might_serve(
    targets: tuple[TargetEndpoints, ...], known: bool, may_be_braked: bool
) -> None:
    state = failing_over(*targets)
    assert state.known is known
    # That nobody has said what there is to fail over to is no reason to let an instance serve that is down.
    assert result(state).desired.backends[0].known is not may_be_braked


@pytest.mark.parametrize(
    ("registered", "why"),
    [
        (proxy(bind_address="edge.example"), "expected an IP address and a port to bind"),
        (proxy(bind_port=0), "expected an IP address and a port to bind"),
        (proxy(local_address="no host"), "application's address"),
        (proxy(local_port=70_000), "application's address cannot be used: expected a number from 0 to 65535"),
        (proxy(local_port=-5), "application's address cannot be used: expected a number from 0 to 65535"),
        (proxy(local_socket="no/path"), "application's address"),
        (proxy(local_socket="/" + "x" * 97), "at most 97 bytes"),
        (proxy(local_socket=f"{STATE}/stats.sock"), "for files of hcc alone"),
        (proxy(local_socket=f"/{STATE}/stats.sock"), "for files of hcc alone"),
        (proxy(local_socket=f"{STATE}/../{STATE.rpartition('/')[2]}//stats.sock"), "for files of hcc alone"),
    ],
)
def test_a_public_listener_that_cannot_be_is_reported(registered: Proxy, why: str) -> None:
    found = result(proxy_=registered)
    assert found.desired.public is None
    assert why in str(found.problems[0])


@pytest.mark.parametrize(
    ("limits", "taken"),
    [
        (TlsLimits(None, TlsVersion.TLS_1_1), None),
        (TlsLimits(TlsVersion.TLS_1_3, TlsVersion.TLS_1_2), None),
        (TlsLimits(None, TlsVersion.TLS_1_2), TlsVersion.TLS_1_2),
        (TlsLimits(TlsVersion.TLS_1_0, TlsVersion.TLS_1_1), TlsVersion.TLS_1_1),
    ],
)
def test_a_greatest_tls_version_that_leaves_none_is_passed_over(limits: TlsLimits, taken: TlsVersion | None) -> None:
    tls = MeshTls(incoming=limits, outgoing=limits)
    found = desired(snapshot(upstream_state(), tls=tls), options(), certificates())
    (backend,) = found.desired.backends
    assert found.desired.public is not None
    assert backend.tls is not None
    for said in (found.desired.public.tls.limits, backend.tls.limits):
        assert said == replace(limits, max_version=taken)
    told = [str(problem) for problem in found.problems]
    assert len(told) == (0 if taken else 2)
    assert all("TLSMaxVersion" in one and "ignored" in one for one in told)


@pytest.mark.parametrize(
    ("protocol", "connections", "requests", "limit"),
    [
        ("tcp", 3, 2, 3),
        ("tcp", 0, 2, 0),
        ("http", 3, 0, 3),
        ("http", 3, 2, 2),
        ("http", 3, 4, 3),
        ("http", 0, 4, 4),
        ("http", 0, 0, 0),
        ("http2", 3, 0, UPSTREAM_REQUESTS),
        ("grpc", 3, 4, 4),
    ],
)
def test_requests_are_limited_where_envoy_would_and_by_connections_where_each_has_one(
    protocol: str, connections: int, requests: int, limit: int
) -> None:
    registered = replace(upstream(max_connections=connections), max_requests=requests)
    found = result(upstream_state(registered, protocol=protocol))
    assert found.desired.upstreams[0].limit == limit
    unserved = f"upstream web: limits.max_connections is not served for {protocol}; limits.max_concurrent_requests is"
    assert [str(one) for one in found.problems] == ([unserved] if protocol in ("http2", "grpc") else [])


def test_few_descriptors_leave_fewer_requests_to_each_who_is_reached_over_http2() -> None:
    registered = proxy(
        protocol=Protocol.HTTP2,
        exposed=(ExposedPath("/a", 9000, 8080, h2=True), ExposedPath("/b", 9001, 8080, h2=True)),
    )
    states = (
        upstream_state(replace(upstream("web"), max_requests=2_000), protocol="grpc"),
        upstream_state(upstream("api", 9192), protocol="http2"),
        upstream_state(upstream("old", 9193), protocol="http"),
    )

    def found(descriptors: int) -> tuple[Result, list[int]]:
        told = result(*states, proxy_=registered, options_=replace(options(), descriptors=descriptors))
        app, exposed = told.desired.app, [path.app for one in told.desired.exposed for path in one.paths]
        assert app is not None
        limits = [one.limit for one in told.desired.upstreams]
        return told, [*limits, app.most_connections, app.most_together, *(one.most_connections for one in exposed)]

    told, shares = found(0)
    assert shares == [2_000, UPSTREAM_REQUESTS, 0, 4_000, 8_000, 4_000, 4_000]
    # Both exposed paths lead to the same port of the application.
    assert told.desired.options.max_requests == 2_000 + UPSTREAM_REQUESTS + 8_000 + 4_000
    assert told.problems == ()
    told, shares = found(4_205)
    assert told.desired.options.max_requests == 1_333
    assert shares == [177, 90, 0, 354, 708, 354, 354]
    (problem,) = map(str, told.problems)
    assert problem.startswith("upstream web: limits.max_concurrent_requests is 177, as HAProxy")


def test_limits_and_header_options_are_carried_over() -> None:
    registered = proxy(protocol=Protocol.HTTP, max_inbound_connections=5, forward_for=True, appname_header="X-App")
    found = result(upstream_state(upstream(max_connections=3)), proxy_=registered).desired
    assert found.public is not None
    assert (found.public.max_connections, found.upstreams[0].limit) == (5, 3)
    assert (found.public.forward_for, found.public.appname_header) == (True, "X-App")


@pytest.mark.parametrize(
    ("registered", "calls", "limit", "crowded_at"),
    [(0, True, 7_200, 3_600), (0, False, 0, 4_000), (500, True, 500, 250), (9_000, False, 9_000, 4_500)],
)
def test_connections_of_callers_leave_some_for_the_applications_own_calls(
    registered: int, calls: bool, limit: int, crowded_at: int
) -> None:
    states = [upstream_state()] if calls else []
    found = result(*states, proxy_=proxy(max_inbound_connections=registered))
    public = found.desired.public
    assert public is not None
    assert (public.max_connections, public.crowded_at) == (limit, crowded_at)
    assert found.problems == ()


def test_more_inbound_connections_than_leave_some_for_upstreams_are_a_problem() -> None:
    found = result(upstream_state(), proxy_=proxy(max_inbound_connections=9_000))
    assert found.desired.public is not None
    assert found.desired.public.max_connections == 7_200
    (problem,) = map(str, found.problems)
    assert problem.startswith("public listener: max_inbound_connections is 7200, not 9000: HAProxy takes 8000")


def test_connections_to_exposed_paths_leave_those_of_others() -> None:
    exposed = (ExposedPath("/health", 8081, 21500), ExposedPath("/metrics", 9102, 21501))
    found = result(upstream_state(), proxy_=proxy(exposed=exposed)).desired
    assert [one.max_connections for one in found.exposed] == [400, 400]
    assert found.public is not None
    assert found.public.max_connections == 6_400


@pytest.mark.parametrize(
    ("protocol", "hides", "told"),
    [
        (Protocol.HTTP, False, True),
        (Protocol.HTTP2, False, True),
        (Protocol.GRPC, False, False),
        (Protocol.TCP, False, False),
        (Protocol.HTTP, True, False),
    ],
)
def test_callers_are_told_to_the_application_as_consuls_envoy_does(protocol: Protocol, hides: bool, told: bool) -> None:
    here = replace(snapshot(proxy_=proxy(protocol=protocol)), hides_callers=hides)
    public = desired(here, options(), certificates()).desired.public
    assert public is not None
    assert bool(public.client_cert_by) is told


def test_a_header_name_that_haproxy_would_misread_is_reported_and_left_out() -> None:
    found = result(proxy_=proxy(protocol=Protocol.HTTP, appname_header="X-#App"))
    assert found.desired.public is not None
    assert found.desired.public.appname_header == ""
    assert "appname_header" in str(found.problems[0])


def test_a_critical_endpoint_stays_as_a_server_in_maintenance() -> None:
    found = result(upstream_state(endpoints=[endpoint(health=Health.CRITICAL)])).desired
    assert [server.enabled for server in found.backends[0].servers] == [False]


def test_answers_of_a_query_may_come_from_any_service_that_it_finds() -> None:
    found = result(
        upstream_state(upstream("q", query=True), [endpoint(), endpoint("10.0.0.2", identity=service_uri("db"))])
    )

    (backend,) = found.desired.backends
    assert backend.check == PeerCheck("/run/hcc/leaves.map", (service_uri("db"), service_uri("web")))


def test_a_service_without_instances_still_says_whose_answers_it_takes() -> None:
    (backend,) = result(upstream_state(upstream("db"))).desired.backends
    assert backend.check == PeerCheck("/run/hcc/leaves.map", (service_uri("db"),))


def test_without_a_map_of_leaves_answers_are_not_looked_at() -> None:
    found = result(upstream_state(), options_=replace(options(), leaves=""))
    assert [backend.check for backend in found.desired.backends] == [None]


def test_more_services_than_a_line_takes_are_a_problem() -> None:
    many = [endpoint(f"10.0.0.{number}", identity=service_uri(f"s{number}")) for number in range(MAX_IDENTITIES + 1)]

    found = result(upstream_state(upstream("q", query=True), many))

    assert [backend.check for backend in found.desired.backends] == [None]
    assert [str(problem) for problem in found.problems] == [
        "upstream query:q: its instances are of 21 services; with more than 20 answers are not checked"
    ]


def test_connections_leave_file_descriptors_for_listeners() -> None:
    def most(descriptors: int, upstreams: int) -> int:
        states = (upstream_state(upstream(f"s{number}", 9000 + number)) for number in range(upstreams))
        chosen = replace(options(), descriptors=descriptors)
        return result(*states, options_=chosen).desired.options.max_connections

    usual = options().process.max_connections
    assert most(0, 3) == most(1_000_000, 3) == usual
    assert most(10_000, 0) - most(10_000, 200) == 100
    assert most(64, 1) == 100
