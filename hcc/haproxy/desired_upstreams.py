"""What the application is to find: a listener for each upstream, and the backends that it leads to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from hcc.haproxy import words
from hcc.haproxy.desired_parts import (
    CONNECT_TIMEOUT_MS,
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
from hcc.haproxy.model import Backend, Bind, PeerCheck, Server, Tls, UnixBind, UpstreamListener, WayChanges, WayTo
from hcc.haproxy.names import backend_name, upstream_name
from hcc.haproxy.owners import protocol_of
from hcc.haproxy.room import UPSTREAM_REQUESTS
from hcc.haproxy.servers import servers
from hcc.mesh.chain import Balancing, NodeType
from hcc.mesh.failover import order
from hcc.mesh.peer_book import Vetted
from hcc.mesh.snapshot import Endpoint, Leg, Protocol, Snapshot, TargetEndpoints, Upstream, UpstreamState, UpstreamType
from hcc.mesh.tls import LEFT_TO_PROXIES, TlsLimits
from hcc.mesh.ways import Way, unrouted, unserved, ways

# Of instances that are drawn at random, to take the least busy one.
LEAST_CHOICES, MOST_CHOICES = 2, 32
# A line of HAProxy's configuration has at most 64 words, and each identity takes two.
MAX_IDENTITIES = 20


@dataclass(frozen=True, slots=True)
class Part:
    """An upstream.

    Args:
        requests: how many it should have at once over HTTP/2, 0 where they do not come over it.
        registered: how many its registration says.
    """

    listener: UpstreamListener
    backends: tuple[Backend, ...]
    requests: int
    registered: int


def upstream_parts(
    snapshot: Snapshot,
    options: Options,
    certificates: Certificates,
    vetted: Vetted,
    taken: list[tuple[Bind, str]],
    problems: list[Problem],
) -> tuple[Part, ...]:
    """Those that can be served, in the order of the registration; the addresses that they take are noted in `taken`."""
    names: set[str] = set()
    limits = possible((snapshot.tls or LEFT_TO_PROXIES).outgoing, "TLS.Outgoing", problems)
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
    owner = owner_of(bind, taken)
    if owner is None and upstream_name(upstream) in names:
        owner = f"upstream {label}, registered twice"
    if owner is not None:
        text = f"wants to listen on {bind}, which {owner} has; the first one serves, this one does not"
        problems.append(Problem(f"upstream {label}", text))
        return None
    taken.append((bind, f"upstream {label}"))
    names.add(upstream_name(upstream))
    return bind


def _upstream_bind(upstream: Upstream) -> Bind:
    if upstream.local_bind_socket:
        mode = upstream.local_bind_socket_mode
        return UnixBind(words.listening_path(upstream.local_bind_socket), words.mode(mode) if mode else "")
    bind = tcp_bind(upstream.local_bind_address, upstream.local_bind_port)
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
) -> Part:
    upstream, protocol = state.upstream, protocol_of(state)
    tls = tls_of(certificates, _upstream_alpn(protocol), limits)
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
        mode=mode_of(protocol),
        backend=backends[0].name,
        client_timeout_ms=_application_ms(upstream, protocol, backends),
        limit=_limit(upstream, protocol),
        ways=tuple(WayTo(way.match, way.below, names[way.resolver]) for way in found),
    )
    return Part(listener, backends, listener.limit if protocol.is_h2 else 0, upstream.max_requests)


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
        mode=mode_of(protocol),
        tls=tls,
        timeouts=timeouts_of(protocol, _connect_ms(upstream, leg), answer_ms),
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


def _checked(part: Part, state: UpstreamState, options: Options, problems: list[Problem]) -> Part:
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


def _upstream_alpn(protocol: Protocol) -> tuple[str, ...]:
    if not protocol.is_http:
        return ()
    return ("h2",) if protocol.is_h2 else ("http/1.1",)


def _application_ms(upstream: Upstream, protocol: Protocol, backends: Iterable[Backend]) -> int:
    """How long the application may be silent that calls an upstream."""
    if not protocol.is_http:
        return idle_ms(protocol, upstream.read_timeout_ms)
    return max(client_ms(upstream.read_timeout_ms, backend.timeouts, backend.changes) for backend in backends)
