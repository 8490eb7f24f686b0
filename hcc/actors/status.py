"""How one sidecar does, as one immutable value: what `/api/v1/status`, the status page and `hcc status` show.

Pure: the value, its JSON and back. `hcc.actors.picture` composes it from what the actors report. Times (`.._at`,
`not_..`) are Unix seconds, durations (`.._s`) seconds. What is not known is None, never a guess. No secret is in it; a
name in it may hold any character, so whoever shows it escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum, StrEnum
from types import NoneType, UnionType
from typing import TypeVar, get_args, get_origin, get_type_hints

from hcc.actors.lifecycle import ActorStatus
from hcc.errors import PeerError
from hcc.version import VERSION

T = TypeVar("T")

OTHER_HCC = "the sidecar runs another hcc than this one"


class StatusError(PeerError):
    """What should be a status is none: another version of hcc answered."""


class ServerState(StrEnum):
    """What HAProxy does with an endpoint now."""

    UP = "up"
    """It gets traffic."""
    DOWN = "down"
    DRAINING = "draining"
    MAINTENANCE = "maintenance"
    """It gets none: Consul says critical, or it is about to go."""
    ABSENT = "absent"
    """HAProxy does not have it: no certificate yet, or not applied yet."""
    UNKNOWN = "unknown"
    """HAProxy did not say."""


class IdentityState(StrEnum):
    """Whether an endpoint was seen to be who it should be."""

    VERIFIED = "verified"
    REFUSED = "refused"
    """It is somebody else, or its certificate is not to be trusted: it gets no traffic."""
    WAITING = "waiting"
    """No probe has seen it yet: it gets no traffic."""
    UNCHECKED = "unchecked"
    """Endpoints are not probed."""


@dataclass(frozen=True, slots=True)
class SidecarStatus:
    """Who this is.

    Args:
        service_id: of the instance it stands for, empty for a proxy that only has upstreams.
        protocol: of the public listener; empty, as `datacenter` and `listens`, until Consul told.
        listens: where other sidecars come in, `10.0.0.1:21000`.
        exposed: paths that anybody may ask for, `10.0.0.1:22900/health` each.
    """

    proxy_id: str
    service_id: str
    service: str
    datacenter: str
    protocol: str
    listens: str
    exposed: tuple[str, ...]
    pid: int
    started_at: float


@dataclass(frozen=True, slots=True)
class ReadinessStatus:
    """Whether it serves, and why not.

    Args:
        missing: what keeps it from being ready, as `/ready` says it.
        warnings: what an operator should look at though it serves, a phrase each.
    """

    ready: bool
    missing: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VersionsStatus:
    """What runs; `consul` is empty when the token may not ask."""

    hcc: str
    python: str
    haproxy: str
    openssl: str
    control: str
    consul: str


@dataclass(frozen=True, slots=True)
class HAProxyStatus:
    """The HAProxy process.

    Args:
        pid: of the master, 0 when none runs.
        uptime_s: of the worker: since the start or the last reload.
        connections: open now.
        max_connections: how many it takes.
        problem: why it did not say how it does, empty when it did.
    """

    running: bool
    pid: int
    uptime_s: float | None
    connections: int | None
    max_connections: int | None
    problem: str


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """One instance of an upstream.

    Args:
        health: Consul's word: passing, warning or critical.
        weight: Consul's, for that health.
        state: HAProxy's.
        sessions: open now.
        changed_at: when Consul last told otherwise about it; None when it did not since hcc runs.
        identity_problem: why it is refused, empty when it is not.
        silence: what the last probe found where neither probes nor HAProxy reach it; empty otherwise.
        standby: it is to serve when none of the targets before its own can.
        leg: the resolver of a router or splitter that it is of; empty where the upstream has but one.
    """

    address: str
    port: int
    health: str
    weight: int
    state: ServerState
    sessions: int | None
    changed_at: float | None
    identity: IdentityState
    identity_problem: str
    silence: str
    standby: bool
    leg: str = ""


@dataclass(frozen=True, slots=True)
class UpstreamStatus:
    """One upstream.

    Args:
        name: as in log lines and metrics: `web`, `web.dc2`, `query:web`.
        listens: where the application reaches it.
        known: whether Consul said which instances there are.
        sessions: of the application, open now.
    """

    name: str
    datacenter: str
    protocol: str
    listens: str
    known: bool
    sessions: int | None
    endpoints: tuple[EndpointStatus, ...]


@dataclass(frozen=True, slots=True)
class CallerStatus:
    """One service that came to the public listener: those that were denied last, and those that HAProxy knows.

    Args:
        service: Consul's name, with the datacenter when it is another than ours: `shop.dc2`.
        verdict: `allow`, `deny`, or `rules` when it depends on the request.
        current: whether that is by the policy in force; if not, the next connection may be decided otherwise.
        reason: of the verdict, in one phrase; empty where the policy that HAProxy goes by is not the newest any more.
        denied_at, denials: when a connection or request was refused last, and how many were; None and 0 when none was,
            or it was longer ago than is remembered.
        sessions: open now; None while HAProxy does not count by caller.
    """

    service: str
    verdict: str
    current: bool
    reason: str
    denied_at: float | None
    denials: int
    sessions: int | None


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """One certificate in use: `kind` is `leaf` or `root`; `seconds_left` is negative when it has expired."""

    kind: str
    name: str
    not_before: float
    not_after: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """One question that Consul is asked again and again.

    Args:
        kind: as in metrics: `LeafWatch`, `EndpointsWatch`, ..
        name: for people: `endpoints web.dc1`.
        age_s: since the last answer, or since it was asked first.
        stale: whether an answer is overdue.
        answered: whether there was any answer yet.
        failing_since: None while the last question was answered.
        problem: why that failed, empty while it did not.
    """

    kind: str
    name: str
    age_s: float
    stale: bool
    answered: bool
    failing_since: float | None
    problem: str


@dataclass(frozen=True, slots=True)
class PlanStatus:
    """One plan that was carried out.

    Args:
        outcome: `applied` or `failed`.
        operations: in words, the first few.
        operation_count: of all.
        drift: nobody had asked for a change: HAProxy had come to differ from what was wanted.
        failure: why the rest was left, empty when all was done.
    """

    at: float
    took_s: float
    outcome: str
    reasons: tuple[str, ...]
    operations: tuple[str, ...]
    operation_count: int
    reloaded: bool
    drift: bool
    failure: str


@dataclass(frozen=True, slots=True)
class Status:
    """All of it, at one moment.

    Args:
        plans: the newest first.
        actors: parents before children; empty when the root did not answer in time.
    """

    at: float
    sidecar: SidecarStatus
    readiness: ReadinessStatus
    versions: VersionsStatus
    haproxy: HAProxyStatus
    upstreams: tuple[UpstreamStatus, ...]
    callers: tuple[CallerStatus, ...]
    certificates: tuple[CertificateStatus, ...]
    watches: tuple[WatchStatus, ...]
    actors: tuple[ActorStatus, ...]
    plans: tuple[PlanStatus, ...]


def to_json(value: object) -> object:
    """A status, or a part of one, as what `json.dumps` takes: an object for each class, seconds to the millisecond."""
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return round(value, 3) if isinstance(value, float) else value


def from_json(value: object) -> Status:
    """The status in the answer of `/api/v1/status`; fields that this version does not know are left out.

    Raises:
        StatusError: a field is missing or of another kind; the text says where, and which hcc answered.
    """
    try:
        return _read(Status, value, "status")
    except StatusError as exc:
        raise StatusError(f"{OTHER_HCC}{_versions(value)}: {exc}") from exc


def _versions(value: object) -> str:
    """Which hcc made it and which reads it, where they have different names."""
    versions = value.get("versions") if isinstance(value, Mapping) else None
    theirs = versions.get("hcc") if isinstance(versions, Mapping) else None
    return "" if theirs in (None, VERSION) else f" ({str(theirs)[:40]}, this is {VERSION})"


def _read(kind: type[T], value: object, where: str) -> T:
    if not isinstance(value, Mapping):
        raise StatusError(f"expected {where} to be an object, found {type(value).__name__}")
    hints = get_type_hints(kind)
    found: dict[str, object] = {}
    for name, hint in hints.items():
        if name not in value:
            raise StatusError(f"expected {where}.{name}, found nothing")
        found[name] = _value(hint, value[name], f"{where}.{name}")
    return kind(**found)


def _value(hint: object, value: object, where: str) -> object:
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise StatusError(f"expected {where} to be a list, found {type(value).__name__}")
        return tuple(_value(get_args(hint)[0], item, f"{where}[{at}]") for at, item in enumerate(value))
    if isinstance(hint, UnionType):
        if value is None:
            return None
        hint = next(part for part in get_args(hint) if part is not NoneType)
    assert isinstance(hint, type)  # noqa: S101 (nothing else is used above)
    if is_dataclass(hint):
        return _read(hint, value, where)
    if issubclass(hint, Enum):
        return _member(hint, value, where)
    # JSON has one kind of number, and Python counts True as one.
    fits = isinstance(value, int | float if hint is float else hint)
    if not fits or (isinstance(value, bool) and hint is not bool):
        raise StatusError(f"expected {where} to be of kind {hint.__name__}, found {type(value).__name__}")
    return value


def _member(kind: type[Enum], value: object, where: str) -> Enum:
    try:
        return kind(value)
    except ValueError as exc:
        raise StatusError(f"expected {where} to be one of {[one.value for one in kind]}, found {value!r}") from exc
