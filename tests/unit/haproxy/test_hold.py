"""Whose verdict stays while HAProxy is reloaded for rules that look at more, and for how long."""

from __future__ import annotations

from dataclasses import replace

from hcc.haproxy.hold import HOLD_S, HOLD_STOPPING_S, Hold
from hcc.haproxy.sight import Sight, sight_for
from hcc.mesh.intentions import Action, Intention, Policy
from hcc.mesh.judgement import Judgement
from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule, Permission

PERMISSION = Permission(True, PathRule(PathMatch.PREFIX, "/"), (HeaderRule("x-role", HeaderMatch.EXACT, "admin"),))
POLICY = Policy("db", "td", (Intention("web", Action.PERMISSIONS, 9, (PERMISSION,)),), False, 1, http=True)
LOOKING = Judgement(POLICY)
(RULES,) = LOOKING.sets
DECIDED = {"web": RULES}
LET_IN = {"web": "allow"}


def begun() -> Hold:
    hold = Hold()
    assert hold.see(LOOKING, Sight(), runs=True) == HOLD_S
    return hold


def test_whom_the_worker_lets_in_is_spared_rules_that_it_cannot_see() -> None:
    hold = begun()
    assert hold.held(DECIDED, LET_IN) == LET_IN
    assert hold.held(DECIDED, {}) == {}
    assert hold.held({"web": "deny"}, LET_IN) == {}


def test_none_begins_where_no_worker_runs_or_it_sees_all() -> None:
    for sight, runs in ((Sight(), False), (sight_for(LOOKING), True)):
        hold = Hold()
        assert hold.see(LOOKING, sight, runs=runs) is None
        assert hold.held(DECIDED, LET_IN) == {}


def test_what_a_worker_looks_at_is_taken_for_what_the_first_policy_asks_until_it_is_told() -> None:
    hold = Hold()
    assert hold.see(None, None, runs=True) is None
    assert hold.see(LOOKING, hold.sight, runs=True) is None
    assert hold.held(DECIDED, LET_IN) == {}
    # From then on it is known, and the next policy is compared with it.
    other = replace(PERMISSION, headers=(HeaderRule("x-team", HeaderMatch.PRESENT),))
    more = Judgement(replace(POLICY, intentions=(Intention("web", Action.PERMISSIONS, 9, (other,)),)))
    assert hold.see(more, hold.sight, runs=True) == HOLD_S
    assert hold.see(more, Sight(), runs=True) is None
    hold = Hold()
    assert hold.see(None, Sight(), runs=True) is None
    assert hold.see(LOOKING, hold.sight, runs=True) == HOLD_S


def test_a_second_look_at_the_same_does_not_make_it_longer() -> None:
    assert begun().see(LOOKING, Sight(), runs=True) is None


def test_it_ends_a_moment_after_the_reload_for_the_sake_of_stopping_workers() -> None:
    hold = begun()
    hold.note(hold.held(DECIDED, LET_IN))
    assert hold.see(LOOKING, sight_for(LOOKING), runs=True) == HOLD_STOPPING_S
    # The new worker began with the new verdict, and those that stop are not told of it before the end.
    assert hold.held(DECIDED, DECIDED) == {}
    hold.note({})
    assert set(hold.untold) == {"web"}
    hold.end()
    assert not hold.untold
    hold.note({})
    assert not hold.untold


def test_at_its_end_rules_that_are_not_seen_yet_deny() -> None:
    hold = begun()
    hold.note(hold.held(DECIDED, LET_IN))
    hold.end()
    assert hold.held(DECIDED, LET_IN) == {}


def test_a_caller_spared_stays_so_though_the_worker_that_started_has_the_new_verdict() -> None:
    hold = begun()
    hold.note(hold.held(DECIDED, LET_IN))
    assert hold.held(DECIDED, DECIDED) == LET_IN
