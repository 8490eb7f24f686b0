"""HAProxy's own counters with Consul's labels, asked for at each scrape.

Source and destination service, datacenter and protocol; never an address, a serial number or a URI. All of an upstream
is summed up, so the number of samples grows with upstreams and callers, not with endpoints: unless the operator asks
for each endpoint, by its address.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from hcc.haproxy.names import APP, PUBLIC
from hcc.haproxy.owners import Owners, caller_of, datacenter_of, protocol_of
from hcc.haproxy.slots import SPARE_ADDRESS, SPARE_PORT
from hcc.haproxy.stats import Process, Row, RowKind, Stats
from hcc.haproxy.stats_reader import StatsUnavailableError
from hcc.mesh.snapshot import Health, Leg, Snapshot, UpstreamState, UpstreamType
from hcc.mesh.ways import reached_resolvers

Labels = tuple[str, ...]
LABELS = ("source", "destination", "datacenter", "protocol")
# The public listener hears everybody: no source.
INBOUND_LABELS = LABELS[1:]
# Of a slot without an endpoint.
_SPARE = f"{SPARE_ADDRESS}:{SPARE_PORT}"


@dataclass(frozen=True, slots=True)
class _Family:
    """One metric, read from a row; None where HAProxy does not measure.

    Args:
        together: of the values of two rows with equal labels, the one that is told.
    """

    kind: type[CounterMetricFamily | GaugeMetricFamily]
    name: str
    text: str
    value: Callable[[Row], float | None]
    together: Callable[[float, float], float] = operator.add


_LATELY = "Average time of the last 1024 connections to"
_FRONT = (
    _Family(CounterMetricFamily, "connections", "Connections of clients.", lambda row: row.sessions),
    _Family(CounterMetricFamily, "denied", "Connections and requests that were refused.", lambda row: row.denied),
    _Family(CounterMetricFamily, "request_bytes", "Bytes from clients.", lambda row: row.bytes_in),
    _Family(CounterMetricFamily, "response_bytes", "Bytes to clients.", lambda row: row.bytes_out),
    _Family(GaugeMetricFamily, "open_connections", "Open connections of clients.", lambda row: row.open_sessions),
)
_PUBLIC = (
    _Family(
        CounterMetricFamily,
        "failed_handshakes",
        "TLS handshakes of clients that failed, and connections closed before one (not before HAProxy 2.6).",
        lambda row: row.failed_handshakes,
    ),
)
_FRONT_HTTP = (_Family(CounterMetricFamily, "requests", "Requests of clients.", lambda row: row.requests),)
_BACK = (
    _Family(CounterMetricFamily, "connect_errors", "Failed connections to servers.", lambda row: row.connect_errors),
    _Family(CounterMetricFamily, "response_errors", "Failed answers of servers.", lambda row: row.response_errors),
    _Family(
        CounterMetricFamily,
        "denied_responses",
        "Answers that were not let through, as the server is not who it should be.",
        lambda row: row.denied_responses,
    ),
    _Family(CounterMetricFamily, "retries", "Connections to servers that were tried again.", lambda row: row.retries),
    _Family(CounterMetricFamily, "redispatches", "Retries that took another server.", lambda row: row.redispatches),
    _Family(GaugeMetricFamily, "serving_endpoints", "Servers that get traffic.", lambda row: row.active_servers),
    _Family(
        GaugeMetricFamily,
        "connect_time_average_seconds",
        f"{_LATELY} connect.",
        lambda row: row.connect_average_s,
        together=max,
    ),
)
_LEG = (
    _Family(
        GaugeMetricFamily,
        "leg_serving_endpoints",
        "Servers that get traffic; with a router or splitter, of the leg that has the fewest.",
        lambda row: row.active_servers,
        together=min,
    ),
)
_BACK_HTTP = (
    _Family(
        GaugeMetricFamily,
        "response_time_average_seconds",
        f"{_LATELY} the first byte of the answer.",
        lambda row: row.response_average_s,
        together=max,
    ),
)
_CALLER = (
    _Family(CounterMetricFamily, "sessions", "Connections (tcp) or requests (http) let in.", lambda row: row.sessions),
    _Family(CounterMetricFamily, "request_bytes", "Bytes from the caller.", lambda row: row.bytes_in),
    _Family(CounterMetricFamily, "response_bytes", "Bytes to the caller.", lambda row: row.bytes_out),
    _Family(
        GaugeMetricFamily,
        "open_sessions",
        "Open connections (tcp) or requests (http).",
        lambda row: row.open_sessions,
    ),
)
_ENDPOINT = (
    _Family(
        CounterMetricFamily, "sessions", "Connections (tcp) or requests (http) sent to it.", lambda row: row.sessions
    ),
    _Family(CounterMetricFamily, "connect_errors", "Failed connections to it.", lambda row: row.connect_errors),
    _Family(CounterMetricFamily, "response_errors", "Failed answers of it.", lambda row: row.response_errors),
    _Family(
        GaugeMetricFamily,
        "open_sessions",
        "Open connections (tcp) or requests (http).",
        lambda row: row.open_sessions,
    ),
    _Family(GaugeMetricFamily, "up", "Whether it gets traffic.", lambda row: float(row.serves), together=max),
)


@dataclass(slots=True)
class _Side:
    """The metrics of upstreams, of the public listener or of callers; rows with equal labels are taken together."""

    prefix: str
    labels: tuple[str, ...]
    values: dict[_Family, dict[Labels, float]] = field(default_factory=dict)
    responses: Counter[Labels] = field(default_factory=Counter)

    def add(self, families: Iterable[_Family], row: Row, labels: Labels) -> None:
        for family in families:
            value = family.value(row)
            if value is not None:
                known = self.values.setdefault(family, {})
                known[labels] = family.together(known[labels], value) if labels in known else value

    def add_responses(self, row: Row, labels: Labels) -> None:
        for code, number in row.responses:
            self.responses[*labels, code] += number

    def metrics(self) -> Iterator[Metric]:
        for family, values in self.values.items():
            yield _metric(family.kind, f"{self.prefix}_{family.name}", family.text, self.labels, values)
        if self.responses:
            text, labels = "Responses, by class of their status.", (*self.labels, "code")
            yield _metric(CounterMetricFamily, f"{self.prefix}_responses", text, labels, self.responses)


def haproxy_metrics(stats: Callable[[], Stats], snapshot: Callable[[], Snapshot | None]) -> Iterator[Metric]:
    """What went through HAProxy; of it, only that it does not say when it does not.

    Args:
        stats: HAProxy's; where it has the servers of upstreams, each of them is shown.
        snapshot: whose traffic this is, None until Consul told.
    """
    try:
        found = stats()
    except StatsUnavailableError:
        found = None
    text = "Whether HAProxy gave its statistics."
    yield GaugeMetricFamily("hcc_haproxy_stats_up", text, value=float(found is not None))
    mesh = snapshot()
    if mesh is not None:
        yield _endpoints(mesh)
    if found is not None:
        yield from _process(found.process)
    if found is not None and mesh is not None:
        yield from _traffic(found.rows, mesh)


def _process(process: Process) -> Iterator[Metric]:
    yield GaugeMetricFamily("hcc_haproxy_open_connections", "Open connections.", value=process.connections)
    yield GaugeMetricFamily("hcc_haproxy_max_connections", "Connections it would take.", value=process.max_connections)
    yield CounterMetricFamily("hcc_haproxy_connections", "Connections, of all kinds.", value=process.connections_total)
    yield GaugeMetricFamily("hcc_haproxy_worker_uptime_seconds", "Since the start or reload.", value=process.uptime_s)
    yield GaugeMetricFamily("hcc_haproxy_idle_ratio", "Share of time without work.", value=process.idle)


def _traffic(rows: Iterable[Row], mesh: Snapshot) -> Iterator[Metric]:
    upstreams = _Side("hcc_upstream", LABELS)
    inbound = _Side("hcc_inbound", INBOUND_LABELS)
    callers = _Side("hcc_caller", LABELS)
    endpoints = _Side("hcc_endpoint", (*LABELS, "endpoint"))
    owners = Owners(mesh.upstreams)
    ours = (mesh.proxy.service, mesh.datacenter, mesh.proxy.protocol.value)
    http = mesh.proxy.protocol.is_http
    for row in rows:
        owner = owners.of(row.proxy)
        if owner is not None and row.kind is RowKind.SERVER:
            if row.address == _SPARE:
                continue
            endpoints.add(_ENDPOINT, row, (*_labels(owner, mesh), row.address))
        elif owner is not None:
            _add(upstreams, row, _labels(owner, mesh), http=protocol_of(owner).is_http)
            if row.kind is RowKind.BACKEND and _is_reached(owner, owners.legs(row.proxy).get(row.proxy)):
                upstreams.add(_LEG, row, _labels(owner, mesh))
        elif (row.kind, row.proxy) in ((RowKind.FRONTEND, PUBLIC), (RowKind.BACKEND, APP)):
            _add(inbound, row, ours, http=http)
        elif caller := caller_of(row):
            callers.add(_CALLER, row, (caller, *ours))
            if http:
                callers.add_responses(row, (caller, *ours))
    for side in (upstreams, inbound, callers, endpoints):
        yield from side.metrics()


def _add(side: _Side, row: Row, labels: Labels, *, http: bool) -> None:
    if row.kind is RowKind.FRONTEND:
        side.add(_FRONT + _FRONT_HTTP if http else _FRONT, row, labels)
        if http:
            side.add_responses(row, labels)
        if row.proxy == PUBLIC:
            side.add(_PUBLIC, row, labels)
    elif row.kind is RowKind.BACKEND:
        side.add(_BACK + _BACK_HTTP if http else _BACK, row, labels)


def _is_reached(owner: UpstreamState, leg: Leg | None) -> bool:
    """Whether requests can come to a leg; None: the backend is no leg's any more."""
    if leg is None:
        return False
    if leg.resolver is None or owner.chain is None:
        return True
    return leg.resolver.name in reached_resolvers(owner.chain)


def _endpoints(mesh: Snapshot) -> Metric:
    counts = Counter[Labels]()
    for state in mesh.upstreams:
        labels = _labels(state, mesh)
        found = Counter(endpoint.health for target in state.targets for endpoint in target.endpoints)
        for health in Health:
            counts[*labels, health.value] += found[health]
    text = "Instances that Consul knows, by health."
    return _metric(GaugeMetricFamily, "hcc_upstream_endpoints", text, (*LABELS, "health"), counts)


def _labels(state: UpstreamState, mesh: Snapshot) -> Labels:
    key = state.upstream.key
    # A prepared query and a service may have the same name.
    query = key.type == UpstreamType.PREPARED_QUERY.value
    destination = f"query:{key.name}" if query else key.name
    return (mesh.proxy.service, destination, datacenter_of(state, mesh), protocol_of(state).value)


def _metric(
    kind: type[CounterMetricFamily | GaugeMetricFamily],
    name: str,
    text: str,
    labels: tuple[str, ...],
    values: dict[Labels, float] | Counter[Labels],
) -> Metric:
    family = kind(name, text, labels=labels)
    for of, value in values.items():
        family.add_metric(of, value)
    return family
