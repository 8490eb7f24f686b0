"""How long a watch waits before it asks again. Pure: time and chance come in as arguments.

Source: reference/consul.md section 2, rules 5 and 6. There a loop is limited to one query in 15 s under
churn. A real change must reach HAProxy within milliseconds, though, so here (2026-11) the two reasons to come
back early are told apart: answers that changed are limited only above 20 a second, answers that woke us for
nothing (other services' changes) slow down to one in 15 s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_RETRY_S = 60.0
MAX_IDLE_PAUSE_S = 15.0
# Changed answers: this many in a row, then this many a second.
BURST = 5.0
CHANGES_PER_S = 20.0
# Who was told of a change goes first: the next question takes a millisecond or two of the interpreter.
HEARD_S = 0.01
# Answers for nothing: this many at once, then pauses that double from this one.
FREE_WAKEUPS = 2
FIRST_IDLE_PAUSE_S = 0.1
# Of intentions, however often those of others change, or questions fail: a denial must not be later than this.
MAX_INTENTIONS_PAUSE_S = 1.0
# A query that was held this long was no sign of churn.
QUIET_S = 1.0
_FIRST_RETRY_S = 0.05
_FIRST_RETRY_SPREAD_S = 0.2
_MAX_DOUBLINGS = 10
# What does not exist may be registered any moment, and asking costs the agent little.
MAX_NOT_FOUND_RETRY_S = 5.0
# An agent that is not there, or has no servers, costs little to ask, and when it is back, all should know soon.
MAX_UNAVAILABLE_RETRY_S = 10.0
# Watches that failed while Consul was away are spread over this time when it answers one of them.
HURRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Pace:
    """What one watch's rhythm was so far.

    Args:
        tokens: changed answers that may be taken at once.
        at: when `tokens` was right, monotonic seconds.
        wakeups: answers in a row that came early and changed nothing.
        failures: errors in a row.
    """

    tokens: float = BURST
    at: float = 0.0
    wakeups: int = 0
    failures: int = 0


def after_change(pace: Pace, now: float) -> tuple[Pace, float]:
    """The pace after an answer that changed, and the seconds to wait before the next query."""
    tokens = min(BURST, pace.tokens + max(0.0, now - pace.at) * CHANGES_PER_S) - 1.0
    pause = max(HEARD_S, -tokens / CHANGES_PER_S)
    return Pace(tokens=tokens, at=now), pause


def after_wakeup(pace: Pace, held_s: float, limit_s: float = MAX_IDLE_PAUSE_S) -> tuple[Pace, float]:
    """The pace after an answer that did not change, and the seconds to wait before the next query.

    Args:
        pace: so far.
        held_s: how long Consul held the query.
        limit_s: where the doubling ends.
    """
    wakeups = 0 if held_s >= QUIET_S else pace.wakeups + 1
    extra = min(wakeups - FREE_WAKEUPS, _MAX_DOUBLINGS)
    pause = min(limit_s, FIRST_IDLE_PAUSE_S * 2.0 ** (extra - 1)) if extra > 0 else 0.0
    return replace(pace, wakeups=wakeups, failures=0), pause


def after_failure(
    pace: Pace, jitter: float, *, retry_after_s: float = 0.0, limit_s: float = MAX_RETRY_S
) -> tuple[Pace, float]:
    """The pace after an error, and the seconds to wait before the next query.

    Exponential back-off with full jitter from 1 to `limit_s`; the first retry comes within a quarter of a second.

    Args:
        pace: so far.
        jitter: 0 <= jitter < 1, drawn anew each time.
        retry_after_s: what Consul asked for, 0 for nothing; obeyed up to 60 s.
        limit_s: where the doubling ends.
    """
    failures = pace.failures + 1
    if failures == 1:
        delay = _FIRST_RETRY_S + _FIRST_RETRY_SPREAD_S * jitter
    else:
        ceiling = min(limit_s, 2.0 ** min(failures - 2, _MAX_DOUBLINGS))
        delay = _FIRST_RETRY_S + (ceiling - _FIRST_RETRY_S) * jitter
    return replace(pace, failures=failures), max(delay, min(retry_after_s, MAX_RETRY_S))


def next_index(last: int, given: int) -> int:
    """The index to block on: 0 (ask at once) after a step backwards, but never Consul's own 0, which spins.

    Args:
        last: the index asked with, 0 when none was.
        given: the index of a good answer.

    Source: reference/consul.md section 2, rule 2.
    """
    return 0 if given < last else max(given, 1)
