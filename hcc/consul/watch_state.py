"""How one watch does, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from hcc.consul.keys import WatchKey


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
