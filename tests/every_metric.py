"""The registry of a sidecar with at least one sample of everything that it can show."""

from __future__ import annotations

from hcc.actors.lifecycle import ActorState, ActorStatus
from hcc.app.collectors import actor_metrics_of, log_metrics, pool_metrics, watch_metrics, worker_metrics
from hcc.app.haproxy_metrics import haproxy_metrics
from hcc.consul.keys import LeafWatch
from hcc.consul.watch_state import WatchState
from hcc.haproxy.names import backend_name, upstream_name
from hcc.haproxy.stats import Process, Row, RowKind, Stats
from hcc.mesh.naming import joined
from hcc.mesh.snapshot import Protocol
from hcc.metrics import Metrics
from hcc.spoe.counters import BUCKET_BOUNDS_NS, WorkerCounters
from hcc.spoe.events import WorkerPhase, WorkerState
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state

PROCESS = Process(uptime_s=9, connections=2, connections_total=10, max_connections=100, idle=0.5)


def stats_row(kind: RowKind, name: str, server: str = "", *, connect_s: float | None = None) -> Row:
    return Row(
        kind=kind,
        proxy=name,
        server=server,
        address="127.0.0.1:80" if server else "",
        status="UP",
        http=True,
        open_sessions=1,
        sessions=10,
        requests=20,
        responses=(("2xx", 5), ("5xx", 1)),
        bytes_in=100,
        bytes_out=1000,
        denied=3,
        denied_responses=1,
        failed_handshakes=9,
        connect_errors=2,
        response_errors=4,
        client_aborts=8,
        retries=5,
        redispatches=6,
        active_servers=7,
        connect_average_s=connect_s,
        response_average_s=0.25,
    )


def everything() -> Metrics:
    """Of an http service with one upstream and one caller."""
    metrics = Metrics()
    metrics.haproxy_info.labels("2.6.12", "OpenSSL 3.0.17", "direct").set(1)
    metrics.operations.labels("Reload").inc()
    metrics.watch_answers.labels("LeafWatch").inc()
    metrics.watch_failures.labels("LeafWatch").inc()
    metrics.consul_requests.labels("200").inc()
    metrics.probes.labels("right").inc()
    metrics.refused_endpoints.labels("impostor").set(1)
    for date in (metrics.leaf_start, metrics.leaf_expiry, metrics.root_expiry):
        date.set(1e9)
    metrics.decisions.labels("shop", "server", "deny").inc()
    web = upstream("web")
    mesh = snapshot(upstream_state(web, (endpoint(),), protocol="http"), proxy_=proxy(protocol=Protocol.HTTP))
    rows = (
        stats_row(RowKind.FRONTEND, upstream_name(web)),
        stats_row(RowKind.BACKEND, backend_name(web), connect_s=0.1),
        stats_row(RowKind.SERVER, backend_name(web), "10.0.0.1:21000"),
        stats_row(RowKind.FRONTEND, "public"),
        stats_row(RowKind.BACKEND, "app", connect_s=0.1),
        stats_row(RowKind.SERVER, "app", joined("shop")),
    )
    counters = WorkerCounters(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, (0,) * (len(BUCKET_BOUNDS_NS) + 1))
    worker = WorkerState(0, "/run/hcc/w", WorkerPhase.READY, 1, 1, 1)
    actor = ActorStatus("Admin", ActorState.RUNNING, 1, 0, None, 0, 1.0, "root")
    metrics.collect_from(lambda: log_metrics(0))
    metrics.collect_from(lambda: actor_metrics_of((actor,)))
    metrics.collect_from(lambda: watch_metrics((WatchState(LeafWatch("web"), 1.0, answered=True),)))
    metrics.collect_from(lambda: pool_metrics((worker,)))
    metrics.collect_from(lambda: worker_metrics(lambda: (counters,), enforced=False))
    metrics.collect_from(lambda: haproxy_metrics(lambda: Stats(PROCESS, rows), lambda: mesh))
    return metrics
