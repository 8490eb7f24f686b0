"""How long to wait before a program that ended is started again."""

from __future__ import annotations

FIRST_DELAY_S = 0.05
MAX_DELAY_S = 10.0
# A program that lived this long before it died starts the back-off afresh.
STABLE_S = 30.0


class BackOff:
    """The delays of one program: none at first, then longer and longer."""

    def __init__(self) -> None:
        self._failures = 0

    def next_delay_s(self) -> float:
        """The delay after one more failure."""
        delay = 0.0 if self._failures == 0 else min(MAX_DELAY_S, FIRST_DELAY_S * 2.0**self._failures)
        self._failures += 1
        return delay

    def reset(self) -> None:
        """The program has run long enough for its next death to count as the first."""
        self._failures = 0
