"""What HAProxy should do for one proxy, decided from all that Consul said of it.

Nothing here is left out silently: what cannot be served, or not as asked, comes back as a `Problem` for
people. Leaves to others: the words of the file (`hcc.haproxy.render`), servers' weights and names
(`hcc.haproxy.servers`). Source of the rules: reference/consul.md sections 3 and 4.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import PurePosixPath

from hcc.haproxy import words
from hcc.haproxy.model import (
    FOR_EVER_MS,
    AppBackend,
    Authorisation,
    Backend,
    Bind,
    CaFile,
    CertificateFile,
    Desired,
    ExposedListener,
    GlobalOptions,
    Mode,
    PathTo,
    PeerCheck,
    PublicListener,
    Server,
    TcpBind,
    TicketKeys,
    Timeouts,
    Tls,
    UnixBind,
    UpstreamListener,
    WayChanges,
    WayTo,
)
from hcc.haproxy.names import (
    AGENTS,
    APP,
    PUBLIC,
    backend_name,
    exposed_backend_name,
    exposed_name,
    upstream_name,
)
from hcc.haproxy.owners import protocol_of
from hcc.haproxy.room import UPSTREAM_REQUESTS, Entry, Room, entry, room
from hcc.haproxy.servers import servers
from hcc.haproxy.sight import Sight, sight_for
from hcc.mesh.caller import CLIENT_CERT_HEADER
from hcc.mesh.chain import Balancing, NodeType
from hcc.mesh.failover import order
from hcc.mesh.intentions import Policy
from hcc.mesh.judgement import Judgement
from hcc.mesh.peer_book import UNVETTED, Vetted
from hcc.mesh.request import CONSULS_DEFAULT
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import (
    Endpoint,
    ExposedPath,
    Leg,
    Protocol,
    Proxy,
    Snapshot,
    TargetEndpoints,
    Upstream,
    UpstreamState,
    UpstreamType,
)
from hcc.mesh.tls import DEFAULT_MIN_VERSION, LEFT_TO_PROXIES, TlsLimits
from hcc.mesh.ways import Way, unrouted, unserved, ways
from hcc.settings import Enforcement

HOUR_MS = 3_600_000
HTTP_TIMEOUT_MS = 60_000
CONNECT_TIMEOUT_MS = 5_000
# As many as HAProxy keeps for each listener (TLS_TICKETS_NO), of 48 bytes each; configuration.txt, `tls-ticket-keys`.
TICKET_KEYS = 3
# Of instances that are drawn at random, to take the least busy one.
LEAST_CHOICES, MOST_CHOICES = 2, 32
# A line of HAProxy's configuration has at most 64 words, and each identity takes two.
MAX_IDENTITIES = 20


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator chose.

    Args:
        agent_sockets: unix sockets of the SPOE workers.
        identities, verdicts, rules: map files of the callers that HAProxy remembers, and of rules for requests.
        ticket_keys: file of the keys of TLS sessions.
        ticket_secret: from it, the leaf and the CAs these keys are derived; random, new with each hcc.
        intentions: what is done about callers whom they deny.
        leaves: map file of upstreams' leaf certificates; empty where their answers are not looked at.
        descriptors: how many file descriptors HAProxy may have; 0 for any number.
        patterns: whether HAProxy can match the regular expressions of routes.
        route_timeouts: whether it can wait for some answers longer than for others.
    """

    process: GlobalOptions
    agent_sockets: tuple[str, ...]
    identities: str
    verdicts: str
    rules: str
    ticket_keys: str
    ticket_secret: Secret
    intentions: Enforcement = Enforcement.ENFORCE
    leaves: str = ""
    token_socket: str = ""
    descriptors: int = 0
    patterns: bool = True
    route_timeouts: bool = True


