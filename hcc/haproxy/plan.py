"""What must be done to HAProxy so that it does what is wanted: an ordered tuple of operations.

The order: CAs, certificates, ticket keys, listeners, then servers (added, moved, weighted, switched, freed, deleted),
then at most one of install, reload, write. Planning again after everything was applied gives an empty plan. A change of
one server of ten thousand costs comparing the identity of each, no more. Leaves to others: reading the actual state and
doing the operations (`hcc.haproxy.control`), and what is there after an operation (`hcc.haproxy.outcome`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hcc.haproxy.model import (
    ActualListener,
    ActualServers,
    AppBackend,
    Backend,
    CaFile,
    CertificateFile,
    Listening,
    Server,
    TicketKeys,
    Tls,
)
from hcc.haproxy.names import TOKEN_AGENT
from hcc.haproxy.render import Rendered, SideFile
from hcc.haproxy.render_spoe import agent_name
from hcc.haproxy.render_tokens import TOKEN_SERVER
from hcc.haproxy.servers import in_turn
from hcc.haproxy.slots import is_spare

# Room for `set ssl ca-file NAME <<` beside the text itself.
COMMAND_BYTES = 256
# More servers than these come sooner by a reload: for each, HAProxy halts all its threads and looks through the servers
# that its backend has. Ten thousand took more than 20 s one by one, and 5 s in the file (2.8.25, busy machine).
MOST_ADDED = 2_000


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
class EnableListener:
    """Let a paused listener take connections again."""

    listener: str

    def describe(self) -> str:
        return f"enable listener {self.listener}"


@dataclass(frozen=True, slots=True)
class SetListenerLimit:
    """Set how many connections a listener takes at once."""

    listener: str
    connections: int

    def describe(self) -> str:
        return f"let listener {self.listener} take {self.connections} connections"


@dataclass(frozen=True, slots=True)
class SetProcessLimit:
    """Set how many connections the process takes at once."""

    connections: int

    def describe(self) -> str:
        return f"let HAProxy take {self.connections} connections"


@dataclass(frozen=True, slots=True)
class LiftRateLimit:
    """Let the process take as many of something a second as come."""

    what: str

    def describe(self) -> str:
        return f"let HAProxy take any number of {self.what} a second"


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
ListenerOperation = EnableListener | SetListenerLimit | SetProcessLimit | LiftRateLimit
RunTimeOperation = SetCa | SetCertificate | SetTicketKeys | ListenerOperation | ServerOperation
Operation = RunTimeOperation | Install | Reload | WriteConfig
# Why, and what is done.
_Group = tuple[str, tuple[RunTimeOperation, ...]]


@dataclass(frozen=True, slots=True)
class Actual:
    """What runs and what is on disk.

    Args:
        running: whether a worker answers.
        pid: of the current worker, 0 when none runs.
        structure: digest of the structure it runs; empty when it is not ours.
        max_connections, most_connections: how many it takes at once, and what that was at its start.
        rate_limits: what it takes only so many of a second.
        listeners: every frontend.
        servers: those of all backends.
        without_tls: those that are wanted with TLS and spoken to without: backend and server.
        certificates: fingerprint per certificate name that the process has loaded.
        ca_files: fingerprints per CA file name that the process has loaded.
        ticket_keys: digest of those that the process has loaded; empty when it has none.
        config: text of the configuration file, None when there is none.
        files: those of `Rendered.files` that are on disk with their content.
        stored_ticket_keys: digest of those on disk; empty when there are none.
    """

    running: bool = False
    pid: int = 0
    structure: str = ""
    max_connections: int = 0
    most_connections: int = 0
    rate_limits: tuple[str, ...] = ()
    listeners: tuple[ActualListener, ...] = ()
    servers: ActualServers = ()
    without_tls: tuple[tuple[str, str], ...] = ()
    certificates: tuple[tuple[str, str], ...] = ()
    ca_files: tuple[tuple[str, frozenset[str]], ...] = ()
    ticket_keys: str = ""
    config: str | None = None
    files: tuple[SideFile, ...] = ()
    stored_ticket_keys: str = ""


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

    def parted(self) -> tuple[Plan, Plan]:
        """What is to be done, and what only is to be written down."""
        if self.operations and isinstance(self.operations[-1], WriteConfig):
            return Plan(self.operations[:-1], self.reasons[:-1]), Plan(self.operations[-1:], self.reasons[-1:])
        return self, Plan()

    def describe(self) -> tuple[str, ...]:
        """One line per operation, for people; holds no secret."""
        return tuple(operation.describe() for operation in self.operations)


def plan(rendered: Rendered, actual: Actual, *, may_reload: bool = True, because: str = "") -> Plan:
    """The operations that make `actual` what `rendered` says.

    Args:
        rendered: what is wanted.
        actual: what is.
        may_reload: False leaves out installing and reloading, and does at run time what can be done in what
            runs:
            for the time after a failed reload, so that endpoints and certificates stay fresh.
        because: why a new worker is to take over if there is anything to be done; empty: for no other reason than it.
    """
    if not actual.running:
        return _install(rendered, actual) if may_reload else Plan()
    why = _reason_to_reload(rendered, actual)
    if why and may_reload:
        # One that is refused would keep back the new worker, which reads them all.
        first = Plan() if because else _joined(*_credential_groups(rendered, actual))
        return Plan((*first.operations, Reload(rendered)), (*first.reasons, why))
    steps = changes(rendered, actual)
    if are_too_many(steps):
        because = f"more than {MOST_ADDED} servers come sooner by a reload"
    if may_reload and because and steps:
        return Plan((Reload(rendered),), (because,))
    if why:
        return Plan(steps.operations, (*steps.reasons, f"{why}, but a reload is not to be tried now"))
    if _on_disk(rendered, actual, stores_keys=any(isinstance(one, SetTicketKeys) for one in steps.operations)):
        return steps
    return Plan((*steps.operations, WriteConfig(rendered)), (*steps.reasons, "the file on disk differs"))


def changes(rendered: Rendered, actual: Actual) -> Plan:
    """What of a plan is done in what runs: neither file nor reload. The text of `rendered` is not looked at."""
    return _joined(
        *_credential_groups(rendered, actual),
        ("listeners differ from what was started", tuple(_listener_operations(rendered, actual))),
        ("servers differ from what runs", tuple(_server_operations(rendered, actual))),
    )


def _credential_groups(rendered: Rendered, actual: Actual) -> tuple[_Group, ...]:
    return (
        ("certificates differ from what runs", tuple(_certificate_operations(rendered, actual))),
        ("TLS sessions of other certificates could go on", tuple(_ticket_operations(rendered, actual))),
    )


def _joined(*groups: _Group) -> Plan:
    operations = tuple(operation for _, those in groups for operation in those)
    return Plan(operations, tuple(reason for reason, those in groups if those))


def are_too_many(steps: Plan) -> bool:
    """Whether a reload does sooner what these do at run time."""
    return sum(isinstance(operation, AddServer) for operation in steps.operations) > MOST_ADDED


def fits_what_runs(rendered: Rendered, actual: Actual) -> bool:
    """Whether `changes` are all that is to be done, but for the files."""
    return actual.running and not _reason_to_reload(rendered, actual)


def _reason_to_reload(rendered: Rendered, actual: Actual) -> str:
    """Empty when there is none."""
    if actual.structure != rendered.structure:
        found = actual.structure or "something that is not ours"
        return f"structure {rendered.structure} is wanted, {found} runs"
    open_or_paused = {one.name for one in actual.listeners if one.state is not Listening.SHUT}
    shut = [name for name in rendered.desired.listener_names() if name not in open_or_paused]
    if shut:
        return f"shut for good: {', '.join(shut)}"
    if actual.without_tls:
        # Those that were added at run time cannot be told to use it.
        return f"spoken to without TLS: {', '.join('/'.join(server) for server in actual.without_tls)}"
    return "a certificate file is too long to be replaced at run time" if _too_long(rendered, actual) else ""


def _install(rendered: Rendered, actual: Actual) -> Plan:
    if _on_disk(rendered, actual):
        return Plan()
    return Plan((Install(rendered),), ("nothing runs and the file on disk is not what is wanted",))


def _on_disk(rendered: Rendered, actual: Actual, *, stores_keys: bool = False) -> bool:
    """Whether HAProxy could start with what is there, or with what there will be once keys are stored."""
    keys = rendered.desired.ticket_keys
    has_keys = stores_keys or keys is None or actual.stored_ticket_keys == keys.digest
    return actual.config == rendered.config and actual.files == rendered.files and has_keys


def _certificate_operations(rendered: Rendered, actual: Actual) -> Iterator[SetCa | SetCertificate]:
    """The roots first: a new leaf may come from a new one."""
    if rendered.replaces_cas:
        stale_cas = _stale_ca_files(rendered, actual)
        yield from (SetCa(file) for file in stale_cas if _fits(file.pem, rendered))
    if rendered.replaces_certificates:
        stale = _stale_certificates(rendered, actual)
        yield from (SetCertificate(file) for file in stale if _fits(file.pem.reveal(), rendered))


def _ticket_operations(rendered: Rendered, actual: Actual) -> Iterator[SetTicketKeys]:
    """After certificates and CAs; not where a reload may bring one: a session could begin with what is about to go."""
    wanted = rendered.desired.ticket_keys
    stale = wanted is not None and actual.ticket_keys not in ("", wanted.digest)
    at_run_time = rendered.replaces_cas and rendered.replaces_certificates and not _too_long(rendered, actual)
    if wanted is not None and stale and (at_run_time or not _reason_to_reload(rendered, actual)):
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


def _listener_operations(rendered: Rendered, actual: Actual) -> Iterator[ListenerOperation]:
    if actual.max_connections != actual.most_connections:
        yield SetProcessLimit(actual.most_connections)
    yield from map(LiftRateLimit, actual.rate_limits)
    wanted = rendered.desired.options.max_connections
    names = set(rendered.desired.listener_names())
    for found in actual.listeners:
        if found.name not in names:
            continue
        if found.state is Listening.PAUSED:
            yield EnableListener(found.name)
        # One that was given no limit has that of the process, which the system may have made smaller.
        if found.max_connections not in (wanted, actual.most_connections):
            yield SetListenerLimit(found.name, wanted)


def _server_operations(rendered: Rendered, actual: Actual) -> Iterator[ServerOperation]:
    """Added first, deleted last, so that no backend is without servers in between.

    Who may not serve yet is added last of all: with thousands that takes seconds.
    """
    running = dict(actual.servers)
    groups: dict[int, list[ServerOperation]] = {}
    for change in (*_caller_operations(rendered, running), *_fixed_operations(rendered, running)):
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
    if isinstance(operation, AddServer) and not operation.server.enabled:
        return 2 * len(_ORDER)
    leaves = isinstance(operation, SetServerState) and not operation.ready
    return 2 * _ORDER.index(type(operation)) + leaves


def _caller_operations(
    rendered: Rendered, running: dict[str, tuple[Server, ...]]
) -> Iterator[AddCaller | DeleteServer]:
    app = rendered.desired.app
    if app is None or app.name not in running or not rendered.caller_lines:
        return
    found = {server.name for server in running[app.name]} - {app.name}
    yield from (AddCaller(app, caller) for caller in app.callers if caller not in found)
    yield from (DeleteServer(app.name, caller) for caller in sorted(found - set(app.callers)))


def _fixed_operations(rendered: Rendered, running: dict[str, tuple[Server, ...]]) -> Iterator[ServerOperation]:
    """For the servers that are part of the structure, and the callers' lines: they serve, as they were made."""
    for backend, fixed in _fixed(rendered):
        wanted = {server.name: server for server in fixed}
        for found in running.get(backend, ()):
            if found.name in wanted:
                yield from _changes(backend, wanted[found.name], found)
            elif rendered.dynamic and (rendered.desired.app is None or backend != rendered.desired.app.name):
                yield DeleteServer(backend, found.name)


