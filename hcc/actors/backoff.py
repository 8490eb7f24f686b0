"""How long to wait before what failed is tried again, or a program that ended is started again."""

from __future__ import annotations

FIRST_DELAY_S = 0.05
MAX_DELAY_S = 10.0
# A program that lived this long before it died starts the back-off afresh.
STABLE_S = 30.0
# Beyond every limit, and far from what no float can hold.
_MAX_DOUBLINGS = 20


def doubled_s(first_s: float, failures: int, most_s: float) -> float:
    """The delay after that many failures in a row: twice as long with each, up to a limit."""
    return min(most_s, first_s * 2.0 ** min(failures, _MAX_DOUBLINGS))


class BackOff:
    """The delays of one program: none at first, then longer and longer."""

    def __init__(self, most_s: float = MAX_DELAY_S) -> None:
        self._most_s = most_s
        self._failures = 0

    def next_delay_s(self) -> float:
        """The delay after one more failure."""
        delay_s = doubled_s(FIRST_DELAY_S, self._failures, self._most_s) if self._failures else 0.0
        self._failures += 1
        return delay_s

    def reset(self) -> None:
        """The program has run long enough for its next death to count as the first."""
        self._failures = 0


class Retries:
    """When what failed is tried again: later each time that a retry fails too.

    News let it be tried, and fail, in between. However many they are in a short time, they say nothing about how long
    to wait.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._due_s = float("-inf")

    @property
    def failing(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    def next_delay_s(self, now_s: float, first_s: float, most_s: float) -> float:
        """How long until the next one, after a failure now (monotonic): `first_s`, doubled up to `most_s`."""
        if now_s >= self._due_s:
            self._due_s = now_s + doubled_s(first_s, self._failures, most_s)
            self._failures += 1
        return self._due_s - now_s

    def reset(self) -> None:
        """It was done."""
        self._failures, self._due_s = 0, float("-inf")
