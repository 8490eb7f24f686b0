from __future__ import annotations

import pytest

from hcc.actors.backoff import BackOff, doubled_s


def test_the_delay_doubles_with_each_failure_up_to_the_most() -> None:
    assert [doubled_s(1.0, failures, 30.0) for failures in range(7)] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


@pytest.mark.parametrize("failures", [1023, 1024, 10**9])
def test_what_fails_for_days_is_still_tried_again(failures: int) -> None:
    assert doubled_s(0.5, failures, 30.0) == 30.0


def test_a_program_that_dies_is_started_at_once_first_and_again_when_it_was_stable() -> None:
    back_off = BackOff(0.5)

    assert [back_off.next_delay_s() for _ in range(6)] == [0.0, 0.1, 0.2, 0.4, 0.5, 0.5]
    back_off.reset()
    assert back_off.next_delay_s() == 0.0
