"""From single answers of Consul to one `Snapshot`: what must be watched now, and what it all means.

The shell keeps a `State`, starts and stops watches until exactly `wanted` runs, and feeds each answer to
`updated`.
What Consul said once stays until it says otherwise: a failing watch changes nothing here.

Source: reference/consul.md section 3, life cycle of a sidecar.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from operator import attrgetter

from hcc.consul.answers import Answer, Application, ChainOverride, Instance, IntentionList, Registration
from hcc.consul.keys import (
    ChainWatch,
    EndpointsWatch,
    IntentionsWatch,
    LeafWatch,
    MeshWatch,
    ProxyWatch,
    QueryWatch,
    RootsWatch,
    ServiceWatch,
    TokenProvidersWatch,
    WatchKey,
)
from hcc.consul.known import (
    Known,
    chain_of,
    datacenter_of,
    instances_of,
    leaf_of,
    mesh_entry_of,
    registration_of,
    roots_of,
    stands_in,
    token_providers_of,
)
from hcc.mesh.chain import Chain, Target
from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Intention, Policy, demands_tokens
from hcc.mesh.permissions import distrusting
from hcc.mesh.remembered import remembered
from hcc.mesh.snapshot import (
    QUERY_TARGET,
    Endpoint,
    Health,
    Protocol,
    Proxy,
    Snapshot,
    TargetEndpoints,
    Upstream,
    UpstreamState,
    UpstreamType,
)
from hcc.mesh.ways import served_targets


@dataclass(frozen=True, slots=True)
class State:
    """The latest answer to each watch, sorted by nothing: look up with `known`.

    Args:
        policy_version: grows by one with each change of the intentions; a new State starts where an older
            one of this process ended.
    """

    proxy_id: str
    values: tuple[tuple[WatchKey, Answer], ...] = ()
    policy_version: int = 0

    def known(self) -> dict[WatchKey, Answer]:
        """The answers by key, as a new dict."""
        return dict(self.values)


def wanted(state: State) -> frozenset[WatchKey]:
    """Everything that must be watched now; grows from the proxy to its chains to their endpoints."""
    return _wanted(state.proxy_id, state.known())


def updated(state: State, key: WatchKey, value: Answer) -> State:
    """The state after one answer; the same object when the answer is old news or nobody wants it any more.

    Answers that are no longer wanted go, except those that stand in for one that is not there yet.
    """
    known = state.known()
    if key not in _wanted(state.proxy_id, known) or known.get(key) == value:
        return state
    # The new one goes last, so that of two stand-ins the younger is found.
    known.pop(key, None)
    known[key] = value
    before = registration_of(state.known(), state.proxy_id)
    if isinstance(value, Registration) and before is not None:
        known[key] = _with_protocol_of_before(value, before)
        known |= _application_of_before(value.proxy, before.proxy, known)
    keep = _wanted(state.proxy_id, known)
    values = tuple((old, answer) for old, answer in known.items() if old in keep or stands_in(old, keep, known))
    new, old = (_policy_of(state.proxy_id, each) for each in (dict(values), state.known()))
    version = state.policy_version + (new != old)
    return State(state.proxy_id, values, version)


def snapshot(state: State, version: int) -> Snapshot | None:
    """All of it as one value; None until the proxy's registration is known."""
    known = state.known()
    registration = registration_of(known, state.proxy_id)
    if registration is None:
        return None
    proxy, mesh = _completed(registration, known), mesh_entry_of(known)
    return Snapshot(
        version=version,
        proxy=proxy,
        datacenter=datacenter_of(registration, known),
        leaf=leaf_of(known, proxy.service),
        roots=roots_of(known),
        policy=_policy(known, registration, state.policy_version),
        tls=mesh.tls if mesh else None,
        upstreams=tuple(
            _upstream_state(upstream, override, known, datacenter_of(registration, known))
            for upstream, override in _upstreams(registration)
        ),
        hides_callers=mesh is not None and mesh.hides_callers,
    )


def watched_targets(chain: Chain) -> tuple[Target, ...]:
    """The targets of a chain that are watched, those of one resolver as they are tried; none is in a cluster peer."""
    return tuple(target for target in served_targets(chain) if not target.peer)


def chain_watch(upstream: Upstream, override: ChainOverride) -> ChainWatch:
    """The watch that an upstream of type service gets its chain from."""
    key = upstream.key
    return ChainWatch(
        service=key.name,
        datacenter=key.datacenter,
        namespace=key.namespace,
        partition=key.partition,
        protocol=override.protocol,
        mesh_gateway=override.mesh_gateway,
    )


