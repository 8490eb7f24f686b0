"""What stays of a drain when an actor is started anew in the middle of it; and when nothing is to be waited for."""

from __future__ import annotations

import time
from dataclasses import dataclass

from hcc.haproxy.replies import Activity


@dataclass(slots=True)
class Draining:
    """What outlives the actors: noted by the main thread before it tells anybody, who may be down just then.

    Args:
        announced: the sidecar is stopping, and not ready.
        frozen: HAProxy is changed at run time alone: a new worker would listen again.
        deadline_s: when open connections are cut, by `time.monotonic`; None: HAProxy is not to end yet.
        public_is_closed: its public listener was, by ProcessSupervisor.
        ending: HAProxy was told to end, and takes no change of its servers any more.
    """

    announced: bool = False
    frozen: bool = False
    deadline_s: float | None = None
    public_is_closed: bool = False
    ending: bool = False

    def begin(self, timeout_s: float) -> None:
        """HAProxy is to end; open connections have that long."""
        self.deadline_s = time.monotonic() + timeout_s


class Quiet:
    """For how long nothing was asked of HAProxy. Pure; times are of a monotonic clock."""

    def __init__(self) -> None:
        self._seen: Activity | None = None
        self._since_s = 0.0

    def lasts_s(self, activity: Activity | None, now_s: float) -> float:
        """For how many seconds it has done nothing, by what it says now; 0 where it does something or does not say.

        What was asked and answered between two looks is in the totals alone.
        """
        if activity is None or activity.now or activity != self._seen:
            self._since_s = now_s
        self._seen = activity
        return now_s - self._since_s
