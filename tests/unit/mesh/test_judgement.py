"""What one policy says of many callers."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Action, Intention, Policy, rule_sets, verdict_of
from hcc.mesh.judgement import Judgement, may_deny_anew, word_of
from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule, Permission
from hcc.mesh.request import Look, LookedAt

TRUST_DOMAIN = "example.consul"
ON, OFF = ((Permission(allow, PathRule(PathMatch.PREFIX, "/")),) for allow in (True, False))
ROLE = HeaderRule("x-role", HeaderMatch.PRESENT)
SOME = (Permission(True, PathRule(PathMatch.PREFIX, "/read"), (ROLE,)),)
NAMES = ("web", "db", "*")
# No intention names `other`, `elsewhere` or `apart`.
EVERYBODY = [
    ServiceIdentity(TRUST_DOMAIN, name, "dc1", namespace, partition)
    for name in ("web", "db", "other", "*")
    for namespace in ("default", "team", "elsewhere")
    for partition in ("default", "north", "apart")
]


def policy(*intentions: Intention, default_allow: bool | None = False, http: bool = False) -> Policy:
    return Policy("db", TRUST_DOMAIN, intentions, default_allow, http=http)


POLICIES = st.builds(
    lambda intentions, default, http, namespaces: replace(
        policy(*intentions, default_allow=default, http=http), has_namespaces=namespaces
    ),
    st.lists(
        st.builds(
            Intention,
            st.sampled_from(NAMES),
            st.sampled_from((Action.ALLOW, Action.DENY, Action.PERMISSIONS)),
            st.integers(1, 3),
            st.sampled_from((ON, OFF, SOME)),
            st.sampled_from(("default", "team", "*")),
            st.sampled_from(("default", "north", "*")),
            st.sampled_from(("", "", "", "cluster")),
        ),
        max_size=5,
    ),
    st.sampled_from((True, False, None)),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=1000)
@given(POLICIES)
def test_what_is_said_of_a_caller_is_what_the_policy_says_by_walking_through_its_intentions(asked: Policy) -> None:
    judgement = Judgement(asked)
    assert judgement.sets == {rules.name: rules for rules in rule_sets(asked)}
    assert list(judgement.sets) == [rules.name for rules in rule_sets(asked)]
    # Twice, as the second time it is remembered.
    for one in (*EVERYBODY, ServiceIdentity("other.consul", "web", "dc1")) * 2:
        assert judgement.word_on(one) == word_of(verdict_of(asked, one))


def test_the_headers_that_rules_look_at_are_those_of_all_sets() -> None:
    rules = Intention("web", Action.PERMISSIONS, 9, SOME)
    assert Judgement(policy(rules, http=True)).headers == (LookedAt("x-role", Look.PRESENCE),)
    assert Judgement(policy(replace(rules, peer="east"), http=True)).headers == ()


@settings(max_examples=1000)
@given(POLICIES, POLICIES)
def test_that_somebody_may_be_denied_anew_is_known_whatever_the_name(before: Policy, now: Policy) -> None:
    def lets_in(policy: Policy, caller: ServiceIdentity) -> bool:
        verdict = verdict_of(policy, caller)
        return verdict.allowed or verdict.rules is not None

    assert may_deny_anew(Judgement(before), Judgement(now)) == any(
        lets_in(before, one) and not lets_in(now, one) for one in EVERYBODY
    )


def test_who_is_no_service_is_denied_and_who_has_rules_is_not() -> None:
    ruled, denied = Intention("web", Action.PERMISSIONS, 9, SOME), Intention("db", Action.DENY, 9)
    judgement = Judgement(policy(ruled, denied, http=True))
    services = [*(ServiceIdentity(TRUST_DOMAIN, name, "dc1") for name in ("web", "db")), None]
    assert [judgement.denies(one) for one in services] == [False, True, True]


def test_another_trust_domain_denies_everybody_anew() -> None:
    ours = policy(Intention("web", Action.ALLOW, 9))
    assert may_deny_anew(Judgement(ours), Judgement(replace(ours, trust_domain="other.consul")))
    assert not may_deny_anew(Judgement(ours), Judgement(policy(Intention("web", Action.ALLOW, 9))))


def test_who_names_a_namespace_is_denied_anew_where_consul_has_none() -> None:
    community = policy(Intention("evil", Action.DENY, 9), default_allow=True)
    assert may_deny_anew(Judgement(replace(community, has_namespaces=True)), Judgement(community))
