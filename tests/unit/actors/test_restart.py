"""Restart decisions, as values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.actors.restart import (
    CAP_S,
    FIRST_S,
    QUIET_S,
    STREAK_MAX,
    Decision,
    GiveUp,
    History,
    Ignore,
    Intensity,
    Restart,
    RestartType,
    decide,
    delay_s,
    streak,
)

jitters = st.floats(0.0, 1.0, exclude_max=True)
instants = st.lists(st.floats(0.0, 1e6), max_size=40).map(lambda times: tuple(sorted(times)))
intensities = st.builds(Intensity, st.integers(0, 20), st.floats(1.0, 600.0))


def decision(restart_type: RestartType, *, failed: bool, history: History | None = None) -> Decision:
    return decide(
        restart_type=restart_type,
        failed=failed,
        history=history or History(),
        intensity=Intensity(3, 60.0),
        now=1000.0,
        jitter=0.5,
    )


@pytest.mark.parametrize(
    ("restart_type", "failed", "restarts"),
    [
        (RestartType.PERMANENT, True, True),
        (RestartType.PERMANENT, False, True),
        (RestartType.TRANSIENT, True, True),
        (RestartType.TRANSIENT, False, False),
        (RestartType.TEMPORARY, True, False),
        (RestartType.TEMPORARY, False, False),
    ],
)
def test_the_restart_type_says_which_ends_are_followed_by_a_start(
    restart_type: RestartType, failed: bool, restarts: bool
) -> None:
    expected = Restart if restarts else Ignore
    assert isinstance(decision(restart_type, failed=failed), expected)


def test_the_restart_after_the_last_allowed_one_is_given_up() -> None:
    allowed = History(group=(990.0, 991.0))
    exceeded = History(group=(989.0, 990.0, 991.0))
    assert isinstance(decision(RestartType.PERMANENT, failed=True, history=allowed), Restart)
    result = decision(RestartType.PERMANENT, failed=True, history=exceeded)
    assert result == GiveUp("3 restarts within 60 s are all that is allowed")


def test_restarts_before_the_window_do_not_count() -> None:
    history = History(group=(100.0, 200.0, 300.0, 940.0))
    assert isinstance(decision(RestartType.PERMANENT, failed=True, history=history), Restart)


def test_the_first_restart_is_at_once_and_the_next_ones_double_up_to_the_cap() -> None:
    assert delay_s(0, 0.0) == 0.0
    assert [delay_s(n, 0.0) for n in range(1, 5)] == [0.05, 0.1, 0.2, 0.4]
    assert delay_s(50, 0.0) == CAP_S / 2


def test_a_quiet_period_starts_the_delays_over() -> None:
    crashes = (0.0, 1.0, 2.0)
    assert streak(crashes, 3.0) == 3
    assert streak(crashes, 2.0 + QUIET_S) == 0
    assert streak((*crashes, 100.0), 101.0) == 1


@given(st.integers(0, 10_000), jitters)
def test_a_delay_is_never_negative_and_never_above_the_cap(restarts: int, jitter: float) -> None:
    assert 0.0 <= delay_s(restarts, jitter) <= CAP_S


@given(jitters)
def test_the_first_delay_is_short(jitter: float) -> None:
    assert delay_s(0, jitter) < FIRST_S + 1e-9


@given(st.integers(0, 100), jitters)
def test_delays_do_not_get_shorter_with_more_restarts(restarts: int, jitter: float) -> None:
    assert delay_s(restarts, jitter) <= delay_s(restarts + 1, jitter)


@given(instants, intensities, jitters, st.sampled_from(RestartType), st.booleans())
def test_no_history_allows_more_restarts_in_a_window_than_the_intensity(
    ends: tuple[float, ...],
    intensity: Intensity,
    jitter: float,
    restart_type: RestartType,
    failed: bool,
) -> None:
    history, restarts = History(), list[float]()
    for now in ends:
        result = decide(
            restart_type=restart_type,
            failed=failed,
            history=history,
            intensity=intensity,
            now=now,
            jitter=jitter,
        )
        if isinstance(result, GiveUp):
            break
        if isinstance(result, Restart):
            restarts.append(now)
            history = history.with_restart(now, intensity.window_s)
        assert sum(1 for at in restarts if now - at < intensity.window_s) <= intensity.max_restarts


@given(instants, intensities)
def test_a_history_does_not_grow_without_bound(ends: tuple[float, ...], intensity: Intensity) -> None:
    history = History()
    for now in ends:
        history = history.with_restart(now, intensity.window_s)
        assert len(history.own) <= STREAK_MAX
        assert all(now - at < intensity.window_s for at in history.group[:-1])
