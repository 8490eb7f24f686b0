"""What must be done to HAProxy so that it does what is wanted: an ordered tuple of operations.

The order: CAs, certificates, ticket keys, then servers (added, moved, weighted, switched, freed, deleted), then at
most one of install, reload, write. Planning again after everything was applied gives an empty plan. Leaves to others:
reading the actual state and doing the operations (`hcc.haproxy.control`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hcc.haproxy.model import (
    ActualServer,
    ActualServers,
    AppBackend,
    Backend,
    CaFile,
    CertificateFile,
    Server,
    TicketKeys,
    Tls,
)
from hcc.haproxy.render import Rendered, SideFile
from hcc.haproxy.slots import is_spare

# Room for `set ssl ca-file NAME <<` beside the text itself.
COMMAND_BYTES = 256


@dataclass(frozen=True, slots=True)
class SetCa:
    """Replace the trusted CAs of one file name in memory."""

    file: CaFile

    def describe(self) -> str:
        return f"set CA file {self.file.name} to {len(self.file.fingerprints)} certificates"


@dataclass(frozen=True, slots=True)
class SetCertificate:
    """Replace one certificate in memory."""

    file: CertificateFile

    def describe(self) -> str:
        return f"set certificate {self.file.name} to {self.file.fingerprint}"


@dataclass(frozen=True, slots=True)
class SetTicketKeys:
    """Replace the keys of TLS sessions, in memory and on disk: no session goes on that began before."""

    file: TicketKeys

    def describe(self) -> str:
        return f"set ticket keys {self.file.name}"


@dataclass(frozen=True, slots=True)
class AddServer:
    """Create a server, ready when it is `enabled`; `tls` is its backend's."""

    backend: str
    server: Server
    tls: Tls

    def describe(self) -> str:
        state = "" if self.server.enabled else " in maintenance"
        return f"add server {self.backend}/{self.server.name} weight {self.server.weight}{state}"


@dataclass(frozen=True, slots=True)
class AddCaller:
    """Give a caller a server line of its own in the application's backend."""

    app: AppBackend
    caller: str

    def describe(self) -> str:
        return f"add server {self.app.name}/{self.caller} for this caller"


@dataclass(frozen=True, slots=True)
class SetServerAddress:
    """Move a server."""

    backend: str
    server: str
    address: str
    port: int

    def describe(self) -> str:
        return f"set server {self.backend}/{self.server} address {self.address} port {self.port}"


@dataclass(frozen=True, slots=True)
class SetServerWeight:
    """Change a server's share."""

    backend: str
    server: str
    weight: int

    def describe(self) -> str:
        return f"set server {self.backend}/{self.server} weight {self.weight}"


@dataclass(frozen=True, slots=True)
class SetServerState:
    """Put a server in service, or in maintenance."""

    backend: str
    server: str
    ready: bool

    def describe(self) -> str:
        return f"set server {self.backend}/{self.server} {'ready' if self.ready else 'in maintenance'}"


@dataclass(frozen=True, slots=True)
class DeleteServer:
    """Take a server out: maintenance first, gone as soon as its last connection is."""

    backend: str
    server: str

    def describe(self) -> str:
        return f"delete server {self.backend}/{self.server}"


@dataclass(frozen=True, slots=True)
class FreeSlot:
    """Make a slot spare: maintenance first, its address gone as soon as its last connection is."""

    backend: str
    server: str

    def describe(self) -> str:
        return f"free slot {self.backend}/{self.server}"


@dataclass(frozen=True, slots=True)
class Install:
    """Check and write the files; nothing runs yet, whoever starts HAProxy starts it with them."""

    rendered: Rendered

    def describe(self) -> str:
        return f"install configuration {self.rendered.structure}"


@dataclass(frozen=True, slots=True)
class Reload:
    """Check and write the files and let a new worker take over."""

    rendered: Rendered

    def describe(self) -> str:
        return f"reload with configuration {self.rendered.structure}"


@dataclass(frozen=True, slots=True)
class WriteConfig:
    """Write the files only, so that the next start comes up as what runs now."""

    rendered: Rendered

    def describe(self) -> str:
        return "write the configuration file"


ServerOperation = AddServer | AddCaller | SetServerAddress | SetServerWeight | SetServerState | FreeSlot | DeleteServer
Operation = SetCa | SetCertificate | SetTicketKeys | ServerOperation | Install | Reload | WriteConfig


