"""New callers whose server lines are not in HAProxy yet, and when to look for these again. Pure.

HAProxy is told of the certificates of a caller that is new when its server line is there: a call that it let in by
itself before that could not be told from anybody else's.
"""

from __future__ import annotations

from collections.abc import Collection

# The first look is after this, further ones after twice as long each, up to a limit.
LINE_LOOK_S, MAX_LINE_LOOK_S = 0.05, 0.5
# A line that does not come is waited for no longer.
LINE_WITHIN_S = 5.0


class LineWait:
    """Names of callers, each until its line is there or its time is over; for one thread.

    Times are seconds of one clock that never goes back.
    """

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}
        self._look_s = LINE_LOOK_S

    @property
    def names(self) -> Collection[str]:
        """Who is waited for."""
        return self._until_s.keys()

    def begin(self, names: Collection[str], now_s: float) -> float | None:
        """Wait for these, too; in how many seconds to look first, None where a look is due already, or none is."""
        first = bool(names) and not self._until_s
        self._until_s = dict.fromkeys(names, now_s + LINE_WITHIN_S) | self._until_s
        if not first:
            return None
        self._look_s = LINE_LOOK_S
        return self._look_s

    def looked(self, found: Collection[str], now_s: float) -> float | None:
        """Those found have their lines; in how many seconds to look again, None: nobody is waited for."""
        self._until_s = {
            name: until_s for name, until_s in self._until_s.items() if name not in found and now_s < until_s
        }
        if not self._until_s:
            return None
        self._look_s = min(2 * self._look_s, MAX_LINE_LOOK_S)
        return self._look_s
