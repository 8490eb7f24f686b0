from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.consul.answers import Answer, Application, ChainOverride, Instance, IntentionList, MeshEntry, Registration
from hcc.consul.assembly import State, snapshot, updated, wanted
from hcc.consul.keys import (
    ChainWatch,
    EndpointsWatch,
    IntentionsWatch,
    LeafWatch,
    MeshWatch,
    ProxyWatch,
    QueryWatch,
    RootsWatch,
    ServiceWatch,
    TokenProvidersWatch,
    WatchKey,
)
from hcc.mesh.chain import Chain, Route, Split, Target
from hcc.mesh.intentions import Action, Intention
from hcc.mesh.permissions import HeaderMatch, HeaderRule, JwtProvider, Permission
from hcc.mesh.request import Normalization
from hcc.mesh.routes import Match
from hcc.mesh.snapshot import Endpoint, Health, Protocol, Proxy, Roots, Snapshot, Upstream
from hcc.mesh.tls import MeshTls, TlsLimits, TlsVersion
from hcc.mesh.token_providers import TokenProvider, TokenProviders
from tests import builders

TD = builders.TRUST_DOMAIN
PROXY = ProxyWatch("server-sidecar-proxy")
START = State(PROXY.proxy_id)
INTENTIONS = IntentionsWatch("server", TD, "dc1")
ALLOW_WEB = IntentionList((Intention("web", Action.ALLOW, 9),), False)


def registered(
    *upstreams: Upstream,
    overrides: tuple[ChainOverride, ...] = (),
    datacenter: str = "dc1",
    proxy: Proxy | None = None,
) -> Registration:
    return Registration(
        replace(proxy or builders.proxy(), upstreams=upstreams),
        datacenter,
        overrides or (ChainOverride(),) * len(upstreams),
    )


def after(*answers: tuple[WatchKey, Answer], state: State = START) -> State:
    for key, value in answers:
        state = updated(state, key, value)
    return state


def whole(state: State) -> Snapshot:
    found = snapshot(state, 1)
    assert found is not None
    return found


def instance(address: str = "10.0.0.1", health: Health = Health.PASSING, service: str = "web") -> Instance:
    return Instance(address, 21000, 1, health, service, "dc1")


def chain_on(target_datacenter: str = "dc1", *, only_passing: bool = False, peer: str = "") -> Chain:
    found = builders.chain("web", datacenter=target_datacenter)
    return replace(found, targets=(replace(found.targets[0], only_passing=only_passing, peer=peer),))


WITH_WEB = (PROXY, registered(builders.upstream("web")))
ROOTS = (RootsWatch(), builders.roots())
CHAIN = (ChainWatch("web"), builders.chain("web"))
ENDPOINTS = EndpointsWatch("web", "dc1")


def test_at_first_only_the_proxy_and_the_roots_are_wanted_and_there_is_no_snapshot() -> None:
    assert wanted(START) == {PROXY, RootsWatch(), MeshWatch()}
    assert snapshot(START, 1) is None


def test_the_registration_leads_to_leaf_and_chains() -> None:
    assert wanted(after(WITH_WEB)) == {PROXY, RootsWatch(), MeshWatch(), LeafWatch("server"), ChainWatch("web")}


@pytest.mark.parametrize(
    ("names_protocol", "chain", "expected"),
    [
        (False, "http", Protocol.HTTP),
        (False, "carrier-pigeon", Protocol.TCP),
        (True, "http", Protocol.TCP),
    ],
)
def test_a_registration_without_a_protocol_takes_that_of_its_own_chain(
    names_protocol: bool, chain: str, expected: Protocol
) -> None:
    unmerged = replace(registered(datacenter=""), names_protocol=names_protocol)
    state = after((PROXY, unmerged), (ChainWatch("server"), builders.chain("server", protocol=chain)))
    assert whole(state).proxy.protocol is expected
    policed = after((RootsWatch(), builders.roots()), (INTENTIONS, ALLOW_WEB), state=state)
    policy, version = whole(policed).policy, policed.policy_version
    assert policy is not None
    assert policy.http is expected.is_http
    other = after((ChainWatch("server"), builders.chain("server", protocol="grpc")), state=policed)
    assert other.policy_version == version + (not names_protocol and not expected.is_http)


