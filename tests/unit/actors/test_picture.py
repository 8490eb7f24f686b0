from dataclasses import replace

import pytest

from hcc.actors.picture import Identity, Observed, picture
from hcc.actors.readiness import (
    CallerFacts,
    CredentialFacts,
    Facts,
    HAProxyFacts,
    PeerFacts,
    PolicyFacts,
    ReconcilerFacts,
    Validity,
)
from hcc.actors.status import CallerStatus, IdentityState, ServerState
from hcc.consul.keys import EndpointsWatch, LeafWatch
from hcc.consul.watch_state import WatchState
from hcc.haproxy.names import backend_name, upstream_name
from hcc.haproxy.stats import Process, Row, RowKind, Stats
from hcc.mesh.chain import Split
from hcc.mesh.intentions import Action, Intention
from hcc.mesh.naming import joined
from hcc.mesh.peer_book import Peer, peer_of
from hcc.mesh.snapshot import ExposedPath, Health, Protocol, TargetEndpoints, UpstreamState
from hcc.settings import Enforcement, VerifyUpstream
from tests.builders import (
    endpoint,
    policy,
    proxy,
    resolver,
    routed_chain,
    routed_state,
    snapshot,
    upstream,
    upstream_state,
)

NOW = 1_000_000.0
IDENTITY = Identity("web-proxy", "web-1", 42, NOW - 60, "1.0", "3.11", "2.6.12", "OpenSSL 3", "direct")
API = upstream("api")


def row(kind: RowKind, proxy_: str, server: str = "", address: str = "", status: str = "UP", sessions: int = 0) -> Row:
    return Row(
        kind, proxy_, server, address, status, True, sessions, 0, 0, (), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, None, None
    )


def seen(*rows: Row, **changed: object) -> Observed:
    made = Observed(
        now=NOW,
        snapshot=snapshot(upstream_state(API, (endpoint("10.0.0.1"), endpoint("10.0.0.2", health=Health.CRITICAL)))),
        changes={API.key: {("10.0.0.2", 21000): NOW - 5}},
        stats=Stats(Process(9, 2, 10, 100, 1.0), rows),
        stats_problem="",
        watches=(),
        actors=(),
        consul="1.20.1",
    )
    return replace(made, **changed)  # type: ignore[arg-type] # whatever a test wrote


def test_endpoints_have_consuls_word_haproxys_state_and_the_last_change() -> None:
    backend = backend_name(API)
    shown = picture(
        IDENTITY,
        Facts(),
        seen(
            row(RowKind.FRONTEND, upstream_name(API), sessions=7),
            row(RowKind.SERVER, backend, "10.0.0.1:21000", "10.0.0.1:21000", "no check", 4),
            row(RowKind.SERVER, backend, "10.0.0.2:21000", "10.0.0.2:21000", "MAINT (by hand)"),
        ),
    )

    (api,) = shown.upstreams
    assert (api.name, api.datacenter, api.protocol, api.listens) == ("api", "dc1", "tcp", "127.0.0.1:9191")
    assert api.sessions == 7
    assert [(one.health, one.state, one.sessions, one.changed_at) for one in api.endpoints] == [
        ("passing", ServerState.UP, 4, None),
        ("critical", ServerState.MAINTENANCE, 0, NOW - 5),
    ]


def test_an_endpoint_is_shown_in_each_leg_that_has_it() -> None:
    split = routed_chain(
        splits=(Split("v1", 90.0), Split("v2", 10.0)), legs=(resolver("v1"), resolver("v2", failover=("v3.web",)))
    )
    mesh = snapshot(
        routed_state(split, {"v1.web": [endpoint()], "v2.web": [endpoint()], "v3.web": [endpoint("10.0.0.3")]}, API)
    )
    first = row(RowKind.SERVER, backend_name(API, "v1"), "x", "10.0.0.1:21000", "UP", 1)
    second = row(RowKind.SERVER, backend_name(API, "v2"), "x", "10.0.0.1:21000", "DRAIN", 2)
    found = picture(IDENTITY, Facts(), seen(first, second, snapshot=mesh)).upstreams[0].endpoints

    assert [(one.leg, one.address, one.state, one.sessions, one.standby) for one in found] == [
        ("v1", "10.0.0.1", ServerState.UP, 1, False),
        ("v2", "10.0.0.1", ServerState.DRAINING, 2, False),
        ("v2", "10.0.0.3", ServerState.ABSENT, None, True),
    ]