def _fixed(rendered: Rendered) -> Iterator[tuple[str, tuple[Server, ...]]]:
    """The servers of the backends that are no upstream's."""
    app, authorisation = rendered.desired.app, rendered.desired.authorisation
    # One whose host name has no address yet is out of service, whatever is said.
    if app and app.is_placed:
        weights = dict.fromkeys(app.callers, 0) | {app.name: 1}
        yield app.name, tuple(Server(name, *app.place, weight) for name, weight in weights.items())
    if authorisation:
        workers = range(1, len(authorisation.sockets) + 1)
        yield authorisation.backend, tuple(Server(agent_name(number), "", 0, 1) for number in workers)
        yield TOKEN_AGENT, (Server(TOKEN_SERVER, "", 0, 1),)


def _backend_operations(backend: Backend, running: tuple[Server, ...], rendered: Rendered) -> Iterator[ServerOperation]:
    wanted, running = _differing(backend.servers, running)
    actual = {server.name: server for server in running}
    for server in in_turn(wanted, rendered.desired.seed) if rendered.dynamic else wanted:
        found = actual.pop(server.name, None)
        if found is not None and is_spare(server) and not is_spare(found):
            yield from _leaving(backend.name, found, rendered)
        elif found is not None:
            yield from _changes(backend.name, server, found)
        elif rendered.dynamic and backend.tls is not None:
            yield AddServer(backend.name, server, backend.tls)
    if rendered.dynamic:
        yield from (DeleteServer(backend.name, name) for name in sorted(actual))