def test_the_roots_lead_to_the_intentions() -> None:
    assert INTENTIONS in wanted(after(WITH_WEB, ROOTS))


def test_a_chain_leads_to_the_endpoints_of_its_start_target() -> None:
    assert ENDPOINTS in wanted(after(WITH_WEB, CHAIN))


def test_a_whole_state_makes_a_whole_snapshot() -> None:
    state = after(
        WITH_WEB,
        ROOTS,
        CHAIN,
        (LeafWatch("server"), builders.leaf()),
        (INTENTIONS, ALLOW_WEB),
        (ENDPOINTS, (instance(),)),
    )
    found = snapshot(state, 7)
    assert found is not None
    assert (found.version, found.datacenter) == (7, "dc1")
    assert (found.leaf, found.roots) == (builders.leaf(), builders.roots())
    assert found.policy is not None
    assert (found.policy.intentions, found.policy.default_allow) == (ALLOW_WEB.intentions, False)
    (upstream,) = found.upstreams
    assert upstream.chain == builders.chain("web")
    ((endpoint,),) = (target.endpoints for target in upstream.targets)
    assert endpoint == Endpoint("10.0.0.1", 21000, 1, Health.PASSING, builders.service_uri("web"))


def test_an_endpoint_s_address_is_written_in_one_way_however_it_was_registered() -> None:
    written = ("2001:DB8:0:0::1", "2001:db8::1", "fe80::1%eth0", "::not an address", "10.0.0.1")
    found = whole(after(WITH_WEB, ROOTS, CHAIN, (ENDPOINTS, tuple(instance(one) for one in written))))
    shown = [one.address for target in found.upstreams[0].targets for one in target.endpoints]
    assert shown == ["10.0.0.1", "2001:db8::1", "::not an address", "fe80::1%eth0"]


def test_a_terminating_gateway_is_no_endpoint_and_noted() -> None:
    gateway = replace(instance("10.0.0.9", service="gateway"), is_gateway=True)
    for found, served in (((gateway,), ()), ((gateway, instance()), ("10.0.0.1",))):
        (target,) = whole(after(WITH_WEB, ROOTS, CHAIN, (ENDPOINTS, found))).upstreams[0].targets
        assert (tuple(one.address for one in target.endpoints), target.behind_gateway) == (served, True)


def test_a_chain_with_failover_leads_to_the_endpoints_of_all_its_targets_in_order() -> None:
    older = Target("v1.web.default.default.dc1", "web", "dc1", subset="v1", subset_filter="Service.Meta.v == 1")
    abroad = Target(builders.target_id("web", "dc2"), "web", "dc2", only_passing=True)
    east = Target("web.default.default.external.east", "web", "", peer="east")
    chain = builders.chain("web", failover=(older, east, abroad))
    elsewhere = EndpointsWatch("web", "dc2", wan=True)
    state = after(WITH_WEB, ROOTS, (ChainWatch("web"), chain))

    watches = {ENDPOINTS, EndpointsWatch("web", "dc1", filter="Service.Meta.v == 1"), elsewhere}
    assert {key for key in wanted(state) if isinstance(key, EndpointsWatch)} == watches
    found = (instance("10.0.0.7", Health.WARNING),)
    (upstream,) = whole(after((ENDPOINTS, ()), (elsewhere, found), state=state)).upstreams
    assert [target.target_id for target in upstream.targets] == [builders.target_id("web"), older.id, abroad.id]
    assert [target.known for target in upstream.targets] == [True, False, True]
    (endpoint,) = upstream.targets[2].endpoints
    assert (endpoint.health, endpoint.identity) == (Health.CRITICAL, builders.service_uri("web", "dc2"))
    assert upstream.legs[0].identities == (builders.service_uri("web"), builders.service_uri("web", "dc2"))


