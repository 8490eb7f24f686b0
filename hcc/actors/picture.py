"""The status of a sidecar, composed from what its parts know: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from hcc.actors.callers import shown
from hcc.actors.changes import Changes
from hcc.actors.lifecycle import ActorStatus
from hcc.actors.readiness import Facts, Validity, missing_parts
from hcc.actors.status import (
    CallerStatus,
    CertificateStatus,
    EndpointStatus,
    HAProxyStatus,
    IdentityState,
    ReadinessStatus,
    ServerState,
    SidecarStatus,
    Status,
    UpstreamStatus,
    VersionsStatus,
    WatchStatus,
)
from hcc.consul.watch_state import WatchState
from hcc.haproxy.names import backend_name, upstream_name
from hcc.haproxy.owners import Owners, caller_line, datacenter_of, protocol_of
from hcc.haproxy.stats import Row, RowKind, Stats
from hcc.mesh.caller import named_caller
from hcc.mesh.failover import order
from hcc.mesh.intentions import Policy, verdict_of
from hcc.mesh.judgement import word_of
from hcc.mesh.peer_book import peer_of
from hcc.mesh.rules import ALLOW, DENY
from hcc.mesh.snapshot import RENEWED_BY, Endpoint, Leg, Snapshot, TargetEndpoints, Upstream, UpstreamState
from hcc.settings import Enforcement, VerifyUpstream

# Said at the start and in the status.
UNENFORCED = {
    Enforcement.AUDIT: "intentions are only audited: every service of the mesh may call this one, denials are logged",
    Enforcement.OFF: "intentions are switched off: every service of the mesh may call this one",
}
# Of the endpoints that are refused, those that are warned of one by one.
MOST_REFUSED = 20

_STATES = {"MAINT": ServerState.MAINTENANCE, "DRAIN": ServerState.DRAINING}


@dataclass(frozen=True, slots=True)
class Identity:
    """What does not change while hcc runs."""

    proxy_id: str
    service_id: str
    pid: int
    started_at: float
    hcc: str
    python: str
    haproxy: str
    """The program when hcc started; an older one may run."""
    openssl: str
    control: str


@dataclass(frozen=True, slots=True)
class Observed:
    """What was found out at one moment.

    Args:
        now: Unix seconds.
        stats: with every endpoint; None when HAProxy did not give any, because of `stats_problem`.
        actors: empty when the root did not answer.
        consul: Consul's version, empty while unknown.
    """

    now: float
    snapshot: Snapshot | None
    changes: Changes
    stats: Stats | None
    stats_problem: str
    watches: tuple[WatchState, ...]
    actors: tuple[ActorStatus, ...]
    consul: str


def picture(identity: Identity, facts: Facts, observed: Observed) -> Status:
    """All of it together."""
    missing = missing_parts(facts, observed.now)
    rows = observed.stats.rows if observed.stats else ()
    return Status(
        at=observed.now,
        sidecar=_sidecar(identity, observed.snapshot),
        readiness=ReadinessStatus(not missing, missing, tuple(_warnings(facts, observed))),
        versions=VersionsStatus(
            hcc=identity.hcc,
            python=identity.python,
            haproxy=facts.haproxy.version or identity.haproxy,
            openssl=identity.openssl,
            control=identity.control,
            consul=observed.consul,
        ),
        haproxy=_haproxy(facts, observed),
        upstreams=_upstreams(facts, observed, rows),
        callers=_callers(facts, observed, rows),
        certificates=tuple(_certificate(one, observed.now) for one in facts.credentials.certificates),
        watches=tuple(_watch(one, observed.now) for one in observed.watches),
        actors=observed.actors,
        plans=facts.reconciler.plans,
    )


def _sidecar(identity: Identity, snapshot: Snapshot | None) -> SidecarStatus:
    proxy = snapshot.proxy if snapshot else None
    public = proxy is not None and bool(proxy.local_port or proxy.local_socket)
    return SidecarStatus(
        proxy_id=identity.proxy_id,
        service_id=identity.service_id,
        service=proxy.service if proxy else "",
        datacenter=snapshot.datacenter if snapshot else "",
        protocol=proxy.protocol.value if proxy else "",
        listens=_joined(proxy.bind_address, proxy.bind_port) if proxy and public else "",
        exposed=tuple(f"{_joined(proxy.bind_address, one.port)}{one.path}" for one in proxy.exposed) if proxy else (),
        pid=identity.pid,
        started_at=identity.started_at,
    )


def _warnings(facts: Facts, observed: Observed) -> Iterator[str]:
    reconciler, credentials, policy = facts.reconciler, facts.credentials, facts.policy
    behind = facts.intentions.asks and policy.version is not None and policy.current < policy.deciding
    parts = (
        (reconciler.failure, f"configuration: {reconciler.failure}"),
        (credentials.problem, f"certificate not used: {credentials.problem}"),
        (facts.haproxy.running and observed.stats_problem, f"haproxy: {observed.stats_problem}"),
        (facts.stats_problem, f"stats address: {facts.stats_problem}"),
        (behind, "policy: not every SPOE worker has the newest yet"),
        (facts.verify is VerifyUpstream.OFF, "it is not verified who upstreams' instances are"),
        (facts.intentions is not Enforcement.ENFORCE, UNENFORCED.get(facts.intentions, "")),
    )
    yield from (text for applies, text in parts if applies)
    yield from reconciler.problems
    yield from (f"listener left out until it can be had: {text}" for text in reconciler.taken)
    refused = facts.peers.refused
    yield from (f"endpoint {peer.where} gets no traffic: {reason}" for peer, reason in refused[:MOST_REFUSED])
    if len(refused) > MOST_REFUSED:
        yield f"{len(refused) - MOST_REFUSED} more endpoints are refused, too"
    if observed.snapshot is not None:
        yield from (f"registration: {warning}" for warning in observed.snapshot.proxy.warnings)
    yield from _certificate_warnings(credentials.certificates, observed.now)
    yield from _watch_warnings(observed.watches)


def _certificate_warnings(certificates: tuple[Validity, ...], now: float) -> Iterator[str]:
    for one in certificates:
        renewed_at = one.not_before + RENEWED_BY * (one.not_after - one.not_before)
        if one.kind == "leaf" and renewed_at <= now < one.not_after:
            yield f"leaf: not renewed, {one.not_after - now:.0f} s are left"


def _watch_warnings(watches: tuple[WatchState, ...]) -> Iterator[str]:
    for watch in watches:
        if watch.problem:
            yield f"{watch.key.label()}: {watch.problem}"
        elif watch.stale:
            yield f"{watch.key.label()}: no answer of Consul for {watch.age_s:.0f} s"


def _haproxy(facts: Facts, observed: Observed) -> HAProxyStatus:
    process = observed.stats.process if observed.stats else None
    return HAProxyStatus(
        running=facts.haproxy.running,
        pid=facts.haproxy.pid,
        uptime_s=float(process.uptime_s) if process else None,
        connections=process.connections if process else None,
        max_connections=process.max_connections if process else None,
        problem=observed.stats_problem,
    )


def _upstreams(facts: Facts, observed: Observed, rows: tuple[Row, ...]) -> tuple[UpstreamStatus, ...]:
    snapshot = observed.snapshot
    if snapshot is None:
        return ()
    fronts = {row.proxy: row.open_sessions for row in rows if row.kind is RowKind.FRONTEND}
    servers = _by_leg(Owners(snapshot.upstreams), rows)
    asked = observed.stats is not None
    seen = _Seen(facts)
    return tuple(
        UpstreamStatus(
            name=state.upstream.key.label(),
            datacenter=datacenter_of(state, snapshot),
            protocol=protocol_of(state).value,
            listens=_listens(state.upstream),
            known=state.known,
            sessions=fronts.get(upstream_name(state.upstream)),
            endpoints=tuple(_endpoints(state, observed.changes, servers, seen, asked=asked)),
        )
        for state in snapshot.upstreams
    )


def _by_leg(owners: Owners, rows: tuple[Row, ...]) -> dict[tuple[str, str], Row]:
    """The servers' rows by the backend of the leg whose endpoint it is, and by address.

    While requests go as before, as a new leg is not known yet, endpoints are found where they serve.
    """
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.kind is RowKind.SERVER:
            for name in owners.legs(row.proxy):
                if name == row.proxy or (name, row.address) not in found:
                    found[name, row.address] = row
    return found


def _endpoints(
    state: UpstreamState, changes: Changes, servers: Mapping[tuple[str, str], Row], seen: _Seen, *, asked: bool
) -> Iterator[EndpointStatus]:
    changed = changes.get(state.upstream.key, {})
    for leg, target, standby in _targets(state, seen):
        name = backend_name(state.upstream, leg.name)
        for endpoint in target.endpoints:
            row = servers.get((name, _joined(endpoint.address, endpoint.port)))
            identity, problem = seen.of(endpoint)
            yield EndpointStatus(
                address=endpoint.address,
                port=endpoint.port,
                health=endpoint.health.value,
                weight=endpoint.weight,
                state=_state(row) if asked else ServerState.UNKNOWN,
                sessions=row.open_sessions if row else None,
                changed_at=changed.get(_place(endpoint)),
                identity=identity,
                identity_problem=problem,
                silence=seen.silence(endpoint),
                standby=standby,
                leg=leg.name,
            )


def _targets(state: UpstreamState, seen: _Seen) -> Iterator[tuple[Leg, TargetEndpoints, bool]]:
    """Of each leg, and whether they stand by."""
    for leg in state.legs:
        found = order(leg, seen.admitted, seen.unable)
        yield from ((leg, target, False) for target in (*found.passed, *found.serving))
        yield from ((leg, target, True) for target in found.standby)


class _Seen:
    """What is known of who endpoints are."""

    def __init__(self, facts: Facts) -> None:
        self._probes = facts.verify.probes
        self.admitted = facts.peers.admitted
        self._silent = dict(facts.peers.silent)
        self.unable = self._silent.keys() | facts.peers.failed
        self._refused = dict(facts.peers.refused)

    def of(self, endpoint: Endpoint) -> tuple[IdentityState, str]:
        """That, and why it is refused."""
        peer = peer_of(endpoint)
        if not self._probes:
            return IdentityState.UNCHECKED, ""
        if peer in self.admitted:
            return IdentityState.VERIFIED, ""
        problem = self._refused.get(peer)
        return (IdentityState.WAITING, "") if problem is None else (IdentityState.REFUSED, problem)

    def silence(self, endpoint: Endpoint) -> str:
        """What the last probe found, if it is silent."""
        return self._silent.get(peer_of(endpoint), "") if self._silent else ""


def _place(endpoint: Endpoint) -> tuple[str, int]:
    return endpoint.address, endpoint.port


def _state(row: Row | None) -> ServerState:
    if row is None:
        return ServerState.ABSENT
    if row.serves:
        return ServerState.UP
    # Also `MAINT (resolution)`, `DOWN (agent)`.
    return _STATES.get(row.status.partition(" ")[0], ServerState.DOWN)


def _callers(facts: Facts, observed: Observed, rows: tuple[Row, ...]) -> tuple[CallerStatus, ...]:
    """Those who were denied, the newest denial first, and those whom HAProxy knows."""
    home = observed.snapshot.datacenter if observed.snapshot else ""
    policy = observed.snapshot.policy if observed.snapshot else None
    sessions = Counter[str]()
    for row in rows:
        name = caller_line(row)
        if name:
            sessions[shown(name, home)] += row.open_sessions
    found = {one.service: one for one in facts.policy.callers}
    for name, verdict in facts.callers.verdicts:
        service, word = shown(name, home), verdict if verdict in (ALLOW, DENY) else "rules"
        known = found.get(service)
        if known is None or known.verdict != word or not known.current:
            # HAProxy follows the policy in force; what a worker said may be older.
            reason = _reason(policy, name, verdict)
            known = known or CallerStatus(service, word, True, "", None, 0, None)
            found[service] = replace(known, verdict=word, current=True, reason=reason)
    return tuple(replace(one, sessions=sessions.get(one.service)) for one in found.values())


def _reason(policy: Policy | None, caller: str, verdict: str) -> str:
    """Why HAProxy's verdict is what it is, if the policy still says the same."""
    identity = named_caller(caller, policy.trust_domain) if policy else None
    if policy is None or identity is None or word_of(verdict_of(policy, identity)) != verdict:
        return ""
    return verdict_of(policy, identity).reason


def _listens(upstream: Upstream) -> str:
    return upstream.local_bind_socket or _joined(upstream.local_bind_address, upstream.local_bind_port)


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _certificate(one: Validity, now: float) -> CertificateStatus:
    return CertificateStatus(one.kind, one.name, one.not_before, one.not_after, one.not_after - now)


def _watch(one: WatchState, now: float) -> WatchStatus:
    failing_since = None if one.failing_s is None else now - one.failing_s
    return WatchStatus(
        type(one.key).__name__, one.key.label(), one.age_s, one.stale, one.answered, failing_since, one.problem
    )