def _differing(
    wanted: tuple[Server, ...], running: tuple[Server, ...]
) -> tuple[tuple[Server, ...], tuple[Server, ...]]:
    """Both without what they have in common at their beginning and end."""
    if wanted == running:
        return (), ()
    shorter = min(len(wanted), len(running))
    start = _common(wanted, running)
    end = min(_common(reversed(wanted), reversed(running)), shorter - start)
    return wanted[start : len(wanted) - end], running[start : len(running) - end]


def _common(some: Iterable[Server], others: Iterable[Server]) -> int:
    """How many they have in common before they first differ."""
    pairs = enumerate(zip(some, others, strict=False))
    alike = 0
    for place, (one, other) in pairs:
        if one is not other and one != other:
            return place
        alike = place + 1
    return alike


def _leaving(backend: str, found: Server, rendered: Rendered) -> Iterator[ServerOperation]:
    """Of a slot whose endpoint is gone."""
    if rendered.frees_slots:
        yield FreeSlot(backend, found.name)
    elif found.enabled:
        yield SetServerState(backend, found.name, False)


def _changes(backend: str, server: Server, found: Server) -> Iterator[ServerOperation]:
    if (server.address, server.port) != (found.address, found.port):
        yield SetServerAddress(backend, server.name, server.address, server.port)
    if server.weight != found.weight:
        yield SetServerWeight(backend, server.name, server.weight)
    if server.enabled != found.enabled:
        yield SetServerState(backend, server.name, server.enabled)