@dataclass(frozen=True, slots=True)
class Certificates:
    """The files that stand for Consul's leaf and roots, once they have been checked and written."""

    leaf: CertificateFile | None = None
    ca: CaFile | None = None


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something that is not served as asked: what it concerns, and why, for people."""

    subject: str
    text: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.subject}: {self.text}"


@dataclass(frozen=True, slots=True)
class Result:
    """The wanted configuration, and what in it falls short."""

    desired: Desired
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """An upstream.

    Args:
        requests: how many it should have at once over HTTP/2, 0 where they do not come over it.
        registered: how many its registration says.
    """

    listener: UpstreamListener
    backends: tuple[Backend, ...]
    requests: int
    registered: int


def desired(
    snapshot: Snapshot,
    options: Options,
    certificates: Certificates,
    callers: tuple[str, ...] = (),
    vetted: Vetted = UNVETTED,
    sight: Sight | None = None,
) -> Result:
    """The configuration that serves a snapshot as far as it can be served now.

    Args:
        snapshot: what Consul said.
        options: what the operator chose.
        certificates: what has been checked and written.
        callers: names of the services that were let in, and are remembered.
        vetted: which endpoints may get traffic.
        sight: what the snapshot's policy looks at in a request; None to find that out here.

    The public listener is there once leaf, roots and (with intentions) policy are; an upstream's once its
    chain is.
    """
    problems: list[Problem] = []
    public = _public(snapshot, options, certificates, problems)
    taken = _taken_first(snapshot.proxy)
    parts = _upstreams(snapshot, options, certificates, vetted, taken, problems)
    exposed = tuple(_exposed(snapshot.proxy, taken, problems))
    app = _app(snapshot.proxy, callers) if public else None
    found = _room(options, app, parts, exposed)
    process = replace(options.process, max_connections=found.connections, max_requests=found.requests)
    share = entry(found.connections, len(parts), len(exposed))
    wanted = Desired(
        options=process,
        public=_bounded_public(public, found, share, problems) if public else None,
        app=_bounded(app, options, found) if app else None,
        upstreams=tuple(_bounded_upstream(part, found, problems) for part in parts),
        exposed=tuple(_bounded_exposed(one, options, found, share) for one in exposed),
        backends=tuple(_unless_awaited(backend, probing=vetted.probing) for part in parts for backend in part.backends),
        authorisation=_authorisation(public, options, snapshot.policy, sight),
        certificates=(certificates.leaf,) if certificates.leaf else (),
        ca_files=(certificates.ca,) if certificates.ca else (),
        ticket_keys=_ticket_keys(options, certificates) if public else None,
    )
    return Result(wanted, tuple(problems))


def _room(options: Options, app: AppBackend | None, parts: Sequence[_Part], exposed: Sequence[ExposedListener]) -> Room:
    """What there is for each who is reached over HTTP/2, where every request has a connection of its own."""
    paths = {one.name for listener in exposed for one in listener.apps if one.h2}
    asked = sum(part.requests for part in parts) + len(paths) * _most_of_one(options)
    if app and app.h2:
        asked += 2 * _most_of_one(options)
    return room(options.descriptors, len(parts) + len(exposed), options.process.max_connections, asked)


def _most_of_one(options: Options) -> int:
    """Requests that one caller may have in progress at an http2 application."""
    return options.process.max_connections // 2


def _bounded(app: AppBackend, options: Options, found: Room) -> AppBackend:
    """The application, of whose connections no caller gets more than half, nor all together those of others."""
    if not app.h2:
        return app
    most = found.share(_most_of_one(options))
    return replace(app, most_connections=most, most_together=2 * most)


def _bounded_public(public: PublicListener, found: Room, share: Entry, problems: list[Problem]) -> PublicListener:
    """The public listener with the limit of its registration, or where that is more or none, with its share."""
    registered = public.max_connections
    limit = min((most for most in (registered, share.public) if most), default=0)
    if limit < registered:
        text = (
            f"max_inbound_connections is {limit}, not {registered}: HAProxy takes {found.connections} connections,"
            " and keeps some for upstreams and exposed paths"
        )
        problems.append(Problem("public listener", text))
    return replace(public, max_connections=limit, crowded_at=(limit or found.connections) // 2)


def _bounded_exposed(listener: ExposedListener, options: Options, found: Room, share: Entry) -> ExposedListener:
    most = found.share(_most_of_one(options)) if any(one.h2 for one in listener.apps) else 0
    bounded = (
        replace(path, app=replace(path.app, most_connections=most)) if path.app.h2 else path for path in listener.paths
    )
    return replace(listener, paths=tuple(bounded), max_connections=share.exposed)


def _bounded_upstream(part: _Part, found: Room, problems: list[Problem]) -> UpstreamListener:
    """The listener with its share of requests over HTTP/2, so that nobody else is held up by instances that hang."""
    if not part.requests:
        return part.listener
    limit = found.share(part.requests)
    if limit < part.registered:
        text = f"limits.max_concurrent_requests is {limit}, as HAProxy may have no more file descriptors"
        problems.append(Problem(f"upstream {part.listener.label}", text))
    return replace(part.listener, limit=limit)


def _unless_awaited(backend: Backend, *, probing: bool) -> Backend:
    """The same; with nobody in service while probes are under way, it is not known yet who is to serve."""
    awaited = probing and bool(backend.servers) and not any(server.enabled for server in backend.servers)
    return replace(backend, known=backend.known and not awaited)


def _public(
    snapshot: Snapshot, options: Options, certificates: Certificates, problems: list[Problem]
) -> PublicListener | None:
    proxy = snapshot.proxy
    bind = _public_bind(proxy)
    complaint = _public_complaint(proxy, bind, options.process.spoe_directory)
    if complaint:
        problems.append(Problem("public listener", complaint))
    limits = _possible((snapshot.tls or LEFT_TO_PROXIES).incoming, "TLS.Incoming", problems)
    tls = _tls(certificates, _public_alpn(proxy.protocol), limits)
    undecided = options.intentions.asks and snapshot.policy is None
    if bind is None or complaint or not _has_app(proxy) or tls is None or undecided:
        return None
    return PublicListener(
        name=PUBLIC,
        bind=bind,
        tls=tls,
        ticket_keys=options.ticket_keys,
        mode=_mode(proxy.protocol),
        backend=APP,
        client_timeout_ms=_caller_ms(proxy),
        authorised=options.intentions.asks,
        max_connections=proxy.max_inbound_connections,
        forward_for=proxy.forward_for,
        appname_header=_header(proxy.appname_header, problems),
        client_cert_by=_client_cert_by(snapshot, options, certificates),
    )


def _ticket_keys(options: Options, certificates: Certificates) -> TicketKeys:
    """New ones with every new leaf or CA: a session that began with another must not be resumed."""
    leaf, ca = certificates.leaf, certificates.ca
    bound = "".join((leaf.fingerprint if leaf else "", *sorted(ca.fingerprints if ca else ())))
    secret = options.ticket_secret.reveal().encode()
    digests = (hmac.digest(secret, f"{number}{bound}".encode(), "sha384") for number in range(TICKET_KEYS))
    return TicketKeys(options.ticket_keys, tuple(Secret(base64.b64encode(digest).decode()) for digest in digests))


def _client_cert_by(snapshot: Snapshot, options: Options, certificates: Certificates) -> str:
    """Our URI where callers' certificates are told to the application: with http and http2, as Consul's Envoy does."""
    told = options.intentions.asks and snapshot.proxy.protocol in (Protocol.HTTP, Protocol.HTTP2)
    return certificates.leaf.uri if told and certificates.leaf and not snapshot.hides_callers else ""


def _header(name: str, problems: list[Problem]) -> str:
    try:
        return words.header(name) if name else ""
    except words.WordError as exc:
        problems.append(Problem("public listener", f"appname_header is not set: {exc}"))
        return ""


def _public_complaint(proxy: Proxy, bind: TcpBind | None, private: str) -> str:
    if not _has_app(proxy):
        return ""
    if bind is None:
        return f"expected an IP address and a port to bind, found {proxy.bind_address!r} port {proxy.bind_port}"
    try:
        if proxy.local_socket:
            words.socket_path(proxy.local_socket)
        else:
            words.host(proxy.local_address)
            words.number(proxy.local_port, words.MAX_PORT)
    except words.WordError as exc:
        return f"the application's address cannot be used: {exc}"
    if _is_below(proxy.local_socket, private):
        # HAProxy's own sockets are there, on which whoever speaks may do anything.
        return f"the application's address cannot be used: {private} is for files of hcc alone"
    return ""


def _is_below(path: str, directory: str) -> bool:
    return PurePosixPath(words.plain_path(path)).is_relative_to(directory)


def _has_app(proxy: Proxy) -> bool:
    return bool(proxy.local_port or proxy.local_socket)


def _public_bind(proxy: Proxy) -> TcpBind | None:
    if not _has_app(proxy):
        return None
    return _tcp_bind(proxy.bind_address, proxy.bind_port)


def _app(proxy: Proxy, callers: tuple[str, ...]) -> AppBackend:
    return AppBackend(
        name=APP,
        mode=_mode(proxy.protocol),
        address=proxy.local_address,
        port=proxy.local_port,
        socket=proxy.local_socket,
        h2=proxy.protocol.is_h2,
        callers=tuple(sorted(callers)),
        timeouts=_app_timeouts(proxy, proxy.protocol),
    )


def _authorisation(
    public: PublicListener | None, options: Options, policy: Policy | None, sight: Sight | None
) -> Authorisation | None:
    if public is None or not public.authorised or policy is None:
        return None
    if sight is None:
        sight = sight_for(Judgement(policy))
    return Authorisation(
        AGENTS,
        options.agent_sockets,
        public.mode,
        options.identities,
        options.verdicts,
        options.rules,
        sight.headers if public.mode is Mode.HTTP else (),
        policy.normalization or CONSULS_DEFAULT,
        token_socket=options.token_socket,
        token_places=sight.places if options.token_socket else (),
        enforced=options.intentions is Enforcement.ENFORCE,
    )


def _upstreams(
    snapshot: Snapshot,
    options: Options,
    certificates: Certificates,
    vetted: Vetted,
    taken: list[tuple[Bind, str]],
    problems: list[Problem],
) -> tuple[_Part, ...]:
    names: set[str] = set()
    limits = _possible((snapshot.tls or LEFT_TO_PROXIES).outgoing, "TLS.Outgoing", problems)
    parts = []
    for state in snapshot.upstreams:
        bind = _claimed(state.upstream, taken, names, problems)
        if bind is not None and _known(state):
            found = _ways(state, snapshot, options, problems)
            problems.extend((*_unlimited(state), *_behind_gateways(state)))
            part = _upstream(state, bind, found, certificates, limits, vetted)
            parts.append(_checked(part, state, options, problems))
    return tuple(parts)


def _known(state: UpstreamState) -> bool:
    is_query = state.upstream.key.type == UpstreamType.PREPARED_QUERY.value
    return is_query or state.chain is not None


def _claimed(
    upstream: Upstream, taken: list[tuple[Bind, str]], names: set[str], problems: list[Problem]
) -> Bind | None:
    """The upstream's address, noted in `taken`; None when somebody before it has it or it is none."""
    label = upstream.key.label()
    try:
        bind = _upstream_bind(upstream)
        words.name(upstream_name(upstream))
    except words.WordError as exc:
        problems.append(Problem(f"upstream {label}", f"cannot listen: {exc}"))
        return None
    owner = _owner(bind, taken)
    if owner is None and upstream_name(upstream) in names:
        owner = f"upstream {label}, registered twice"
    if owner is not None:
        text = f"wants to listen on {bind}, which {owner} has; the first one serves, this one does not"
        problems.append(Problem(f"upstream {label}", text))
        return None
    taken.append((bind, f"upstream {label}"))
    names.add(upstream_name(upstream))
    return bind


