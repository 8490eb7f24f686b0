from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Action, Intention, Policy, decide, demands_of, rule_sets, verdict_of
from hcc.mesh.permissions import HeaderMatch, HeaderRule, JwtProvider, PathMatch, PathRule, Permission, speaks_of
from hcc.mesh.request import Look, LookedAt, Normalization, Request, RequestError, normalised
from hcc.mesh.rules import ALLOW, DENY, Rule, RuleSet, compiled_rules, looked_at
from hcc.mesh.token_demands import TOKEN_PREFIX, TokenDemand
from hcc.mesh.token_providers import TokenProvider, TokenProviders

API = Permission(True, PathRule(PathMatch.PREFIX, "/api"))
NOT_ADMIN = Permission(False, PathRule(PathMatch.EXACT, "/api/admin"))
A, B = HeaderRule("a", HeaderMatch.PRESENT), HeaderRule("b", HeaderMatch.EXACT, "1")
CALLER = ServiceIdentity("td", "web", "dc1")

OKTA = (JwtProvider("okta"),)
# Of one of them tokens can be checked.
KNOWN = TokenProviders((TokenProvider("far", "f", "keys on a server", "not here"), TokenProvider("okta", "o", "keys")))

PERMISSIONS = st.builds(
    Permission,
    allow=st.booleans(),
    path=st.none()
    | st.builds(PathRule, st.sampled_from((PathMatch.EXACT, PathMatch.PREFIX)), st.sampled_from(("/", "/a", "/a/b"))),
    headers=st.lists(st.sampled_from((A, B)), max_size=2).map(tuple),
    methods=st.lists(st.sampled_from(("GET", "PUT")), max_size=2).map(tuple),
    jwt=st.sampled_from((None, None, None, OKTA, (JwtProvider("far"),))),
    fault=st.sampled_from(("", "", "", "not understood")),
)
REQUESTS = st.builds(
    Request,
    st.sampled_from(("GET", "PUT", "POST")),
    # The last has no normal form.
    st.sampled_from(("/", "/a", "/a/b", "/a/../a", "/b", "/a%00")),
    st.lists(st.tuples(st.sampled_from(("a", "B")), st.sampled_from(("1", "2"))), max_size=2).map(
        lambda headers: (("Host", "h"), *headers)
    ),
)


def by_rules(rules: RuleSet, request: Request) -> str:
    """What HAProxy makes of the rules."""
    try:
        normal = normalised(request, Normalization(), looked_at((rules,)))
    except RequestError:
        return DENY
    for rule in rules.rules:
        if speaks_of(Permission(True, rule.path, rule.headers, rule.methods), normal):
            return rule.says
    return rules.default


@given(
    st.lists(PERMISSIONS, min_size=1, max_size=5).map(tuple),
    st.sampled_from((True, False, None)),
    st.sampled_from((None, None, OKTA, (JwtProvider("far"),))),
    REQUESTS,
)
def test_compiled_rules_decide_every_request_as_the_permissions_do(
    permissions: tuple[Permission, ...],
    default: bool | None,
    everywhere: tuple[JwtProvider, ...] | None,
    request: Request,
) -> None:
    rule = Intention("web", Action.PERMISSIONS, 9, permissions, jwt=everywhere)
    policy = Policy("db", "td", (rule,), default, http=True, providers=KNOWN)
    connection = verdict_of(policy, CALLER)
    decided = decide(policy, CALLER, request)
    if connection.rules is None:
        assert (decided.allowed, decided.by_token) == (connection.allowed, False)
    else:
        says = by_rules(connection.rules, request)
        assert (decided.allowed, decided.by_token) == (says == ALLOW, says.startswith(TOKEN_PREFIX))
        assert not decided.by_token or says in demands_of(policy)


@given(st.lists(PERMISSIONS, max_size=5).map(tuple), st.booleans())
def test_no_rule_is_without_conditions_and_the_last_one_differs_from_the_default(
    permissions: tuple[Permission, ...], default: bool
) -> None:
    found = compiled_rules(permissions, default)
    assert all(rule.path or rule.headers or rule.methods for rule in found.rules)
    assert not found.rules or found.rules[-1].says != found.default


def test_sets_that_say_the_same_in_another_way_are_equal_and_have_one_name() -> None:
    one = compiled_rules((NOT_ADMIN, API), default_allow=False)
    assert one == compiled_rules((NOT_ADMIN, API, Permission(allow=False), API), default_allow=True)
    assert one == compiled_rules((NOT_ADMIN, API, NOT_ADMIN), default_allow=False)
    assert one.name == compiled_rules((NOT_ADMIN, API, NOT_ADMIN), default_allow=False).name
    shuffled = [
        Permission(True, None, headers, methods)
        for headers, methods in (((A, B), ("PUT", "GET")), ((B, A, B), ("GET", "PUT")))
    ]
    assert len({compiled_rules((each,), default_allow=False) for each in shuffled}) == 1


def test_sets_that_differ_have_different_names_fit_for_haproxy() -> None:
    sets = [
        compiled_rules((API,), default_allow=False),
        compiled_rules((NOT_ADMIN, API), default_allow=False),
        compiled_rules((API, NOT_ADMIN, Permission(True, None, (A,))), default_allow=False),
        compiled_rules((NOT_ADMIN,), default_allow=True),
        compiled_rules((Permission(True, PathRule(PathMatch.EXACT, "/api")),), default_allow=False),
        compiled_rules((Permission(True, methods=("GET",)),), default_allow=False),
    ]
    names = {each.name for each in sets}
    assert len(names) == len(sets)
    assert all(re.fullmatch(r"rules-[0-9a-f]{32}", name) for name in names)