def test_while_a_new_leg_is_awaited_endpoints_are_found_where_they_serve() -> None:
    split = routed_chain(splits=(Split("v1", 90.0), Split("v2", 10.0)), legs=(resolver("v1"), resolver("v2")))
    mesh = snapshot(routed_state(split, {"v1.web": [endpoint()], "v2.web": [endpoint("10.0.0.3")]}, API))
    other = row(RowKind.SERVER, backend_name(upstream("other")), "x", "10.0.0.3:21000", "UP", 7)
    for before in (backend_name(API), backend_name(API, "v3")):
        serving = row(RowKind.SERVER, before, "x", "10.0.0.1:21000", "UP", 1)
        found = picture(IDENTITY, Facts(), seen(serving, other, snapshot=mesh)).upstreams[0].endpoints

        assert [(one.leg, one.state, one.sessions) for one in found] == [
            ("v1", ServerState.UP, 1),
            ("v2", ServerState.ABSENT, None),
        ]


def test_the_row_of_a_leg_counts_whatever_a_worker_has_of_before() -> None:
    split = routed_chain(splits=(Split("v1", 90.0), Split("v2", 10.0)), legs=(resolver("v1"), resolver("v2")))
    mesh = snapshot(routed_state(split, {"v1.web": [endpoint()], "v2.web": []}, API))
    own = row(RowKind.SERVER, backend_name(API, "v1"), "x", "10.0.0.1:21000", "UP", 1)
    old = row(RowKind.SERVER, backend_name(API), "x", "10.0.0.1:21000", "DRAIN", 2)
    for rows in ((own, old), (old, own)):
        (found,) = picture(IDENTITY, Facts(), seen(*rows, snapshot=mesh)).upstreams[0].endpoints
        assert (found.state, found.sessions) == (ServerState.UP, 1)


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("UP", ServerState.UP),
        ("UP 1/3", ServerState.UP),
        ("DOWN (agent)", ServerState.DOWN),
        ("NOLB", ServerState.DOWN),
        ("MAINT (resolution)", ServerState.MAINTENANCE),
    ],
)
def test_haproxys_words_have_a_state(word: str, state: ServerState) -> None:
    server = row(RowKind.SERVER, backend_name(API), "x", "10.0.0.1:21000", word)
    assert picture(IDENTITY, Facts(), seen(server)).upstreams[0].endpoints[0].state is state


def test_an_endpoint_that_haproxy_lacks_is_absent_and_unknown_when_haproxy_is_silent() -> None:
    assert picture(IDENTITY, Facts(), seen()).upstreams[0].endpoints[0].state is ServerState.ABSENT
    silent = picture(IDENTITY, Facts(), seen(stats=None, stats_problem="it hangs"))
    assert silent.upstreams[0].endpoints[0].state is ServerState.UNKNOWN
    assert silent.upstreams[0].sessions is None
    assert silent.haproxy.problem == "it hangs"


def test_callers_have_their_live_sessions_and_the_verdict_that_haproxy_goes_by() -> None:
    shop = CallerStatus("shop", "deny", False, "default policy", NOW - 1, 3, None)
    spy = CallerStatus("spy", "deny", True, "default policy", NOW - 9, 1, None)
    facts = Facts(
        policy=PolicyFacts(version=1, deciding=1, current=1, callers=(shop, spy)),
        callers=CallerFacts((("cart:dc2", "abc123"), ("shop:dc1", "allow"), ("spy:dc1", "deny"))),
    )
    lines = (
        row(RowKind.SERVER, "app", "app", sessions=100),
        row(RowKind.SERVER, "app", joined("shop", "dc1"), sessions=2),
        row(RowKind.SERVER, "app", joined("cart", "dc2"), sessions=1),
    )

    callers = picture(IDENTITY, facts, seen(*lines)).callers

    assert callers == (
        replace(shop, verdict="allow", current=True, reason="no intention matches; default allow", sessions=2),
        spy,
        CallerStatus("cart.dc2", "rules", True, "", None, 0, 1),
    )