def test_each_leg_of_a_routed_chain_is_watched_and_only_the_default_path_where_a_route_is_not_understood() -> None:
    legs = (builders.resolver("v1"), builders.resolver("v2", service="shop", failover=("v1.web",)))
    routed = builders.routed_chain(splits=(Split("v1", 90.0), Split("v2", 10.0)), legs=legs)
    odd = Route("v2", match=Match(fault="odd"))
    fallen_back = builders.routed_chain(odd, Route("v1", match=Match()), legs=legs)

    def watched(chain: Chain) -> set[WatchKey]:
        state = after(WITH_WEB, ROOTS, (ChainWatch("web"), chain))
        return {key for key in wanted(state) if isinstance(key, EndpointsWatch)}

    shop = EndpointsWatch("shop", "dc1")
    assert watched(routed) == {ENDPOINTS, shop}
    assert watched(fallen_back) == {ENDPOINTS}
    state = after(WITH_WEB, ROOTS, (ChainWatch("web"), routed), (ENDPOINTS, (instance(),)))
    (upstream,) = whole(state).upstreams
    assert not upstream.known
    assert [leg.known for leg in upstream.legs] == [True, False]
    (upstream,) = whole(after((shop, ()), state=state)).upstreams
    assert upstream.known
    assert [target.target_id for target in upstream.legs[1].tried] == ["v2.shop", "v1.web"]


def test_what_is_missing_is_none_or_not_known() -> None:
    found = whole(after(WITH_WEB))
    assert (found.leaf, found.roots, found.policy) == (None, None, None)
    assert found.upstreams[0].chain is None
    (targets,) = whole(after(WITH_WEB, CHAIN)).upstreams[0].targets
    assert not targets.known


def test_an_empty_answer_is_known() -> None:
    (targets,) = whole(after(WITH_WEB, CHAIN, (ENDPOINTS, ()))).upstreams[0].targets
    assert targets.known
    assert targets.endpoints == ()


def test_two_upstreams_with_the_same_question_share_one_watch() -> None:
    state = after((PROXY, registered(builders.upstream("web", 1), builders.upstream("web", 2))))
    assert len([key for key in wanted(state) if isinstance(key, ChainWatch)]) == 1
    found = whole(after(CHAIN, (ENDPOINTS, (instance(),)), state=state))
    assert [len(item.targets[0].endpoints) for item in found.upstreams] == [1, 1]


def test_one_name_in_two_datacenters_is_two_chains() -> None:
    state = after((PROXY, registered(builders.upstream("web", 1), builders.upstream("web", 2, datacenter="dc2"))))
    assert {ChainWatch("web"), ChainWatch("web", "dc2")} < wanted(state)


def test_instances_of_another_datacenter_are_asked_for_their_wan_addresses() -> None:
    state = after(WITH_WEB, (ChainWatch("web"), chain_on("dc2")))
    assert EndpointsWatch("web", "dc2", wan=True) in wanted(state)


def test_overrides_go_into_the_chain_question() -> None:
    overrides = (ChainOverride("http", "local"),)
    state = after((PROXY, registered(builders.upstream("web"), overrides=overrides)))
    assert ChainWatch("web", protocol="http", mesh_gateway="local") in wanted(state)


def test_only_passing_takes_warning_instances_out() -> None:
    state = after(
        WITH_WEB,
        (ChainWatch("web"), chain_on(only_passing=True)),
        (ENDPOINTS, (instance("10.0.0.1", Health.WARNING), instance("10.0.0.2"))),
    )
    endpoints = whole(state).upstreams[0].targets[0].endpoints
    assert [item.health for item in endpoints] == [Health.CRITICAL, Health.PASSING]