def _taken_first(proxy: Proxy) -> list[tuple[Bind, str]]:
    """The addresses that nobody else may have, and who has each: so far the public listener."""
    bind = _public_bind(proxy)
    return [(bind, "the public listener")] if bind else []


def _owner(bind: Bind, taken: list[tuple[Bind, str]]) -> str | None:
    """Who listens there already, or in its way."""
    return next((name for other, name in taken if bind.clashes(other)), None)


def _exposed(proxy: Proxy, taken: list[tuple[Bind, str]], problems: list[Problem]) -> Iterator[ExposedListener]:
    """A listener for each port of exposed paths; of a path that is there twice the first one."""
    ports: dict[int, dict[str, ExposedPath]] = {}
    for one in proxy.exposed:
        first = ports.setdefault(one.port, {}).setdefault(one.path, one)
        if first != one:
            text = f"is there twice at port {one.port}; the first one serves, the one of port {one.local_port} does not"
            problems.append(Problem(f"exposed path {one.path}", text))
    for port, paths in ports.items():
        bind = _tcp_bind(proxy.bind_address, port)
        complaint = _exposed_complaint(proxy, bind, taken)
        if bind is None or complaint:
            problems.extend(Problem(f"exposed path {path}", f"cannot be served: {complaint}") for path in paths)
            continue
        taken.append((bind, f"exposed path {next(iter(paths))}"))
        yield ExposedListener(
            name=exposed_name(port),
            bind=bind,
            client_timeout_ms=_client_ms(proxy.read_timeout_ms, _app_timeouts(proxy, Protocol.HTTP)),
            paths=tuple(PathTo(path, _exposing_app(proxy, one)) for path, one in paths.items()),
            unsaid=tuple(name for name in (CLIENT_CERT_HEADER, proxy.appname_header) if name),
        )


