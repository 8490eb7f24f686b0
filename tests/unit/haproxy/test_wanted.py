"""Which rules HAProxy is to have, for which verdicts, and whether it lets in who is denied."""

from __future__ import annotations

import pytest

from hcc.haproxy.request_rules import rule_entries
from hcc.haproxy.sight import Sight, sight_for
from hcc.haproxy.wanted import WantedRules, denies_some
from hcc.mesh.intentions import Action, Intention, Policy
from hcc.mesh.judgement import Judgement
from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule, Permission

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"


def path(prefix: str, *headers: HeaderRule) -> Permission:
    return Permission(True, PathRule(PathMatch.PREFIX, prefix), headers)


def ruled(**permissions: Permission) -> Judgement:
    intentions = tuple(Intention(source, Action.PERMISSIONS, 9, (one,)) for source, one in permissions.items())
    return Judgement(Policy("server", TRUST_DOMAIN, intentions, False, http=True))


READ, WRITE = ruled(web=path("/read")), ruled(web=path("/write"))
BY_ROLE = ruled(web=path("/read", HeaderRule("x-role", HeaderMatch.PRESENT)), db=path("/write"))
(READING,), (WRITING,) = READ.sets, WRITE.sets
BLIND = Sight()


def listed(entries: dict[str, str]) -> list[tuple[str, str]]:
    """With their order, which says what is looked at first."""
    return list(entries.items())


def test_rules_are_those_of_every_set_of_the_policy_for_what_haproxy_looks_at() -> None:
    wanted = WantedRules("")
    wanted.take(BY_ROLE, ())
    alone = listed(rule_entries(BY_ROLE.sets.values(), BY_ROLE.headers))
    for sight in (None, sight_for(BY_ROLE)):
        assert listed(wanted.entries(BY_ROLE, (), sight)) == alone


def test_until_haproxy_looks_at_more_those_that_it_can_decide_by_are_there_in_both_forms() -> None:
    wanted = WantedRules("(*BEFORE)")
    wanted.take(BY_ROLE, ())
    now, coming = (rule_entries(BY_ROLE.sets.values(), seen, "(*BEFORE)") for seen in ((), BY_ROLE.headers))
    assert len(now) == 2
    assert listed(wanted.entries(BY_ROLE, (), BLIND)) == [*listed(now), *listed(coming)]


def test_rules_before_stay_while_a_verdict_that_names_them_is_held() -> None:
    wanted = WantedRules("")
    wanted.take(READ, ())
    wanted.take(WRITE, (READING, "allow"))
    own = listed(rule_entries(WRITE.sets.values(), ()))
    assert listed(wanted.entries(WRITE, (READING, READING), BLIND)) == [
        *listed(rule_entries(READ.sets.values(), ())), *own,
    ]  # fmt: skip
    assert listed(wanted.entries(WRITE, ("allow",), BLIND)) == own


@pytest.mark.parametrize(("named", "stays"), [((READING,), True), ((WRITING,), False), ((), False)])
def test_rules_that_no_verdict_named_at_a_change_of_policy_are_forgotten(named: tuple[str, ...], stays: bool) -> None:
    wanted = WantedRules("")
    wanted.take(READ, ())
    wanted.take(WRITE, named)
    assert (READING in "".join(wanted.entries(WRITE, (READING,), BLIND))) == stays


def test_they_are_worked_out_once_until_policy_held_verdicts_or_sight_are_others() -> None:
    wanted = WantedRules("")
    wanted.take(READ, ())
    first = wanted.entries(READ, (), BLIND)
    # Who is held by no rules of ours changes nothing.
    assert wanted.entries(READ, ("allow",), BLIND) is first
    again = ruled(web=path("/write"))
    wanted.take(again, (READING,))
    second = wanted.entries(again, (), BLIND)
    assert second != first
    assert wanted.entries(again, (), sight_for(BY_ROLE)) != second
    assert wanted.entries(again, (), BLIND) == second
    assert wanted.entries(again, (READING,), BLIND) != second


def test_rules_that_are_too_long_are_left_out_and_named() -> None:
    wanted, long = WantedRules(""), ruled(web=path("/" + "a" * 20_000), db=path("/read"))
    wanted.take(long, ())
    assert list(wanted.entries(long, (), BLIND).values()) == ["allow", "deny"]
    assert wanted.left_out == tuple(long.sets)[:1]
    wanted.take(READ, ())
    wanted.entries(READ, (), BLIND)
    assert wanted.left_out == ()


WEB, DB = (f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/{name}" for name in ("web", "db"))
ELSEWHERE = DB.replace("1111", "2222")
NOT_WEB = Judgement(Policy("server", TRUST_DOMAIN, (Intention("web", Action.DENY, 9),), True))


@pytest.mark.parametrize(
    ("found", "decided", "expected"),
    [
        ({}, {WEB: "deny"}, False),
        ({WEB: "allow"}, {WEB: "deny"}, True),
        ({WEB: "rules-before"}, {WEB: "deny"}, True),
        ({WEB: "deny"}, {WEB: "deny"}, False),
        ({WEB: "allow"}, {WEB: "rules-now"}, False),
        # For whom it was not asked yet; a name is a caller's of this trust domain, as an earlier hcc wrote it.
        ({WEB: "allow"}, {}, True),
        ({"web:dc1": "allow"}, {}, True),
        ({DB: "allow", "db:dc1": "allow"}, {}, False),
        ({DB: "allow", WEB: "allow"}, {DB: "allow"}, True),
        # Nobody of another trust domain, nor who is no service, is let in.
        ({ELSEWHERE: "allow"}, {}, True),
        ({"a:b:c:d:e:f:g": "allow"}, {}, True),
    ],
)
def test_haproxy_lets_in_who_is_denied(found: dict[str, str], decided: dict[str, str], expected: bool) -> None:
    assert denies_some(NOT_WEB, found, decided) == expected