def test_a_target_in_a_cluster_peer_is_not_watched_and_never_mistaken_for_ours() -> None:
    state = after(WITH_WEB, (ChainWatch("web"), chain_on(peer="east")))
    assert not any(isinstance(key, EndpointsWatch) for key in wanted(state))
    assert whole(state).upstreams[0].targets == ()


def test_a_prepared_query_is_watched_by_itself_and_each_instance_has_its_own_identity() -> None:
    upstream = builders.upstream("find", query=True)
    key = QueryWatch("find", "", "dc1", upstream.poll_interval_ms)
    state = after((PROXY, registered(upstream)), ROOTS)
    assert key in wanted(state)
    state = after((key, (instance(service="web"), instance("10.0.0.2", service="web-2"))), state=state)
    (target,) = whole(state).upstreams[0].targets
    assert target.target_id == "query"
    assert [item.identity for item in target.endpoints] == [
        builders.service_uri("web"),
        builders.service_uri("web-2"),
    ]


def test_a_registration_that_names_no_protocol_any_more_keeps_it_until_our_chain_says_otherwise() -> None:
    state = after((PROXY, registered(proxy=builders.proxy(protocol=Protocol.HTTP))))
    assert ChainWatch("server") not in wanted(state)
    unmerged = replace(registered(proxy=builders.proxy(protocol=Protocol.TCP)), names_protocol=False)
    # Twice, as other things of it may change meanwhile.
    state = after((PROXY, unmerged), (PROXY, replace(unmerged, datacenter="dc1")), state=state)
    assert whole(state).proxy.protocol is Protocol.HTTP
    assert ChainWatch("server") in wanted(state)
    for named in ("http", "tcp"):
        state = after((ChainWatch("server"), builders.chain("server", protocol=named)), state=state)
        assert whole(state).proxy.protocol.value == named
    state = after((PROXY, registered(proxy=builders.proxy(protocol=Protocol.GRPC))), state=state)
    assert whole(state).proxy.protocol is Protocol.GRPC
    assert ChainWatch("server") not in wanted(state)


def test_a_stand_alone_proxy_learns_the_port_from_its_service() -> None:
    proxy = builders.proxy(local_port=0)
    state = after((PROXY, registered(proxy=proxy)))
    assert ServiceWatch("server") in wanted(state)
    assert whole(state).proxy.local_port == 0
    state = after((ServiceWatch("server"), Application("server", "server", "", 8181)), state=state)
    assert whole(state).proxy.local_port == 8181


def test_a_proxy_that_comes_to_stand_alone_keeps_its_port_until_its_service_tells() -> None:
    state = after((PROXY, registered(proxy=builders.proxy(local_port=8080))))
    state = after((PROXY, registered(proxy=builders.proxy(local_port=0))), state=state)
    assert ServiceWatch("server") in wanted(state)
    assert whole(state).proxy.local_port == 8080
    state = after((ServiceWatch("server"), Application("server", "server", "", 8181)), state=state)
    assert whole(state).proxy.local_port == 8181


def test_one_of_another_service_has_no_port_before_that_one_tells() -> None:
    state = after((PROXY, registered(proxy=builders.proxy(local_port=8080))))
    other = replace(builders.proxy(local_port=0), service_id="other")
    assert whole(after((PROXY, registered(proxy=other)), state=state)).proxy.local_port == 0


def test_a_proxy_with_port_or_socket_or_without_service_needs_no_service_watch() -> None:
    for proxy in (
        builders.proxy(),
        builders.proxy(local_port=0, local_socket="/run/app"),
        replace(builders.proxy(local_port=0), service_id=""),
    ):
        assert not any(isinstance(key, ServiceWatch) for key in wanted(after((PROXY, registered(proxy=proxy)))))