def test_a_policy_names_every_rule_set_that_a_caller_may_get_once() -> None:
    def permitted(source: str, *permissions: Permission, **more: Any) -> Intention:
        return Intention(source, Action.PERMISSIONS, 8 if source == "*" else 9, permissions, **more)

    alike = (
        permitted("web", NOT_ADMIN, API),
        permitted("api", NOT_ADMIN, API, NOT_ADMIN),
        permitted("shop", API),
        permitted("open", Permission(allow=True)),
        permitted("token", API, jwt=()),
        permitted("far", Permission(allow=True, methods=("PUT",)), peer="east"),
        Intention("*", Action.ALLOW, 8),
    )
    policy = Policy("db", "td", alike, False, http=True)
    callers = [
        ServiceIdentity("td", name, "dc1") for name in ("web", "api", "shop", "open", "token", "far", "stranger")
    ]
    given = [verdict_of(policy, caller).rules for caller in callers]
    assert rule_sets(policy) == (given[0], given[2])
    assert given == [given[0], given[0], given[2], None, None, None, None]
    assert rule_sets(replace(policy, http=False)) == ()


def test_permissions_that_decide_all_requests_alike_are_no_rules() -> None:
    for permissions, default in (((API,), True), ((NOT_ADMIN,), False), ((), True), ((Permission(True), API), False)):
        assert not compiled_rules(permissions, default).rules


RULES = st.builds(
    Rule,
    st.sampled_from((ALLOW, DENY, "token-1")),
    st.none() | st.builds(PathRule, st.sampled_from(PathMatch), st.sampled_from(("/a", "/b"))),
    st.lists(
        st.builds(
            HeaderRule,
            st.sampled_from("ab"),
            st.sampled_from(HeaderMatch),
            st.sampled_from("xy"),
            st.booleans(),
            st.booleans(),
        ),
        max_size=1,
    ).map(tuple),
    st.sampled_from(((), ("GET",), ("PUT",))),
)
SETS = st.builds(RuleSet, st.lists(RULES, max_size=2).map(tuple), st.sampled_from((ALLOW, DENY, "token-1")))


@given(SETS, st.data())
def test_no_part_of_a_set_can_change_without_its_name(one: RuleSet, data: st.DataObject) -> None:
    other = data.draw(SETS)
    changed = [RuleSet(one.rules, default) for default in (ALLOW, DENY, "token-1")]
    for place, rule in enumerate(one.rules):
        header = HeaderRule("a", HeaderMatch.PREFIX, "x")
        others = [
            *(replace(rule, says=says) for says in (ALLOW, DENY, "token-1")),
            *(replace(rule, path=path) for path in (None, *(PathRule(kind, "/a") for kind in PathMatch))),
            *(replace(rule, headers=(replace(header, kind=kind),)) for kind in HeaderMatch),
            replace(rule, headers=(replace(header, invert=True),)),
            replace(rule, headers=(replace(header, ignore_case=True),)),
            replace(rule, headers=(replace(header, name="b"),)),
            replace(rule, headers=(replace(header, value="b"),)),
            *(replace(rule, methods=methods) for methods in ((), ("GET",), ("GET", "PUT"))),
        ]
        changed += [RuleSet((*one.rules[:place], each, *one.rules[place + 1 :]), one.default) for each in others]
    for each in (other, *changed):
        assert (each.name == one.name) is (each == one)
    assert len({each.name for each in changed}) == len(set(changed))


def test_no_part_of_a_demand_can_change_without_its_name() -> None:
    okta, far, admin = JwtProvider("okta"), JwtProvider("far"), JwtProvider("okta", ((("role",), "admin"),))
    demands = [
        TokenDemand(all_of)
        for all_of in (
            ((okta,),),
            ((far,),),
            ((okta, far),),
            ((okta,), (far,)),
            ((admin,),),
            ((replace(admin, claims=((("role",), "user"),)),),),
            ((replace(admin, claims=((("roles",), "admin"),)),),),
            ((replace(admin, claims=((("role", "x"), "admin"),)),),),
            ((replace(admin, claims=((("role",), "admin"), (("x",), "y"))),),),
        )
    ]
    assert len({each.name for each in demands}) == len(demands)


def test_a_header_is_looked_at_as_closely_as_any_rule_does() -> None:
    def of(*headers: HeaderRule) -> RuleSet:
        return RuleSet((Rule(DENY, None, headers, ()),), ALLOW)

    present, exact = HeaderRule("x-b", HeaderMatch.PRESENT), HeaderRule("x-b", HeaderMatch.EXACT, "1")
    role = HeaderRule("x-a", HeaderMatch.PRESENT, invert=True)
    pattern = HeaderRule("x-b", HeaderMatch.REGEX, "1", invert=True)
    assert looked_at(()) == ()
    assert looked_at((of(pattern), of(exact, present))) == (LookedAt("x-b", Look.PATTERN),)
    assert looked_at((of(present), of(role))) == (LookedAt("x-a", Look.PRESENCE), LookedAt("x-b", Look.PRESENCE))
    assert looked_at((of(present, exact), of(present))) == (LookedAt("x-b", Look.VALUE),)