def test_a_verdict_has_its_reason_while_the_newest_policy_says_the_same() -> None:
    newest = policy("server", Intention("spy", Action.DENY, 9), Intention("cart", Action.ALLOW, 9), default_allow=False)
    facts = Facts(
        policy=PolicyFacts(1, 1, 1, callers=(CallerStatus("spy", "deny", False, "as it was", NOW - 9, 1, None),)),
        callers=CallerFacts((("cart:dc1", "allow"), ("shop:dc1", "allow"), ("spy:dc1", "deny"), ("no name", "deny"))),
    )
    observed = seen(snapshot=snapshot(policy_=newest))

    found = {one.service: (one.verdict, one.current, one.reason) for one in picture(IDENTITY, facts, observed).callers}

    assert found == {
        "spy": ("deny", True, "intention spy -> deny (precedence 9)"),
        "cart": ("allow", True, "intention cart -> allow (precedence 9)"),
        "shop": ("allow", True, ""),  # it would be denied now: HAProxy has not been told yet
        "no name": ("deny", True, ""),
    }
    unknown = replace(snapshot(), policy=None)
    assert {one.reason for one in picture(IDENTITY, facts, seen(snapshot=unknown)).callers} == {""}


def test_what_an_operator_should_look_at_is_a_warning_each() -> None:
    facts = Facts(
        intentions=Enforcement.OFF,
        reconciler=ReconcilerFacts(
            failure="line 3", problems=("upstream db: twice",), taken=("cannot listen on 127.0.0.1:9191: in use",)
        ),
        credentials=CredentialFacts(
            leaf=True, roots=True, problem="no key", certificates=(Validity("leaf", "web", NOW - 95, NOW + 5),)
        ),
        haproxy=HAProxyFacts(running=True, pid=1),
        stats_problem="cannot listen on 10.0.0.1:20200: in use",
    )
    observed = seen(
        stats=None,
        stats_problem="it hangs",
        snapshot=snapshot(proxy_=replace(proxy(), warnings=("bind_port: ignored",))),
        watches=(
            WatchState(LeafWatch("web"), 500.0, answered=True),
            WatchState(EndpointsWatch("db", "dc2"), 9.0, answered=False, failing_s=9.0, problem="HTTP 500"),
        ),
    )

    assert picture(IDENTITY, facts, observed).readiness.warnings == (
        "configuration: line 3",
        "certificate not used: no key",
        "haproxy: it hangs",
        "stats address: cannot listen on 10.0.0.1:20200: in use",
        "intentions are switched off: every service of the mesh may call this one",
        "upstream db: twice",
        "listener left out until it can be had: cannot listen on 127.0.0.1:9191: in use",
        "registration: bind_port: ignored",
        "leaf: not renewed, 5 s are left",
        "leaf web: no answer of Consul for 500 s",
        "endpoints db.dc2: HTTP 500",
    )


def test_an_expired_leaf_is_missing_and_no_warning_besides() -> None:
    expired = CredentialFacts(leaf=True, roots=True, certificates=(Validity("leaf", "web", NOW - 95, NOW),))
    readiness = picture(IDENTITY, Facts(credentials=expired), seen()).readiness
    assert [one.partition(" at ")[0] for one in readiness.missing if one.startswith("leaf")] == ["leaf: expired"]
    assert not [one for one in readiness.warnings if one.startswith("leaf")]


@pytest.mark.parametrize(("runs", "shown"), [("", "2.6.12"), ("2.6.9", "2.6.9")])
def test_the_version_shown_is_that_of_what_runs_where_it_is_known(runs: str, shown: str) -> None:
    assert picture(IDENTITY, Facts(haproxy=HAProxyFacts(version=runs)), seen()).versions.haproxy == shown


def test_a_sidecar_without_a_snapshot_is_shown_as_far_as_it_is_known() -> None:
    shown = picture(IDENTITY, Facts(), seen(snapshot=None))
    assert (shown.sidecar.service, shown.sidecar.listens, shown.upstreams) == ("", "", ())
    assert "proxy: its registration was not read from Consul yet" in shown.readiness.missing


