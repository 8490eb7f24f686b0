"""How much counters of HAProxy rose from one reading to the next. Pure."""

from __future__ import annotations

from collections.abc import Mapping


class Rises:
    """Counters by name, as they were last; a new worker counts from nothing.

    Args:
        from_nothing: whether all that the first reading counts is a rise.
    """

    def __init__(self, *, from_nothing: bool) -> None:
        self._before: Mapping[str, int] | None = {} if from_nothing else None

    def of(self, counts: Mapping[str, int]) -> dict[str, int]:
        """By how much each rose since the last reading; those that did not are left out."""
        before, self._before = counts if self._before is None else self._before, counts
        risen = {name: count - _known(before.get(name, 0), count) for name, count in counts.items()}
        return {name: rise for name, rise in risen.items() if rise}


def _known(before: int, count: int) -> int:
    return before if before <= count else 0
