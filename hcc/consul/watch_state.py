"""How one watch does, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from hcc.consul.keys import QueryWatch, WatchKey

# A blocking query is answered within 64 s, changed or not, and the next may wait 15 s.
STALE_S = 150.0


@dataclass(frozen=True, slots=True)
class WatchState:
    """How one watch does now.

    Args:
        age_s: since the last answer, changed or not, or since the watch began.
        answered: whether there was any answer.
        failing_s: since the first failure in a row, None when the last question was answered.
        problem: of the last failure, empty when the last question was answered.
    """

    key: WatchKey
    age_s: float
    answered: bool
    failing_s: float | None = None
    problem: str = ""

    @property
    def stale(self) -> bool:
        """Whether an answer is overdue. A prepared query cannot block, and is asked as often as its owner wants."""
        pause_s = self.key.poll_interval_ms / 1000 if isinstance(self.key, QueryWatch) else 0.0
        return self.age_s > STALE_S + pause_s