def test_who_this_is_comes_from_the_registration() -> None:
    ours = proxy(protocol=Protocol.HTTP, exposed=(ExposedPath("/health", 22900, 8181),))
    shown = picture(IDENTITY, Facts(), seen(snapshot=snapshot(proxy_=ours))).sidecar
    assert (shown.service, shown.protocol, shown.datacenter) == ("server", "http", "dc1")
    assert shown.listens.endswith(":21000")
    assert shown.exposed == ("127.0.0.1:22900/health",)


def test_one_that_is_silent_is_told_with_what_its_probe_found() -> None:
    mesh = snapshot(upstream_state(API, [endpoint("10.0.0.1"), endpoint("10.0.0.2")]))
    one, two = (Peer(one.address, one.port, one.identity) for one in mesh.upstreams[0].targets[0].endpoints)
    peers = PeerFacts(frozenset((one, two)), silent=((two, "no handshake"),))

    shown = picture(IDENTITY, Facts(peers=peers), seen(snapshot=mesh)).upstreams[0].endpoints

    assert [(one.identity, one.silence) for one in shown] == [
        (IdentityState.VERIFIED, ""),
        (IdentityState.VERIFIED, "no handshake"),
    ]


def test_who_serves_for_those_that_are_silent_does_not_stand_by() -> None:
    first, second = (TargetEndpoints(name, (endpoint(f"10.0.0.{name}"),)) for name in ("1", "2"))
    mesh = snapshot(UpstreamState(API, None, (first, second)))
    one, two = (peer_of(target.endpoints[0]) for target in (first, second))
    silent = PeerFacts(frozenset((one, two)), silent=((one, "no handshake"),))

    failed = PeerFacts(frozenset((two,)), failed=frozenset((one,)))
    every = (PeerFacts(), silent, failed)

    shown = [picture(IDENTITY, Facts(peers=facts), seen(snapshot=mesh)).upstreams[0] for facts in every]

    assert [[endpoint.standby for endpoint in one.endpoints] for one in shown] == [[False, True], *[[False, False]] * 2]


def test_who_an_endpoint_is_stands_beside_it_and_an_impostor_is_warned_of() -> None:
    mesh = snapshot(upstream_state(API, [endpoint(f"10.0.0.{number}") for number in (1, 2, 3)]))
    right, impostor, _ = (Peer(one.address, one.port, one.identity) for one in mesh.upstreams[0].targets[0].endpoints)
    peers = PeerFacts(frozenset((right,)), ((impostor, "expected a, found b"),))

    shown = picture(IDENTITY, Facts(peers=peers), seen(snapshot=mesh))

    assert [(one.identity, one.identity_problem) for one in shown.upstreams[0].endpoints] == [
        (IdentityState.VERIFIED, ""),
        (IdentityState.REFUSED, "expected a, found b"),
        (IdentityState.WAITING, ""),
    ]
    assert "endpoint 10.0.0.2:21000 gets no traffic: expected a, found b" in shown.readiness.warnings


def test_endpoints_to_fail_over_to_stand_by_until_those_before_are_down() -> None:
    def standing_by(health: Health) -> list[bool]:
        targets = tuple(
            TargetEndpoints(name, (one,)) for name, one in (("a", endpoint(health=health)), ("b", endpoint("10.0.0.2")))
        )
        mesh = snapshot(replace(upstream_state(API), targets=targets))
        return [one.standby for one in picture(IDENTITY, Facts(), seen(snapshot=mesh)).upstreams[0].endpoints]

    assert standing_by(Health.WARNING) == [False, True]
    assert standing_by(Health.CRITICAL) == [False, False]


def test_many_impostors_are_counted_in_the_warnings_not_listed() -> None:
    peers = PeerFacts(refused=tuple((Peer("10.0.0.1", number, "a"), "no") for number in range(25)))

    warnings = picture(IDENTITY, Facts(peers=peers), seen()).readiness.warnings

    assert "5 more endpoints are refused, too" in warnings


@pytest.mark.parametrize(("verify", "warned"), [(VerifyUpstream.RESPONSE, False), (VerifyUpstream.OFF, True)])
def test_without_probes_nothing_is_said_of_who_endpoints_are(verify: VerifyUpstream, warned: bool) -> None:
    shown = picture(IDENTITY, Facts(verify=verify), seen())

    assert {one.identity for one in shown.upstreams[0].endpoints} == {IdentityState.UNCHECKED}
    assert ("it is not verified who upstreams' instances are" in shown.readiness.warnings) is warned
