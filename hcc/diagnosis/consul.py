"""The Consul agent, the token's rights by name, this sidecar's registration and leaf: asked of the agent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from hcc.app.maintenance import REASON
from hcc.app.selection import chosen
from hcc.consul.answers import Registration
from hcc.consul.client import ConsulClient
from hcc.consul.decode import answer, leaf, maintenance_reason, roots
from hcc.consul.errors import ConsulError, ConsulPermissionError, ConsulStatusError, ConsulTlsError, SelectionError
from hcc.consul.fields import fields
from hcc.consul.keys import ProxyWatch
from hcc.diagnosis.finding import Finding, failed, ok, skipped, warning
from hcc.errors import HccError
from hcc.mesh.snapshot import RENEWED_BY, Leaf, UpstreamType
from hcc.settings import RunSettings, Selection

_BAD_REQUEST = 400
_UNAUTHORIZED = 401
_TOO_MANY_REQUESTS = 429
_OLDEST = (1, 8)


@dataclass
class Known:
    """What the checks learned, for the ones after them."""

    registration: Registration | None = None
    proxy_id: str = ""


def check_agent(client: ConsulClient, selection: Selection, known: Known) -> Iterator[Finding]:
    """Whether the agent answers, is new enough, has Connect, and knows the proxy; `known` learns of it."""
    try:
        services = fields(client.services().data, "").values
    except ConsulError as exc:
        yield failed("agent", str(exc), _remedy(exc))
        return
    yield ok("agent", f"answers, {len(services)} services that this token sees")
    yield _version(client)
    try:
        yield ok("Connect", f"on, trust domain {roots(client.roots().data).trust_domain}")
    except ConsulError as exc:
        yield failed("Connect", str(exc), "switch it on in the agents' configuration: connect { enabled = true }")
        return
    if selection == Selection():
        yield skipped("proxy", "none chosen; with --sidecar-for or --proxy-id its registration and ports are checked")
        return
    yield from _proxy(client, services, selection, known)


def check_leaf(client: ConsulClient, service: str, now: datetime) -> Iterator[Finding]:
    """Whether the service's certificate can be had, and this machine's clock lies within its validity."""
    try:
        found = leaf(client.leaf(service).data)
    except ConsulError as exc:
        yield failed("leaf", str(exc), "give the token service:write on the service (a service identity has it)")
        return
    yield clock_against(found, now)


def clock_against(found: Leaf, now: datetime) -> Finding:
    """What the clock says of a leaf that Consul has just given."""
    start, end = (datetime.fromisoformat(text) for text in (found.not_before, found.not_after))
    if now < start:
        behind = (start - now).total_seconds()
        return failed("clock", f"{behind:.0f} s before the leaf becomes valid", "set this machine's clock (NTP)")
    if now > end:
        return failed(
            "clock",
            f"the leaf ended {(now - end).total_seconds():.0f} s ago",
            "set this machine's clock (NTP); if it is right, look why Consul does not renew",
        )
    left = f"within the leaf's validity, {(end - now).total_seconds() / 3600:.1f} h left"
    if now > start + (end - start) * RENEWED_BY:
        return warning("clock", left, "Consul should have renewed it: look at its servers' logs, and at the clocks")
    return ok("clock", left)


@dataclass(frozen=True, slots=True)
class Right:
    """One right, in Consul's words, and what it is needed for."""

    resource: str
    access: str
    name: str
    purpose: str

    def label(self) -> str:
        return f"{self.resource}:{self.access}" + (f" on {self.name}" if self.name else "")


def rights(registration: Registration, settings: RunSettings) -> tuple[Right, ...]:
    """What the token of this sidecar needs."""
    proxy = registration.proxy
    upstreams = sorted({one.key.name for one in proxy.upstreams if one.key.type == UpstreamType.SERVICE.value})
    queries = sorted({one.key.name for one in proxy.upstreams if one.key.type == UpstreamType.PREPARED_QUERY.value})
    wanted = [
        Right("service", "write", proxy.service, "the leaf certificate, the default of intentions"),
        Right("service", "read", proxy.name, "the sidecar's own registration"),
        Right("intention", "read", proxy.service, "who may call"),
        *(Right("service", "read", name, "upstream: its chain and instances") for name in upstreams),
        *(Right("query", "read", name, "upstream: the prepared query") for name in queries),
    ]
    if upstreams or queries:
        wanted.append(Right("node", "read", "", "upstreams: without it there seem to be no instances"))
    if settings.stats_service_register:
        wanted.append(Right("service", "write", f"{proxy.service}-connect-stats", "--stats-service-register"))
    return tuple(wanted)


