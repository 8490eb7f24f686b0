"""A whole status with something in each place, for tests of what shows it."""

from __future__ import annotations

from hcc.actors.lifecycle import ActorState, ActorStatus
from hcc.actors.status import (
    CallerStatus,
    CertificateStatus,
    EndpointStatus,
    HAProxyStatus,
    IdentityState,
    PlanStatus,
    ReadinessStatus,
    ServerState,
    SidecarStatus,
    Status,
    UpstreamStatus,
    VersionsStatus,
    WatchStatus,
)

NOW = 1_790_000_000.0
DAY_S = 86_400.0


def endpoint_status(
    number: int = 1,
    state: ServerState = ServerState.UP,
    health: str = "passing",
    *,
    standby: bool = False,
    silence: str = "",
) -> EndpointStatus:
    address, verified = f"10.0.{number // 250}.{number % 250}", IdentityState.VERIFIED
    return EndpointStatus(address, 21000, health, 1, state, 3, NOW - 61.5, verified, "", silence, standby)


def upstream_status(name: str = "api", endpoints: tuple[EndpointStatus, ...] | None = None) -> UpstreamStatus:
    if endpoints is None:
        endpoints = (endpoint_status(1), endpoint_status(2, ServerState.MAINTENANCE, "critical"))
    return UpstreamStatus(name, "dc1", "http", "127.0.0.1:9191", known=True, sessions=3, endpoints=endpoints)


def status() -> Status:
    return Status(
        at=NOW,
        sidecar=SidecarStatus(
            "web-proxy", "web-1", "web", "dc1", "http", "10.0.0.9:21000", ("10.0.0.9:22900/up",), 4711, NOW - 3600
        ),
        readiness=ReadinessStatus(ready=True, missing=(), warnings=("upstream db: its chain asks for more",)),
        versions=VersionsStatus("1.0.0", "3.11.2", "2.6.12", "OpenSSL 3.0.17", "direct", "1.20.1"),
        haproxy=HAProxyStatus(running=True, pid=4712, uptime_s=3500.0, connections=5, max_connections=500, problem=""),
        upstreams=(upstream_status(), UpstreamStatus("db", "dc2", "tcp", "127.0.0.1:9192", False, None, ())),
        callers=(
            CallerStatus("shop", "allow", True, "intention shop => web", None, 0, 4),
            CallerStatus("spy", "deny", False, "default policy", NOW - 5, 1, None),
        ),
        certificates=(
            CertificateStatus("leaf", "web", NOW - DAY_S, NOW + 2 * DAY_S, 2 * DAY_S),
            CertificateStatus("root", "Consul CA Root", NOW - 9 * DAY_S, NOW + 3000 * DAY_S, 3000 * DAY_S),
        ),
        watches=(
            WatchStatus("LeafWatch", "leaf web", 12.5, stale=False, answered=True, failing_since=None, problem=""),
            WatchStatus(
                "EndpointsWatch", "endpoints db.dc2", 700.0, True, False, NOW - 700, "HTTP 500: no path to datacenter"
            ),
        ),
        actors=(
            ActorStatus("root", ActorState.RUNNING, 1, 0, None, 0, 3600.0, None),
            ActorStatus("Admin", ActorState.RUNNING, 3, 2, "RuntimeError: boom", 1, 60.0, "root"),
        ),
        plans=(
            PlanStatus(
                NOW - 61, 0.012, "applied", ("servers differ from what runs",), ("add server x",), 1, False, False, ""
            ),
            PlanStatus(NOW - 90, 2.5, "failed", ("structure differs",), ("reload",), 1, False, False, "line 3: no"),
        ),
    )
