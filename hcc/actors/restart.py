"""Whether and when a child that ended is started again: a decision, made without acting on it.

The supervisor keeps the times, asks here, and does what it is told.
"""

import enum
from dataclasses import dataclass

FIRST_S = 0.05
"""Upper end of the first delay; each further one doubles."""
CAP_S = 10.0
"""No delay is longer, seconds."""
QUIET_S = 60.0
"""A child that stayed up this long since its last restart starts over at the first delay."""
STREAK_MAX = 16
"""Restarts remembered per child; the delay reaches its cap long before."""


class RestartType(enum.Enum):
    """When a child that ended by itself is started again."""

    PERMANENT = "permanent"
    """Always."""
    TRANSIENT = "transient"
    """Only after a failure."""
    TEMPORARY = "temporary"
    """Never."""


@dataclass(frozen=True, slots=True)
class Intensity:
    """How many unplanned restarts a supervisor makes within how many seconds before it gives up."""

    max_restarts: int
    window_s: float


@dataclass(frozen=True, slots=True)
class History:
    """Monotonic times of earlier unplanned restarts, oldest first."""

    own: tuple[float, ...] = ()
    """Of the child in question: they set the delay."""
    group: tuple[float, ...] = ()
    """Of all children of its supervisor: they count towards the intensity."""

    def with_restart(self, now: float, window_s: float) -> "History":
        """The history with one restart more and without what no longer matters."""
        group = tuple(at for at in self.group if now - at < window_s)
        return History(own=(*self.own, now)[-STREAK_MAX:], group=(*group, now))


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the child again after `delay_s` seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The supervisor itself fails, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ignore:
    """The child stays down."""


Decision = Restart | GiveUp | Ignore


def decide(
    *,
    restart_type: RestartType,
    failed: bool,
    history: History,
    intensity: Intensity,
    now: float,
    jitter: float,
) -> Decision:
    """What to do about a child that ended without its supervisor asking for it.

    Args:
        restart_type: from the child's specification.
        failed: False when the child stopped itself in an orderly way.
        history: earlier unplanned restarts; this one is not in it yet.
        intensity: what the supervisor puts up with.
        now: monotonic seconds.
        jitter: 0 <= jitter < 1, so that several children do not come back in step.
    """
    if restart_type is RestartType.TEMPORARY or (restart_type is RestartType.TRANSIENT and not failed):
        return Ignore()
    recent = sum(1 for at in history.group if now - at < intensity.window_s)
    if recent >= intensity.max_restarts:
        return GiveUp(f"{recent} restarts within {intensity.window_s:g} s are all that is allowed")
    return Restart(delay_s(streak(history.own, now), jitter))


def streak(own: tuple[float, ...], now: float) -> int:
    """How many restarts lie behind `now` without a quiet period between any two of them."""
    count, later = 0, now
    for at in reversed(own):
        if later - at >= QUIET_S:
            break
        count, later = count + 1, at
    return count


def delay_s(restarts: int, jitter: float) -> float:
    """Seconds to wait after that many restarts in a row: 0 to 50 ms first, then doubling up to the cap."""
    ceiling = min(CAP_S, FIRST_S * 2.0 ** min(restarts, STREAK_MAX))
    return ceiling * jitter if restarts == 0 else ceiling * (1.0 + jitter) / 2.0
