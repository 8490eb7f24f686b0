"""The SPOE workers, as the main process holds them: their sockets, zygote, policy, news and numbers."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from hcc.errors import HccError
from hcc.mesh.intentions import Policy
from hcc.spoe.control import ControlMessage, Topic
from hcc.spoe.counters import CounterMemory, WorkerCounters
from hcc.spoe.events import PoolEvent, WorkerExited, WorkerPhase, WorkerState, ZygoteExited
from hcc.spoe.listener import Listener, ListenerError
from hcc.spoe.policy_codec import encode_policy
from hcc.spoe.readiness import Readiness, is_readable
from hcc.spoe.slot import WorkerSlot
from hcc.spoe.spawner import Ended, Forked, Report, Spawner, SpawnError

START_TIMEOUT_S = 10.0
# How long a dead worker's exit status is waited for, and a killed worker's end.
_REPORT_TIMEOUT_S = 0.2
_KILL_TIMEOUT_S = 2.0
_ZYGOTE_TIMEOUT_S = 1.0
_TURN_S = 0.05


class SpoePoolError(HccError):
    """The pool cannot do what was asked."""


class WorkerPool:
    """All workers of one sidecar. Every method may be called from any thread; one at a time should `poll`.

    Args:
        socket_paths: one worker each; the directories exist.
        python: interpreter for the workers.
        zygote: the first one, where it was started earlier.
    """

    def __init__(
        self, socket_paths: tuple[str, ...], python: str = sys.executable, zygote: Spawner | None = None
    ) -> None:
        self._paths = socket_paths
        self._python = python
        self._lock = threading.RLock()
        self._no_pollers = threading.Condition(self._lock)
        self._pollers = 0
        self._closed = False
        self._readiness = Readiness()
        self._counters = CounterMemory(len(socket_paths))
        self._slots: list[WorkerSlot] = []
        self._first_zygote = zygote
        self._spawner: Spawner | None = None
        self._policy: ControlMessage | None = None
        self._policy_version = 0
        self._events: list[PoolEvent] = []
        # Exit statuses by pid, of workers whose death was not seen yet.
        self._statuses: dict[int, int] = {}

    # ---- life

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start the zygote and all workers; returns when all serve, their WorkerReady events still to be polled.

        Raises:
            SpoePoolError: a socket cannot be made, or a worker does not start in time; nothing is left then.
        """
        try:
            self._open_listeners()
            self.respawn_zygote()
            for slot in self._slots:
                self.respawn(slot.index)
            self._await_ready(time.monotonic() + timeout_s)
        except (ListenerError, SpoePoolError) as exc:
            self.close(0)
            raise SpoePoolError(f"cannot start SPOE workers: {exc}") from exc

    def respawn(self, index: int) -> None:
        """Start this worker again; WorkerReady tells when it serves, with the policy already there.

        Raises:
            SpoePoolError: it has not exited, or the zygote is gone.
        """
        with self._lock:
            slot = self._slots[index]
            if slot.phase is not WorkerPhase.EXITED:
                raise SpoePoolError(f"expected SPOE worker {index + 1} to have exited; it is {slot.phase.value}")
            if self._spawner is None:
                raise SpoePoolError(f"cannot start SPOE worker {index + 1}: its zygote is gone, restart that first")
            try:
                others = (other.listener for other in self._slots if other is not slot)
                slot.begin(self._spawner, self._counters.fd, self._policy, others)
            except SpawnError as exc:
                raise SpoePoolError(str(exc)) from exc

    def respawn_zygote(self) -> None:
        """Start a zygote, ending an old one; living workers do not notice.

        Raises:
            SpoePoolError: the interpreter cannot be run, or the pool is closed.
        """
        with self._lock:
            if self._closed:
                raise SpoePoolError("cannot start SPOE workers: the pool is closed")
            self._lose_zygote()
            try:
                self._spawner = self._first_zygote or Spawner(self._python)
                self._first_zygote = None
            except SpawnError as exc:
                raise SpoePoolError(str(exc)) from exc
            self._readiness.watch(self._spawner.fileno(), self._hear_zygote)

    def close(self, timeout_s: float) -> None:
        """Drain all workers, kill those that need longer than this, remove everything; again: nothing."""
        with self._lock:
            if self._closed:
                return
            for slot in self._slots:
                slot.order(ControlMessage(Topic.STOP))
            self._turn_until(self._all_exited, time.monotonic() + timeout_s)
            for slot in self._slots:
                slot.kill()
            self._turn_until(self._all_exited, time.monotonic() + _KILL_TIMEOUT_S)
            self._closed = True
            self._lose_zygote()
            self._readiness.wake()
            self._no_pollers.wait_for(lambda: not self._pollers, _KILL_TIMEOUT_S)
            self._dismantle()

    def leave(self) -> None:
        """Let the workers go on until others relieve them, when this process ends; it must end next.

        They take the end of their channels for that of the process. The interpreter closes what nobody holds any more
        and then goes on for as long as it takes to end, which on a busy machine was seconds.
        """
        with self._lock:
            for slot in self._slots:
                slot.leave()

    # ---- use

    def set_policy(self, policy: Policy) -> None:
        """Let all workers decide by this policy, and those started later; PolicyApplied tells who does.

        One that is older than the last is not taken: an actor that hung may come with it after its successor.
        """
        order = ControlMessage(Topic.POLICY, encode_policy(policy))
        with self._lock:
            if policy.version < self._policy_version:
                return
            self._policy, self._policy_version = order, policy.version
            for slot in self._slots:
                slot.order(order)

    def replace_hung(self, misses: int) -> tuple[str, ...]:
        """Ask every worker for a sign of life, and kill those that gave none so many times; what was killed, in words.

        One that is asked for and has no process yet hangs by its zygote, which is then killed. WorkerExited and
        ZygoteExited tell of their ends.
        """
        with self._lock:
            hung = [] if self._closed else [slot for slot in self._slots if slot.ping() > misses]
            born = [slot for slot in hung if not slot.unborn]
            for slot in born:
                slot.kill()
            names = [f"worker {slot.index + 1} (process {slot.pid})" for slot in born]
            if self._spawner is not None and len(born) < len(hung):
                names.append(f"zygote (process {self._spawner.pid})")
                self._spawner.kill()
            return tuple(names)

    def restore_sockets(self) -> tuple[str, ...]:
        """Bind anew the sockets whose files somebody removed; their paths. WorkerExited tells of the ends of workers.

        Who runs on stands in at the socket that was there before: at the new one when it is itself started anew.

        Raises:
            SpoePoolError: one cannot be bound; its worker goes on for whoever is connected.
        """
        with self._lock:
            slots = () if self._closed else tuple(self._slots)
            try:
                return tuple(slot.state().socket_path for slot in slots if slot.find_listener())
            except ListenerError as exc:
                raise SpoePoolError(str(exc)) from exc

    def fileno(self) -> int:
        """Readable when `poll` has something to do; not for the events that other methods left."""
        return self._readiness.fileno()

    def poll(self, timeout_s: float | None) -> tuple[PoolEvent, ...]:
        """What happened, oldest first; waits this long (None: for ever) for the first, less after `wake`.

        A closed pool answers at once, with what was left.
        """
        with self._lock:
            if self._events or self._closed:
                return self._take_events()
            self._pollers += 1
        ready: list[tuple[int, int]] = []
        try:
            ready = self._readiness.wait(timeout_s)
        finally:
            with self._lock:
                self._pollers -= 1
                self._no_pollers.notify_all()
                if not self._closed:
                    self._readiness.handle(ready)
        with self._lock:
            return self._take_events()

    def wake(self) -> None:
        """Make a `poll` in another thread return."""
        with self._lock:
            self._readiness.wake()

    def workers(self) -> tuple[WorkerState, ...]:
        """All workers, by index."""
        with self._lock:
            return tuple(slot.state() for slot in self._slots)

    def counters(self) -> tuple[WorkerCounters, ...]:
        """All workers' numbers, by index; none after `close`."""
        with self._lock:
            return () if self._closed else self._counters.read()

    @property
    def zygote_pid(self) -> int:
        """0 while there is no zygote."""
        with self._lock:
            return 0 if self._spawner is None else self._spawner.pid

    # ---- inside; the lock is held

    def _open_listeners(self) -> None:
        for index, path in enumerate(self._paths):
            slot = WorkerSlot(index, Listener(path), self._readiness, self._events_put, self._bury)
            self._slots.append(slot)

    def _events_put(self, event: PoolEvent) -> None:
        self._events.append(event)

    def _take_events(self) -> tuple[PoolEvent, ...]:
        events, self._events = tuple(self._events), []
        return events

    def _turn_until(self, done: Callable[[], bool], deadline: float) -> None:
        while not done() and time.monotonic() < deadline:
            self._readiness.handle(self._readiness.wait(_TURN_S))

    def _all_exited(self) -> bool:
        return all(slot.phase is WorkerPhase.EXITED for slot in self._slots)

    def _await_ready(self, deadline: float) -> None:
        with self._lock:
            self._turn_until(self._settled, deadline)
            for event in self._events:
                if isinstance(event, WorkerExited | ZygoteExited):
                    raise SpoePoolError(f"found {event} while starting")
            if not self._settled():
                raise SpoePoolError("expected all workers to be ready in time; some are not")

    def _settled(self) -> bool:
        return self._spawner is None or all(slot.phase is not WorkerPhase.STARTING for slot in self._slots)

    def _bury(self, slot: WorkerSlot) -> None:
        """Note a worker's death, with its exit status if the zygote can say it."""
        pid, deadline = slot.pid, time.monotonic() + _REPORT_TIMEOUT_S
        while pid not in self._statuses and self._spawner is not None and time.monotonic() < deadline:
            is_readable(self._spawner.fileno(), _REPORT_TIMEOUT_S)
            self._hear_zygote()
        slot.vacate(self._statuses.pop(pid, None))
        self._counters.zero_gauges(slot.index)

    def _hear_zygote(self) -> None:
        spawner = self._spawner
        if spawner is None:
            return
        for report in spawner.receive():
            self._note(report)
        if spawner.ended:
            pid, status = spawner.pid, self._lose_zygote()
            self._events.append(ZygoteExited(pid, status))

    def _note(self, report: Report) -> None:
        slot = self._slots[report.index]
        current = slot.starts == report.start and slot.phase is not WorkerPhase.EXITED
        if isinstance(report, Forked):
            slot.adopt(report, wanted=current)
        elif current and isinstance(report, Ended):
            self._statuses[report.pid] = report.status
        elif current and not isinstance(report, Ended):
            slot.vacate(None, report.reason)

    def _lose_zygote(self) -> int | None:
        """End the zygote and with it what it has not reported; its exit status, None if there was none."""
        spawner, self._spawner = self._spawner, None
        if spawner is None:
            return None
        self._readiness.unwatch(spawner.fileno())
        for report in spawner.receive():
            self._note(report)
        for slot in self._slots:
            if slot.unborn:
                slot.vacate(None, "its zygote ended before it was started")
        return spawner.close(_ZYGOTE_TIMEOUT_S)

    def _dismantle(self) -> None:
        for slot in self._slots:
            slot.close()
        self._counters.close()
        self._readiness.close()
