"""The HAProxy configuration that is wanted, by meaning: listeners, backends, servers, certificates by name.

Everything here is a frozen value. `Desired.check` verifies that references hold before anyone applies it.
Leaves to others: deciding it (`hcc.haproxy.desired`), the words of the file (`hcc.haproxy.render`).
Durations are milliseconds; a limit of 0 means none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import ip_address

from hcc.errors import HccError
from hcc.haproxy.words import is_ip, plain_path
from hcc.mesh.request import CONSULS_DEFAULT, LookedAt, Normalization
from hcc.mesh.routes import Changes, Match
from hcc.mesh.secret import Secret
from hcc.mesh.tls import UNLIMITED, TlsLimits
from hcc.mesh.token_providers import TokenPlace

# Highest weight of a HAProxy server; configuration.txt section 5.2, `weight`.
MAX_WEIGHT = 256
# Longer than any answer is waited for.
FOR_EVER_MS = 86_400_000


class DesiredError(HccError):
    """A wanted configuration contradicts itself: a bug of ours, caught before HAProxy sees it."""


class Mode(Enum):
    """How HAProxy treats the bytes."""

    TCP = "tcp"
    HTTP = "http"


@dataclass(frozen=True, slots=True, order=True)
class TcpBind:
    """A listening IP address and port."""

    address: str
    port: int

    def __str__(self) -> str:
        """As people write it: `127.0.0.1:9191`, `[::1]:9191`."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def clashes(self, other: Bind) -> bool:
        """Whether both cannot listen: same port, and the same address or a wildcard of the same family."""
        if not isinstance(other, TcpBind) or self.port != other.port:
            return False
        mine, theirs = ip_address(self.address), ip_address(other.address)
        return mine.version == theirs.version and (mine == theirs or mine.is_unspecified or theirs.is_unspecified)


@dataclass(frozen=True, slots=True, order=True)
class UnixBind:
    """A listening unix socket; `mode` is octal, as Consul has it (`0600`)."""

    path: str
    mode: str = ""

    def __str__(self) -> str:
        """The path."""
        return self.path

    def clashes(self, other: Bind) -> bool:
        """Whether both cannot listen: the same path, however it is spelled."""
        return isinstance(other, UnixBind) and plain_path(self.path) == plain_path(other.path)


Bind = TcpBind | UnixBind


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS with our leaf, the other side's certificate always verified; files by name, as in `Desired`."""

    certificate: str
    ca_file: str
    alpn: tuple[str, ...] = ()
    limits: TlsLimits = UNLIMITED


@dataclass(frozen=True, slots=True)
class PublicListener:
    """Where other sidecars come in.

    Args:
        ticket_keys: name of the file of `TicketKeys`.
        authorised: whether SPOE is asked and a refusal enforced.
        max_connections: connections beyond it are closed at once; 0 for as many as HAProxy takes.
        crowded_at: connections above which http/1.1 callers that are denied may keep none; 0 for never.
        appname_header: request header that carries the caller's service name (http), empty for none.
        client_cert_by: our own SPIFFE URI where X-Forwarded-Client-Cert is to be set, empty for nowhere.
    """

    name: str
    bind: TcpBind
    tls: Tls
    ticket_keys: str
    mode: Mode
    backend: str
    client_timeout_ms: int
    authorised: bool = True
    max_connections: int = 0
    crowded_at: int = 0
    forward_for: bool = False
    appname_header: str = ""
    client_cert_by: str = ""


@dataclass(frozen=True, slots=True)
class WayTo:
    """A way of requests to a backend. They take the first whose match speaks of them and that their draw falls to.

    Args:
        below: of so many of `SHARES` numbers, of which one is drawn for each request.
    """

    match: Match
    below: int
    backend: str


@dataclass(frozen=True, slots=True)
class UpstreamListener:
    """Where the application reaches one upstream.

    Args:
        label: the upstream for people and metrics (`web`, `web.dc2`, `query:web`).
        backend: of all requests that take none of `ways`.
        limit: of requests (http: then 503) or connections (tcp: a close) of all backends together; 0 for none. Over
            http2 and grpc there is one.
        ways: in order, numbered from 1 on; of http alone.
    """

    name: str
    label: str
    bind: Bind
    mode: Mode
    backend: str
    client_timeout_ms: int
    limit: int = 0
    ways: tuple[WayTo, ...] = ()

    @property
    def backends(self) -> tuple[str, ...]:
        """All that it leads to, each once."""
        return tuple(dict.fromkeys((self.backend, *(way.backend for way in self.ways))))


