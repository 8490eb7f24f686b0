"""Which discovery chains are waited for at the agent, and how the others are asked about.

A blocking query holds a connection. The agent allows 200 of one client address, which all sidecars of a machine share,
and a sidecar that waited for the chain and the endpoints of each upstream would hold two for each. Endpoints come and
go at any moment; a chain changes when an operator writes a config entry. So a few chains are waited for, and all others
are asked about every few seconds, a few at a time, over connections that are closed again. The agent answers these from
its cache, which it keeps up to date over its one connection to the servers.

Source: reference/consul.md section 2, rules 9 and 10.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager

MAX_HELD = 16
POLL_S = 10.0
_AT_ONCE = 4


class HeldChains:
    """Places for chains that are waited for, shared by all watches of a sidecar. Any thread may call this.

    Args:
        places: how many there are.
        poll_s: mean time between two questions about each chain that got none.
    """

    def __init__(self, places: int = MAX_HELD, poll_s: float = POLL_S) -> None:
        self.poll_s = poll_s
        self._free = threading.BoundedSemaphore(places) if places else None
        self._turns = threading.BoundedSemaphore(_AT_ONCE)

    def take(self) -> bool:
        """Whether there was a free place, which is now the caller's."""
        return self._free is not None and self._free.acquire(blocking=False)

    def give_back(self) -> None:
        """The caller's place is free again."""
        if self._free is not None:
            self._free.release()

    def turn(self) -> AbstractContextManager[object]:
        """Within it one may ask without a place."""
        return self._turns
