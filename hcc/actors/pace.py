"""When what was told is acted upon, and when it is read back and written down. Pure; times are of a monotonic clock."""

from __future__ import annotations

# A change is applied at once when the last one is this long ago; changes in between are applied together. After a
# reload it is the longer time; else as long as the last change took, so that half of the time is left for others.
WINDOW_S = 0.05
SHORT_WINDOW_S = 0.005
# So soon after a change at run time all is read back, and the file written; and at most this part of the time.
SETTLE_S, MAX_SETTLE_S = 0.25, 5.0
SETTLE_SHARE = 0.1
_NEVER = float("-inf")


class Pace:
    """Of one HAProxy. How fast it is follows from how long the last ones took."""

    def __init__(self) -> None:
        # When something was applied last, when because of who may serve, and when by a reload.
        self.last_s = self.admitted_s = self.reloaded_s = _NEVER
        # How long after a change at run time all is read back.
        self.settle_s = SETTLE_S
        self._window_s = WINDOW_S
        self._look_s = 0.0

    def wait_s(self, since_s: float, now_s: float) -> float:
        """How long until a change may be applied whose kind was applied last at `since_s`; none if 0 or less."""
        return max(since_s + self._window_s, self.reloaded_s + WINDOW_S) - now_s

    def applied(self, began_s: float, ended_s: float, *, looked: bool) -> None:
        """Something was applied; `looked`: with all read back."""
        took_s = ended_s - began_s
        self._window_s = min(max(took_s, SHORT_WINDOW_S), WINDOW_S)
        if looked:
            self._look_s = took_s
            self._settle_after(took_s)

    def wrote(self, took_s: float) -> None:
        """What was read back was written down, too."""
        self._settle_after(self._look_s + took_s)

    def _settle_after(self, took_s: float) -> None:
        self.settle_s = min(max(SETTLE_S, took_s / SETTLE_SHARE), MAX_SETTLE_S)
