"""One upstream from its registration to HAProxy, asked anew at each step: where does it break?

Consul is asked by the same code that the sidecar asks with (`hcc.consul.assembly`), so that both see the same.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from hcc.actors.status import EndpointStatus, IdentityState, ServerState
from hcc.consul.answers import Registration
from hcc.consul.assembly import State, snapshot, updated, wanted
from hcc.consul.client import ConsulClient
from hcc.consul.errors import ConsulError
from hcc.consul.fetch import Position, fetch
from hcc.consul.fields import fields_list
from hcc.consul.keys import (
    ChainWatch,
    EndpointsWatch,
    IntentionsWatch,
    LeafWatch,
    ProxyWatch,
    QueryWatch,
    ServiceWatch,
    WatchKey,
)
from hcc.diagnosis.finding import Finding, Level, failed, ok, skipped, warning
from hcc.diagnosis.handshake import CONNECT_TIMEOUT_S, check_endpoint, context_of
from hcc.diagnosis.sidecar import Running, check_answers
from hcc.mesh.chain import Target, targets_in_order
from hcc.mesh.snapshot import Endpoint, Health, Leg, Snapshot, TargetEndpoints, Upstream, UpstreamState
from hcc.mesh.ways import unserved, ways

MAX_TRIED = 10


def follow(client: ConsulClient, registration: Registration, name: str, running: Running) -> Iterator[Finding]:
    """The findings on the way; what comes after a failure that nothing can get past is left out.

    Args:
        client: of the agent.
        registration: of our sidecar, as just read.
        name: of the upstream, as `hcc status` shows it: `web`, `web.dc2`, `query:web`; or its service's name.
        running: the sidecar, if it runs.
    """
    chosen = _chosen(registration, name)
    if isinstance(chosen, Finding):
        yield chosen
        return
    upstream = chosen.proxy.upstreams[0]
    yield ok("registration", f"{_listens(upstream)} is to reach {upstream.key.label()}")
    state, failure = _ask_consul(client, chosen)
    seen = snapshot(state, 1)
    if seen is not None and (seen.upstreams[0].known or seen.upstreams[0].chain is not None):
        yield from _resolution(seen.upstreams[0], seen)
    if failure is not None:
        yield failure
    if failure is not None or seen is None:
        return
    able: list[Leg] = []
    for leg in seen.upstreams[0].legs:
        found = tuple(_instances(client, seen, leg))
        yield from found
        if all(one.level is not Level.FAILED for one in found):
            able.append(leg)
    if not able:
        return
    yield from _try(seen, tuple(one for leg in able for one in _endpoints((*leg.tried, *leg.standby))))
    yield from _haproxy(upstream, tuple((leg.name, one) for leg in able for one in _endpoints(leg.tried)), running)


def first_break(findings: tuple[Finding, ...]) -> str:
    """The subject of the first failure, empty when there is none."""
    return next((finding.subject for finding in findings if finding.level is Level.FAILED), "")


def _chosen(registration: Registration, name: str) -> Registration | Finding:
    """The registration with that one upstream only."""
    pairs = tuple(zip(registration.proxy.upstreams, registration.overrides, strict=True))
    fits = [pair for pair in pairs if pair[0].key.label() == name] or [
        pair for pair in pairs if pair[0].key.name == name
    ]
    if len(fits) == 1:
        upstream, override = fits[0]
        return replace(registration, proxy=replace(registration.proxy, upstreams=(upstream,)), overrides=(override,))
    known = ", ".join(sorted({one.key.label() for one, _ in pairs})) or "none"
    if fits:
        return failed("registration", f"several upstreams are called {name}", f"name one of: {known}")
    left_out = [text for text in registration.proxy.warnings if name in text]
    text = f"{registration.proxy.id} has no upstream {name}, but: {known}"
    return failed("registration", "; ".join((text, *left_out)), "register the upstream with the sidecar's service")


def _ask_consul(client: ConsulClient, registration: Registration) -> tuple[State, Finding | None]:
    """The answers to all that the sidecar would ask for this upstream, and why they are not whole."""
    state = updated(State(registration.proxy.id), ProxyWatch(registration.proxy.id), registration)
    while keys := [key for key in sorted(wanted(state), key=_order) if key not in state.known() and _matters(key)]:
        try:
            state = updated(state, keys[0], fetch(client, keys[0], Position(), time.sleep).value)
        except ConsulError as exc:
            return state, failed(_step(keys[0]), str(exc), _remedy(exc))
    return state, None


def _remedy(error: ConsulError) -> str:
    if "No path to datacenter" in str(error):
        return "correct the upstream's datacenter, or join that datacenter to ours"
    return "see `hcc doctor` for the agent and the token's rights"


def _matters(key: WatchKey) -> bool:
    return not isinstance(key, IntentionsWatch | ServiceWatch)


def _order(key: WatchKey) -> tuple[int, str]:
    return (isinstance(key, EndpointsWatch | QueryWatch), key.label())


def _step(key: WatchKey) -> str:
    match key:
        case ChainWatch():
            return "resolution"
        case EndpointsWatch() | QueryWatch():
            return "instances"
        case LeafWatch():
            return "our leaf"
        case _:
            return key.label()


def _resolution(state: UpstreamState, seen: Snapshot) -> Iterator[Finding]:
    if state.chain is None:
        yield ok("resolution", f"prepared query {state.upstream.key.name}")
        return
    legs = state.legs
    if len(legs) > 1:
        yield ok("resolution", f"{state.chain.protocol}, by {len(ways(state.chain))} ways to {len(legs)} legs")
    for leg in legs:
        start, *others = targets_in_order(state.chain, leg.resolver) if leg.resolver else ()
        yield ok("resolution", f"{leg.name or state.chain.protocol}, to {_named(start)}")
        for target in others:
            if not target.peer:
                yield ok("resolution", f"where none of its instances can take traffic, to {_named(target)}")
    for phrase in unserved(state.chain, seen.datacenter, seen.proxy.partition):
        yield warning("resolution", f"its chain asks for {phrase}, which is not served", "see the README's Limits")


def _named(target: Target) -> str:
    return f"service {target.service}{f' ({target.subset})' if target.subset else ''} in {target.datacenter}"


def _endpoints(targets: Iterable[TargetEndpoints]) -> tuple[Endpoint, ...]:
    return tuple(one for target in targets for one in target.endpoints)


def _instances(client: ConsulClient, seen: Snapshot, leg: Leg) -> Iterator[Finding]:
    of = f"{leg.name}: " if leg.name else ""
    endpoints, standby = _endpoints(leg.tried), _endpoints(leg.standby)
    serving = [one for one in endpoints if one.serves]
    if not serving:
        endpoints, standby = (*endpoints, *standby), ()
    text = f"{of}{len(serving)} of {len(endpoints)} take traffic"
    if standby:
        text += f", {len(standby)} more stand by"
    if any(target.behind_gateway for target in leg.targets):
        finding = warning if endpoints else failed
        told = f"{of}{'some' if endpoints else 'all'} are behind a terminating gateway, which is not served"
        yield finding("instances", told, "call them past the mesh, or give them sidecars; see the README's Limits")
        if not endpoints:
            return
    if not endpoints:
        yield failed(
            "instances", f"{of}none", "register the service with a sidecar (connect.sidecar_service) and start it"
        )
    elif not serving:
        reasons = _critical_checks(client, seen, leg) or "all are critical or have weight 0"
        yield failed("instances", f"{text}: {reasons}", "mend what the checks complain of, on the instances' side")
    elif len(serving) < len(endpoints):
        reasons = _critical_checks(client, seen, leg) or "the others are critical or have weight 0"
        yield warning("instances", f"{text}: {reasons}", "mend what the checks complain of, on the instances' side")
    else:
        yield ok("instances", text)


def _critical_checks(client: ConsulClient, seen: Snapshot, leg: Leg) -> str:
    """Which checks say critical, in Consul's words; empty where that cannot be told."""
    chain = seen.upstreams[0].chain
    if chain is None or leg.resolver is None:
        return ""
    target = chain.target(leg.resolver.target)
    key = EndpointsWatch(target.service, target.datacenter, target.namespace, target.partition, target.subset_filter)
    with contextlib.suppress(ConsulError):
        critical = [
            f"{check.text('Name')} on {entry.child('Node').text('Node')}: {_first_line(check.text('Output'))}"
            for entry in fields_list(client.endpoints(key).data, "")
            for check in entry.children("Checks")
            if check.text("Status") == Health.CRITICAL.value
        ]
        return "; ".join(critical[:3]) + (f"; and {len(critical) - 3} more" if len(critical) > 3 else "")  # noqa: PLR2004
    return ""


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:120] or "no output"


