"""How long new callers wait for their server lines, and when these are looked for."""

from __future__ import annotations

from hcc.actors.line_wait import LINE_LOOK_S, LINE_WITHIN_S, MAX_LINE_LOOK_S, LineWait


def test_who_begins_first_says_when_to_look_and_later_ones_join() -> None:
    wait = LineWait()
    assert wait.begin((), 0.0) is None
    assert wait.begin({"web:dc1"}, 0.0) == LINE_LOOK_S
    assert wait.begin({"api:dc1"}, 1.0) is None
    assert set(wait.names) == {"web:dc1", "api:dc1"}


def test_looks_come_ever_later_up_to_a_limit_and_soon_again_for_the_next() -> None:
    wait = LineWait()
    wait.begin({"web:dc1"}, 0.0)
    delays = [wait.looked((), 0.0) for _ in range(6)]
    assert delays[:2] == [2 * LINE_LOOK_S, 4 * LINE_LOOK_S]
    assert delays[-1] == MAX_LINE_LOOK_S
    assert wait.looked({"web:dc1"}, 0.0) is None
    assert wait.begin({"api:dc1"}, 0.0) == LINE_LOOK_S


def test_a_line_that_does_not_come_is_waited_for_no_longer_and_asking_again_gains_no_time() -> None:
    wait = LineWait()
    wait.begin({"web:dc1"}, 0.0)
    wait.begin({"web:dc1"}, LINE_WITHIN_S - 1)
    assert wait.looked((), LINE_WITHIN_S - 0.1) is not None
    assert wait.looked((), LINE_WITHIN_S) is None
    assert not wait.names


def test_who_has_a_line_is_let_go_and_others_stay() -> None:
    wait = LineWait()
    wait.begin({"web:dc1", "api:dc1"}, 0.0)
    assert wait.looked({"api:dc1", "else:dc1"}, 0.1) is not None
    assert set(wait.names) == {"web:dc1"}
