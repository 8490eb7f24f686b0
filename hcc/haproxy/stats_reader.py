"""Asks HAProxy for its statistics, at most once a second, however many want to know.

For the threads of the web server: a HAProxy that hangs costs one of them a second, and the others nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from hcc.haproxy import words
from hcc.haproxy.control import ControlError
from hcc.haproxy.names import APP
from hcc.haproxy.runtime import RuntimeSocket
from hcc.haproxy.stats import Stats, StatsError, parse_stats

TIMEOUT_S = 1.0
KEPT_S = 1.0
# Types of rows as `show stat` counts them: 1 frontends, 2 backends, 4 servers. Source: management.txt section 9.3.
_INFO = "show info"
SUMMARY = (_INFO, "show stat -1 3 -1", f"show stat {APP} 4 -1")
"""Frontends, backends, and the callers' lines of the local backend: short whatever the number of endpoints."""
BACKENDS = (_INFO, "show stat -1 2 -1")
"""Backends alone."""
EVERYTHING = (_INFO, "show stat -1 7 -1")
"""Every endpoint as well: about 400 bytes each."""


def servers_of(backend: str) -> tuple[str, ...]:
    """The endpoints of one backend."""
    return _INFO, f"show stat {words.name(backend)} 4 -1"


class StatsUnavailableError(ControlError):
    """HAProxy gives no statistics now: it does not run, hangs, or is just being asked."""


class StatsReader:
    """The answer to some commands, kept for a second; so is a failure.

    Args:
        path: of the runtime socket.
        commands: sent together, over one connection.
        timeout_s: for one exchange.
        clock: monotonic seconds.
        master: the master's socket, as of `RuntimeSocket`.
    """

    def __init__(
        self,
        path: str,
        commands: tuple[str, ...],
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        master: str = "",
    ) -> None:
        self._runtime = RuntimeSocket(path, timeout_s=timeout_s, master=master)
        self._commands = commands
        self._timeout_s = timeout_s
        self._clock = clock
        self._asking = threading.Lock()
        self._answer: Stats | StatsUnavailableError | None = None
        self._answered_at = 0.0

    def read(self) -> Stats:
        """The newest statistics, at most a second old.

        Raises:
            StatsUnavailableError: there are none; the text says why.
        """
        if not self._asking.acquire(timeout=self._timeout_s):
            raise StatsUnavailableError("HAProxy is being asked and has not answered yet")
        try:
            if self._answer is None or self._clock() - self._answered_at >= KEPT_S:
                self._answer = self._ask()
                self._answered_at = self._clock()
            answer = self._answer
        finally:
            self._asking.release()
        if isinstance(answer, StatsUnavailableError):
            # A new one each time: raising adds to an exception where it came by.
            raise StatsUnavailableError(str(answer))
        return answer

    def _ask(self) -> Stats | StatsUnavailableError:
        try:
            return parse_stats(self._runtime.send(*self._commands))
        except (ControlError, StatsError) as exc:
            return StatsUnavailableError(str(exc))
