"""Which rules a worker of HAProxy can decide by, and whose verdicts stay until one can."""

from __future__ import annotations

from dataclasses import replace

from hcc.haproxy.sight import Sight, held_verdicts, sight_for, unseen_sets
from hcc.mesh.intentions import Action, Intention, Policy, rule_sets
from hcc.mesh.judgement import Judgement
from hcc.mesh.permissions import HeaderMatch, HeaderRule, JwtProvider, PathMatch, PathRule, Permission
from tests.tokens import entry, known, policy, signer

READ = PathRule(PathMatch.PREFIX, "/read")


def ruled(*headers: HeaderRule) -> Policy:
    intention = Intention("web", Action.PERMISSIONS, 9, (Permission(True, READ, headers),))
    return Policy("db", "td", (intention,), False, 1, http=True)


def names(of: Policy) -> frozenset[str]:
    return frozenset(each.name for each in rule_sets(of))


def test_rules_are_seen_by_who_looks_at_their_headers_as_closely() -> None:
    by_path, by_presence = ruled(), ruled(HeaderRule("x-role", HeaderMatch.PRESENT))
    by_value = ruled(HeaderRule("x-role", HeaderMatch.EXACT, "admin"))
    assert unseen_sets(Judgement(by_path), Sight()) == frozenset()
    assert unseen_sets(Judgement(by_presence), Sight()) == names(by_presence)
    assert unseen_sets(Judgement(by_presence), sight_for(Judgement(by_value))) == frozenset()
    assert unseen_sets(Judgement(by_value), sight_for(Judgement(by_presence))) == names(by_value)


def test_rules_that_leave_a_request_to_its_token_are_seen_by_who_looks_at_its_places() -> None:
    providers = known(entry(signer("ES256")))
    permission = Permission(True, READ, jwt=(JwtProvider("okta"),))
    demanding = policy(Intention("web", Action.PERMISSIONS, 9, (permission,)), providers)
    plain = Intention("api", Action.PERMISSIONS, 9, (Permission(True, READ),))
    both = replace(demanding, intentions=(*demanding.intentions, plain))
    assert unseen_sets(Judgement(both), Sight()) == names(demanding)
    assert unseen_sets(Judgement(both), sight_for(Judgement(both))) == frozenset()


def test_only_a_verdict_that_lets_in_stays_where_the_rules_to_come_are_not_seen() -> None:
    wanted = {"web": "rules-new", "api": "rules-new", "db": "deny", "till": "rules-seen", "shop": "rules-new"}
    found = {"web": "allow", "api": "deny", "db": "allow", "till": "allow"}
    assert held_verdicts(wanted, found, {"rules-new"}) == {"web": "allow"}
