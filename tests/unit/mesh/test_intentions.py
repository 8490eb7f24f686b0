from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Action, Intention, Policy, decide, demands_of, rule_sets, verdict_of
from hcc.mesh.permissions import HeaderMatch, HeaderRule, JwtProvider, PathMatch, PathRule, Permission
from hcc.mesh.request import Normalization, Request
from hcc.mesh.token_demands import TokenDemand
from hcc.mesh.token_providers import TokenProvider, TokenProviders

TRUST_DOMAIN = "example.consul"


def caller(service: str = "web", trust_domain: str = TRUST_DOMAIN) -> ServiceIdentity:
    return ServiceIdentity(trust_domain, service, "dc1")


def policy(*intentions: Intention, default_allow: bool | None = False, http: bool = False) -> Policy:
    return Policy("db", TRUST_DOMAIN, intentions, default_allow, http=http)


def l7(*permissions: Permission, default_allow: bool | None = False) -> Policy:
    """The policy of an http service: permissions for web, everybody else is allowed."""
    rule = Intention("web", Action.PERMISSIONS, 9, permissions)
    return policy(rule, allow("*", 8), default_allow=default_allow, http=True)


HOST = ("Host", "h")


def get(path: str, **headers: str) -> Request:
    return Request("GET", path, (HOST, *headers.items()))


def on(path: str, *, allow: bool, **more: Any) -> Permission:
    return Permission(allow, PathRule(PathMatch.PREFIX, path), **more)


def allow(source: str, precedence: int = 9) -> Intention:
    return Intention(source, Action.ALLOW, precedence)


def deny(source: str, precedence: int = 9) -> Intention:
    return Intention(source, Action.DENY, precedence)


def test_an_exact_intention_beats_the_wildcard_whatever_their_order() -> None:
    rules = (deny("*", 8), allow("web", 9))

    assert verdict_of(policy(*rules), caller()).allowed
    assert verdict_of(policy(*reversed(rules)), caller()).allowed
    assert not verdict_of(policy(*rules), caller("other")).allowed


def test_without_a_matching_intention_the_default_decides() -> None:
    assert verdict_of(policy(deny("other"), default_allow=True), caller()).allowed
    assert not verdict_of(policy(allow("other"), default_allow=False), caller()).allowed


def test_an_unknown_default_denies_and_says_so() -> None:
    verdict = verdict_of(policy(default_allow=None), caller())

    assert not verdict.allowed
    assert "unknown" in verdict.reason


def test_names_are_compared_with_their_case() -> None:
    assert not verdict_of(policy(allow("Web")), caller("web")).allowed


def test_a_caller_of_another_trust_domain_is_denied_before_any_intention() -> None:
    verdict = verdict_of(policy(allow("*"), default_allow=True), caller(trust_domain="other.consul"))

    assert not verdict.allowed
    assert "trust domain" in verdict.reason


def test_an_intention_that_demands_a_token_denies() -> None:
    rule = Intention("web", Action.ALLOW, 9, jwt=(JwtProvider("okta"),))

    verdict = verdict_of(policy(rule, default_allow=True), caller())
    assert not verdict.allowed
    assert "demands a JWT of okta [not known yet], which cannot be checked" in verdict.reason


@pytest.mark.parametrize("place", ["namespace", "partition"])
def test_an_intention_is_for_its_own_namespace_and_partition_or_for_all(place: str) -> None:
    for of_source, of_caller, allowed in (
        ("default", "default", True),
        ("default", "team", False),
        ("team", "default", False),
        ("team", "team", True),
        ("*", "team", True),
    ):
        rule = replace(allow("web"), **{f"source_{place}": of_source})  # type: ignore[arg-type] # a text
        who = replace(caller(), **{place: of_caller})
        assert verdict_of(policy(rule), who).allowed is allowed, (of_source, of_caller)


@pytest.mark.parametrize("place", ["namespace", "partition"])
def test_the_default_lets_no_caller_in_from_where_consul_has_no_namespaces(place: str) -> None:
    evil = replace(caller("evil"), **{place: "made-up"})
    for rule in (deny("evil"), deny("*")):
        community = policy(rule, default_allow=True)
        verdict = verdict_of(community, evil)
        assert (verdict.allowed, verdict.intention) == (False, None)
        assert "names a namespace or partition, and Consul has none" in verdict.reason
        enterprise = replace(community, has_namespaces=True)
        assert verdict_of(enterprise, evil).allowed
    assert verdict_of(policy(default_allow=True), caller("evil")).allowed


