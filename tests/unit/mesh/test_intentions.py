from hypothesis import given
from hypothesis import strategies as st

from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Action, Intention, Policy, evaluate

TRUST_DOMAIN = "example.consul"


def caller(service: str = "web", trust_domain: str = TRUST_DOMAIN) -> ServiceIdentity:
    return ServiceIdentity(trust_domain, service, "dc1")


def policy(*intentions: Intention, default_allow: bool | None = False) -> Policy:
    return Policy("db", TRUST_DOMAIN, intentions, default_allow)


def allow(source: str, precedence: int = 9) -> Intention:
    return Intention(source, Action.ALLOW, precedence)


def deny(source: str, precedence: int = 9) -> Intention:
    return Intention(source, Action.DENY, precedence)


def test_an_exact_intention_beats_the_wildcard_whatever_their_order() -> None:
    rules = (deny("*", 8), allow("web", 9))

    assert evaluate(policy(*rules), caller()).allowed
    assert evaluate(policy(*reversed(rules)), caller()).allowed
    assert not evaluate(policy(*rules), caller("other")).allowed


def test_without_a_matching_intention_the_default_decides() -> None:
    assert evaluate(policy(deny("other"), default_allow=True), caller()).allowed
    assert not evaluate(policy(allow("other"), default_allow=False), caller()).allowed


def test_an_unknown_default_denies_and_says_so() -> None:
    verdict = evaluate(policy(default_allow=None), caller())

    assert not verdict.allowed
    assert "unknown" in verdict.reason


def test_names_are_compared_with_their_case() -> None:
    assert not evaluate(policy(allow("Web")), caller("web")).allowed


def test_a_caller_of_another_trust_domain_is_denied_before_any_intention() -> None:
    verdict = evaluate(policy(allow("*"), default_allow=True), caller(trust_domain="other.consul"))

    assert not verdict.allowed
    assert "trust domain" in verdict.reason


def test_layer_7_permissions_deny_a_connection() -> None:
    rule = Intention("web", Action.PERMISSIONS, 9, permissions=('{"Action":"allow"}',))

    assert not evaluate(policy(rule, default_allow=True), caller()).allowed


def test_an_intention_that_demands_a_token_denies() -> None:
    rule = Intention("web", Action.ALLOW, 9, needs_jwt=True)

    assert not evaluate(policy(rule, default_allow=True), caller()).allowed


def test_an_intention_for_a_peer_says_nothing_of_our_own_services() -> None:
    rule = Intention("web", Action.ALLOW, 9, peer="elsewhere")

    assert not evaluate(policy(rule), caller()).allowed


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

    assert evaluate(policy(*rules), caller()) == evaluate(policy(*reversed(rules)), caller())