@dataclass(frozen=True, slots=True)
class Actual:
    """What runs and what is on disk.

    Args:
        running: whether a worker answers.
        pid: of the current worker, 0 when none runs.
        structure: digest of the structure it runs; empty when it is not ours.
        servers: those of all backends.
        certificates: fingerprint per certificate name that the process has loaded.
        ca_files: fingerprints per CA file name that the process has loaded.
        ticket_keys: digest of those that the process has loaded; empty when it has none.
        config: text of the configuration file, None when there is none.
        files: those of `Rendered.files` that are on disk with their content.
    """

    running: bool = False
    pid: int = 0
    structure: str = ""
    servers: ActualServers = ()
    certificates: tuple[tuple[str, str], ...] = ()
    ca_files: tuple[tuple[str, frozenset[str]], ...] = ()
    ticket_keys: str = ""
    config: str | None = None
    files: tuple[SideFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Operations in order, and why: one phrase per group."""

    operations: tuple[Operation, ...] = ()
    reasons: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.operations)

    @property
    def reloads(self) -> bool:
        """Whether a new worker has to take over."""
        return any(isinstance(operation, Reload) for operation in self.operations)

    def describe(self) -> tuple[str, ...]:
        """One line per operation, for people; holds no secret."""
        return tuple(operation.describe() for operation in self.operations)


def plan(rendered: Rendered, actual: Actual, *, may_reload: bool = True) -> Plan:
    """The operations that make `actual` what `rendered` says.

    Args:
        rendered: what is wanted.
        actual: what is.
        may_reload: False leaves out installing and reloading, and does at run time what can be done in what
            runs:
            for the time after a failed reload, so that endpoints and certificates stay fresh.
    """
    if not actual.running:
        return _install(rendered, actual) if may_reload else Plan()
    certificates = (*_ca_operations(rendered, actual), *_certificate_operations(rendered, actual))
    reasons = ("certificates differ from what runs",) if certificates else ()
    if may_reload and _too_long(rendered, actual):
        why = "a certificate file is too long to be replaced at run time"
        return Plan((*certificates, Reload(rendered)), (*reasons, why))
    if actual.structure == rendered.structure:
        return _in_place(rendered, actual, certificates, reasons)
    if not may_reload:
        servers = _server_operations(rendered, actual)
        return Plan((*certificates, *servers), (*reasons, "structure differs, but a reload is not to be tried now"))
    found = actual.structure or "something that is not ours"
    why = f"structure {rendered.structure} is wanted, {found} runs"
    return Plan((*certificates, Reload(rendered)), (*reasons, why))


def _install(rendered: Rendered, actual: Actual) -> Plan:
    if _on_disk(rendered, actual):
        return Plan()
    return Plan((Install(rendered),), ("nothing runs and the file on disk is not what is wanted",))


def _in_place(
    rendered: Rendered, actual: Actual, certificates: tuple[Operation, ...], reasons: tuple[str, ...]
) -> Plan:
    # After all certificates and CAs, which may come by a reload: else a session could begin with what is about to go.
    tickets = tuple(_ticket_operations(rendered, actual))
    servers = tuple(_server_operations(rendered, actual))
    files: tuple[Operation, ...] = () if _on_disk(rendered, actual) else (WriteConfig(rendered),)
    return Plan(
        (*certificates, *tickets, *servers, *files),
        (
            *reasons,
            *(("TLS sessions of other certificates could go on",) if tickets else ()),
            *(("servers differ from what runs",) if servers else ()),
            *(("the file on disk differs",) if files else ()),
        ),
    )


def _on_disk(rendered: Rendered, actual: Actual) -> bool:
    return actual.config == rendered.config and actual.files == rendered.files


def _ca_operations(rendered: Rendered, actual: Actual) -> Iterator[Operation]:
    if not rendered.replaces_cas:
        return iter(())
    return (SetCa(file) for file in _stale_ca_files(rendered, actual) if _fits(file.pem, rendered))


def _certificate_operations(rendered: Rendered, actual: Actual) -> Iterator[Operation]:
    if not rendered.replaces_certificates:
        return iter(())
    stale = _stale_certificates(rendered, actual)
    return (SetCertificate(file) for file in stale if _fits(file.pem.reveal(), rendered))


def _ticket_operations(rendered: Rendered, actual: Actual) -> Iterator[Operation]:
    wanted = rendered.desired.ticket_keys
    if wanted is not None and actual.ticket_keys not in ("", wanted.digest):
        yield SetTicketKeys(wanted)


def _too_long(rendered: Rendered, actual: Actual) -> bool:
    texts = (
        *(file.pem for file in _stale_ca_files(rendered, actual)),
        *(file.pem.reveal() for file in _stale_certificates(rendered, actual)),
    )
    return not all(_fits(text, rendered) for text in texts)


def _fits(pem: str, rendered: Rendered) -> bool:
    return len(pem) + COMMAND_BYTES <= rendered.payload_bytes


def _stale_ca_files(rendered: Rendered, actual: Actual) -> tuple[CaFile, ...]:
    """Those loaded with other content; what the process has not loaded is a matter of structure."""
    loaded = dict(actual.ca_files)
    files = rendered.desired.ca_files
    return tuple(file for file in files if loaded.get(file.name, file.fingerprints) != file.fingerprints)


def _stale_certificates(rendered: Rendered, actual: Actual) -> tuple[CertificateFile, ...]:
    loaded = dict(actual.certificates)
    files = rendered.desired.certificates
    return tuple(file for file in files if loaded.get(file.name, file.fingerprint) != file.fingerprint)


def _server_operations(rendered: Rendered, actual: Actual) -> Iterator[Operation]:
    """Added first, deleted last, so that no backend is without servers in between."""
    running = dict(actual.servers)
    groups: dict[int, list[Operation]] = {}
    for change in _caller_operations(rendered, running):
        groups.setdefault(_turn(change), []).append(change)
    for backend in rendered.desired.backends:
        if backend.name in running:
            for operation in _backend_operations(backend, running[backend.name], rendered):
                groups.setdefault(_turn(operation), []).append(operation)
    for turn in sorted(groups):
        yield from groups[turn]


_ORDER = (AddServer, AddCaller, SetServerAddress, SetServerWeight, SetServerState, FreeSlot, DeleteServer)


def _turn(operation: ServerOperation) -> int:
    """Smaller is earlier; who comes into service goes before who leaves it."""
    leaves = isinstance(operation, SetServerState) and not operation.ready
    return 2 * _ORDER.index(type(operation)) + leaves


def _caller_operations(
    rendered: Rendered, running: dict[str, tuple[ActualServer, ...]]
) -> Iterator[AddCaller | DeleteServer]:
    app = rendered.desired.app
    if app is None or app.name not in running or not rendered.caller_lines:
        return
    found = {server.name for server in running[app.name]} - {app.name}
    yield from (AddCaller(app, caller) for caller in app.callers if caller not in found)
    yield from (DeleteServer(app.name, caller) for caller in sorted(found - set(app.callers)))


def _backend_operations(
    backend: Backend, running: tuple[ActualServer, ...], rendered: Rendered
) -> Iterator[ServerOperation]:
    actual = {server.name: server for server in running}
    for server in backend.servers:
        found = actual.pop(server.name, None)
        if found is not None and is_spare(server) and not is_spare(found):
            yield from _leaving(backend.name, found, rendered)
        elif found is not None:
            yield from _changes(backend.name, server, found)
        elif rendered.dynamic and backend.tls is not None:
            yield AddServer(backend.name, server, backend.tls)
    if rendered.dynamic:
        yield from (DeleteServer(backend.name, name) for name in sorted(actual))


def _leaving(backend: str, found: ActualServer, rendered: Rendered) -> Iterator[ServerOperation]:
    """Of a slot whose endpoint is gone."""
    if rendered.frees_slots:
        yield FreeSlot(backend, found.name)
    elif found.enabled:
        yield SetServerState(backend, found.name, False)


def _changes(backend: str, server: Server, found: ActualServer) -> Iterator[ServerOperation]:
    if (server.address, server.port) != (found.address, found.port):
        yield SetServerAddress(backend, server.name, server.address, server.port)
    if server.weight != found.weight:
        yield SetServerWeight(backend, server.name, server.weight)
    if server.enabled != found.enabled:
        yield SetServerState(backend, server.name, server.enabled)