def test_an_intention_for_a_peer_says_nothing_of_our_own_services() -> None:
    rule = Intention("web", Action.ALLOW, 9, peer="elsewhere")

    assert not verdict_of(policy(rule), caller()).allowed


@given(
    st.lists(
        st.tuples(st.sampled_from(["web", "*", "api"]), st.booleans(), st.sampled_from([9, 8, 6, 5])),
        max_size=6,
    )
)
def test_the_verdict_does_not_depend_on_the_order_of_rules_with_different_precedence(
    rows: list[tuple[str, bool, int]],
) -> None:
    rules = tuple({row[2]: Intention(row[0], Action.ALLOW if row[1] else Action.DENY, row[2]) for row in rows}.values())

    assert verdict_of(policy(*rules), caller()) == verdict_of(policy(*reversed(rules)), caller())


# ---- permissions (layer 7)


def test_the_first_permission_that_speaks_of_the_request_decides() -> None:
    rules = l7(on("/admin", allow=False), on("/", allow=True), on("/never", allow=False))

    denied, allowed = decide(rules, caller(), get("/admin/x")), decide(rules, caller(), get("/never"))
    assert (denied.allowed, denied.permission) == (False, 0)
    assert (allowed.allowed, allowed.permission) == (True, 1)
    assert "Permissions[1]" in allowed.reason


@pytest.mark.parametrize("default", [True, False])
def test_without_a_matching_permission_the_default_decides_and_not_the_next_intention(default: bool) -> None:
    permission = on("/api", allow=not default)
    verdict = decide(l7(permission, default_allow=default), caller(), get("/"))

    assert verdict.allowed is default
    assert verdict.permission is None
    assert verdict.intention is not None
    assert verdict.intention.source == "web"


def test_without_a_matching_permission_an_unknown_default_denies() -> None:
    rules = l7(on("/api", allow=True), default_allow=None)

    assert not decide(rules, caller(), get("/")).allowed
    assert decide(rules, caller(), get("/api")).allowed


def test_a_permission_without_conditions_speaks_of_everything() -> None:
    rules = l7(Permission(allow=True))

    assert decide(rules, caller(), Request("DELETE", "/x", (HOST,))).allowed
    assert verdict_of(rules, caller()).allowed


def test_permissions_on_a_tcp_service_deny_and_say_so() -> None:
    rule = Intention("web", Action.PERMISSIONS, 9, (Permission(allow=True),))

    verdict = verdict_of(policy(rule, default_allow=True), caller())
    assert not verdict.allowed
    assert verdict.rules is None
    assert "tcp service" in verdict.reason
    assert decide(policy(rule, default_allow=True), caller(), get("/")) == verdict


def test_permissions_deny_until_it_is_known_how_requests_are_normalised() -> None:
    rules = replace(l7(Permission(allow=True), default_allow=True), normalization=None)

    verdict = verdict_of(rules, caller())
    assert not verdict.allowed
    assert "mesh entry" in verdict.reason
    assert decide(rules, caller(), get("/")) == verdict
    assert verdict_of(rules, caller("other")).allowed


def test_the_mesh_entry_decides_how_paths_are_normalised() -> None:
    rules = l7(on("/a/b", allow=True))
    merging = replace(rules, normalization=Normalization(merge_slashes=True))

    assert not decide(rules, caller(), get("/a//b")).allowed
    assert decide(merging, caller(), get("/a//b")).allowed


def test_a_permission_that_demands_a_token_denies_what_it_speaks_of_by_name() -> None:
    rules = l7(on("/secret", allow=True, jwt=(JwtProvider("okta"), JwtProvider("own"))), on("/", allow=True))

    verdict = decide(rules, caller(), get("/secret"))
    assert not verdict.allowed
    assert "demands a JWT of okta [not known yet] or own [not known yet], which cannot" in verdict.reason
    assert decide(rules, caller(), get("/open")).allowed
    assert "Permissions[0]: demands a JWT" in verdict_of(rules, caller()).reason