def test_where_consul_does_not_say_our_datacenter_our_own_chain_does() -> None:
    query = builders.upstream("find", query=True)
    state = after((PROXY, registered(builders.upstream("web"), query, datacenter="")), ROOTS, CHAIN)
    assert ChainWatch("server") in wanted(state)
    assert not {type(key) for key in wanted(state)} & {IntentionsWatch, EndpointsWatch, QueryWatch}
    state = after((ChainWatch("server"), builders.chain("server", datacenter="dc1")), state=state)
    assert {INTENTIONS, ENDPOINTS, QueryWatch("find", "", "dc1", 30_000)} < wanted(state)
    assert whole(state).datacenter == "dc1"


def test_an_answer_that_nobody_wants_changes_nothing() -> None:
    state = after(WITH_WEB)
    assert updated(state, ChainWatch("gone"), builders.chain("gone")) is state


def test_an_answer_that_says_the_same_changes_nothing() -> None:
    state = after(WITH_WEB, ROOTS, (INTENTIONS, ALLOW_WEB))
    assert updated(state, INTENTIONS, ALLOW_WEB) is state


def test_what_a_removed_upstream_knew_is_forgotten() -> None:
    state = after(WITH_WEB, CHAIN, (ENDPOINTS, (instance(),)), (PROXY, registered()))
    assert [key for key, _ in state.values] == [PROXY]
    assert not any(isinstance(key, ChainWatch | EndpointsWatch) for key in wanted(state))


def test_each_change_of_the_intentions_has_a_version() -> None:
    state = after(WITH_WEB, ROOTS, (INTENTIONS, ALLOW_WEB))
    wanted_policy = builders.policy("server", *ALLOW_WEB.intentions, default_allow=False, version=1)
    assert whole(state).policy == replace(wanted_policy, normalization=None)
    state = after((INTENTIONS, IntentionList((), None)), (LeafWatch("server"), builders.leaf()), state=state)
    policy = whole(state).policy
    assert policy is not None
    assert (policy.version, policy.default_allow) == (2, None)


def test_a_condition_on_the_header_that_tells_the_callers_name_denies() -> None:
    by_name = Permission(True, headers=(HeaderRule("x-app", HeaderMatch.EXACT, "web"),))
    by_role = Permission(True, headers=(HeaderRule("x-role", HeaderMatch.EXACT, "admin"),))
    told = IntentionList((Intention("web", Action.PERMISSIONS, 9, (by_role, by_name)), *ALLOW_WEB.intentions), False)
    before = after((PROXY, registered()), ROOTS, (INTENTIONS, told))
    named = after((PROXY, registered(proxy=builders.proxy(appname_header="X-App"))), state=before)

    policy, later = whole(before).policy, whole(named).policy
    assert policy is not None
    assert later is not None
    assert policy.intentions == told.intentions
    assert later.version == policy.version + 1
    ruled, plain = later.intentions
    assert ruled.permissions[0] == by_role
    assert "the header x-app tells the caller" in ruled.permissions[1].fault
    assert plain is ALLOW_WEB.intentions[0]


def other_roots() -> Roots:
    return replace(builders.roots(), trust_domain="other.consul")


def test_the_policy_of_a_service_that_turns_to_http_is_a_newer_one() -> None:
    state = after((PROXY, registered()), ROOTS, (INTENTIONS, ALLOW_WEB))
    turned = after((PROXY, registered(proxy=replace(builders.proxy(), protocol=Protocol.GRPC))), state=state)
    before, later = whole(state).policy, whole(turned).policy
    assert before is not None
    assert later is not None
    assert (before.http, later.http) == (False, True)
    assert later.version == before.version + 1


def test_the_mesh_entry_is_read_from_the_start() -> None:
    assert MeshWatch() in wanted(START)
    state = after((PROXY, registered()), ROOTS, (INTENTIONS, ALLOW_WEB))
    before = whole(state)
    assert before.tls is None
    assert before.policy is not None
    assert before.policy.normalization is None
    assert not before.hides_callers
    entry = MeshEntry(Normalization(merge_slashes=True), MeshTls(incoming=TlsLimits(TlsVersion.TLS_1_3)), True)
    read = whole(after((MeshWatch(), entry), state=state))
    assert read.tls == entry.tls
    assert read.hides_callers
    assert read.policy is not None
    assert (read.policy.normalization, read.policy.version) == (entry.normalization, before.policy.version + 1)