@dataclass(frozen=True, slots=True, order=True)
class Server:
    """One server of an upstream. `weight` is HAProxy's, 1 to 256; not `enabled` means kept in maintenance."""

    name: str
    address: str
    port: int
    weight: int = 1
    enabled: bool = True

    def __hash__(self) -> int:
        """By the name alone: there are thousands, looked up again and again."""
        return hash(self.name)


# Those of the running process per backend, both sorted by name. There a weight may be 0, an address empty (a unix
# socket), and not `enabled` is also one that drains or is marked down by hand.
ActualServers = tuple[tuple[str, tuple[Server, ...]], ...]


class Listening(Enum):
    """Whether a listener takes connections."""

    OPEN = "open"
    PAUSED = "paused"
    SHUT = "shut"  # until the next reload


@dataclass(frozen=True, slots=True)
class ActualListener:
    """A listener as the running process has it; beyond `max_connections` others wait."""

    name: str
    state: Listening
    max_connections: int


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Of a backend; `tunnel_ms` is for connections that no longer speak http, and for tcp."""

    connect_ms: int
    server_ms: int
    tunnel_ms: int = 0


@dataclass(frozen=True, slots=True)
class PeerCheck:
    """Whose answers a backend lets through.

    Args:
        leaves: map file of leaf certificates that were seen before, by their digest.
        identities: SPIFFE URIs, of one of which a server's certificate must be; sorted.
    """

    leaves: str
    identities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WayChanges:
    """What is changed about the requests that take a way, by its number, and about their answers; in order."""

    way: int
    changes: tuple[Changes, ...]


@dataclass(frozen=True, slots=True)
class Backend:
    """The servers of one upstream, or of one leg of it. Servers are sorted and come and go at run time.

    Args:
        label: as in `UpstreamListener`.
        tls: None until our certificate and the CAs are known; then there are no servers either.
        known: whether Consul has said which servers there are; until it has, those that run stay (`hcc.haproxy.brake`).
        check: None where answers are not looked at.
        draws: so many servers are drawn at random, and the least busy of them is taken; 0: each has its turn.
        changes: of the ways that lead here, those that change something.
        resolver: of the chain, whose instances these are; it stays the same where the name does not.
    """

    name: str
    label: str
    mode: Mode
    tls: Tls | None
    timeouts: Timeouts
    servers: tuple[Server, ...] = ()
    known: bool = True
    check: PeerCheck | None = None
    draws: int = 0
    changes: tuple[WayChanges, ...] = ()
    resolver: str = ""


@dataclass(frozen=True, slots=True)
class AppBackend:
    """The application itself: plain, one server, no checks of ours (Consul has its own).

    Args:
        socket: path of a unix socket; replaces address and port when set.
        h2: whether the application is spoken to in cleartext HTTP/2.
        callers: names of the services that have a server line of their own, sorted: by it their sessions are
            counted and cut. They come and go at run time.
        most_connections: how many each of its lines may have, beyond which requests wait; 0 for any number.
        most_together: how many all of its lines may have, beyond which requests are refused (503); 0 for any number.
    """

    name: str
    mode: Mode
    address: str
    port: int
    timeouts: Timeouts
    socket: str = ""
    h2: bool = False
    callers: tuple[str, ...] = ()
    most_connections: int = 0
    most_together: int = 0

    @property
    def is_placed(self) -> bool:
        """Whether it has a socket or an IP address, and no host name that nobody could look up."""
        return bool(self.socket) or is_ip(self.address)

    @property
    def place(self) -> tuple[str, int]:
        """Address and port as HAProxy tells them; of a socket it tells none."""
        if self.socket:
            return "", 0
        return str(ip_address(self.address)) if self.is_placed else self.address, self.port


@dataclass(frozen=True, slots=True)
class PathTo:
    """A path, compared whole, and who answers it."""

    path: str
    app: AppBackend


@dataclass(frozen=True, slots=True)
class ExposedListener:
    """Where some paths of the application may be asked for by anybody, without TLS, and nothing else.

    Args:
        paths: each once, of http alone.
        max_connections: connections beyond it are closed at once; 0 for as many as HAProxy takes.
        unsaid: headers by which the application is told who calls; here nobody may say so.
    """

    name: str
    bind: TcpBind
    client_timeout_ms: int
    paths: tuple[PathTo, ...]
    unsaid: tuple[str, ...] = ()
    max_connections: int = 0

    @property
    def apps(self) -> tuple[AppBackend, ...]:
        """All that it leads to, each once."""
        return tuple(dict.fromkeys(path.app for path in self.paths))


@dataclass(frozen=True, slots=True)
class Authorisation:
    """Who is asked whether a caller may come in: the unix sockets of the SPOE workers.

    Args:
        mode: of the public listener; a tcp connection is asked about once, http requests one by one.
        identities, verdicts: map files through which HAProxy remembers the answers.
        rules: map file of the rules of layer-7 intentions.
        headers: the request headers that rules look at, by name.
        normalization: how a request under rules is brought into one form.
        token_socket: of whoever checks tokens.
        token_places: where in a request tokens are, if rules leave anything to tokens.
        enforced: False to let everybody in, and every request through as it came, and only tell whom the answers deny.
    """

    backend: str
    sockets: tuple[str, ...]
    mode: Mode
    identities: str
    verdicts: str
    rules: str
    headers: tuple[LookedAt, ...] = ()
    normalization: Normalization = CONSULS_DEFAULT
    token_socket: str = ""
    token_places: tuple[TokenPlace, ...] = ()
    enforced: bool = True
    processing_timeout_ms: int = 500


@dataclass(frozen=True, slots=True)
class CertificateFile:
    """Our leaf with its key under one file name.

    Args:
        fingerprint: SHA-1 of the leaf's DER, upper-case hex, as HAProxy shows it.
        pem: certificates and key as the file has them.
        uri: our SPIFFE URI, as the leaf says it.
    """

    name: str
    fingerprint: str
    pem: Secret
    uri: str = ""


@dataclass(frozen=True, slots=True)
class CaFile:
    """All trusted CA certificates under one file name; fingerprints as in `CertificateFile`."""

    name: str
    fingerprints: frozenset[str]
    pem: str


@dataclass(frozen=True, slots=True)
class TicketKeys:
    """What TLS sessions of the public listener are sealed with, under one file name: base64, the newest last.

    Other keys end every session: it is not resumed. So they change with the leaf and the CAs.
    """

    name: str
    keys: tuple[Secret, ...]

    @property
    def digest(self) -> str:
        """By which what HAProxy has loaded is compared with these; tells nothing of them."""
        return hashlib.sha256(self.text.reveal().encode()).hexdigest()

    @property
    def text(self) -> Secret:
        """Of the file."""
        return Secret("".join(f"{key.reveal()}\n" for key in self.keys))


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """What concerns the HAProxy process as a whole.

    Args:
        stats_socket: path of the runtime socket.
        state_directory: where the files beside haproxy.cfg go, named after their content.
        hard_stop_after_ms: how long a draining process may live.
        max_connections: how many it takes at once, on all listeners together.
        max_requests: over HTTP/2, to all servers together; there is a descriptor for each besides those of connections.
        max_reloads: how many reloads an old worker may survive.
        access_log: where each connection or request is logged (`hcc.haproxy.access_log`); empty for nowhere.
    """

    stats_socket: str
    state_directory: str
    hard_stop_after_ms: int = 30_000
    threads: int = 1
    max_connections: int = 8_000
    max_requests: int = 0
    max_reloads: int = 20
    access_log: str = ""


@dataclass(frozen=True, slots=True)
class Desired:
    """The whole configuration."""

    options: GlobalOptions
    public: PublicListener | None = None
    app: AppBackend | None = None
    upstreams: tuple[UpstreamListener, ...] = ()
    exposed: tuple[ExposedListener, ...] = ()
    backends: tuple[Backend, ...] = ()
    authorisation: Authorisation | None = None
    certificates: tuple[CertificateFile, ...] = ()
    ca_files: tuple[CaFile, ...] = ()
    ticket_keys: TicketKeys | None = None

    @property
    def listeners(self) -> tuple[PublicListener | UpstreamListener | ExposedListener, ...]:
        """Every listener, the public one first."""
        return (*((self.public,) if self.public else ()), *self.upstreams, *self.exposed)

    def binds(self) -> tuple[Bind, ...]:
        """Every address that is listened on, the public one first."""
        return tuple(listener.bind for listener in self.listeners)

    def listener_names(self) -> tuple[str, ...]:
        """Of every listener, the public one first."""
        return tuple(listener.name for listener in self.listeners)

    def without(self, binds: Iterable[Bind]) -> Desired:
        """The same with the listeners on these addresses left out, and what only they used."""
        out = frozenset(binds)
        public = None if self.public and self.public.bind in out else self.public
        upstreams = tuple(listener for listener in self.upstreams if listener.bind not in out)
        used = {backend for listener in upstreams for backend in listener.backends}
        return replace(
            self,
            public=public,
            app=self.app if public else None,
            authorisation=self.authorisation if public else None,
            ticket_keys=self.ticket_keys if public else None,
            upstreams=upstreams,
            exposed=tuple(listener for listener in self.exposed if listener.bind not in out),
            backends=tuple(backend for backend in self.backends if backend.name in used),
        )

    @property
    def seed(self) -> str:
        """What is another in each sidecar: the fingerprint of our leaf, empty without one."""
        return self.certificates[0].fingerprint if self.certificates else ""

    def backend(self, name: str) -> Backend:
        """The backend of that name; KeyError when there is none."""
        for backend in self.backends:
            if backend.name == name:
                return backend
        raise KeyError(name)

    def check(self) -> None:
        """Nothing, when all references hold.

        Raises:
            DesiredError: names what is missing, double, or out of range.
        """
        for complaint in _complaints(self):
            raise DesiredError(f"the wanted configuration is inconsistent: {complaint}")


def _complaints(desired: Desired) -> Iterator[str]:
    yield from _double("backend", (backend.name for backend in desired.backends))
    yield from _double("listener", desired.listener_names())
    yield from _bind_complaints(desired.binds())
    backends = {backend.name for backend in desired.backends}
    for listener in desired.upstreams:
        for name in listener.backends:
            if name not in backends:
                yield f"listener {listener.name} leads to the unknown backend {name}"
    yield from _public_complaints(desired)
    yield from _file_complaints(desired)
    for backend in desired.backends:
        yield from _server_complaints(backend)


def _double(what: str, names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield f"the {what} {name} appears twice"
        seen.add(name)


def _bind_complaints(binds: tuple[Bind, ...]) -> Iterator[str]:
    for position, bind in enumerate(binds):
        for other in binds[:position]:
            if bind.clashes(other):
                yield f"two listeners want {bind} and {other}"


def _public_complaints(desired: Desired) -> Iterator[str]:
    public = desired.public
    if public is None:
        return
    if desired.app is None or desired.app.name != public.backend:
        yield f"listener {public.name} leads to the unknown backend {public.backend}"
    if desired.ticket_keys is None or public.ticket_keys != desired.ticket_keys.name:
        yield f"listener {public.name} uses the unknown ticket keys {public.ticket_keys}"
    if public.authorised and (desired.authorisation is None or not desired.authorisation.sockets):
        yield f"listener {public.name} is to be authorised but there is no agent to ask"


def _file_complaints(desired: Desired) -> Iterator[str]:
    certificates = {file.name for file in desired.certificates}
    ca_files = {file.name for file in desired.ca_files}
    users = [(backend.name, backend.tls) for backend in desired.backends if backend.tls]
    if desired.public:
        users.append((desired.public.name, desired.public.tls))
    for name, tls in users:
        if tls.certificate not in certificates:
            yield f"{name} uses the unknown certificate {tls.certificate}"
        if tls.ca_file not in ca_files:
            yield f"{name} uses the unknown CA file {tls.ca_file}"


def _server_complaints(backend: Backend) -> Iterator[str]:
    if backend.servers and backend.tls is None:
        yield f"{backend.name} has servers but no certificate to reach them with"
    yield from _double(f"server of {backend.name},", (server.name for server in backend.servers))
    for server in backend.servers:
        if not 1 <= server.weight <= MAX_WEIGHT:
            yield f"server {backend.name}/{server.name} has weight {server.weight}"
