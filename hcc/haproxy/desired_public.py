"""What other services are to find here: the public listener, exposed paths, and the way on to the application. Pure."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterator
from pathlib import PurePosixPath

from hcc.haproxy import words
from hcc.haproxy.desired_parts import (
    HOUR_MS,
    HTTP_TIMEOUT_MS,
    client_ms,
    idle_ms,
    mode_of,
    owner_of,
    possible,
    tcp_bind,
    timeouts_of,
    tls_of,
)
from hcc.haproxy.desired_terms import Certificates, Options, Problem
from hcc.haproxy.model import (
    AppBackend,
    Authorisation,
    Bind,
    ExposedListener,
    Mode,
    PathTo,
    PublicListener,
    TcpBind,
    TicketKeys,
    Timeouts,
)
from hcc.haproxy.names import AGENTS, APP, PUBLIC, exposed_backend_name, exposed_name
from hcc.haproxy.sight import Sight, sight_for
from hcc.mesh.caller import CLIENT_CERT_HEADER
from hcc.mesh.intentions import Policy
from hcc.mesh.judgement import Judgement
from hcc.mesh.request import CONSULS_DEFAULT
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import ExposedPath, Protocol, Proxy, Snapshot
from hcc.mesh.tls import LEFT_TO_PROXIES
from hcc.settings import Enforcement

# As many as HAProxy keeps for each listener (TLS_TICKETS_NO), of 48 bytes each; configuration.txt, `tls-ticket-keys`.
TICKET_KEYS = 3


def public_listener(
    snapshot: Snapshot, options: Options, certificates: Certificates, problems: list[Problem]
) -> PublicListener | None:
    """The listener, as registered; None where there is none, or not yet all that it needs."""
    proxy = snapshot.proxy
    bind = _public_bind(proxy)
    complaint = _public_complaint(proxy, bind, options.process.state_directory)
    if complaint:
        problems.append(Problem("public listener", complaint))
    limits = possible((snapshot.tls or LEFT_TO_PROXIES).incoming, "TLS.Incoming", problems)
    tls = tls_of(certificates, _public_alpn(proxy.protocol), limits)
    undecided = options.intentions.asks and snapshot.policy is None
    if bind is None or complaint or not _has_app(proxy) or tls is None or undecided:
        return None
    return PublicListener(
        name=PUBLIC,
        bind=bind,
        tls=tls,
        ticket_keys=options.ticket_keys,
        mode=mode_of(proxy.protocol),
        backend=APP,
        client_timeout_ms=_caller_ms(proxy),
        authorised=options.intentions.asks,
        max_connections=proxy.max_inbound_connections,
        forward_for=proxy.forward_for,
        appname_header=_header(proxy.appname_header, problems),
        client_cert_by=_client_cert_by(snapshot, options, certificates),
    )


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
    return tcp_bind(proxy.bind_address, proxy.bind_port)


def taken_first(proxy: Proxy) -> list[tuple[Bind, str]]:
    """The addresses that nobody else may have, and who has each: so far the public listener."""
    bind = _public_bind(proxy)
    return [(bind, "the public listener")] if bind else []


def _public_alpn(protocol: Protocol) -> tuple[str, ...]:
    if not protocol.is_http:
        return ()
    return ("h2", "http/1.1") if protocol.is_h2 else ("http/1.1",)


def _caller_ms(proxy: Proxy) -> int:
    """How long a caller may be silent; over tcp until there is a session: then the backend's `tunnel_ms` counts."""
    if proxy.protocol.is_http:
        # So long a stranger may also take for the handshake: bounded, as otherwise they could take all connections.
        return min(client_ms(proxy.read_timeout_ms, _app_timeouts(proxy, proxy.protocol)), HOUR_MS)
    return min(idle_ms(proxy.protocol, proxy.read_timeout_ms), HTTP_TIMEOUT_MS)


def app_backend(proxy: Proxy, callers: tuple[str, ...]) -> AppBackend:
    """The application, with a line for each of these callers."""
    return AppBackend(
        name=APP,
        mode=mode_of(proxy.protocol),
        address=proxy.local_address,
        port=proxy.local_port,
        socket=proxy.local_socket,
        h2=proxy.protocol.is_h2,
        callers=tuple(sorted(callers)),
        timeouts=_app_timeouts(proxy, proxy.protocol),
    )


def _app_timeouts(proxy: Proxy, protocol: Protocol) -> Timeouts:
    """Those of the application, asked by that protocol."""
    answer_ms = proxy.read_timeout_ms or (proxy.local_answer_timeout_ms if protocol.is_http else 0)
    return timeouts_of(protocol, proxy.local_connect_timeout_ms, answer_ms)


def authorisation(
    public: PublicListener | None, options: Options, policy: Policy | None, sight: Sight | None
) -> Authorisation | None:
    """Who decides about callers of that listener; None where nobody does."""
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


def ticket_keys(options: Options, certificates: Certificates) -> TicketKeys:
    """New ones with every new leaf or CA: a session that began with another must not be resumed."""
    leaf, ca = certificates.leaf, certificates.ca
    bound = "".join((leaf.fingerprint if leaf else "", *sorted(ca.fingerprints if ca else ())))
    secret = options.ticket_secret.reveal().encode()
    digests = (hmac.digest(secret, f"{number}{bound}".encode(), "sha384") for number in range(TICKET_KEYS))
    return TicketKeys(options.ticket_keys, tuple(Secret(base64.b64encode(digest).decode()) for digest in digests))


def exposed_listeners(
    proxy: Proxy, taken: list[tuple[Bind, str]], problems: list[Problem]
) -> Iterator[ExposedListener]:
    """A listener for each port of exposed paths; of a path that is there twice the first one."""
    ports: dict[int, dict[str, ExposedPath]] = {}
    for one in proxy.exposed:
        first = ports.setdefault(one.port, {}).setdefault(one.path, one)
        if first != one:
            text = f"is there twice at port {one.port}; the first one serves, the one of port {one.local_port} does not"
            problems.append(Problem(f"exposed path {one.path}", text))
    for port, paths in ports.items():
        bind = tcp_bind(proxy.bind_address, port)
        complaint = _exposed_complaint(proxy, bind, taken)
        if bind is None or complaint:
            problems.extend(Problem(f"exposed path {path}", f"cannot be served: {complaint}") for path in paths)
            continue
        taken.append((bind, f"exposed path {next(iter(paths))}"))
        yield ExposedListener(
            name=exposed_name(port),
            bind=bind,
            client_timeout_ms=client_ms(proxy.read_timeout_ms, _app_timeouts(proxy, Protocol.HTTP)),
            paths=tuple(PathTo(path, _exposing_app(proxy, one)) for path, one in paths.items()),
            unsaid=tuple(name for name in (CLIENT_CERT_HEADER, proxy.appname_header) if name),
        )


def _exposed_complaint(proxy: Proxy, bind: TcpBind | None, taken: list[tuple[Bind, str]]) -> str:
    if bind is None:
        return f"expected an IP address to bind, found {proxy.bind_address!r}"
    if owner := owner_of(bind, taken):
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