def test_who_may_sign_tokens_is_read_only_where_an_intention_demands_one() -> None:
    okta = (JwtProvider("okta"),)
    by_permission = Intention("web", Action.PERMISSIONS, 9, (Permission(allow=True, jwt=okta),))
    for demanding in (by_permission, Intention("web", Action.ALLOW, 9, jwt=okta)):
        state = after((PROXY, registered()), ROOTS, (INTENTIONS, IntentionList((demanding,), True)))
        assert TokenProvidersWatch() in wanted(state)
        before = whole(state).policy
        assert before is not None
        assert before.providers is None
        told = TokenProviders((TokenProvider("okta", "https://okta", "keys on a server"),))
        read = whole(after((TokenProvidersWatch(), told), state=state)).policy
        assert read is not None
        assert (read.providers, read.version) == (told, before.version + 1)
    assert TokenProvidersWatch() not in wanted(after((PROXY, registered()), ROOTS, (INTENTIONS, ALLOW_WEB)))


def test_under_a_new_trust_domain_the_last_policy_stays_and_lets_nobody_of_the_new_one_in() -> None:
    state = after(WITH_WEB, ROOTS, (INTENTIONS, ALLOW_WEB), (RootsWatch(), other_roots()))
    assert IntentionsWatch("server", "other.consul", "dc1") in wanted(state)
    policy = whole(state).policy
    assert policy is not None
    assert policy.trust_domain == TD
    news = (IntentionsWatch("server", "other.consul", "dc1"), IntentionList((), True))
    state = after(news, state=state)
    policy = whole(state).policy
    assert policy is not None
    assert (policy.trust_domain, policy.intentions) == ("other.consul", ())
    assert INTENTIONS not in state.known()


def test_while_an_overridden_chain_is_not_there_yet_the_old_one_serves() -> None:
    state = after(WITH_WEB, CHAIN, (ENDPOINTS, (instance(),)))
    changed = registered(builders.upstream("web"), overrides=(ChainOverride("http"),))
    state = after((PROXY, changed), state=state)
    assert whole(state).upstreams[0].targets[0].endpoints
    state = after((ChainWatch("web", protocol="http"), builders.chain("web", protocol="http")), state=state)
    assert ChainWatch("web") not in state.known()
    chain = whole(state).upstreams[0].chain
    assert chain is not None
    assert chain.protocol == "http"
    assert whole(state).upstreams[0].targets[0].endpoints


def test_without_roots_no_identity_is_expected_yet() -> None:
    state = after(WITH_WEB, CHAIN, (ENDPOINTS, (instance(),)))
    assert whole(state).upstreams[0].targets[0].endpoints[0].identity == ""


def test_a_target_is_asked_for_in_its_own_place_with_its_subset_and_expected_to_be_of_it() -> None:
    target = replace(
        builders.chain("web").targets[0], datacenter="dc2", subset_filter="v == 2", namespace="team", partition="east"
    )
    key = EndpointsWatch("web", "dc2", filter="v == 2", wan=True, namespace="team", partition="east")
    state = after(WITH_WEB, ROOTS, (ChainWatch("web"), replace(builders.chain("web"), targets=(target,))))
    assert key in wanted(state)
    (endpoint,) = whole(after((key, (instance(),)), state=state)).upstreams[0].targets[0].endpoints
    assert endpoint.identity == f"spiffe://{TD}/ap/east/ns/team/dc/dc2/svc/web"


