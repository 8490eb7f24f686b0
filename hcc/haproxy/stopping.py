"""Workers that stop after a reload, with maps and sessions of their own: told through the master, in bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from hcc.haproxy.control import ControlError
from hcc.haproxy.map_text import MapTextError
from hcc.haproxy.replies import ReplyError
from hcc.haproxy.runtime import MasterSocket, RuntimeSocketError, lives

# One that hangs must not hold up what is done elsewhere for long: of twenty, as many as there may be, all may hang.
TIMEOUT_S = 1.0
ROUND_S = 2.0


class Send(Protocol):
    """The joined answer of one worker to commands; raises ControlError."""

    def __call__(self, *commands: str) -> str: ...


class StoppingWorkers:
    """Those of one master; for one thread.

    Args:
        master: the master's socket.
    """

    def __init__(self, master: str) -> None:
        self._master = MasterSocket(master, TIMEOUT_S)
        self._silent: frozenset[int] = frozenset()

    def each(self, act: Callable[[Send], None]) -> ControlError | None:
        """Have it done to each, to those that answered last time first; why not to all, None if it was.

        Takes `ROUND_S` and the time for one answer at most. While the master starts anew, in a reload, it may know of
        none, or not listen; nor does it where no HAProxy runs.
        """
        end_s = time.monotonic() + ROUND_S
        try:
            processes = self._master.processes()
        except (RuntimeSocketError, ReplyError) as exc:
            return RuntimeSocketError(f"which workers stop is not known: {exc}")
        stopping = [worker.pid for worker in processes.workers if not worker.current]
        failures: dict[int, str] = {}
        for pid in sorted(stopping, key=lambda pid: pid in self._silent):
            try:
                act(partial(self._send, end_s, pid))
            except (ControlError, MapTextError, ReplyError) as exc:
                # One that ended meanwhile serves nobody.
                if lives(pid):
                    failures[pid] = str(exc)
        self._silent = frozenset(failures)
        told = "; ".join(f"worker {pid}: {failure}" for pid, failure in failures.items())
        return RuntimeSocketError(told) if failures else None

    def _send(self, end_s: float, pid: int, *commands: str) -> str:
        if time.monotonic() > end_s:
            raise RuntimeSocketError("no time is left for it")
        return self._master.of_worker(pid, *commands)
