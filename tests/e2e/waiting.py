"""Waits with a deadline that say what they waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# For whatever comes by itself, however busy the machine is: it says nothing about how fast that should be.
DEADLINE_S = 30.0


class DeadlineError(AssertionError):
    """Something awaited did not come in time."""


def wait_until(what: str, condition: Callable[[], T], deadline_s: float = DEADLINE_S, pause_s: float = 0.05) -> T:
    """The condition's first true result.

    An assertion, an operating system error, or a `next` that finds none, inside the condition counts as "not yet" and
    is told at the end.

    Raises:
        DeadlineError: it did not become true within deadline_s seconds.
    """
    end = time.monotonic() + deadline_s
    last: object = None
    while True:
        try:
            result = condition()
        except (AssertionError, OSError, StopIteration) as exc:
            last = f"{type(exc).__name__}: {exc}"
        else:
            if result:
                return result
            last = result
        if time.monotonic() >= end:
            raise DeadlineError(f"waited {deadline_s:g} s for {what}; last seen: {str(last)[:2000]}")
        time.sleep(pause_s)


def stays(what: str, condition: Callable[[], bool], for_s: float, pause_s: float = 0.05) -> None:
    """Assert that the condition is true now and at every look during for_s seconds."""
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        assert condition(), f"expected throughout {for_s:g} s: {what}"
        time.sleep(pause_s)