def _exposed_complaint(proxy: Proxy, bind: TcpBind | None, taken: list[tuple[Bind, str]]) -> str:
    if bind is None:
        return f"expected an IP address to bind, found {proxy.bind_address!r}"
    if owner := _owner(bind, taken):
        return f"{owner} has {bind}"
    try:
        words.host(proxy.local_address)
    except words.WordError as exc:
        return f"the application's address cannot be used: {exc}"
    return ""


def _exposing_app(proxy: Proxy, path: ExposedPath) -> AppBackend:
    return AppBackend(
        name=exposed_backend_name(path.local_port, h2=path.h2),
        mode=Mode.HTTP,
        address=proxy.local_address,
        port=path.local_port,
        h2=path.h2,
        timeouts=_app_timeouts(proxy, Protocol.HTTP),
    )


def _upstream_bind(upstream: Upstream) -> Bind:
    if upstream.local_bind_socket:
        mode = upstream.local_bind_socket_mode
        return UnixBind(words.listening_path(upstream.local_bind_socket), words.mode(mode) if mode else "")
    bind = _tcp_bind(upstream.local_bind_address, upstream.local_bind_port)
    if bind is None:
        where = f"{upstream.local_bind_address!r} port {upstream.local_bind_port}"
        raise words.WordError(f"expected an IP address and a port, found {where}")
    return bind


