"""What stays of a drain when an actor is started anew in the middle of it."""

from __future__ import annotations

import time
from dataclasses import dataclass


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