def endpoints_watch(target: Target, datacenter: str) -> EndpointsWatch:
    """The watch that a target's instances come from, seen from `datacenter`."""
    return EndpointsWatch(
        service=target.service,
        datacenter=target.datacenter,
        namespace=target.namespace,
        partition=target.partition,
        filter=target.subset_filter,
        wan=target.datacenter != datacenter,
    )


def query_watch(upstream: Upstream, datacenter: str) -> QueryWatch:
    """The watch that a prepared query's instances come from, seen from `datacenter`."""
    return QueryWatch(upstream.key.name, upstream.key.datacenter, datacenter, upstream.poll_interval_ms)


def _wanted(proxy_id: str, known: Known) -> frozenset[WatchKey]:
    registration = registration_of(known, proxy_id)
    if registration is None:
        return frozenset((ProxyWatch(proxy_id), RootsWatch(), MeshWatch()))
    return frozenset((ProxyWatch(proxy_id), RootsWatch(), MeshWatch(), *_follow_ups(registration, known)))


def _follow_ups(registration: Registration, known: Known) -> Iterator[WatchKey]:
    proxy = registration.proxy
    datacenter = datacenter_of(registration, known)
    roots = roots_of(known)
    yield LeafWatch(proxy.service)
    if _needs_application(proxy):
        yield ServiceWatch(proxy.service_id)
    if not registration.datacenter or _is_in_doubt(registration):
        # The one question that tells our datacenter and protocol, and that a service's own token may ask.
        yield ChainWatch(proxy.service)
    if roots is not None and datacenter:
        yield IntentionsWatch(proxy.service, roots.trust_domain, datacenter)
    policy = _policy(known, registration)
    if policy is not None and any(demands_tokens(one) for one in policy.intentions):
        yield TokenProvidersWatch()
    for upstream, override in _upstreams(registration):
        yield from _upstream_watches(upstream, override, known, datacenter)


def _upstream_watches(upstream: Upstream, override: ChainOverride, known: Known, datacenter: str) -> Iterator[WatchKey]:
    if upstream.key.peer:
        return
    if _is_query(upstream):
        if datacenter:
            yield query_watch(upstream, datacenter)
        return
    yield chain_watch(upstream, override)
    chain = chain_of(known, chain_watch(upstream, override))
    if chain is not None and datacenter:
        for target in watched_targets(chain):
            yield endpoints_watch(target, datacenter)


def _policy_of(proxy_id: str, known: Known) -> Policy | None:
    registration = registration_of(known, proxy_id)
    return None if registration is None else _policy(known, registration)


def _policy(known: Known, registration: Registration, version: int = 0) -> Policy | None:
    # The trust domain is the one the list was asked for under: after a change callers of the new one are
    # refused until the list is read again.
    proxy, mesh = _completed(registration, known), mesh_entry_of(known)
    for key, value in reversed(known.items()):
        if isinstance(key, IntentionsWatch) and key.service == proxy.service and isinstance(value, IntentionList):
            return Policy(
                destination=proxy.service,
                trust_domain=key.trust_domain,
                intentions=_distrusting(value.intentions, proxy.appname_header),
                default_allow=value.default_allow,
                version=version,
                http=proxy.protocol.is_http,
                normalization=mesh.normalization if mesh else None,
                providers=token_providers_of(known),
                has_namespaces=registration.has_namespaces,
            )
    return None


def _distrusting(intentions: tuple[Intention, ...], header: str) -> tuple[Intention, ...]:
    """The intentions, their permissions `distrusting` a header that our registration names; the same without one."""
    if not header:
        return intentions
    return tuple(
        replace(one, permissions=tuple(distrusting(each, header) for each in one.permissions))
        if one.permissions
        else one
        for one in intentions
    )


def _needs_application(proxy: Proxy) -> bool:
    return bool(proxy.service_id) and not proxy.local_port and not proxy.local_socket


def _completed(registration: Registration, known: Known) -> Proxy:
    """The proxy with what its registration leaves to others."""
    return _with_protocol(registration, _with_local_port(registration.proxy, known), known)


def _with_local_port(proxy: Proxy, known: Known) -> Proxy:
    value = known.get(ServiceWatch(proxy.service_id)) if _needs_application(proxy) else None
    return replace(proxy, local_port=value.port) if isinstance(value, Application) else proxy


def _application_of_before(proxy: Proxy, before: Proxy, known: Known) -> Known:
    """The application at the port that the registration of before had, where the new one leaves that to its service."""
    key = ServiceWatch(proxy.service_id)
    if before.service_id != proxy.service_id or not before.local_port or not _needs_application(proxy) or key in known:
        return {}
    return {key: Application(proxy.service_id, proxy.service, "", before.local_port)}