def _upstream(
    state: UpstreamState,
    bind: Bind,
    found: tuple[Way, ...],
    certificates: Certificates,
    limits: TlsLimits,
    vetted: Vetted,
) -> _Part:
    upstream, protocol = state.upstream, protocol_of(state)
    tls = _tls(certificates, _upstream_alpn(protocol), limits)
    legs = state.legs if found else state.legs[:1]
    changes = [_changes(found, leg, timed=not upstream.read_timeout_ms) for leg in legs]
    if len(legs) == 1 and not changes[0]:
        # All the same whichever way a request takes.
        found = ()
    backends = tuple(
        replace(
            _backend(upstream, leg, protocol, tls),
            servers=_servers(leg, vetted) if tls else (),
            changes=changed,
        )
        for leg, changed in zip(legs, changes, strict=True)
    )
    names = {backend.resolver: backend.name for backend in backends}
    listener = UpstreamListener(
        name=upstream_name(upstream),
        label=upstream.key.label(),
        bind=bind,
        mode=_mode(protocol),
        backend=backends[0].name,
        client_timeout_ms=_application_ms(upstream, protocol, backends),
        limit=_limit(upstream, protocol),
        ways=tuple(WayTo(way.match, way.below, names[way.resolver]) for way in found),
    )
    return _Part(listener, backends, listener.limit if protocol.is_h2 else 0, upstream.max_requests)


def _limit(upstream: Upstream, protocol: Protocol) -> int:
    """How many requests, or connections, there should be at once; 0 for any number.

    Over http a request has a connection of its own. Over http2 and grpc one has many, so that their number, as Envoy
    counts them, limits no requests.
    """
    if protocol.is_h2:
        return upstream.max_requests or UPSTREAM_REQUESTS
    if not protocol.is_http:
        return upstream.max_connections
    return min((limit for limit in (upstream.max_connections, upstream.max_requests) if limit), default=0)


def _unlimited(state: UpstreamState) -> Iterator[Problem]:
    protocol = protocol_of(state)
    if state.upstream.max_connections and protocol.is_h2:
        text = f"limits.max_connections is not served for {protocol.value}; limits.max_concurrent_requests is"
        yield Problem(f"upstream {state.upstream.key.label()}", text)


def _behind_gateways(state: UpstreamState) -> Iterator[Problem]:
    for target in state.targets:
        if target.behind_gateway:
            text = f"instances of {target.target_id} are behind a terminating gateway, which is not served"
            yield Problem(f"upstream {state.upstream.key.label()}", text)


