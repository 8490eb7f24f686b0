"""Control of HAProxy over its own sockets; whatever concerns the text is left to a `Store`.

Shared by both back ends: `hcc.haproxy.direct` and `hcc.haproxy.dataplane` differ in their store alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol, TypeVar

from hcc.haproxy import commands
from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.control import Applied, ApplyError, ControlError, Taken
from hcc.haproxy.description import structure_of
from hcc.haproxy.files import is_below, read_text
from hcc.haproxy.layout import Layout
from hcc.haproxy.listeners import taken_binds
from hcc.haproxy.model import ActualServers, Desired, Server
from hcc.haproxy.outcome import outcome
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
    SetServerState,
    SetServerWeight,
    SetTicketKeys,
    WriteConfig,
)
from hcc.haproxy.process import children, recorded_pid
from hcc.haproxy.render import Rendered
from hcc.haproxy.render_public import is_unguarded
from hcc.haproxy.replies import (
    Info,
    ReplyError,
    parse_backends,
    parse_ca_file,
    parse_certificate,
    parse_listeners,
    parse_servers,
    parse_ticket_keys,
    parse_without_tls,
)
from hcc.haproxy.runtime import NotListeningError, RuntimeSocket, RuntimeSocketError
from hcc.haproxy.side_files import stored_digest, write_ticket_keys

# How long deletions, or slots to be freed, wait together for last connections. No other change is applied meanwhile, so
# it is no longer than changes are gathered anyway; what is left stays in maintenance and is planned again.
DELETE_BUDGET_S = 0.05
BATCH = 40
# For whether it runs, which a start of hcc waits for.
ASK_TIMEOUT_S = 2.0
# HAProxy makes a TLS context for each, half a millisecond in which a thread of it does nothing else.
ADD_BATCH = 10

_log = logging.getLogger(__name__)

_Leaving = TypeVar("_Leaving", DeleteServer, FreeSlot)


class Store(Protocol):
    """Keeps the configuration text, and makes HAProxy run it. Each method raises ControlError."""

    def config(self, rendered: Rendered) -> str | None:
        """The text on disk, `rendered.config` when it means the same; None when there is none."""

    def install(self, operation: Install) -> None:
        """Check and write; nothing runs yet."""

    def write(self, operation: WriteConfig) -> None:
        """Write what runs already."""

    def reload(self, operation: Reload) -> None:
        """Check, write, and let a new worker take over; a failure leaves the last good text."""


class SocketControl:
    """Implements `hcc.haproxy.control.Control`."""

    def __init__(self, layout: Layout, capabilities: Capabilities, store: Store) -> None:
        self._directory = layout.directory
        self._config = layout.config
        self._pid_file = layout.pid_file
        self._capabilities = capabilities
        self._store = store
        # Texts are written one after the other, whichever thread it is.
        self._storing = threading.Lock()
        self._runtime = RuntimeSocket(layout.stats_socket, capabilities.payload_bytes, master=layout.master_socket)
        self._asked = RuntimeSocket(layout.stats_socket, timeout_s=ASK_TIMEOUT_S, master=layout.master_socket)
        self._told_through_master = False
        # By us: whatever version runs since then is the one that is installed.
        self._has_reloaded = False
        # What runs as far as we know; None when something happened that we did not follow.
        self._known: Actual | None = None
        # What the last plan left to wait for; the next one only looks whether it is time.
        self._pending: frozenset[Operation] = frozenset()

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def running(self) -> bool:
        try:
            self._asked.info()
        except RuntimeSocketError as exc:
            # Whatever keeps one that listens from answering, it is there.
            return not isinstance(exc, NotListeningError)
        return True

    def unguarded(self) -> bool:
        try:
            info, text = self._runtime.info(), read_text(self._config) or ""
        except (RuntimeSocketError, OSError):
            return True
        is_what_runs = bool(info.structure) and structure_of(text) == info.structure
        return not is_what_runs or is_unguarded(text)

    def servers(self) -> ActualServers:
        try:
            return parse_servers(self._runtime.send("show servers state"))
        except NotListeningError:
            return ()
        except ReplyError as exc:
            raise ControlError(str(exc)) from exc

    def glance(self) -> Actual | None:
        known = self._known
        if known is None:
            return None
        try:
            info = self._runtime.info()
        except NotListeningError:
            return None
        same = (info.pid, info.structure) == (known.pid, known.structure)
        return known if same else None

    def read_actual(self, rendered: Rendered) -> Actual:
        self._known = None
        config = self._store.config(rendered)
        files = tuple(file for file in rendered.files if read_text(file.path) == file.text)
        on_disk = Actual(config=config, files=files, stored_ticket_keys=stored_digest(rendered.desired.ticket_keys))
        try:
            info = self._runtime.info()
        except NotListeningError:
            return on_disk
        self._tell_the_way()
        if not self._has_reloaded and not self._capabilities.fit(info.version):
            # Started before the program was replaced by another version: it may not know the questions, nor bear the
            # changes, that are meant for that one, which comes by a reload.
            return replace(on_disk, running=True, pid=info.pid, structure=f"that of HAProxy {info.version}")
        try:
            self._known = self._running(rendered, info, on_disk)
        except ReplyError as exc:
            raise ControlError(str(exc)) from exc
        return self._known

    def taken(self, desired: Desired, actual: Actual) -> tuple[Taken, ...]:
        found = taken_binds(desired.binds(), (actual.pid,) if actual.pid else (), self._directory)
        if not found or actual.pid or (master := recorded_pid(self._pid_file)) is None:
            return found
        # It has been started since, and may not answer yet: the ports are its own.
        return taken_binds(desired.binds(), (master, *children(master)), self._directory)

    def apply(self, plan: Plan) -> Applied:
        at_once, written = plan.parted()
        if not at_once:
            return self._written(written)
        known, self._known = self._known, None
        done: list[Operation] = []
        pending: list[Operation] = []
        batch = plan.operations[:1]
        try:
            for batch in _batches(plan.operations):
                late = self._carry_out(batch)
                pending.extend(late)
                done.extend(operation for operation in batch if operation not in late)
        except (ControlError, ReplyError, OSError) as exc:
            return Applied(tuple(done), tuple(pending), _reloaded(done), _failure(exc, batch[0]))
        finally:
            self._pending = frozenset(pending)
        self._known = _followed(known, done, pending)
        return Applied(tuple(done), tuple(pending), _reloaded(done))

    def _written(self, plan: Plan) -> Applied:
        """Changes nothing of what this object knows: it may not be its owner who calls."""
        try:
            for operation in plan.operations:
                self._carry_out((operation,))
        except (ControlError, ReplyError, OSError) as exc:
            return Applied((), failure=_failure(exc, plan.operations[0]))
        return Applied(plan.operations)

    def _tell_the_way(self) -> None:
        """A line in the log when commands begin, or cease, to go through the master."""
        through_master = self._runtime.through_master
        if through_master != self._told_through_master:
            self._told_through_master = through_master
            if through_master:
                _log.warning("HAProxy no longer listens on its runtime socket; commands go through its master")
            else:
                _log.info("HAProxy listens on its runtime socket again")

    def _running(self, rendered: Rendered, info: Info, on_disk: Actual) -> Actual:
        ask, backends = self._runtime.send, rendered.desired.backends
        state = ask("show servers state")
        wanted = {backend.name: backend.servers for backend in backends}
        servers = {name: _same_objects(listed, wanted.get(name, ())) for name, listed in parse_servers(state)}
        with_tls = {(backend.name, one.name) for backend in backends if backend.tls for one in backend.servers}
        shut_are_listed = self._capabilities.has(Feature.SHUT_IS_LISTED)
        found = replace(
            on_disk,
            running=True,
            pid=info.pid,
            structure=info.structure,
            max_connections=info.max_connections,
            most_connections=info.most_connections,
            rate_limits=info.rate_limits,
            listeners=parse_listeners(ask("show stat -1 1 -1"), shut_are_listed=shut_are_listed),
            servers=tuple((name, servers.get(name, ())) for name in parse_backends(ask("show backend"))),
            without_tls=tuple(one for one in parse_without_tls(state) if one in with_tls),
        )
        return self._with_loaded(rendered, found)

    def _with_loaded(self, rendered: Rendered, found: Actual) -> Actual:
        """The same with the certificates, CAs and ticket keys that HAProxy has in its memory."""
        ask, keys = self._runtime.send, rendered.desired.ticket_keys
        # What cannot be replaced at run time belongs to the structure, and an old HAProxy cannot show it.
        ca_files = rendered.desired.ca_files if rendered.replaces_cas else ()
        certificates = rendered.desired.certificates if rendered.replaces_certificates else ()
        cas = ((file.name, parse_ca_file(ask(f"show ssl ca-file {file.name}"))) for file in ca_files)
        leaves = ((file.name, parse_certificate(ask(f"show ssl cert {file.name}"))) for file in certificates)
        return replace(
            found,
            certificates=tuple((name, loaded) for name, loaded in leaves if loaded is not None),
            ca_files=tuple((name, loaded) for name, loaded in cas if loaded is not None),
            ticket_keys=parse_ticket_keys(ask(f"show tls-keys {keys.name}")) if keys else "",
        )

    def _carry_out(self, batch: tuple[Operation, ...]) -> tuple[Operation, ...]:
        """Nothing, or the deletions and slots that have to wait. Raises ApplyError."""
        first = batch[0]
        if isinstance(first, DeleteServer):
            deletions = [operation for operation in batch if isinstance(operation, DeleteServer)]
            return self._take_out(deletions, self._not_deleted)
        if isinstance(first, FreeSlot):
            return self._take_out([operation for operation in batch if isinstance(operation, FreeSlot)], self._not_free)
        if isinstance(first, Reload | Install | WriteConfig):
            self._keep(first)
        else:
            if isinstance(first, SetTicketKeys):
                _store_keys(first)
            self._at_run_time(batch)
        return ()

    def _keep(self, operation: Reload | Install | WriteConfig) -> None:
        app = operation.rendered.desired.app
        if app and app.socket and is_below(app.socket, self._directory):
            # By a link: who decides what is wanted sees the words alone.
            msg = f"the application's address cannot be used: {app.socket} leads to files of hcc"
            raise ApplyError(msg, operation.describe())
        with self._storing:
            if isinstance(operation, Reload):
                self._store.reload(operation)
                self._has_reloaded = True
            elif isinstance(operation, Install):
                self._store.install(operation)
            else:
                self._store.write(operation)

    def _at_run_time(self, batch: tuple[Operation, ...]) -> None:
        commands.run(self._runtime, batch, self._capabilities)

    def _take_out(
        self, batch: list[_Leaving], remaining: Callable[[list[_Leaving]], list[_Leaving]]
    ) -> tuple[Operation, ...]:
        """Into maintenance, then asked again until nothing new remains or the time is over."""
        states = tuple(SetServerState(operation.backend, operation.server, False) for operation in batch)
        for part in _batches(states):
            self._at_run_time(part)
        deadline = time.monotonic() + DELETE_BUDGET_S
        waiting = remaining(batch)
        # Not by `wait .. srv-removable`: it ends at once when our side of the connection is closed (3.0.11, 3.2.26).
        while not self._pending.issuperset(waiting) and time.monotonic() < deadline:
            time.sleep(0.02)
            waiting = remaining(waiting)
        return tuple(waiting)

    def _not_deleted(self, batch: list[DeleteServer]) -> list[DeleteServer]:
        return [operation for operation in batch if not commands.delete(self._runtime, operation)]

    def _not_free(self, batch: list[FreeSlot]) -> list[FreeSlot]:
        busy = {backend: commands.busy(self._runtime, backend) for backend in {slot.backend for slot in batch}}
        for slot in batch:
            if slot.server not in busy[slot.backend]:
                commands.free(self._runtime, slot)
        return [slot for slot in batch if slot.server in busy[slot.backend]]


def _store_keys(operation: SetTicketKeys) -> None:
    """On disk for the next start; a full one keeps nothing back that HAProxy is to do now.

    What is missing there is seen when all is read back, and written with the text.
    """
    try:
        write_ticket_keys(operation.file)
    except OSError as exc:
        _log.error("ticket keys cannot be written for HAProxy's next start: %s", exc.strerror)


def _failure(error: Exception, operation: Operation) -> ApplyError:
    return error if isinstance(error, ApplyError) else ApplyError(str(error), operation.describe())


def _followed(known: Actual | None, done: list[Operation], pending: list[Operation]) -> Actual | None:
    """What runs after these; None where that has to be seen."""
    if known is None or any(isinstance(operation, Reload | Install) for operation in done):
        return None
    at_run_time = [operation for operation in done if not isinstance(operation, Reload | Install | WriteConfig)]
    # Those that wait are in maintenance.
    waiting = [
        SetServerState(operation.backend, operation.server, False)
        for operation in pending
        if isinstance(operation, DeleteServer | FreeSlot)
    ]
    return outcome(known, (*at_run_time, *waiting))


def _same_objects(found: tuple[Server, ...], wanted: tuple[Server, ...]) -> tuple[Server, ...]:
    """Those found, by the objects that are wanted where they are equal: the next plan compares identities."""
    by_name = {server.name: server for server in wanted}
    return tuple(one if (other := by_name.get(one.name)) is None or other != one else other for one in found)


def _batches(operations: tuple[Operation, ...]) -> Iterator[tuple[Operation, ...]]:
    """Operations of one kind whose answers can be told apart go together: an exchange costs more than a command."""
    batch: list[Operation] = []
    for operation in operations:
        if batch and not (_joins(batch[0], operation) and len(batch) < _room(operation)):
            yield tuple(batch)
            batch = []
        batch.append(operation)
    if batch:
        yield tuple(batch)


def _joins(first: Operation, second: Operation) -> bool:
    together = SetServerState | SetServerWeight | AddServer | AddCaller | FreeSlot | DeleteServer
    return type(first) is type(second) and isinstance(first, together)


def _room(operation: Operation) -> int:
    if isinstance(operation, AddServer | AddCaller):
        return ADD_BATCH
    return 1_000_000 if isinstance(operation, FreeSlot | DeleteServer) else BATCH


def _reloaded(done: list[Operation]) -> bool:
    return any(isinstance(operation, Reload) for operation in done)