def _with_protocol_of_before(registration: Registration, before: Registration) -> Registration:
    """The registration, with the protocol of the one before where it names none any more.

    An agent that lost its data says so until its servers have told it the service-defaults. Our chain knows better.
    """
    if registration.names_protocol or registration.proxy.service != before.proxy.service:
        return registration
    return replace(registration, proxy=replace(registration.proxy, protocol=before.proxy.protocol))


def _is_in_doubt(registration: Registration) -> bool:
    """Whether its protocol is that of the registration before."""
    return not registration.names_protocol and registration.proxy.protocol is not Protocol.TCP


def _with_protocol(registration: Registration, proxy: Proxy, known: Known) -> Proxy:
    # An agent that merges service-defaults into registrations (the default since Consul 1.9) names the protocol itself.
    own = known.get(ChainWatch(proxy.service))
    if registration.names_protocol or not isinstance(own, Chain):
        return proxy
    found = {protocol.value: protocol for protocol in Protocol}.get(own.protocol, proxy.protocol)
    return replace(proxy, protocol=found)


def _upstreams(registration: Registration) -> tuple[tuple[Upstream, ChainOverride], ...]:
    return tuple(zip(registration.proxy.upstreams, registration.overrides, strict=True))


def _is_query(upstream: Upstream) -> bool:
    return upstream.key.type == UpstreamType.PREPARED_QUERY.value


def _upstream_state(upstream: Upstream, override: ChainOverride, known: Known, datacenter: str) -> UpstreamState:
    trust_domain = roots.trust_domain if (roots := roots_of(known)) else ""
    if upstream.key.peer:
        return UpstreamState(upstream, None, ())
    if _is_query(upstream):
        found = instances_of(known, query_watch(upstream, datacenter))
        return UpstreamState(upstream, None, (_target_endpoints(QUERY_TARGET, found, trust_domain),))
    chain = chain_of(known, chain_watch(upstream, override))
    if chain is None:
        return UpstreamState(upstream, None, ())
    return UpstreamState(
        upstream,
        chain,
        tuple(_chain_target(target, known, datacenter, trust_domain) for target in watched_targets(chain)),
    )


def _chain_target(target: Target, known: Known, datacenter: str, trust_domain: str) -> TargetEndpoints:
    found = instances_of(known, endpoints_watch(target, datacenter))
    expected = _uri(trust_domain, target.service, target.datacenter, target.namespace, target.partition)
    return _target_endpoints(target.id, found, trust_domain, expected, only_passing=target.only_passing)


def _target_endpoints(
    target_id: str,
    instances: tuple[Instance, ...] | None,
    trust_domain: str,
    identity: str = "",
    *,
    only_passing: bool = False,
) -> TargetEndpoints:
    called = [instance for instance in instances or () if not instance.is_gateway]
    endpoints = (_endpoint(instance, trust_domain, identity, only_passing) for instance in called)
    ordered = tuple(sorted(dict.fromkeys(endpoints), key=_in_order))
    return TargetEndpoints(
        target_id,
        ordered,
        known=instances is not None,
        identity=identity,
        behind_gateway=len(called) < len(instances or ()),
    )


_in_order = attrgetter("address", "port", "identity", "health")


# The same object for the same instance: of ten thousand endpoints those that did not change are told by identity.
@remembered
def _endpoint(instance: Instance, trust_domain: str, identity: str, only_passing: bool) -> Endpoint:
    return Endpoint(
        address=_one_notation(instance.address),
        port=instance.port,
        weight=instance.weight,
        health=_health(instance.health, only_passing),
        identity=identity or _own_uri(trust_domain, instance),
    )


def _one_notation(address: str) -> str:
    """An address of version 6 as HAProxy writes it; Consul has it as somebody registered it."""
    try:
        return str(ip_address(address)) if ":" in address else address
    except ValueError:
        return address


def _health(health: Health, only_passing: bool) -> Health:
    return Health.CRITICAL if only_passing and health is not Health.PASSING else health


def _own_uri(trust_domain: str, instance: Instance) -> str:
    return _uri(trust_domain, instance.service, instance.datacenter, instance.namespace, instance.partition)


def _uri(trust_domain: str, service: str, datacenter: str, namespace: str, partition: str) -> str:
    # Without roots nothing can be verified, so nothing is expected yet; the roots bring a new snapshot.
    if not trust_domain:
        return ""
    return ServiceIdentity(trust_domain, service, datacenter, namespace, partition).uri()