def _backend(upstream: Upstream, leg: Leg, protocol: Protocol, tls: Tls | None) -> Backend:
    """The backend of a leg; its servers, and what its ways change, are still to come."""
    answer_ms = upstream.read_timeout_ms or _request_ms(leg, protocol)
    return Backend(
        name=backend_name(upstream, leg.name),
        label=upstream.key.label(),
        mode=_mode(protocol),
        tls=tls,
        timeouts=_timeouts(protocol, _connect_ms(upstream, leg), answer_ms),
        draws=_draws(leg),
        # Where another one may serve for it, that is no reason to let what runs go on serving.
        known=all(target.known for target in leg.targets[:1]),
        resolver=leg.resolver.name if leg.resolver else "",
    )


def _ways(state: UpstreamState, snapshot: Snapshot, options: Options, problems: list[Problem]) -> tuple[Way, ...]:
    """Those of an upstream's requests; what is not served of its chain is noted."""
    chain, label = state.chain, state.upstream.key.label()
    if chain is None:
        return ()
    found, lacks = ways(chain), list(unserved(chain, snapshot.datacenter, snapshot.proxy.partition))
    whole = bool(unrouted(chain)) or chain.node(chain.start_node).type is NodeType.RESOLVER
    if any(way.match.has_patterns for way in found) and not options.patterns:
        found, whole = (), True
        lacks.append("a route by a regular expression or by the query (this HAProxy has no PCRE)")
    if any(change.timeout_ms for way in found for change in way.changes) and not options.route_timeouts:
        lacks.append("RequestTimeout of a route (before HAProxy 2.4)")
    if lacks:
        # Of its targets those in cluster peers are not asked for.
        first = next((target.target_id for target in state.legs[0].targets), "")
        serves = f"{first} serves all of it" if first else "nobody serves it"
        rest = f"not served yet; {serves}" if whole else "not served; the rest of it is"
        problems.append(Problem(f"upstream {label}", f"its chain asks for {', '.join(lacks)}, which is {rest}"))
    return found


def _changes(found: tuple[Way, ...], leg: Leg, *, timed: bool) -> tuple[WayChanges, ...]:
    """What is changed on the ways to a leg; not `timed`, no route says how long an answer is waited for."""
    if leg.resolver is None:
        return ()
    made = []
    for number, way in enumerate(found, start=1):
        if way.resolver != leg.resolver.name:
            continue
        asked = (one if timed else replace(one, timeout_ms=0) for one in way.changes)
        if changes := tuple(one for one in asked if one.any):
            made.append(WayChanges(number, changes))
    return tuple(made)


def _checked(part: _Part, state: UpstreamState, options: Options, problems: list[Problem]) -> _Part:
    """The same with what is asked of the answers of each backend, which are those of the first legs."""
    label = state.upstream.key.label()
    pairs = zip(part.backends, state.legs, strict=False)
    checked = tuple(replace(backend, check=_check(leg, label, options, problems)) for backend, leg in pairs)
    return replace(part, backends=checked)


def _check(leg: Leg, label: str, options: Options, problems: list[Problem]) -> PeerCheck | None:
    identities = leg.identities
    if not options.leaves or not identities:
        return None
    if len(identities) > MAX_IDENTITIES:
        text = (
            f"its instances are of {len(identities)} services; with more than {MAX_IDENTITIES} answers are not checked"
        )
        problems.append(Problem(f"upstream {label}", text))
        return None
    return PeerCheck(options.leaves, identities)


def _servers(leg: Leg, vetted: Vetted) -> tuple[Server, ...]:
    found = order(leg, vetted.admitted, vetted.silent)
    others = (*found.passed, *found.standby)
    return servers(_endpoints(found.serving), vetted.admitted, _endpoints(others), vetted.silent)


def _endpoints(targets: tuple[TargetEndpoints, ...]) -> Iterator[Endpoint]:
    return (endpoint for target in targets for endpoint in target.endpoints)


def _connect_ms(upstream: Upstream, leg: Leg) -> int:
    resolver = leg.resolver.connect_timeout_ms if leg.resolver else 0
    return upstream.connect_timeout_ms or resolver or CONNECT_TIMEOUT_MS


def _request_ms(leg: Leg, protocol: Protocol) -> int:
    """How long an answer is waited for; 0 when Consul does not say."""
    return leg.resolver.request_timeout_ms if leg.resolver and protocol.is_http else 0


