"""What is owed to callers that became denied: until when, where, and how far it reaches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.haproxy.cut_debt import CutDebt, Reach

Event = Callable[[CutDebt], CutDebt]

NOBODY_ELSE, UNKNOWN, ALL = Reach(), Reach(unknown=True), Reach(unknown=True, everybody=True)


def policy(version: int, *, denies: bool = False, strangers: bool = False) -> Event:
    return lambda debt: debt.taken(version, denies=denies, strangers=strangers)


def found(*, denied: bool) -> Event:
    return lambda debt: debt.found(denied=denied)


def cut(debt: CutDebt) -> CutDebt:
    return debt.cut(runs=True)


def cut_of_none(debt: CutDebt) -> CutDebt:
    return debt.cut(runs=False)


repeated, told = CutDebt.repeated, CutDebt.told


def after(*events: Event) -> CutDebt:
    debt = CutDebt()
    for event in events:
        debt = event(debt)
    return debt


def settled(*events: Event) -> CutDebt:
    """After these, where nothing was owed after the first policy."""
    return after(policy(1), cut, *events)


@pytest.mark.parametrize(
    ("debt", "running", "resting"),
    [
        # What a predecessor owed is looked at once, in a HAProxy that is known to run.
        (after(), True, False),
        (after(policy(1)), True, False),
        (after(policy(1), cut_of_none), True, False),
        (after(policy(1), policy(2, denies=True), cut_of_none), True, False),
        (after(policy(1), cut), False, False),
        (after(policy(1), told), True, False),
        # A denial is owed where it is not known whether one runs, too.
        (settled(policy(2)), False, False),
        (settled(policy(2, denies=True)), True, True),
        (settled(policy(2, strangers=True)), True, True),
        (settled(found(denied=True)), True, True),
        (settled(found(denied=False)), False, False),
        (settled(found(denied=True), found(denied=False)), True, True),
        (settled(policy(2, denies=True), policy(3)), True, True),
        (settled(policy(2, denies=True), repeated, told), True, True),
        (settled(policy(2, denies=True), cut), False, False),
        (settled(policy(2, denies=True), cut_of_none), False, False),
    ],
)
def test_what_was_found_is_due_until_it_is_cut(debt: CutDebt, running: bool, resting: bool) -> None:
    assert (debt.is_due(runs=True), debt.is_due(runs=False)) == (running, resting)


@pytest.mark.parametrize(
    ("debt", "due", "again"),
    [
        (after(), NOBODY_ELSE, NOBODY_ELSE),
        (after(policy(1)), NOBODY_ELSE, NOBODY_ELSE),
        (after(policy(1), cut), NOBODY_ELSE, NOBODY_ELSE),
        (settled(policy(2, denies=True)), UNKNOWN, UNKNOWN),
        # Whom nobody knows is cut a second time only under the policy that denied.
        (settled(policy(2, denies=True), cut), NOBODY_ELSE, UNKNOWN),
        (settled(policy(2, denies=True), cut, repeated, told), NOBODY_ELSE, UNKNOWN),
        (settled(policy(2, denies=True), cut, policy(3)), NOBODY_ELSE, NOBODY_ELSE),
        (settled(policy(2, denies=True), policy(3), cut), NOBODY_ELSE, UNKNOWN),
        (settled(policy(2, denies=True), cut, found(denied=True), cut), NOBODY_ELSE, UNKNOWN),
        # All of another trust domain are, until they were: then those that are open are of this one.
        (settled(policy(2, strangers=True)), ALL, ALL),
        (settled(policy(2, strangers=True), policy(3)), ALL, ALL),
        (settled(policy(2, strangers=True), told, repeated), ALL, ALL),
        (settled(policy(2, strangers=True), cut), NOBODY_ELSE, UNKNOWN),
        (settled(policy(2, strangers=True), cut, policy(3, denies=True)), UNKNOWN, UNKNOWN),
    ],
)
def test_how_far_a_cut_reaches_in_the_worker_that_serves(debt: CutDebt, due: Reach, again: Reach) -> None:
    assert (debt.due, debt.again) == (due, again)


@pytest.mark.parametrize(
    ("debt", "owed", "reach"),
    [
        (after(), False, NOBODY_ELSE),
        (settled(), False, NOBODY_ELSE),
        # It is owed once it was cut where it serves, until all of them were told, and when it is cut again.
        (settled(policy(2, denies=True)), False, NOBODY_ELSE),
        (settled(policy(2, denies=True), cut), True, UNKNOWN),
        (settled(policy(2, denies=True), cut, told), False, NOBODY_ELSE),
        (settled(policy(2, denies=True), cut, told, repeated), True, UNKNOWN),
        # Under a later policy whom nobody knows may be whom that lets in.
        (settled(policy(2, denies=True), cut, policy(3)), True, NOBODY_ELSE),
        (settled(policy(2, denies=True), cut, policy(3, denies=True)), True, NOBODY_ELSE),
        (settled(policy(2, denies=True), cut, policy(3, denies=True), cut), True, UNKNOWN),
        # Who began under another trust domain stays a stranger there, whatever comes, until they were told.
        (settled(policy(2, strangers=True)), False, Reach(everybody=True)),
        (settled(policy(2, strangers=True), told), False, Reach(everybody=True)),
        (settled(policy(2, strangers=True), cut), True, ALL),
        (settled(policy(2, strangers=True), cut, repeated), True, ALL),
        (settled(policy(2, strangers=True), cut, policy(3)), True, Reach(everybody=True)),
        (settled(policy(2, strangers=True), cut, policy(3, denies=True), cut), True, ALL),
        (settled(policy(2, strangers=True), cut, told), False, NOBODY_ELSE),
        (settled(policy(2, strangers=True), cut, told, repeated), True, UNKNOWN),
    ],
)
def test_what_workers_that_stop_are_owed(debt: CutDebt, owed: bool, reach: Reach) -> None:
    assert (debt.stopping, debt.in_stopping) == (owed, reach)


EVENTS: dict[str, Event] = {
    "policy": policy(1),
    "later policy": policy(2),
    "denying policy": policy(3, denies=True),
    "other trust domain": policy(4, strangers=True),
    "denial": found(denied=True),
    "nothing": found(denied=False),
    "cut": cut,
    "cut of none": cut_of_none,
    "repeated": repeated,
    "told": told,
}
DENIALS, CUTS = {"denying policy", "other trust domain", "denial"}, {"cut", "cut of none"}


def came_after(history: list[str], wanted: set[str], ends: set[str]) -> bool:
    """Whether one of the wanted came after the last that ends it."""
    last = max((at for at, name in enumerate(history) if name in ends), default=-1)
    return any(name in wanted for name in history[last + 1 :])


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=12))
def test_what_is_due_stays_so_until_a_cut_whatever_comes_in_between(history: list[str]) -> None:
    debt = after(policy(1), *(EVENTS[name] for name in history))
    assert debt.is_due(runs=False) == debt.due.unknown == came_after(history, DENIALS, CUTS)
    assert debt.is_due(runs=True) == (debt.due.unknown or "cut" not in history)
    strangers = came_after(history, {"other trust domain"}, CUTS)
    assert debt.due.everybody == debt.again.everybody == strangers
    # Workers that stop are owed no less of these, and of whom nobody knows no more.
    assert debt.in_stopping.everybody >= strangers
    assert not (debt.in_stopping.unknown and not debt.again.unknown)
