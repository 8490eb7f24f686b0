from __future__ import annotations

from hcc.actors.pace import MAX_SETTLE_S, SETTLE_S, SHORT_WINDOW_S, WINDOW_S, Pace


def test_the_first_change_waits_for_nothing() -> None:
    assert Pace().wait_s(float("-inf"), 0.0) < 0


def test_a_change_waits_as_long_as_the_last_one_took_within_limits() -> None:
    pace = Pace()
    for took_s, window_s in ((0.001, SHORT_WINDOW_S), (0.02, 0.02), (3.0, WINDOW_S)):
        pace.applied(100.0, 100.0 + took_s, looked=False)
        assert abs(pace.wait_s(200.0, 200.0) - window_s) < 1e-9
    assert pace.settle_s == SETTLE_S


def test_after_a_reload_it_waits_longer_whatever_kind_of_change_it_is() -> None:
    pace = Pace()
    pace.applied(100.0, 100.001, looked=False)
    pace.reloaded_s = 200.0
    assert abs(pace.wait_s(0.0, 200.01) - (WINDOW_S - 0.01)) < 1e-9


def test_to_read_back_and_write_down_takes_a_tenth_of_the_time_at_most() -> None:
    pace = Pace()
    pace.applied(100.0, 100.1, looked=True)
    assert abs(pace.settle_s - 1.0) < 1e-9
    pace.wrote(0.2)
    assert abs(pace.settle_s - 3.0) < 1e-9
    pace.wrote(60.0)
    assert pace.settle_s == MAX_SETTLE_S
