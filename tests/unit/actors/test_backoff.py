from __future__ import annotations

import pytest

from hcc.actors.backoff import BackOff, Retries, doubled_s


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


def test_what_fails_because_of_news_before_a_retry_is_due_puts_no_retry_off() -> None:
    retries = Retries()
    failing = [retries.failing]
    assert [retries.next_delay_s(100.0 + passed_s, 1.0, 30.0) for passed_s in (0.0, 0.25, 0.5)] == [1.0, 0.75, 0.5]
    assert [retries.next_delay_s(now_s, 1.0, 30.0) for now_s in (101.0, 102.0, 103.0, 107.0)] == [2.0, 1.0, 4.0, 8.0]
    failing.append(retries.failing)

    retries.reset()

    assert retries.next_delay_s(108.0, 1.0, 30.0) == 1.0
    assert [*failing, retries.failing] == [False, True, True]