def _draws(leg: Leg) -> int:
    """As Envoy chooses: at random, or the one of two or more that has the fewest requests."""
    balancer = leg.resolver.load_balancer if leg.resolver else None
    if balancer is None:
        return 0
    least = min(max(LEAST_CHOICES, balancer.choices), MOST_CHOICES)
    return {Balancing.RANDOM.value: 1, Balancing.LEAST_REQUEST.value: least}.get(balancer.policy, 0)


def _possible(limits: TlsLimits, where: str, problems: list[Problem]) -> TlsLimits:
    """The same; a maximum that leaves no version is passed over, as HAProxy would refuse all of its configuration."""
    if limits.max_version is None or limits.max_version.at_least(limits.min_version or DEFAULT_MIN_VERSION):
        return limits
    lowest = limits.min_version or DEFAULT_MIN_VERSION
    text = f"{where}: TLSMaxVersion {limits.max_version.value} is below {lowest.value}, which is the least; ignored"
    problems.append(Problem("mesh entry", text))
    return replace(limits, max_version=None)


def _tls(certificates: Certificates, alpn: tuple[str, ...], limits: TlsLimits) -> Tls | None:
    if certificates.leaf is None or certificates.ca is None:
        return None
    return Tls(certificates.leaf.name, certificates.ca.name, alpn, limits)


def _public_alpn(protocol: Protocol) -> tuple[str, ...]:
    if not protocol.is_http:
        return ()
    return ("h2", "http/1.1") if protocol.is_h2 else ("http/1.1",)


def _upstream_alpn(protocol: Protocol) -> tuple[str, ...]:
    if not protocol.is_http:
        return ()
    return ("h2",) if protocol.is_h2 else ("http/1.1",)


def _mode(protocol: Protocol) -> Mode:
    return Mode.HTTP if protocol.is_http else Mode.TCP


def _idle_ms(protocol: Protocol, read_timeout_ms: int) -> int:
    return read_timeout_ms or (HTTP_TIMEOUT_MS if protocol.is_http else HOUR_MS)


def _app_timeouts(proxy: Proxy, protocol: Protocol) -> Timeouts:
    """Those of the application, asked by that protocol."""
    answer_ms = proxy.read_timeout_ms or (proxy.local_answer_timeout_ms if protocol.is_http else 0)
    return _timeouts(protocol, proxy.local_connect_timeout_ms, answer_ms)


def _caller_ms(proxy: Proxy) -> int:
    """How long a caller may be silent; over tcp until there is a session: then the backend's `tunnel_ms` counts."""
    if proxy.protocol.is_http:
        # So long a stranger may also take for the handshake: bounded, as otherwise they could take all connections.
        return min(_client_ms(proxy.read_timeout_ms, _app_timeouts(proxy, proxy.protocol)), HOUR_MS)
    return min(_idle_ms(proxy.protocol, proxy.read_timeout_ms), HTTP_TIMEOUT_MS)


def _application_ms(upstream: Upstream, protocol: Protocol, backends: Iterable[Backend]) -> int:
    """How long the application may be silent that calls an upstream."""
    if not protocol.is_http:
        return _idle_ms(protocol, upstream.read_timeout_ms)
    return max(_client_ms(upstream.read_timeout_ms, backend.timeouts, backend.changes) for backend in backends)


def _client_ms(read_timeout_ms: int, timeouts: Timeouts, changes: Iterable[WayChanges] = ()) -> int:
    """How long an http client may be silent in a request: as long as whoever answers it, if that is longer.

    While the client has not ended a call, such as a stream of gRPC, nothing but this time ends it (2.8 to 3.4).
    """
    routes = (change.timeout_ms for one in changes for change in one.changes)
    longest = max(FOR_EVER_MS if asked < 0 else asked for asked in (timeouts.server_ms, *routes))
    return max(_idle_ms(Protocol.HTTP, read_timeout_ms), longest)


def _timeouts(protocol: Protocol, connect_ms: int, read_timeout_ms: int) -> Timeouts:
    idle = _idle_ms(protocol, read_timeout_ms)
    return Timeouts(connect_ms or CONNECT_TIMEOUT_MS, idle, HOUR_MS if protocol.is_http else idle)


def _tcp_bind(address: str, port: int) -> TcpBind | None:
    try:
        words.address(address, port)
    except words.WordError:
        return None
    return TcpBind(str(ip_address(address)), port) if port else None
