from __future__ import annotations

import dataclasses

import pytest

from hcc.mesh.intentions import Action, Intention, Policy
from hcc.mesh.permissions import JwtProvider, PathMatch, PathRule, Permission
from hcc.mesh.rules import compiled_rules
from hcc.spoe.cache import DecisionCache, answer_for
from hcc.spoe.decision import MAX_REASON_CHARACTERS, decide
from tests.forgeries import forgeries, genuine
from tests.spoe_certificates import TRUST_DOMAIN, Authority, service_uri, uri_names
from tests.spop_frames import decode_actions

MESH = Authority()
POLICY = Policy(
    destination="server",
    trust_domain=TRUST_DOMAIN,
    intentions=(Intention("web", Action.ALLOW, 9), Intention("*", Action.DENY, 8)),
    default_allow=True,
    version=1,
)
WEB = MESH.service("web").der()
DB = MESH.service("db").der()


def test_a_caller_that_an_intention_allows_comes_in_by_name() -> None:
    decision = decide(WEB, POLICY)
    assert decision.allowed
    assert (decision.source, decision.understood) == ("web", True)
    assert "web -> allow" in decision.reason


def test_a_caller_that_an_intention_denies_is_named_too() -> None:
    decision = decide(DB, POLICY)
    assert not decision.allowed
    assert (decision.source, decision.understood) == ("db", True)


def test_no_certificate_is_denied_without_a_name() -> None:
    decision = decide(b"", POLICY)
    assert (decision.allowed, decision.source, decision.understood) == (False, "", False)


def test_a_certificate_that_cannot_be_read_is_denied_with_the_reason() -> None:
    decision = decide(WEB[:-1], POLICY)
    assert (decision.allowed, decision.understood) == (False, False)
    assert "cannot be read" in decision.reason


def test_before_a_policy_has_come_everybody_is_denied() -> None:
    decision = decide(WEB, None)
    assert (decision.allowed, decision.source) == (False, "")
    assert "no policy" in decision.reason


def test_a_caller_whose_requests_rules_decide_is_known_by_name_and_not_allowed_by_itself() -> None:
    permission = Permission(True, PathRule(PathMatch.PREFIX, "/api"))
    policy = dataclasses.replace(
        POLICY, intentions=(Intention("web", Action.PERMISSIONS, 9, (permission,)),), default_allow=False, http=True
    )
    decision = decide(WEB, policy)
    rules = compiled_rules((permission,), default_allow=False)
    assert (decision.allowed, decision.denied, decision.source) == (False, False, "web")
    assert decision.rules == rules.name
    answer = answer_for(decision)
    assert answer.counted
    assert [action.name for action in decode_actions(answer.actions)] == [b"allowed", b"caller", b"rules"]
    assert decide(WEB, dataclasses.replace(policy, http=False)).denied


@pytest.mark.parametrize(
    "uris",
    [
        (),
        (service_uri("web"), service_uri("web")),
        (service_uri("web"), service_uri("db")),
        ("https://example.com",),
        (f"spiffe://{TRUST_DOMAIN}/agent/client/dc/dc1/id/x",),
        (service_uri("web", "other.consul"),),
        (service_uri("w" * 151),),
    ],
)
def test_anything_but_one_service_of_our_trust_domain_is_denied_without_a_name(uris: tuple[str, ...]) -> None:
    decision = decide(
        MESH.leaf(*uri_names(*uris)).der(), dataclasses.replace(POLICY, intentions=(), default_allow=True)
    )
    assert not decision.allowed
    assert decision.source == ""
    assert decision.reason


def test_a_reason_that_quotes_a_certificate_stays_short() -> None:
    decision = decide(MESH.leaf(*uri_names("spiffe://" + "x" * 1500)).der(), POLICY)
    assert len(decision.reason) <= MAX_REASON_CHARACTERS


