"""Control of HAProxy by its own means: file, `haproxy -c`, master socket, runtime socket."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hcc.haproxy import commands
from hcc.haproxy.capabilities import Capabilities
from hcc.haproxy.control import Applied, ApplyError, ControlError, Taken
from hcc.haproxy.files import read_text, remove, write_private
from hcc.haproxy.layout import Layout
from hcc.haproxy.listeners import taken_binds
from hcc.haproxy.model import Desired
from hcc.haproxy.plan import (
    Actual,
    DeleteServer,
    Install,
    Operation,
    Plan,
    Reload,
    SetServerState,
    SetServerWeight,
    WriteConfig,
)
from hcc.haproxy.render import SIDE_FILE, Rendered
from hcc.haproxy.replies import (
    Message,
    Processes,
    ReplyError,
    alerts,
    parse_backends,
    parse_ca_file,
    parse_certificate,
    parse_servers,
)
from hcc.haproxy.runtime import MasterSocket, NotListeningError, RuntimeSocket, RuntimeSocketError

CHECK_TIMEOUT_S = 60.0
RELOAD_TIMEOUT_S = 60.0
MASTER_TIMEOUT_S = 10.0
# How long deletions wait, together, for last connections; what is left stays in maintenance and is planned
# again.
DELETE_BUDGET_S = 0.5
BATCH = 40


class DirectControl:
    """Implements `hcc.haproxy.control.Control`."""

    def __init__(self, binary: str, layout: Layout, capabilities: Capabilities) -> None:
        self._binary = binary
        self._layout = layout
        self._capabilities = capabilities
        self._runtime = RuntimeSocket(layout.stats_socket, capabilities.payload_bytes)
        self._master = MasterSocket(layout.master_socket)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def running(self) -> bool:
        try:
            self._runtime.info()
        except RuntimeSocketError:
            return False
        return True

    def read_actual(self, rendered: Rendered) -> Actual:
        config = read_text(self._layout.config)
        files = tuple(file for file in rendered.files if read_text(file.path) == file.text)
        try:
            info = self._runtime.info()
        except NotListeningError:
            return Actual(config=config, files=files)
        try:
            return self._running(rendered, info.pid, info.structure, Actual(config=config, files=files))
        except ReplyError as exc:
            raise ControlError(str(exc)) from exc

    def taken(self, desired: Desired, actual: Actual) -> tuple[Taken, ...]:
        return taken_binds(desired.binds(), (actual.pid,) if actual.pid else ())

    def apply(self, plan: Plan) -> Applied:
        done: list[Operation] = []
        pending: list[Operation] = []
        batch = plan.operations[:1]
        try:
            for batch in _batches(plan.operations):
                late = self._carry_out(batch)
                pending.extend(late)
                done.extend(operation for operation in batch if operation not in late)
        except (ControlError, ReplyError, OSError) as exc:
            failure = exc if isinstance(exc, ApplyError) else ApplyError(str(exc), batch[0].describe())
            return Applied(tuple(done), tuple(pending), _reloaded(done), failure)
        return Applied(tuple(done), tuple(pending), _reloaded(done))

    def _running(self, rendered: Rendered, pid: int, structure: str, on_disk: Actual) -> Actual:
        ask = self._runtime.send
        servers = dict(parse_servers(ask("show servers state")))
        desired = rendered.desired
        # What cannot be replaced at run time belongs to the structure, and an old HAProxy cannot show it.
        ca_files = desired.ca_files if rendered.replaces_cas else ()
        certificates = desired.certificates if rendered.replaces_certificates else ()
        cas = ((file.name, parse_ca_file(ask(f"show ssl ca-file {file.name}"))) for file in ca_files)
        leaves = ((file.name, parse_certificate(ask(f"show ssl cert {file.name}"))) for file in certificates)
        return replace(
            on_disk,
            running=True,
            pid=pid,
            structure=structure,
            servers=tuple((name, servers.get(name, ())) for name in parse_backends(ask("show backend"))),
            certificates=tuple((name, found) for name, found in leaves if found is not None),
            ca_files=tuple((name, loaded) for name, loaded in cas if loaded is not None),
        )

    def _carry_out(self, batch: tuple[Operation, ...]) -> tuple[Operation, ...]:
        """Nothing, or the deletions that have to wait. Raises ApplyError."""
        first = batch[0]
        if isinstance(first, DeleteServer):
            return self._delete([operation for operation in batch if isinstance(operation, DeleteServer)])
        if isinstance(first, Reload):
            self._reload(first)
        elif isinstance(first, Install):
            self._install(first)
        elif isinstance(first, WriteConfig):
            self._write(first.rendered)
        else:
            self._at_run_time(batch)
        return ()

    def _at_run_time(self, batch: tuple[Operation, ...]) -> None:
        commands.run(self._runtime, batch, self._capabilities)

    def _delete(self, batch: list[DeleteServer]) -> tuple[Operation, ...]:
        states = tuple(SetServerState(operation.backend, operation.server, False) for operation in batch)
        for part in _batches(states):
            self._at_run_time(part)
        deadline = time.monotonic() + DELETE_BUDGET_S
        waiting = self._refused(batch)
        while waiting and time.monotonic() < deadline:
            time.sleep(0.02)
            waiting = self._refused(waiting)
        return tuple(waiting)

    def _refused(self, batch: list[DeleteServer]) -> list[DeleteServer]:
        runtime, capabilities = self._runtime, self._capabilities
        return [operation for operation in batch if not commands.delete(runtime, operation, capabilities)]

    def _install(self, operation: Install) -> None:
        self._check(operation.rendered, operation.describe())
        self._write(operation.rendered)

    def _write(self, rendered: Rendered) -> None:
        _write_side_files(rendered)
        write_private(self._layout.config, rendered.config)
        _remove_old_side_files(rendered)

    def _check(self, rendered: Rendered, operation: str) -> None:
        """Let HAProxy judge the text. Raises ApplyError with its line and message."""
        _write_side_files(rendered)
        write_private(self._layout.candidate, rendered.config)
        try:
            code, said = self._judgement()
        finally:
            remove(self._layout.candidate)
        if code:
            raise _refusal("HAProxy refuses the configuration", said, rendered.config, operation)

    def _judgement(self) -> tuple[int, str]:
        try:
            done = subprocess.run(
                [self._binary, "-c", "-f", self._layout.candidate],
                capture_output=True,
                timeout=CHECK_TIMEOUT_S,
                check=False,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise ApplyError(f"cannot let HAProxy check the configuration: {exc}") from exc
        return done.returncode, done.stderr + done.stdout

    def _reload(self, operation: Reload) -> None:
        rendered = operation.rendered
        self._check(rendered, operation.describe())
        last_good = read_text(self._layout.config)
        write_private(self._layout.config, rendered.config)
        try:
            self._take_over(rendered, operation.describe())
        except (ControlError, ReplyError):
            if last_good is not None:
                write_private(self._layout.config, last_good)
            raise
        _remove_old_side_files(rendered)

    def _take_over(self, rendered: Rendered, operation: str) -> None:
        before = self._processes()
        logged = _size(self._layout.log)
        answer = self._master.reload()
        if answer.success is False:
            raise _refusal("HAProxy's new worker did not start", answer.log, rendered.config, operation)
        deadline = time.monotonic() + RELOAD_TIMEOUT_S
        while not self._new_worker_runs(rendered, before):
            if self._failed_since(before) or time.monotonic() > deadline:
                said = (read_text(self._layout.log) or "")[logged:]
                raise _refusal("HAProxy's new worker did not start", said, rendered.config, operation)
            time.sleep(0.01)

    def _processes(self) -> Processes:
        """What the master says; after a start or reload it starts anew and cannot be asked for a moment."""
        deadline = time.monotonic() + MASTER_TIMEOUT_S
        while True:
            try:
                return self._master.processes()
            except (RuntimeSocketError, ReplyError):
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _new_worker_runs(self, rendered: Rendered, before: Processes) -> bool:
        try:
            info = self._runtime.info()
        except RuntimeSocketError:
            return False
        return info.structure == rendered.structure and info.pid != before.current

    def _failed_since(self, before: Processes) -> bool:
        """Whether the master counts one more failed reload; while it starts anew it may not answer."""
        try:
            return self._master.processes().failed > before.failed
        except (RuntimeSocketError, ReplyError):
            return False


def _write_side_files(rendered: Rendered) -> None:
    for file in rendered.files:
        if read_text(file.path) != file.text:
            write_private(file.path, file.text)


def _remove_old_side_files(rendered: Rendered) -> None:
    kept = {file.path for file in rendered.files}
    found = Path(rendered.desired.options.spoe_directory).glob(f"*{SIDE_FILE}")
    remove(*(str(path) for path in found if str(path) not in kept))


def _batches(operations: tuple[Operation, ...]) -> Iterator[tuple[Operation, ...]]:
    """Operations of one kind that HAProxy answers with silence go together, as do deletions."""
    batch: list[Operation] = []
    for operation in operations:
        if batch and not (_joins(batch[0], operation) and len(batch) < _room(operation)):
            yield tuple(batch)
            batch = []
        batch.append(operation)
    if batch:
        yield tuple(batch)


def _joins(first: Operation, second: Operation) -> bool:
    return type(first) is type(second) and isinstance(first, SetServerState | SetServerWeight | DeleteServer)


def _room(operation: Operation) -> int:
    return 1_000_000 if isinstance(operation, DeleteServer) else BATCH


def _reloaded(done: list[Operation]) -> bool:
    return any(isinstance(operation, Reload) for operation in done)


def _refusal(what: str, said: str, config: str, operation: str) -> ApplyError:
    found: tuple[Message, ...] = alerts(said)
    line = next((message.line for message in found if message.line), 0)
    lines = config.splitlines()
    excerpt = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    reason = "; ".join(str(message) for message in found[:3]) or said.strip()[-300:] or "it gives no reason"
    quoted = f" (line {line} is: {excerpt})" if excerpt else ""
    return ApplyError(f"{what}: {reason}{quoted}", operation, line, excerpt)


def _size(path: str) -> int:
    return len(read_text(path) or "")