def _try(seen: Snapshot, endpoints: tuple[Endpoint, ...]) -> Iterator[Finding]:
    if seen.leaf is None or seen.roots is None:
        yield failed("our leaf", "Consul gave none", "see `hcc doctor`")
        return
    try:
        context = context_of(seen.leaf, seen.roots)
    except OSError as exc:
        yield failed("our leaf", f"cannot be used: {exc}", "look at Consul's CA configuration")
        return
    yield ok("our leaf", seen.leaf.uri)
    serving = [one for one in dict.fromkeys(endpoints) if one.serves]
    for endpoint in serving[:MAX_TRIED]:
        yield from check_endpoint(endpoint, context)
    if len(serving) > MAX_TRIED:
        yield skipped("handshake", f"{len(serving) - MAX_TRIED} more instances were not tried")


def _haproxy(upstream: Upstream, endpoints: tuple[tuple[str, Endpoint], ...], running: Running) -> Iterator[Finding]:
    if running.status is None:
        yield running.finding("sidecar")
        return
    silence = tuple(check_answers(running.status))
    yield from silence
    if silence:
        return
    shown = next((one for one in running.status.upstreams if one.name == upstream.key.label()), None)
    lacks = "; ".join(running.status.readiness.missing)
    if shown is None or not shown.known:
        text = "the sidecar does not serve this upstream yet" + (f": {lacks}" if lacks else "")
        yield failed("HAProxy", text, "look at `hcc status` and its log")
        return
    known = {(one.leg, one.address, one.port): one for one in shown.endpoints}
    for leg, endpoint in endpoints:
        if endpoint.serves:
            yield _state(leg, endpoint, known.get((leg, endpoint.address, endpoint.port)))
    yield _listening(upstream)