def test_a_token_that_cannot_be_checked_is_named_with_its_issuer_and_keys_and_lets_nobody_in() -> None:
    providers = TokenProviders((TokenProvider("okta", "https://okta", "keys on a server", "not here"),))
    label = "a JWT of okta [issuer 'https://okta', keys on a server; not here] or own [unknown to Consul], which cannot"
    okta_or_own = (JwtProvider("okta"), JwtProvider("own"))
    # Consul's Envoy looks at no token on a tcp service, nor where what it is demanded for is the default anyway.
    for default_allow in (True, False):
        whole = policy(Intention("web", Action.ALLOW, 9, jwt=okta_or_own), default_allow=default_allow)
        by_path = l7(on("/pay", allow=True, jwt=okta_or_own), on("/", allow=True), default_allow=default_allow)
        for asked in (whole, replace(whole, http=True), by_path):
            verdict = decide(replace(asked, providers=providers), caller(), get("/pay"))
            assert not verdict.allowed
            assert label in verdict.reason


def test_a_permission_that_is_not_understood_denies_all_that_reaches_it_and_says_why() -> None:
    odd = on("/odd", allow=True, fault="the field Cookie is not known")
    rules = l7(on("/first", allow=True), odd, on("/", allow=True), default_allow=True)

    assert decide(rules, caller(), get("/first")).allowed
    verdict = decide(rules, caller(), get("/other"))
    assert (verdict.allowed, verdict.permission) == (False, 1)
    assert "Cookie" in verdict.reason


def test_an_intention_that_demands_a_token_denies_whatever_its_permissions_say() -> None:
    rule = Intention("web", Action.PERMISSIONS, 9, (Permission(allow=True),), jwt=())

    verdict = decide(policy(rule, default_allow=True, http=True), caller(), get("/"))
    assert not verdict.allowed
    assert "JWT of nobody, which cannot be checked" in verdict.reason


def test_a_request_without_a_normal_path_is_denied_where_permissions_govern() -> None:
    rules = l7(on("/", allow=True))

    verdict = decide(rules, caller(), get("/a%00b"))
    assert not verdict.allowed
    assert "NUL" in verdict.reason
    assert decide(rules, caller("other"), get("/a%00b")).allowed


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        (l7(Permission(allow=True), on("/x", allow=False)), True),
        (l7(on("/", allow=True), default_allow=True), True),
        (l7(on("/", allow=False)), False),
        (l7(Permission(allow=True, fault="the field Cookie is not known")), False),
    ],
)
def test_no_request_is_looked_at_where_all_permissions_come_to_one_answer(rules: Policy, allowed: bool) -> None:
    for request in (get("/x"), get("/a%00b"), Request("GET", "*", ()), Request("ODD", "/", (HOST, HOST))):
        verdict = decide(rules, caller(), request)
        assert verdict == verdict_of(rules, caller())
        assert verdict.allowed is allowed
        assert verdict.reason.startswith("intention web -> permissions (precedence 9): ")


@pytest.mark.parametrize("rules", [policy(allow("web"), http=True), l7(on("/", allow=True))])
def test_a_tunnel_is_refused_whatever_the_policy(rules: Policy) -> None:
    verdict = decide(rules, caller(), Request("CONNECT", "/"))
    assert not verdict.allowed
    assert "tunnel" in verdict.reason
    # HAProxy knows the method by its case, too.
    assert "tunnel" not in decide(rules, caller(), Request("connect", "/")).reason
    # Nobody looks at requests there.
    assert "tunnel" not in decide(replace(rules, http=False), caller(), Request("CONNECT", "/")).reason


def test_a_request_of_a_caller_without_permissions_gets_the_verdict_on_its_connection() -> None:
    rules = l7(on("/", allow=False))

    for name in ("other", "web2"):
        assert decide(rules, caller(name), get("/")) == verdict_of(rules, caller(name))
    foreign = caller(trust_domain="other.consul")
    assert decide(rules, foreign, get("/")) == verdict_of(rules, foreign)


def test_conditions_on_path_methods_and_headers_must_all_hold() -> None:
    wanted = Permission(
        True,
        PathRule(PathMatch.EXACT, "/x"),
        (HeaderRule("x-a", HeaderMatch.EXACT, "1"), HeaderRule("x-b", HeaderMatch.PRESENT)),
        ("GET", "HEAD"),
    )
    rules = l7(wanted)
    full = (HOST, ("x-a", "1"), ("X-B", ""))

    assert decide(rules, caller(), Request("GET", "/x?y", full)).allowed
    assert decide(rules, caller(), Request("HEAD", "/x", full)).allowed
    for request in (
        Request("POST", "/x", full),
        Request("get", "/x", full),
        Request("GET", "/y", full),
        Request("GET", "/x", full[:2]),
        Request("GET", "/x", (HOST, full[2])),
    ):
        assert not decide(rules, caller(), request).allowed


