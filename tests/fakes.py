"""Working stand-ins for the edges: fast, and with faults that cannot be had for real.

`tests/integration/test_control_contract.py` holds FakeControl against the real DirectControl.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from hcc.actors.actor import Actor
from hcc.consul.answers import Answer
from hcc.consul.keys import WatchKey
from hcc.consul.watch import WatchEvent, WatchFailed, WatchValue
from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.control import Applied, ApplyError, ControlError, Taken
from hcc.haproxy.map_text import MapChange
from hcc.haproxy.model import ActualServer, ActualServers, Bind, Desired
from hcc.haproxy.plan import (
    Actual,
    AddCaller,
    AddServer,
    DeleteServer,
    FreeSlot,
    Install,
    Operation,
    Plan,
    Reload,
    ServerOperation,
    SetCa,
    SetCertificate,
    SetServerAddress,
    SetServerState,
    SetServerWeight,
    SetTicketKeys,
    WriteConfig,
)
from hcc.haproxy.process import Exit, LaunchError
from hcc.haproxy.render import Rendered
from hcc.haproxy.slots import SPARE_ADDRESS, SPARE_PORT
from hcc.mesh.intentions import Policy
from hcc.spoe.events import PolicyApplied, PoolEvent, WorkerExited, WorkerPhase, WorkerReady, WorkerState
from tests.builders import V2_6


@dataclass
class FakeControl:
    """A HAProxy in memory.

    Args:
        refusing: reloads and installs fail with this text.
        silent: nothing can be read.
        taken_binds: addresses that somebody else has.
    """

    capabilities: Capabilities = V2_6
    actual: Actual = field(default_factory=Actual)
    refusing: str = ""
    silent: bool = False
    taken_binds: tuple[Bind, ...] = ()
    plans: list[Plan] = field(default_factory=list)

    def running(self) -> bool:
        return self.actual.running

    def servers(self) -> ActualServers:
        if self.silent:
            raise ControlError("the runtime socket does not answer")
        return () if self.capabilities.has(Feature.DYNAMIC_SERVERS) else self.actual.servers

    def read_actual(self, rendered: Rendered) -> Actual:
        if self.silent:
            raise ControlError("the runtime socket does not answer")
        return self.actual

    def taken(self, desired: Desired, actual: Actual) -> tuple[Taken, ...]:
        return tuple(Taken(bind, "in use") for bind in desired.binds() if bind in self.taken_binds)

    def apply(self, plan: Plan) -> Applied:
        self.plans.append(plan)
        done: list[Operation] = []
        for operation in plan.operations:
            if self.refusing and isinstance(operation, Reload | Install):
                failure = ApplyError(f"HAProxy refuses: {self.refusing}", operation.describe())
                return Applied(tuple(done), failure=failure)
            self.actual = changed(self.actual, operation)
            done.append(operation)
        return Applied(tuple(done), reloaded=plan.reloads)

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
        case SetCa(file):
            cas = dict(actual.ca_files) | {file.name: file.fingerprints}
            return replace(actual, ca_files=tuple(cas.items()))
        case SetCertificate(file):
            leaves = dict(actual.certificates) | {file.name: file.fingerprint}
            return replace(actual, certificates=tuple(leaves.items()))
        case SetTicketKeys(file):
            return replace(actual, ticket_keys=file.digest)
        case Install(rendered) | WriteConfig(rendered):
            return replace(actual, config=rendered.config, files=rendered.files)
        case Reload(rendered):
            return loaded(actual, rendered, pid=actual.pid + 1)
        case _:
            return replace(actual, servers=tuple(_servers(actual, operation)))


def loaded(actual: Actual, rendered: Rendered, pid: int) -> Actual:
    """What runs after HAProxy started with these files."""
    desired = rendered.desired
    return replace(
        actual,
        running=True,
        pid=pid,
        structure=rendered.structure,
        servers=tuple(
            (
                backend.name,
                tuple(ActualServer(s.name, s.address, s.port, s.weight, s.enabled) for s in backend.servers),
            )
            for backend in desired.backends
        )
        + _app(rendered),
        certificates=tuple((file.name, file.fingerprint) for file in desired.certificates),
        ca_files=tuple((file.name, file.fingerprints) for file in desired.ca_files),
        ticket_keys=desired.ticket_keys.digest if desired.ticket_keys else "",
        config=rendered.config,
        files=rendered.files,
    )


def _app(rendered: Rendered) -> tuple[tuple[str, tuple[ActualServer, ...]], ...]:
    app = rendered.desired.app
    if app is None:
        return ()
    callers = app.callers if rendered.caller_lines else ()
    lines = ((app.name, 1), *((caller, 0) for caller in callers))
    return (
        (app.name, tuple(sorted(ActualServer(name, app.address, app.port, weight, True) for name, weight in lines))),
    )


def _servers(actual: Actual, operation: Operation) -> list[tuple[str, tuple[ActualServer, ...]]]:
    if isinstance(operation, AddCaller):
        app = operation.app
        line = ActualServer(operation.caller, app.address, app.port, 0, True)
        return [(name, tuple(sorted((*found, line))) if name == app.name else found) for name, found in actual.servers]
    assert isinstance(operation, ServerOperation)
    return [
        (name, _backend(servers, operation) if name == operation.backend else servers)
        for name, servers in actual.servers
    ]


def _backend(servers: tuple[ActualServer, ...], operation: Operation) -> tuple[ActualServer, ...]:
    by_name = {server.name: server for server in servers}
    match operation:
        case AddServer(_, server, _):
            by_name[server.name] = ActualServer(server.name, server.address, server.port, server.weight, server.enabled)
        case DeleteServer(_, name):
            del by_name[name]
        case SetServerAddress(_, name, address, port):
            by_name[name] = replace(by_name[name], address=address, port=port)
        case SetServerWeight(_, name, weight):
            by_name[name] = replace(by_name[name], weight=weight)
        case SetServerState(_, name, ready):
            by_name[name] = replace(by_name[name], enabled=ready)
        case FreeSlot(_, name):
            by_name[name] = replace(by_name[name], address=SPARE_ADDRESS, port=SPARE_PORT, enabled=False)
    return tuple(sorted(by_name.values()))


class Ear(Actor):
    """Takes the place of an actor and writes down what it is told."""

    def init(self, *, heard: list[object]) -> None:
        self._heard = heard

    def handle(self, message: object) -> None:
        self._heard.append(message)


class FakeWatcher:
    """A watch that says what a test wants. `FakeWatchers.make` makes them."""

    def __init__(self, key: WatchKey, deliver: Callable[[WatchKey, WatchEvent], None]) -> None:
        self.key = key
        self.running = False
        self._deliver = deliver

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False

    def say(self, event: WatchEvent) -> None:
        self._deliver(self.key, event)


class FakeWatchers:
    """All watches that were made."""

    def __init__(self) -> None:
        self.made: list[FakeWatcher] = []

    def make(self, key: WatchKey, deliver: Callable[[WatchKey, WatchEvent], None]) -> FakeWatcher:
        watcher = FakeWatcher(key, deliver)
        self.made.append(watcher)
        return watcher

    def running(self) -> set[WatchKey]:
        return {watcher.key for watcher in self.made if watcher.running}

    def say(self, key: WatchKey, value: Answer) -> None:
        """An answer of Consul to whoever watches that now."""
        current = next(watcher for watcher in reversed(self.made) if watcher.running and watcher.key == key)
        current.say(WatchValue(value, 1, 0.0))

    def fail(self, key: WatchKey, error: Exception) -> None:
        current = next(watcher for watcher in reversed(self.made) if watcher.running and watcher.key == key)
        current.say(WatchFailed(error, 1.0, 0.0))


class FakeProcess:
    """A HAProxy process that is none. Its death is a byte in a pipe.

    Args:
        left_running: process id that an earlier hcc left, 0 for none.
        failing: launches that fail before one succeeds.
    """

    def __init__(self, left_running: int = 0, failing: int = 0) -> None:
        self.pid = 0
        self.said: list[str] = []
        self.launched = 0
        self.public = True
        self.answering = True
        self.in_flight = 0
        self._left_running = left_running
        self._failing = failing
        self._reader, self._writer = -1, -1

    def fileno(self) -> int:
        return self._reader

    def adopt(self) -> int | None:
        if not self._left_running:
            return None
        self._begin(self._left_running)
        return self.pid

    def launch(self) -> int:
        self.launched += 1
        if self._failing:
            self._failing -= 1
            raise LaunchError("HAProxy ended at once: [ALERT] no")
        self._begin(1000 + self.launched)
        return self.pid

    def wait_ready(self, structure: str = "", timeout_s: float = 30.0) -> int:
        return self.pid + 1

    def reap(self) -> Exit | None:
        if not self.pid:
            return None
        ended = Exit(self.pid, 0)
        self.close()
        return ended

    def close_public(self) -> bool:
        self.said.append("close public")
        return self.public

    def requests_in_flight(self) -> int:
        return self.in_flight

    def answers(self, timeout_s: float) -> bool:
        return self.answering

    def silent(self, timeout_s: float) -> str:
        return "" if self.answering else "worker"

    def stop_gracefully(self) -> None:
        self.said.append("stop gracefully")

    def terminate(self) -> None:
        self.said.append("terminate")

    def kill(self) -> None:
        self.said.append("kill")
        if not self.answering:
            self.answering = True
            self.die()

    def die(self) -> None:
        os.write(self._writer, b"x")

    def close(self) -> None:
        for descriptor in (self._reader, self._writer):
            if descriptor >= 0:
                os.close(descriptor)
        self.pid, self._reader, self._writer = 0, -1, -1

    def _begin(self, pid: int) -> None:
        self.pid = pid
        self._reader, self._writer = os.pipe()


class FakePool:
    """SPOE workers that are none."""

    def __init__(self, workers: int = 2) -> None:
        self.zygote_pid = 1
        self.policies: list[Policy] = []
        self.respawned: list[int] = []
        self.zygotes = 0
        self._phases = [WorkerPhase.READY] * workers
        self._events: queue.Queue[PoolEvent | None] = queue.Queue()

    def set_policy(self, policy: Policy) -> None:
        self.policies.append(policy)
        for index, phase in enumerate(self._phases):
            if phase is WorkerPhase.READY:
                self.happen(PolicyApplied(index, policy.version))

    def poll(self, timeout_s: float | None) -> tuple[PoolEvent, ...]:
        event = self._events.get(timeout=10.0)
        return () if event is None else (event,)

    def replace_hung(self, misses: int) -> tuple[str, ...]:
        return ()

    def wake(self) -> None:
        self._events.put(None)

    def workers(self) -> tuple[WorkerState, ...]:
        version = self.policies[-1].version if self.policies else None
        return tuple(WorkerState(index, "", phase, 100 + index, version, 1) for index, phase in enumerate(self._phases))

    def respawn(self, index: int) -> None:
        self.respawned.append(index)
        self._phases[index] = WorkerPhase.READY
        self.happen(WorkerReady(index, 200 + index))

    def respawn_zygote(self) -> None:
        self.zygotes += 1
        self.zygote_pid = 2

    def happen(self, event: PoolEvent) -> None:
        if isinstance(event, WorkerExited):
            self._phases[event.index] = WorkerPhase.EXITED
        self._events.put(event)


class FakeMaps:
    """HAProxy's two maps in memory; `tests/integration/test_caller_maps.py` holds it against the real ones.

    Args:
        running: whether a HAProxy with these maps runs.
    """

    remembers = True

    def __init__(self, *, running: bool = True) -> None:
        self.running = running
        self.silent = False
        self.loaded: dict[str, dict[str, str]] = {"identities": {}, "verdicts": {}, "rules": {}}
        self.stored: dict[str, dict[str, str]] = {"identities": {}, "verdicts": {}, "rules": {}}
        self.done: list[str] = []
        self.cut_callers: list[tuple[str, ...]] = []

    def stored_identities(self) -> dict[str, str]:
        return dict(self.stored["identities"])

    def store_identities(self, entries: Mapping[str, str]) -> None:
        self.stored["identities"] = dict(entries)

    def store_verdicts(self, entries: Mapping[str, str]) -> None:
        self.done.append("store verdicts")
        self.stored["verdicts"] = dict(entries)

    def store_rules(self, entries: Mapping[str, str]) -> None:
        self.stored["rules"] = dict(entries)

    def rules(self) -> dict[str, str] | None:
        return self._read("rules")

    def replace_rules(self, wanted: Mapping[str, str]) -> None:
        self._read("rules")
        self.loaded["rules"] = dict(wanted)
        self.done.append("replace rules")

    def identities(self) -> dict[str, str] | None:
        return self._read("identities")

    def verdicts(self) -> dict[str, str] | None:
        return self._read("verdicts")

    def identities_loaded(self) -> bool:
        return self._read("identities") is not None

    def change_identities(self, change: MapChange) -> None:
        self._change("identities", change)

    def change_verdicts(self, change: MapChange, wanted: Mapping[str, str]) -> None:
        self._change("verdicts", change)
        assert self.loaded["verdicts"] == dict(wanted)

    def cut(self, callers: Collection[str], owner: Callable[[str], str | None]) -> int:
        self.done.append("cut")
        self.cut_callers.append(tuple(callers))
        return len(callers)

    def _read(self, name: str) -> dict[str, str] | None:
        if self.silent:
            raise ControlError("the runtime socket does not answer")
        return dict(self.loaded[name]) if self.running else None

    def _change(self, name: str, change: MapChange) -> None:
        entries = self._read(name)
        assert entries is not None
        assert not entries.keys() & dict(change.added).keys(), "a second entry with the same key"
        assert entries.keys() >= dict(change.changed).keys(), "nothing there to be changed"
        self.done.append(f"change {name}")
        self.loaded[name].update(dict(change.added) | dict(change.changed))
        for key in change.removed:
            self.loaded[name].pop(key, None)
