from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hcc.consul.pacing import (
    BURST,
    CHANGES_PER_S,
    HEARD_S,
    MAX_IDLE_PAUSE_S,
    MAX_INTENTIONS_PAUSE_S,
    MAX_RETRY_S,
    Pace,
    after_change,
    after_failure,
    after_wakeup,
    next_index,
)

jitters = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 10_000), jitters, st.floats(0, 10_000))
def test_a_retry_comes_within_its_bounds(failures: int, jitter: float, retry_after_s: float) -> None:
    pace, delay = after_failure(Pace(failures=failures), jitter, retry_after_s=retry_after_s)
    assert 0 < delay <= MAX_RETRY_S
    assert delay >= min(retry_after_s, MAX_RETRY_S)
    assert pace.failures == failures + 1


@given(jitters)
def test_the_first_retry_is_quick(jitter: float) -> None:
    assert after_failure(Pace(), jitter)[1] <= 0.25


@given(st.integers(1, 40))
def test_the_ceiling_of_retries_never_falls(failures: int) -> None:
    almost_one = 0.999999
    first = after_failure(Pace(failures=failures), almost_one)[1]
    assert after_failure(Pace(failures=failures + 1), almost_one)[1] >= first


def test_retries_reach_a_minute() -> None:
    assert after_failure(Pace(failures=8), 0.999999)[1] > 59


@given(jitters)
def test_a_lower_limit_holds(jitter: float) -> None:
    assert after_failure(Pace(failures=30), jitter, limit_s=5)[1] <= 5


def test_a_few_changes_are_taken_in_a_row() -> None:
    pace, pauses = Pace(at=100.0), []
    for _ in range(int(BURST)):
        pace, pause = after_change(pace, 100.0)
        pauses.append(pause)
    assert pauses == [HEARD_S] * int(BURST)


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=300))
def test_changes_come_no_faster_than_their_rate_allows(gaps: list[float]) -> None:
    now, pace = 0.0, Pace()
    for gap in gaps:
        now += gap
        pace, pause = after_change(pace, now)
        now += pause
    assert len(gaps) <= BURST + now * CHANGES_PER_S + 1e-6


def test_wakeups_for_nothing_slow_down_and_stop_at_a_limit() -> None:
    pace, pauses = Pace(), []
    for _ in range(20):
        pace, pause = after_wakeup(pace, held_s=0.0)
        pauses.append(pause)
    assert pauses[:4] == [0, 0, 0.1, 0.2]
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_IDLE_PAUSE_S


def test_a_row_of_wakeups_for_nothing_may_have_a_lower_limit() -> None:
    assert after_wakeup(Pace(wakeups=30), 0.0, MAX_INTENTIONS_PAUSE_S)[1] == MAX_INTENTIONS_PAUSE_S


def test_a_query_that_was_held_is_no_churn() -> None:
    assert after_wakeup(Pace(wakeups=9), held_s=60.0) == (Pace(), 0.0)


def test_an_answer_ends_a_row_of_failures() -> None:
    assert after_wakeup(Pace(failures=5), 0.0)[0].failures == 0
    assert after_change(Pace(failures=5), 1.0)[0].failures == 0


@given(st.integers(0, 2**63), st.integers(0, 2**63))
def test_an_index_that_goes_back_starts_anew_and_zero_never_spins(last: int, given_: int) -> None:
    index = next_index(last, given_)
    assert index == 0 if given_ < last else index == max(1, given_)