KNOWN = TokenProviders(
    (TokenProvider("far", "f", "keys on a server", "not here"), TokenProvider("okta", "https://okta", "keys"))
)


def test_a_token_that_can_be_checked_decides_whatever_the_default() -> None:
    okta = (JwtProvider("okta"),)
    for default_allow in (True, False):
        whole = policy(Intention("web", Action.ALLOW, 9, jwt=okta), default_allow=default_allow, http=True)
        by_path = l7(on("/pay", allow=True, jwt=okta), on("/pay", allow=True), default_allow=default_allow)
        for asked in (replace(whole, providers=KNOWN), replace(by_path, providers=KNOWN)):
            verdict = decide(asked, caller(), get("/pay"))
            assert (verdict.allowed, verdict.by_token) == (False, True)
            rules = verdict_of(asked, caller()).rules
            assert rules is not None
            says = rules.rules[0].says if rules.rules else rules.default
            assert demands_of(asked) == {says: TokenDemand((okta,))}
        other = decide(replace(by_path, providers=KNOWN), caller(), get("/other"))
        assert (other.allowed, other.by_token) == (default_allow, False)


def test_a_policy_that_demands_tokens_is_complete_when_it_is_told_who_may_sign_them() -> None:
    okta = (JwtProvider("okta"),)
    assert policy(Intention("web", Action.ALLOW, 9)).complete
    for asked in (policy(Intention("web", Action.ALLOW, 9, jwt=okta)), l7(on("/pay", allow=True, jwt=okta))):
        assert not asked.complete
        assert replace(asked, providers=TokenProviders()).complete


def test_an_intentions_demand_comes_on_top_of_each_permissions() -> None:
    okta, claims = (JwtProvider("okta"),), (JwtProvider("far"), JwtProvider("okta", ((("role",), "admin"),)))
    rule = Intention("web", Action.PERMISSIONS, 9, (on("/pay", allow=True, jwt=claims), on("/", allow=True)), jwt=okta)
    both, one = TokenDemand((okta, claims[1:])), TokenDemand((okta,))
    asked = replace(policy(rule, default_allow=True, http=True), providers=KNOWN)
    rules = verdict_of(asked, caller()).rules
    assert rules is not None
    assert [each.says for each in rules.rules] + [rules.default] == [both.name, one.name]
    assert both.name != one.name
    assert demands_of(asked) == {both.name: both, one.name: one}


def test_a_denial_stays_one_and_no_token_helps_where_requests_cannot_be_looked_at() -> None:
    okta = (JwtProvider("okta"),)
    deny = policy(Intention("web", Action.DENY, 9, jwt=okta), default_allow=True, http=True)
    tcp = policy(Intention("web", Action.ALLOW, 9, jwt=okta), default_allow=True)
    early = replace(policy(Intention("web", Action.ALLOW, 9, jwt=okta), http=True), normalization=None)
    odd = l7(on("/", allow=True, jwt=(JwtProvider("okta", fault="Issuers is not supported"),)))
    for asked in (deny, tcp, early, odd, l7(on("/", allow=False, jwt=okta))):
        verdict = decide(replace(asked, providers=KNOWN), caller(), get("/"))
        assert (verdict.allowed, verdict.by_token, verdict.rules) == (False, False, None)
        assert not rule_sets(replace(asked, providers=KNOWN))


def test_the_trust_domain_of_a_policy_may_be_written_in_capitals() -> None:
    loud = replace(policy(allow("web")), trust_domain=TRUST_DOMAIN.upper())

    assert verdict_of(loud, caller()).allowed
    assert not verdict_of(loud, caller("other")).allowed


@pytest.mark.parametrize("exact", [allow("web"), deny("web")])
def test_of_two_intentions_of_one_precedence_the_one_that_names_the_caller_governs(exact: Intention) -> None:
    wildcard = replace(exact, source="*", action=Action.DENY if exact.action is Action.ALLOW else Action.ALLOW)

    for rules in ((exact, wildcard), (wildcard, exact)):
        assert verdict_of(policy(*rules), caller()).intention == exact


def test_where_no_request_can_be_looked_at_no_token_is_demanded() -> None:
    okta = (JwtProvider("okta"),)
    asked = replace(policy(Intention("web", Action.ALLOW, 9, jwt=okta), http=True), providers=KNOWN)
    assert demands_of(asked)
    for unasked in (
        replace(asked, http=False),
        replace(asked, normalization=None),
        replace(asked, intentions=(replace(asked.intentions[0], peer="east"),)),
    ):
        assert demands_of(unasked) == {}
