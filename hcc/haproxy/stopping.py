"""Workers that stop after a reload, with maps and sessions of their own: told through the master, in bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from hcc.haproxy.control import ControlError
from hcc.haproxy.layout import Layout
from hcc.haproxy.map_text import MapTextError
from hcc.haproxy.process import has_one_worker, recorded_pid
from hcc.haproxy.replies import ReplyError
from hcc.haproxy.runtime import MasterSocket, NotListeningError, RuntimeSocketError, lives

# One that hangs must not hold up what is done elsewhere for long: of twenty, as many as there may be, all may hang.
TIMEOUT_S = 2.0
ROUND_S = 3.0


class Send(Protocol):
    """The joined answer of one worker to commands; raises ControlError."""

    def __call__(self, *commands: str) -> str: ...


class _NoTimeError(RuntimeSocketError):
    """The time of the round is over."""


class StoppingWorkers:
    """Those of the HAProxy of one layout; for one thread."""

    def __init__(self, layout: Layout) -> None:
        self._master = MasterSocket(layout.master_socket, TIMEOUT_S)
        self._pid_file = layout.pid_file
        # Those whose turn did not come in the last round, and those that did not answer.
        self._unreached: frozenset[int] = frozenset()
        self._silent: frozenset[int] = frozenset()

    def each(self, act: Callable[[Send], None]) -> ControlError | None:
        """Have it done to each; why not to all, None if it was.

        Takes `ROUND_S` and the time for one answer at most; whose turn does not come is the first in the next round,
        and who did not answer the last. While the master starts anew, in a reload, it may know of none, or not listen;
        nor does it where no HAProxy runs, or somebody removed its socket. Where it has one worker none stops.
        """
        end_s = time.monotonic() + ROUND_S
        try:
            processes = self._master.processes()
        except (RuntimeSocketError, ReplyError) as exc:
            master = recorded_pid(self._pid_file) if isinstance(exc, NotListeningError) else None
            if master is not None and has_one_worker(master):
                return None
            return RuntimeSocketError(f"which workers stop is not known: {exc}")
        failures: dict[int, ControlError | MapTextError | ReplyError] = {}
        for pid in self._in_turn([worker.pid for worker in processes.workers if not worker.current]):
            try:
                act(partial(self._send, end_s, pid))
            except (ControlError, MapTextError, ReplyError) as exc:
                # One that ended meanwhile serves nobody.
                if lives(pid):
                    failures[pid] = exc
        self._unreached = frozenset(pid for pid, failure in failures.items() if isinstance(failure, _NoTimeError))
        self._silent = frozenset(failures) - self._unreached
        told = "; ".join(f"worker {pid}: {failure}" for pid, failure in failures.items())
        return RuntimeSocketError(told) if failures else None

    def _in_turn(self, pids: Sequence[int]) -> list[int]:
        return sorted(pids, key=lambda pid: (pid not in self._unreached, pid in self._silent))

    def _send(self, end_s: float, pid: int, *commands: str) -> str:
        answers = []
        for line in self._master.lines(pid, *commands):
            if time.monotonic() > end_s:
                raise _NoTimeError("no time is left for it")
            answers.append(self._master.say(pid, line))
        return "".join(answers)