def test_a_reason_that_tells_of_tokens_stays_short() -> None:
    demanding = Intention("web", Action.ALLOW, 9, jwt=tuple(JwtProvider(f"provider-{number}") for number in range(50)))
    decision = decide(WEB, dataclasses.replace(POLICY, intentions=(demanding,)))
    assert decision.reason.startswith("intention web -> allow")
    assert len(decision.reason) == MAX_REASON_CHARACTERS


def test_a_trust_domain_in_capitals_is_ours_too() -> None:
    decision = decide(WEB, dataclasses.replace(POLICY, trust_domain=TRUST_DOMAIN.upper()))
    assert (decision.allowed, decision.source) == (True, "web")
    assert decision.caller.startswith("web:dc1|")


def test_an_answer_is_made_once_and_forgotten_with_its_policy() -> None:
    cache = DecisionCache()
    assert not cache.decide(WEB).decision.allowed
    cache.set_policy(POLICY)
    assert not cache.answers
    assert cache.size_bytes == 0
    answer = cache.decide(WEB)
    assert answer.decision.allowed
    assert cache.answers[WEB] is answer


def test_certificates_of_a_service_that_is_let_in_share_its_answer_until_another_policy() -> None:
    cache = DecisionCache()
    cache.set_policy(POLICY)
    first, second, third = (MESH.service("web").der() for _ in range(3))
    answer = cache.decide(first)
    assert answer.decision.allowed
    assert cache.decide(second) is answer
    assert cache.decide(second[:-1]).decision.denied
    cache.set_policy(dataclasses.replace(POLICY, intentions=(Intention("web", Action.DENY, 9),)))
    assert cache.decide(third).decision.denied


def test_the_cache_keeps_the_answers_of_so_many_services_and_judges_others_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hcc.spoe.cache.MAX_SERVICES", 1)
    cache = DecisionCache()
    cache.set_policy(dataclasses.replace(POLICY, intentions=()))
    pairs = [[MESH.service(name).der() for _ in range(2)] for name in ("a", "b")]
    answers = [[cache.decide(der) for der in ders] for ders in pairs]
    assert [one is other for one, other in answers] == [True, False]
    assert [one.decision.source for one, _ in answers] == ["a", "b"]


def test_the_cache_lets_the_oldest_go_when_they_are_too_many() -> None:
    cache = DecisionCache(max_entries=2)
    ders = [MESH.service(name).der() for name in ("a", "b", "c")]
    for der in ders:
        cache.decide(der)
    assert list(cache.answers) == ders[1:]
    assert cache.size_bytes == sum(map(len, ders[1:]))


def test_the_cache_lets_the_oldest_go_when_they_are_too_long() -> None:
    cache = DecisionCache(max_bytes=25)
    for number in range(3):
        cache.decide(bytes((number,)) * 10)
    assert len(cache.answers) == 2
    assert cache.size_bytes == 20
    cache.decide(bytes(30))
    assert not cache.answers
    assert cache.size_bytes == 0


# ---- forgeries


OPEN_TO_WEB = dataclasses.replace(POLICY, intentions=(Intention("web", Action.ALLOW, 9),), default_allow=False)


def test_the_genuine_certificate_comes_in_where_forgeries_must_not() -> None:
    assert decide(genuine(), OPEN_TO_WEB).allowed


@pytest.mark.parametrize("forgery", forgeries())
def test_a_forgery_is_denied_at_first_and_ever_after(forgery: str) -> None:
    cache = DecisionCache()
    cache.set_policy(OPEN_TO_WEB)
    cache.decide(genuine())
    der = forgeries()[forgery]
    decision = cache.decide(der).decision
    assert decision.denied
    assert decision.source != "web"
    assert cache.answers[der].decision == decision


@pytest.mark.parametrize("forgery", [name for name in forgeries() if name.startswith("in the ") or "serial" in name])
def test_a_forgery_really_holds_the_bytes_that_a_naive_search_would_find(forgery: str) -> None:
    assert b"spiffe://" + TRUST_DOMAIN.encode()[:8] in forgeries()[forgery]