def test_an_upstream_in_another_namespace_is_another_chain() -> None:
    one = builders.upstream("web")
    state = after((PROXY, registered(replace(one, key=replace(one.key, namespace="team", partition="east")))))
    assert ChainWatch("web", namespace="team", partition="east") in wanted(state)


def test_what_a_query_finds_is_expected_to_be_of_where_it_was_found() -> None:
    upstream = builders.upstream("find", query=True)
    key = QueryWatch("find", "", "dc1", upstream.poll_interval_ms)
    found = replace(instance(), datacenter="dc2", namespace="team", partition="east")
    (target,) = whole(after((PROXY, registered(upstream)), ROOTS, (key, (found,)))).upstreams[0].targets
    assert [item.identity for item in target.endpoints] == [f"spiffe://{TD}/ap/east/ns/team/dc/dc2/svc/web"]


def test_an_upstream_in_a_cluster_peer_is_not_watched_and_has_nobody() -> None:
    one = builders.upstream("web")
    state = after((PROXY, registered(replace(one, key=replace(one.key, peer="east")))), ROOTS, CHAIN)
    assert not any(isinstance(key, ChainWatch | EndpointsWatch) for key in wanted(state))
    (upstream,) = whole(state).upstreams
    assert (upstream.chain, upstream.targets) == (None, ())
    # Nor is that which one of our own cluster with its name has.
    both = after((PROXY, registered(one, replace(one, key=replace(one.key, peer="east")))), ROOTS, CHAIN)
    both = after((ENDPOINTS, (instance(),)), state=both)
    assert [bool(item.targets) for item in whole(both).upstreams] == [True, False]


def test_instances_are_in_order_and_each_is_there_once() -> None:
    found = (instance("10.0.0.2"), instance("10.0.0.1"), instance("10.0.0.2"))
    endpoints = whole(after(WITH_WEB, ROOTS, CHAIN, (ENDPOINTS, found))).upstreams[0].targets[0].endpoints
    assert [item.address for item in endpoints] == ["10.0.0.1", "10.0.0.2"]


EVENTS: tuple[tuple[WatchKey, Answer], ...] = (
    WITH_WEB,
    (PROXY, registered()),
    (PROXY, registered(builders.upstream("web"), builders.upstream("find", query=True))),
    ROOTS,
    (RootsWatch(), other_roots()),
    CHAIN,
    (ChainWatch("web"), chain_on("dc2")),
    (LeafWatch("server"), builders.leaf()),
    (INTENTIONS, ALLOW_WEB),
    (INTENTIONS, IntentionList((), True)),
    (ENDPOINTS, (instance(),)),
    (ENDPOINTS, ()),
    (QueryWatch("find", "", "dc1", 30_000), (instance(),)),
)


@given(st.lists(st.sampled_from(EVENTS), max_size=25))
def test_in_any_order_what_was_known_once_stays_known(events: list[tuple[WatchKey, Answer]]) -> None:
    state, had_policy = START, False
    for key, value in events:
        before = wanted(state)
        state = updated(state, key, value)
        assert {PROXY, RootsWatch(), MeshWatch()} <= wanted(state)
        if key not in before:
            assert wanted(state) == before
        found = snapshot(state, 1)
        if found is not None:
            assert not had_policy or found.policy is not None
            had_policy = found.policy is not None
            assert len(found.upstreams) == len(found.proxy.upstreams)


@pytest.mark.parametrize(
    ("key", "label"),
    [
        (PROXY, "proxy server-sidecar-proxy"),
        (ServiceWatch("s"), "service s"),
        (RootsWatch(), "CA roots"),
        (LeafWatch("s"), "leaf s"),
        (INTENTIONS, "intentions for server"),
        (ChainWatch("web", "dc2"), "chain web.dc2"),
        (ENDPOINTS, "endpoints web.dc1"),
        (QueryWatch("q", "", "dc1", 1), "query q"),
    ],
)
def test_every_key_has_a_label_for_people(key: WatchKey, label: str) -> None:
    assert key.label() == label