def _state(leg: str, endpoint: Endpoint, shown: EndpointStatus | None) -> Finding:
    subject, of = f"HAProxy: {endpoint.address}:{endpoint.port}", f"{leg}: " if leg else ""
    state = shown.state if shown else ServerState.ABSENT
    if state is ServerState.UP:
        return ok(subject, f"{of}up")
    if shown and shown.identity is IdentityState.REFUSED:
        return failed(subject, f"{of}refused: {shown.identity_problem}", "correct the registration of whoever is there")
    if shown and shown.identity is IdentityState.WAITING:
        return failed(subject, f"{of}no probe has seen yet who is there", "see what its handshake above says")
    if shown and shown.silence:
        return failed(
            subject, f"{of}does not answer: {shown.silence}", "see whether its sidecar runs, and the way to it"
        )
    remedy = "wait a moment; if it stays so, look at the plans in `hcc status` and at `hcc actors`"
    return failed(subject, f"{of}{state.value}", remedy)


def _listening(upstream: Upstream) -> Finding:
    subject = f"listener {_listens(upstream)}"
    family = socket.AF_INET6 if ":" in upstream.local_bind_address else socket.AF_INET
    address: tuple[str, int] | str = (upstream.local_bind_address, upstream.local_bind_port)
    if upstream.local_bind_socket:
        family, address = socket.AF_UNIX, upstream.local_bind_socket
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(CONNECT_TIMEOUT_S)
            sock.connect(address)
    except OSError as exc:
        remedy = "another process may have the port (`hcc doctor`); look at HAProxy's alerts in the sidecar's log"
        return failed(subject, exc.strerror or str(exc), remedy)
    return ok(subject, "takes connections")


def _listens(upstream: Upstream) -> str:
    if upstream.local_bind_socket:
        return upstream.local_bind_socket
    host = f"[{upstream.local_bind_address}]" if ":" in upstream.local_bind_address else upstream.local_bind_address
    return f"{host}:{upstream.local_bind_port}"
