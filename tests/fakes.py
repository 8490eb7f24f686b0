"""Working stand-ins for the edges: fast, and with faults that cannot be had for real.

Each is held against the real thing by a test of `tests/integration`, which its docstring names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from hcc.actors.actor import Actor
from hcc.consul.answers import Answer
from hcc.consul.errors import ConsulPermissionError, ConsulStatusError, ConsulUnavailableError
from hcc.consul.keys import WatchKey
from hcc.consul.watch import WatchEvent, WatchFailed, WatchValue
from hcc.consul.watch_state import WatchState
from hcc.haproxy.caller_maps import DeniedSessions
from hcc.haproxy.capabilities import Capabilities
from hcc.haproxy.control import Applied, ApplyError, ControlError, Taken
from hcc.haproxy.leaf_map import Meant
from hcc.haproxy.map_text import MapChange, map_change
from hcc.haproxy.model import ActualListener, ActualServers, Bind, Desired, Listening, Server
from hcc.haproxy.names import APP
from hcc.haproxy.outcome import outcome
from hcc.haproxy.plan import (
    Actual,
    DeleteServer,
    FreeSlot,
    Install,
    Operation,
    Plan,
    Reload,
    RunTimeOperation,
    SetServerState,
    WriteConfig,
)
from hcc.haproxy.process import LOST, Closing, Exit, LaunchError, Look, NotReadyError
from hcc.haproxy.render import Rendered
from hcc.haproxy.render_public import is_unguarded
from hcc.haproxy.render_spoe import agent_name
from hcc.haproxy.replies import Activity
from hcc.mesh.caller import key_name
from hcc.mesh.intentions import Policy
from hcc.mesh.peer_book import Outcome, Peer
from hcc.peers.prober import Probed
from hcc.spoe.events import PolicyApplied, PoolEvent, WorkerExited, WorkerPhase, WorkerReady, WorkerState, ZygoteExited
from hcc.spoe.pool import SpoePoolError
from tests.builders import V2_6


@dataclass
class FakeControl:
    """A HAProxy in memory; `tests/integration/test_control_contract.py` holds it against real ones.

    Args:
        refusing: reloads and installs fail with this text.
        refused: what is in the line that they complain about.
        unwilling: changes at run time fail with this text.
        silent: nothing can be read.
        unreadable: what is on disk cannot be read.
        taken_binds: addresses that somebody else has.
        busy: names of servers with connections, which keep them from being deleted or freed.
        may_write: what only writes waits for this.
        full: such a write fails with this text.
        begun: how many plans were begun.
        lost: addresses of servers that are said to run when they are added, and do not: once each.
    """

    capabilities: Capabilities = V2_6
    actual: Actual = field(default_factory=Actual)
    refusing: str = ""
    refused: str = ""
    unwilling: str = ""
    silent: bool = False
    unreadable: bool = False
    taken_binds: tuple[Bind, ...] = ()
    busy: frozenset[str] = frozenset()
    may_write: threading.Event = field(default_factory=threading.Event)
    full: str = ""
    begun: int = 0
    lost: set[str] = field(default_factory=set)
    plans: list[Plan] = field(default_factory=list)
    # What is known of `actual`: a test that changes that by hand is found out by reading alone.
    known: Actual | None = None
    # Two threads may apply plans: one of them such as only write.
    applying: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.may_write.set()

    def running(self) -> bool:
        return self.actual.running

    def unguarded(self) -> bool:
        return is_unguarded(self.actual.config or "")

    def servers(self) -> ActualServers:
        if self.silent:
            raise ControlError("the runtime socket does not answer")
        return self.actual.servers

    def glance(self) -> Actual | None:
        if self.silent:
            raise ControlError("the runtime socket does not answer")
        known, now = self.known, self.actual
        same = known is not None and (known.pid, known.structure) == (now.pid, now.structure)
        return known if same and now.running else None

    def read_actual(self, rendered: Rendered) -> Actual:
        if self.silent:
            raise ControlError("the runtime socket does not answer")
        if self.unreadable:
            raise PermissionError(errno.EACCES, "Permission denied", "haproxy.cfg")
        self.known = self.actual
        return self.actual

    def taken(self, desired: Desired, actual: Actual) -> tuple[Taken, ...]:
        return tuple(Taken(bind, "in use") for bind in desired.binds() if bind in self.taken_binds)

    def apply(self, plan: Plan) -> Applied:
        self.begun += 1
        at_once, _ = plan.parted()
        if not at_once:
            self.may_write.wait(10.0)
        with self.applying:
            return self._applied(plan)

    def _applied(self, plan: Plan) -> Applied:
        self.plans.append(plan)
        done: list[Operation] = []
        pending: list[Operation] = []
        for operation in plan.operations:
            if isinstance(operation, DeleteServer | FreeSlot) and operation.server in self.busy:
                pending.append(operation)
                self._change(SetServerState(operation.backend, operation.server, False))
                continue
            if self.refusing and isinstance(operation, Reload | Install):
                lines = operation.rendered.config.splitlines()
                line = next((n for n, text in enumerate(lines, 1) if self.refused and self.refused in text), 0)
                failure = ApplyError(f"HAProxy refuses: {self.refusing}", operation.describe(), line)
                self.known = None
                return Applied(tuple(done), failure=failure)
            if self.unwilling and isinstance(operation, RunTimeOperation):
                self.known = None
                return Applied(tuple(done), failure=ApplyError(self.unwilling, operation.describe()))
            if self.full and isinstance(operation, WriteConfig):
                return Applied(tuple(done), failure=ApplyError(self.full, operation.describe()))
            self._change(operation)
            done.append(operation)
        return Applied(tuple(done), tuple(pending), reloaded=plan.reloads)

    def _change(self, operation: Operation) -> None:
        self.actual = self._without_lost(changed(self.actual, operation))
        if self.known is not None:
            self.known = None if isinstance(operation, Reload | Install) else changed(self.known, operation)

    def _without_lost(self, actual: Actual) -> Actual:
        found = self.lost & {server.address for _, servers in actual.servers for server in servers}
        self.lost -= found
        left = ((name, tuple(one for one in servers if one.address not in found)) for name, servers in actual.servers)
        return replace(actual, servers=tuple(left)) if found else actual

    def start(self) -> None:
        """What ProcessSupervisor does with an installed configuration."""
        assert self.plans, "nothing was installed"
        rendered = next(
            operation.rendered
            for one in reversed(self.plans)
            for operation in one.operations
            if isinstance(operation, Install | Reload | WriteConfig)
        )
        self.actual = loaded(self.actual, rendered, pid=self.actual.pid + 1)


def changed(actual: Actual, operation: Operation) -> Actual:
    """What runs and is on disk after one operation succeeded."""
    match operation:
        case Install(rendered) | WriteConfig(rendered):
            return replace(actual, config=rendered.config, files=rendered.files, stored_ticket_keys=_digest(rendered))
        case Reload(rendered):
            return loaded(actual, rendered, pid=actual.pid + 1)
        case _:
            return outcome(actual, (operation,))


def loaded(actual: Actual, rendered: Rendered, pid: int) -> Actual:
    """What runs after HAProxy started with these files."""
    desired = rendered.desired
    return replace(
        actual,
        running=True,
        pid=pid,
        structure=rendered.structure,
        max_connections=desired.options.max_connections,
        most_connections=desired.options.max_connections,
        listeners=tuple(
            ActualListener(name, Listening.OPEN, desired.options.max_connections) for name in desired.listener_names()
        ),
        servers=tuple((backend.name, tuple(sorted(backend.servers))) for backend in desired.backends)
        + _app(rendered)
        + _agents(rendered),
        certificates=tuple((file.name, file.fingerprint) for file in desired.certificates),
        ca_files=tuple((file.name, file.fingerprints) for file in desired.ca_files),
        ticket_keys=_digest(rendered),
        config=rendered.config,
        files=rendered.files,
        stored_ticket_keys=_digest(rendered),
    )


def _digest(rendered: Rendered) -> str:
    return rendered.desired.ticket_keys.digest if rendered.desired.ticket_keys else ""


def _app(rendered: Rendered) -> ActualServers:
    app = rendered.desired.app
    if app is None:
        return ()
    callers = app.callers if rendered.caller_lines else ()
    lines = ((app.name, 1), *((caller, 0) for caller in callers))
    return ((app.name, tuple(sorted(Server(name, app.address, app.port, weight, True) for name, weight in lines))),)


def _agents(rendered: Rendered) -> ActualServers:
    asked = rendered.desired.authorisation
    if asked is None:
        return ()
    return ((asked.backend, tuple(Server(agent_name(n), "", 0) for n in range(1, len(asked.sockets) + 1))),)


@dataclass(frozen=True, slots=True)
class Settled:
    """Asked of an actor, to which it means nothing: the answer comes after all that it was told before."""


class Ear(Actor):
    """Takes the place of an actor and writes down what it is told."""

    def init(self, *, heard: list[object]) -> None:
        self._heard = heard

    def handle(self, message: object) -> None:
        if not isinstance(message, Settled):
            self._heard.append(message)


class FakeWatcher:
    """A watch that says what a test wants, also what it said before. `FakeWatchers.make` makes them.

    `tests/integration/test_watcher_contract.py` holds it against the real Watcher.
    """

    def __init__(
        self, key: WatchKey, deliver: Callable[[WatchKey, WatchEvent], None], *, startable: bool = True
    ) -> None:
        self.key = key
        self._startable = startable
        self.running = False
        self.hurried = False
        self._deliver = deliver
        self._answered = False
        self._failing: Exception | None = None

    def start(self) -> None:
        if not self._startable:
            # As `threading.Thread.start`.
            raise RuntimeError("can't start new thread")
        self.running = True

    def stop(self) -> None:
        self.running = False

    def hurry(self, *, allowed: bool = False) -> None:
        refused = isinstance(self._failing, ConsulPermissionError)
        self.hurried = self.hurried or _is_outage(self._failing) or (allowed and refused)

    def state(self) -> WatchState:
        if self._failing is None:
            return WatchState(self.key, 0.0, self._answered)
        return WatchState(self.key, 0.0, self._answered, 0.0, str(self._failing))

    def answer(self, value: Answer) -> None:
        if self.running:
            recovered, self._failing, self._answered = self._failing is not None, None, True
            self._deliver(self.key, WatchValue(value, 1, 0.0, recovered))

    def fail(self, error: Exception) -> None:
        if self.running:
            self._failing = error
            self._deliver(self.key, WatchFailed(error, 1.0, 0.0))


def _is_outage(error: Exception | None) -> bool:
    """Whether the question had nothing to do with it."""
    return isinstance(error, ConsulUnavailableError) or (isinstance(error, ConsulStatusError) and error.code >= 500)


class FakeWatchers:
    """All watches that were made."""

    def __init__(self) -> None:
        self.made: list[FakeWatcher] = []
        # Of which there are no threads.
        self.unstartable: tuple[type[WatchKey], ...] = ()

    def make(self, key: WatchKey, deliver: Callable[[WatchKey, WatchEvent], None]) -> FakeWatcher:
        watcher = FakeWatcher(key, deliver, startable=not isinstance(key, self.unstartable))
        self.made.append(watcher)
        return watcher

    def running(self) -> set[WatchKey]:
        return {watcher.key for watcher in self.made if watcher.running}

    def say(self, key: WatchKey, value: Answer) -> None:
        """An answer of Consul to whoever watches that now."""
        current = next(watcher for watcher in reversed(self.made) if watcher.running and watcher.key == key)
        current.answer(value)

    def fail(self, key: WatchKey, error: Exception) -> None:
        current = next(watcher for watcher in reversed(self.made) if watcher.running and watcher.key == key)
        current.fail(error)


class FakeProcess:
    """A HAProxy, or a Data Plane API, that is none. Its death is a byte in a pipe.

    Somebody is connected to it until a test lets it `die`: before that a graceful stop does not end.
    `tests/integration/test_process_contract.py` holds it against real ones.

    Args:
        left_running: process id that an earlier hcc left, 0 for none.
        left_starting: whether that one had just been launched.
        failing: launches that fail before one succeeds. By turns the program cannot be run, and ends at once.
    """

    def __init__(self, left_running: int = 0, failing: int = 0, *, left_starting: bool = False) -> None:
        self.pid = 0
        self.said: list[str] = []
        self.launched = 0
        self.public = True
        self.answering = True
        self.version = "2.6.12"
        self.lost = False
        self.trimmed = 0
        self.noted = 0
        self.logs_to_file = False
        self.in_flight = 0
        # Whether it says how many these are.
        self.counts = True
        # Whether it takes it when it is told to close the public listener.
        self.closes = True
        # Requests that are over.
        self.asked = 0
        self.in_flight_asked = 0
        self.activity_asked = 0
        # How long each answer might take.
        self.may_take_s: list[float] = []
        self.failing = failing
        self.ends_at_once = False
        self.starting = False
        self._left_running = left_running
        self._left_starting = left_starting
        self._adopted = False
        self._closed_public = False
        # Whether a reload is under way, and whether it was told to end since it listens.
        self.loading = False
        self._stopping = False
        # That there were, the one that listens included.
        self._workers = 1
        self._ended: Exit | None = None
        self._reader, self._writer = -1, -1
        # A test ends it in one thread, the actor reaps it in another.
        self._dying = threading.Lock()

    def fileno(self) -> int:
        return self._reader

    def adopt(self) -> int | None:
        if not self._left_running:
            return None
        self._begin(self._left_running, adopted=True)
        self._left_running, self.starting = 0, self._left_starting
        return self.pid

    def launch(self) -> int:
        if self.pid:
            raise LaunchError(f"expected no HAProxy to run, found process {self.pid}")
        self.launched += 1
        if not self.failing:
            self._begin(1000 + self.launched)
            self.starting = True
            return self.pid
        self.failing -= 1
        self.ends_at_once, ends = not self.ends_at_once, self.ends_at_once
        if not ends:
            raise LaunchError("cannot run haproxy: no such file")
        self._begin(1000 + self.launched)
        self.starting = True
        self.die(1)
        return self.pid

    def wait_ready(self, structure: str = "", timeout_s: float = 30.0) -> int:
        if not self._alive():
            raise LaunchError("HAProxy ended at once: [ALERT] no")
        if not self.answering:
            raise NotReadyError("HAProxy was not ready within 0 s: it said nothing")
        self.starting = False
        return self.pid + self._workers

    def reap(self) -> Exit | None:
        ended = self._ended
        if ended is not None:
            self.close()
        return ended

    def close_public(self, timeout_s: float = 2.0) -> Closing:
        self.may_take_s.append(timeout_s)
        if not (self.answering and self._alive()) or not self.closes:
            return Closing.UNKNOWN
        if not self.public:
            return Closing.ABSENT
        if self._closed_public:
            return Closing.WAS_CLOSED
        self.said.append("close public")
        self._closed_public = True
        return Closing.CLOSED

    def takes_callers(self) -> bool:
        return self.public and not self._closed_public and self._alive()

    def reload(self) -> None:
        """By somebody else: a new worker listens."""
        self._closed_public = self._stopping = False
        self._workers += 1

    def requests_in_flight(self, timeout_s: float = 5.0) -> int | None:
        self.in_flight_asked += 1
        self.may_take_s.append(timeout_s)
        if not self._alive():
            return 0
        return self.in_flight if self.answering and self.counts else None

    def activity(self, timeout_s: float = 5.0) -> Activity | None:
        self.activity_asked += 1
        self.may_take_s.append(timeout_s)
        return Activity(self.in_flight, self.asked + self.in_flight) if self.answering and self._alive() else None

    def answers(self, timeout_s: float) -> bool:
        return self.answering and self._alive()

    def look(self, timeout_s: float) -> Look:
        if not self._alive():
            return Look()
        if self.lost:
            return Look(LOST)
        return Look(worker=self.pid + self._workers, version=self.version) if self.answering else Look("worker")

    def trim_log(self) -> None:
        self.trimmed += 1

    def keep_record(self) -> None:
        self.noted += 1

    def access_log_is_in_file(self) -> bool:
        return self.logs_to_file

    def stop_gracefully(self) -> None:
        self.said.append("stop gracefully")
        self._stopping = not self.loading

    def goes_on(self, timeout_s: float = 2.0) -> bool:
        self.may_take_s.append(timeout_s)
        return self.answering and self._alive() and not (self.loading or self._stopping)

    def terminate(self) -> None:
        self.said.append("terminate")
        if self.answering:
            self.die()

    def kill(self) -> None:
        self.said.append("kill")
        self.answering, self.lost = True, False
        self.die(-signal.SIGKILL)

    def die(self, status: int = 0) -> None:
        with self._dying:
            if self._alive():
                self._ended = Exit(self.pid, None if self._adopted else status)
                os.write(self._writer, b"x")

    def close(self) -> None:
        with self._dying:
            for descriptor in (self._reader, self._writer):
                if descriptor >= 0:
                    os.close(descriptor)
            self.pid, self._reader, self._writer = 0, -1, -1
            self._ended, self.starting = None, False

    def _begin(self, pid: int, *, adopted: bool = False) -> None:
        self.pid = pid
        self._adopted = adopted
        self._closed_public = False
        self._workers = 1
        self._reader, self._writer = os.pipe()

    def _alive(self) -> bool:
        return bool(self.pid) and self._ended is None


class FakePool:
    """SPOE workers that are none; `tests/integration/test_pool_contract.py` holds it against real ones."""

    def __init__(self, workers: int = 2) -> None:
        self.zygote_pid = 1
        self.policies: list[Policy] = []
        self.respawned: list[int] = []
        self.zygotes = 0
        # Why sockets that somebody removed cannot be bound.
        self.lost = ""
        self.looks = 0
        self._phases = [WorkerPhase.READY] * workers
        self._versions: list[int | None] = [None] * workers
        self._starts = [1] * workers
        self._events: queue.Queue[PoolEvent | Exception | None] = queue.Queue()

    def set_policy(self, policy: Policy) -> None:
        if self.policies and policy.version < self.policies[-1].version:
            return
        self.policies.append(policy)
        for index, phase in enumerate(self._phases):
            if phase is not WorkerPhase.EXITED:
                self.happen(PolicyApplied(index, policy.version))

    def poll(self, timeout_s: float | None) -> tuple[PoolEvent, ...]:
        try:
            found = [self._events.get(timeout=timeout_s)]
        except queue.Empty:
            return ()
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._events.get_nowait())
        for failure in found:
            if isinstance(failure, Exception):
                raise failure
        events = tuple(event for event in found if event is not None and not isinstance(event, Exception))
        for event in events:
            self._take(event)
        return events

    def replace_hung(self, misses: int) -> tuple[str, ...]:
        return ()

    def restore_sockets(self) -> tuple[str, ...]:
        self.looks += 1
        if self.lost:
            raise SpoePoolError(self.lost)
        return ()

    def wake(self) -> None:
        self._events.put(None)

    def workers(self) -> tuple[WorkerState, ...]:
        return tuple(self._state(index) for index in range(len(self._phases)))

    def respawn(self, index: int) -> None:
        if self._phases[index] is not WorkerPhase.EXITED:
            phase = self._phases[index].value
            raise SpoePoolError(f"expected SPOE worker {index + 1} to have exited; it is {phase}")
        if not self.zygote_pid:
            raise SpoePoolError(f"cannot start SPOE worker {index + 1}: its zygote is gone, restart that first")
        self.respawned.append(index)
        self._starts[index] += 1
        self._phases[index], self._versions[index] = WorkerPhase.STARTING, None
        self.happen(WorkerReady(index, self._pid(index)))
        if self.policies:
            self.happen(PolicyApplied(index, self.policies[-1].version))

    def respawn_zygote(self) -> None:
        self.zygotes += 1
        self.zygote_pid = 1 + self.zygotes

    def happen(self, event: PoolEvent | Exception) -> None:
        """The next `poll` tells it, or raises it; what it means for a worker is so from then on."""
        self._events.put(event)

    def _pid(self, index: int) -> int:
        return 100 * self._starts[index] + index

    def _state(self, index: int) -> WorkerState:
        phase, starts = self._phases[index], self._starts[index]
        if phase is WorkerPhase.EXITED:
            return WorkerState(index, "", phase, 0, None, starts)
        return WorkerState(index, "", phase, self._pid(index), self._versions[index], starts)

    def _take(self, event: PoolEvent) -> None:
        match event:
            case WorkerReady(index):
                self._phases[index] = WorkerPhase.READY
            case PolicyApplied(index, version):
                self._versions[index] = version
            case WorkerExited(index, pid) if pid == self._pid(index):
                self._phases[index] = WorkerPhase.EXITED
            case ZygoteExited():
                self.zygote_pid = 0


class FakeMaps:
    """HAProxy's two maps in memory; `tests/integration/test_caller_maps.py` holds it against the real ones.

    Args:
        running: whether a HAProxy with these maps runs.
    """

    remembers = True
    has_lines = True
    before_rules = ""

    def __init__(self, *, running: bool = True) -> None:
        self.running = running
        self.silent = False
        self.disk_full = False
        # None: every caller has one as soon as somebody looks.
        self.with_line: set[str] | None = None
        self.refusing_rules = False
        self.loaded: dict[str, dict[str, str]] = {"identities": {}, "verdicts": {}, "rules": {}}
        self.stored: dict[str, dict[str, str]] = {"identities": {}, "verdicts": {}, "rules": {}}
        # Verdicts and sessions of a worker that stops, how often it was told, and how often it will not answer yet.
        self.stopping: dict[str, str] = {}
        self.stopping_sessions: list[tuple[str, str]] = []
        self.stopping_told = 0
        self.stopping_hangs = 0
        self.done: list[str] = []
        self.failed: list[str] = []
        # Line of the application's backend, and where the caller calls from; `app` is the common line.
        self.sessions: list[tuple[str, str]] = []
        # Those that come right after the next cut.
        self.comes_then: list[tuple[str, str]] = []
        # How many times more they cannot be cut.
        self.failing_cuts = 0

    def stored_identities(self) -> dict[str, str]:
        return dict(self.stored["identities"])

    def store_identities(self, entries: Mapping[str, str]) -> None:
        self._store("identities", entries)

    def store_verdicts(self, entries: Mapping[str, str]) -> None:
        self._store("verdicts", entries)
        self.done.append("store verdicts")

    def store_rules(self, entries: Mapping[str, str]) -> None:
        self._store("rules", entries)

    def rules(self) -> dict[str, str] | None:
        return self._read("rules")

    def replace_rules(self, wanted: Mapping[str, str]) -> bool:
        if self._read("rules") is None:
            return False
        if self.refusing_rules:
            raise ControlError("expected HAProxy to add to a map, it answered: regex '..' is invalid")
        self.loaded["rules"] = dict(wanted)
        self.done.append("replace rules")
        return True

    def identities(self) -> dict[str, str] | None:
        return self._read("identities")

    def verdicts(self) -> dict[str, str] | None:
        return self._read("verdicts")

    def change_identities(self, change: MapChange) -> bool:
        if self._read("identities") is None:
            return False
        self._change("identities", change)
        return True

    def change_verdicts(self, change: MapChange, wanted: Mapping[str, str]) -> bool:
        if self._read("verdicts") is None:
            return False
        self._change("verdicts", change)
        assert self.loaded["verdicts"] == dict(wanted)
        return True

    def listening(self) -> bool:
        return self.running

    def lines(self) -> frozenset[str]:
        verdicts = self._read("verdicts")
        if self.with_line is None and verdicts is not None:
            return frozenset(map(key_name, verdicts))
        return frozenset(self.with_line or ())

    def cut(self, sessions: DeniedSessions) -> tuple[str | None, ...]:
        if self.silent or self.failing_cuts:
            self.failing_cuts -= not self.silent
            raise ControlError("the runtime socket does not answer")
        cut: tuple[str | None, ...] = ()
        if self.running:
            left, cut = _without(self.sessions, sessions)
            self.sessions = left + self.comes_then
            self.comes_then = []
        self.done.append("cut")
        return cut

    def tell_stopping(
        self, wanted: Mapping[str, str], left: Collection[str], sessions: DeniedSessions | None
    ) -> tuple[tuple[str | None, ...], ControlError | None]:
        if self.stopping_hangs:
            self.stopping_hangs -= 1
            return (), ControlError("worker 7 does not answer")
        change = map_change(self.stopping, wanted)
        self.stopping |= {key: value for key, value in change.changed if key not in left}
        self.stopping = {key: value for key, value in self.stopping.items() if key in wanted or key in left}
        cut: tuple[str | None, ...] = ()
        if sessions is not None:
            self.stopping_sessions, cut = _without(self.stopping_sessions, sessions)
        self.stopping_told += 1
        return cut, None

    def _read(self, name: str) -> dict[str, str] | None:
        if self.silent:
            self.failed.append(name)
            raise ControlError("the runtime socket does not answer")
        return dict(self.loaded[name]) if self.running else None

    def _store(self, name: str, entries: Mapping[str, str]) -> None:
        if self.disk_full:
            if name == "verdicts":
                self.stored[name] = {}
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.stored[name] = dict(entries)

    def _change(self, name: str, change: MapChange) -> None:
        entries = self._read(name)
        assert entries is not None
        assert not entries.keys() & dict(change.added).keys(), "a second entry with the same key"
        assert entries.keys() >= dict(change.changed).keys(), "nothing there to be changed"
        self.done.append(f"change {name}")
        self.loaded[name].update(dict(change.added) | dict(change.changed))
        for key in change.removed:
            self.loaded[name].pop(key, None)


def _without(
    found: list[tuple[str, str]], sessions: DeniedSessions
) -> tuple[list[tuple[str, str]], tuple[str | None, ...]]:
    """Sessions that stay, and whose the others were."""
    owners = [sessions.owner(peer) if line == APP else line for line, peer in found]
    stay = [session for session, owner in zip(found, owners, strict=True) if not sessions.denied(owner)]
    return stay, tuple(owner for owner in owners if sessions.denied(owner))


class FakeLeaves:
    """HAProxy's map of leaves in memory; `tests/integration/test_leaf_map.py` holds it against the real one.

    Args:
        running: whether a HAProxy with this map runs.
    """

    looks = True

    def __init__(self, *, running: bool = True) -> None:
        self.running = running
        self.silent = False
        self.full = False
        self.stores = 0
        self.loaded: dict[str, str] = {}
        self.stored: dict[str, str] = {}
        # Address, port and backends.
        self.backends = ["up:web:9191:to"]
        self.taken_out: list[tuple[str, int, frozenset[str]]] = []
        # A worker that stops, and of whom it was told, by address.
        self.stopping_hangs = False
        self.told_stopping: list[frozenset[str]] = []

    def store(self, entries: Mapping[str, str]) -> None:
        self.stores += 1
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "leaves.map")
        self.stored = dict(entries)

    def entries(self) -> dict[str, str] | None:
        self._answer()
        return dict(self.loaded) if self.running else None

    def change(self, change: MapChange) -> bool:
        self._answer()
        if self.running:
            assert not self.loaded.keys() & dict(change.added).keys(), "a second entry with the same key"
            assert self.loaded.keys() >= dict(change.changed).keys(), "nothing there to be changed"
            self.loaded |= dict(change.added) | dict(change.changed)
            self.loaded = {key: value for key, value in self.loaded.items() if key not in change.removed}
        return self.running

    def take_out(self, meant: Meant) -> bool:
        self._answer()
        if self.running:
            self.taken_out += [(*place, frozenset(filter(holds, self.backends))) for place, holds in meant.items()]
        return self.running

    def take_out_of_stopping(self, meant: Meant) -> ControlError | None:
        self.told_stopping.append(frozenset(address for address, _ in meant))
        return ControlError("worker 1: HAProxy does not answer") if self.stopping_hangs else None

    def _answer(self) -> None:
        if self.silent:
            raise ControlError("the runtime socket does not answer")


class FakeProber:
    """Probes that end as a test says. `FakeProbers.make` makes them.

    `tests/integration/test_prober_contract.py` holds it against the real Prober.
    """

    def __init__(self, deliver: Callable[[tuple[Probed, ...]], None], *, startable: bool = True) -> None:
        self.asked: list[Peer] = []
        self.running = False
        self._deliver = deliver
        self._startable = startable
        # The actor asks while a test answers.
        self._asking = threading.Lock()

    def start(self) -> None:
        if not self._startable:
            raise OSError(errno.EAGAIN, "can't start new thread")
        self.running = True

    def stop(self) -> None:
        self.running = False

    def ask(self, peers: Iterable[Peer], context: object) -> None:
        with self._asking:
            self.asked.extend(peers)

    def answer(self, outcomes: Mapping[str, Outcome]) -> None:
        """End the probes of these addresses."""
        with self._asking:
            ended = [peer for peer in self.asked if peer.address in outcomes]
            self.asked = [peer for peer in self.asked if peer.address not in outcomes]
        if self.running and ended:
            self._deliver(tuple(Probed(peer, outcomes[peer.address]) for peer in ended))

    def fail(self) -> None:
        self.running = False
        self._deliver(())


class FakeProbers:
    """All probers that were made; as many as `failing` cannot be, and as many as `stillborn` cannot be started."""

    def __init__(self) -> None:
        self.made: list[FakeProber] = []
        self.failing = 0
        self.stillborn = 0

    def make(self, deliver: Callable[[tuple[Probed, ...]], None]) -> FakeProber:
        if self.failing:
            self.failing -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        self.made.append(FakeProber(deliver, startable=not self.stillborn))
        self.stillborn = max(0, self.stillborn - 1)
        return self.made[-1]

    @property
    def now(self) -> FakeProber:
        return self.made[-1]