def check_rights(client: ConsulClient, wanted: tuple[Right, ...]) -> Iterator[Finding]:
    """Whether the token has each right, by name."""
    try:
        answers = client.authorized(tuple((one.resource, one.access, one.name) for one in wanted)).data
    except ConsulStatusError as exc:
        if exc.code == _UNAUTHORIZED:
            yield ok("rights", "Consul's ACLs are off, no token is needed")
        else:
            yield failed("rights", str(exc), _remedy(exc))
        return
    except ConsulError as exc:
        yield failed("rights", str(exc), _remedy(exc))
        return
    for right, said in zip(wanted, answers, strict=True):
        if said.get("Allow") is True:
            yield ok(right.label(), right.purpose)
        else:
            yield failed(right.label(), f"missing, needed for {right.purpose}", _how_to_grant(right))


def _how_to_grant(right: Right) -> str:
    if right.purpose.startswith("--") or right.resource == "query":
        return f'add a policy to the token: {right.resource} "{right.name}" {{ policy = "{right.access}" }}'
    return "use a token with a service identity for the service: consul acl token create -service-identity NAME"


def _proxy(client: ConsulClient, services: object, selection: Selection, known: Known) -> Iterator[Finding]:
    try:
        known.proxy_id = chosen(services, selection).proxy_id
        registration = answer(ProxyWatch(known.proxy_id), client.service(known.proxy_id).data)
    except SelectionError as exc:
        remedy = "register it with this agent, correct the ID, or use a token that may read it"
        yield failed("proxy", str(exc), remedy)
        return
    except ConsulError as exc:
        yield failed("proxy", str(exc), _remedy(exc))
        return
    assert isinstance(registration, Registration)  # noqa: S101 (what a ProxyWatch answers)
    known.registration = registration
    proxy = registration.proxy
    count = len(proxy.upstreams)
    yield ok("proxy", f"{proxy.id}: service {proxy.service}, {count} upstream{'' if count == 1 else 's'}")
    yield from _maintenance(client, proxy.id)
    for text in proxy.warnings:
        yield warning("registration", text, "correct the sidecar's registration")


def _maintenance(client: ConsulClient, proxy_id: str) -> Iterator[Finding]:
    """That nobody calls it as Consul has it in maintenance mode; nothing where it has not."""
    try:
        reason = maintenance_reason(client.critical_checks().data, proxy_id)
    except ConsulError as exc:
        yield warning("maintenance", str(exc), _remedy(exc))
        return
    if reason is not None:
        end = f"consul maint -disable -service={proxy_id}"
        remedy = f"start hcc, which ends it, or {end}" if reason == REASON else f"if that is over: {end}"
        yield warning("maintenance", f"Consul has it in maintenance mode, so that nobody calls it: {reason}", remedy)


def _version(client: ConsulClient) -> Finding:
    try:
        text = fields(client.agent_self().data, "").child("Config").text("Version")
    except ConsulPermissionError:
        return skipped("Consul version", "needs agent:read, which a sidecar otherwise does not")
    except ConsulError as exc:
        return warning("Consul version", str(exc), _remedy(exc))
    parts = text.split("+")[0].split("-")[0].split(".")
    if tuple(int(part) for part in parts[:2] if part.isdecimal()) < _OLDEST:
        return failed("Consul version", text, "hcc needs Consul 1.8 or newer")
    return ok("Consul version", text)


def _remedy(error: HccError) -> str:
    if isinstance(error, ConsulPermissionError):
        return "use a token with a service identity for the service (--token-file)"
    if isinstance(error, ConsulTlsError):
        return "correct --http-addr, --ca-file, --client-cert or --tls-server-name; `hcc settings` shows what they are"
    if isinstance(error, ConsulStatusError) and error.code == _TOO_MANY_REQUESTS:
        return "raise the agent's limits; docs/sizing.md says what a sidecar needs of them"
    if isinstance(error, ConsulStatusError):
        # That port takes TLS alone: so Go's HTTP server answers who speaks plain HTTP to it.
        spoke_plain = error.code == _BAD_REQUEST and "HTTPS server" in str(error)
        return "name the agent as https://.. with --http-addr" if spoke_plain else "look at the agent's log"
    return "start the Consul agent of this machine, or name it with --http-addr"
