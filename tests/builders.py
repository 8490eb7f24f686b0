"""Values with defaults, for tests: say only what matters to the test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hcc.haproxy.capabilities import Capabilities, Version
from hcc.haproxy.desired import Result
from hcc.haproxy.desired import desired as desired_of
from hcc.haproxy.desired_terms import Certificates, Options
from hcc.haproxy.model import CaFile, CertificateFile, GlobalOptions
from hcc.haproxy.render import Rendered, render
from hcc.mesh.chain import Chain, Node, NodeType, Route, Split, Target
from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Intention, Policy
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import (
    QUERY_TARGET,
    Endpoint,
    ExposedPath,
    Health,
    Leaf,
    Protocol,
    Proxy,
    Root,
    Roots,
    Snapshot,
    TargetEndpoints,
    Upstream,
    UpstreamKey,
    UpstreamState,
    UpstreamType,
)
from hcc.mesh.tls import LEFT_TO_PROXIES, MeshTls
from hcc.mesh.ways import served_targets
from hcc.settings import Enforcement

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
PEM = "-----BEGIN CERTIFICATE-----\nbWFkZSB1cA==\n-----END CERTIFICATE-----\n"
# No key: the words for "made up", in the shape of one.
KEY_PEM = PEM.replace("CERTIFICATE", "EC PRIVATE KEY")
V2_6 = Capabilities(Version(2, 6, 12))
V2_8 = Capabilities(Version(2, 8, 25))


def service_uri(service: str = "web", datacenter: str = "dc1") -> str:
    return ServiceIdentity(TRUST_DOMAIN, service, datacenter).uri()


def endpoint(
    address: str = "10.0.0.1",
    port: int = 21000,
    *,
    weight: int = 1,
    health: Health = Health.PASSING,
    identity: str = "",
) -> Endpoint:
    return Endpoint(address, port, weight, health, identity or service_uri())


def upstream_key(name: str = "web", *, datacenter: str = "", query: bool = False, namespace: str = "") -> UpstreamKey:
    kind = UpstreamType.PREPARED_QUERY if query else UpstreamType.SERVICE
    return UpstreamKey(kind.value, name, datacenter, namespace)


def upstream(
    name: str = "web",
    port: int = 9191,
    *,
    datacenter: str = "",
    query: bool = False,
    address: str = "127.0.0.1",
    socket: str = "",
    socket_mode: str = "",
    protocol: Protocol = Protocol.TCP,
    connect_timeout_ms: int = 0,
    read_timeout_ms: int = 0,
    max_connections: int = 0,
) -> Upstream:
    return Upstream(
        key=upstream_key(name, datacenter=datacenter, query=query),
        local_bind_address=address,
        local_bind_port=0 if socket else port,
        local_bind_socket=socket,
        local_bind_socket_mode=socket_mode,
        protocol=protocol,
        connect_timeout_ms=connect_timeout_ms,
        read_timeout_ms=read_timeout_ms,
        max_connections=max_connections,
    )


def target_id(service: str, datacenter: str = "dc1") -> str:
    return f"{service}.default.default.{datacenter}"


def chain(
    service: str = "web",
    *,
    protocol: str = "tcp",
    datacenter: str = "dc1",
    connect_timeout_ms: int = 5_000,
    failover: tuple[Target, ...] = (),
) -> Chain:
    """One resolver with one target, and those to fail over to."""
    target = Target(target_id(service, datacenter), service, datacenter)
    resolver = Node(
        name=f"resolver:{target.id}",
        type=NodeType.RESOLVER,
        target=target.id,
        failover=tuple(one.id for one in failover),
        connect_timeout_ms=connect_timeout_ms,
    )
    return Chain(service, datacenter, protocol, resolver.name, (resolver,), (target, *failover))


def resolver(name: str, service: str = "web", *, failover: tuple[str, ...] = (), **fields: Any) -> Node:
    """A resolver with a target of its name."""
    return Node(f"resolver:{name}", NodeType.RESOLVER, target=f"{name}.{service}", failover=failover, **fields)


def routed_chain(
    *routes: Route, splits: Iterable[Split] = (), legs: Iterable[Node] = (), protocol: str = "http"
) -> Chain:
    """A router before a splitter before resolvers; without routes, or without splits, it has none.

    A route or split leads to `splitter` or, by its bare name, to a resolver.
    """
    nodes = list(legs)
    found = tuple(replace(one, next_node=f"resolver:{one.next_node}") for one in splits)
    if found:
        nodes.append(Node("splitter:web", NodeType.SPLITTER, splits=found))
    ways = tuple(replace(one, next_node=_leg_name(one.next_node)) for one in routes)
    if ways:
        nodes.append(Node("router:web", NodeType.ROUTER, routes=ways))
    targets = dict.fromkeys(one for leg in legs for one in (leg.target, *leg.failover))
    return Chain(
        "web",
        "dc1",
        protocol,
        nodes[-1].name,
        tuple(sorted(nodes, key=lambda node: node.name)),
        tuple(Target(one, one.rpartition(".")[2], "dc1") for one in sorted(targets)),
    )


def _leg_name(name: str) -> str:
    return "splitter:web" if name == "splitter" else f"resolver:{name}"


def routed_state(
    chain_: Chain, endpoints: Mapping[str, Iterable[Endpoint]], upstream_: Upstream | None = None
) -> UpstreamState:
    """An upstream with that chain, and endpoints by target."""
    targets = (
        TargetEndpoints(
            one.id,
            tuple(replace(each, identity=service_uri(one.service)) for each in endpoints.get(one.id, ())),
            identity=service_uri(one.service),
        )
        for one in served_targets(chain_)
    )
    return UpstreamState(upstream_ or upstream(), chain_, tuple(targets))


def upstream_state(
    upstream_: Upstream | None = None,
    endpoints: Iterable[Endpoint] = (),
    *,
    chain_: Chain | None = None,
    protocol: str = "tcp",
) -> UpstreamState:
    """An upstream with endpoints, its chain made up for a service unless given."""
    registered = upstream_ or upstream()
    found = tuple(sorted(endpoints, key=lambda each: (each.address, each.port, each.weight, each.health.value)))
    if registered.key.type == UpstreamType.PREPARED_QUERY.value:
        return UpstreamState(registered, None, (TargetEndpoints(QUERY_TARGET, found),))
    compiled = chain_ or chain(registered.key.name, protocol=protocol, datacenter=registered.key.datacenter or "dc1")
    target = compiled.targets[0]
    identity = service_uri(target.service, target.datacenter)
    return UpstreamState(registered, compiled, (TargetEndpoints(target.id, found, identity=identity),))


def proxy(
    service: str = "server",
    *,
    bind_address: str = "127.0.0.1",
    bind_port: int = 21000,
    local_address: str = "127.0.0.1",
    local_port: int = 8181,
    local_socket: str = "",
    protocol: Protocol = Protocol.TCP,
    read_timeout_ms: int = 0,
    max_inbound_connections: int = 0,
    forward_for: bool = False,
    appname_header: str = "",
    upstreams: Iterable[Upstream] = (),
    exposed: Iterable[ExposedPath] = (),
) -> Proxy:
    return Proxy(
        id=f"{service}-sidecar-proxy",
        name=f"{service}-sidecar-proxy",
        service=service,
        service_id=service,
        bind_address=bind_address,
        bind_port=bind_port,
        local_address=local_address,
        local_port=local_port,
        local_socket=local_socket,
        protocol=protocol,
        read_timeout_ms=read_timeout_ms,
        max_inbound_connections=max_inbound_connections,
        forward_for=forward_for,
        appname_header=appname_header,
        upstreams=tuple(upstreams),
        exposed=tuple(exposed),
    )


def leaf(service: str = "server", *, cert_pem: str = PEM, key_pem: str = KEY_PEM) -> Leaf:
    return Leaf(
        service=service,
        uri=service_uri(service),
        cert_pem=cert_pem,
        key_pem=Secret(key_pem),
        not_before="2026-11-22T00:00:00Z",
        not_after="2026-11-25T00:00:00Z",
    )


def roots(*pems: str) -> Roots:
    certificates = tuple(Root(f"root-{n}", pem) for n, pem in enumerate(pems or (PEM,)))
    return Roots(TRUST_DOMAIN, certificates)


def policy(
    destination: str = "server",
    *intentions: Intention,
    default_allow: bool | None = True,
    version: int = 1,
) -> Policy:
    return Policy(destination, TRUST_DOMAIN, intentions, default_allow, version)


def snapshot(
    *upstreams: UpstreamState,
    proxy_: Proxy | None = None,
    leaf_: Leaf | None = None,
    roots_: Roots | None = None,
    policy_: Policy | None = None,
    tls: MeshTls = LEFT_TO_PROXIES,
    version: int = 1,
) -> Snapshot:
    """A whole one; for one without leaf, roots, policy or mesh entry use `dataclasses.replace`."""
    registered = proxy_ or proxy(upstreams=(state.upstream for state in upstreams))
    return Snapshot(
        version=version,
        proxy=registered,
        datacenter="dc1",
        leaf=leaf_ or leaf(registered.service),
        roots=roots_ or roots(),
        policy=policy_ or policy(registered.service),
        tls=tls,
        upstreams=upstreams,
    )


OUR_URI = "spiffe://11111111-2222-3333-4444-555555555555.consul/ns/default/dc/dc1/svc/web"


def certificates(
    *,
    leaf_name: str = "/run/hcc/leaf.pem",
    ca_name: str = "/run/hcc/roots.pem",
    fingerprint: str = "A" * 40,
    ca_fingerprints: Iterable[str] = ("C" * 40,),
    pem: str = PEM + KEY_PEM,
    ca_pem: str = PEM,
) -> Certificates:
    return Certificates(
        leaf=CertificateFile(leaf_name, fingerprint, Secret(pem), OUR_URI),
        ca=CaFile(ca_name, frozenset(ca_fingerprints), ca_pem),
    )


def options(*, directory: str = "/run/hcc", intentions: Enforcement = Enforcement.ENFORCE, workers: int = 2) -> Options:
    return Options(
        process=GlobalOptions(stats_socket=f"{directory}/stats.sock", state_directory=directory),
        agent_sockets=tuple(f"{directory}/spoe-{number}.sock" for number in range(1, workers + 1)),
        identities=f"{directory}/identities.map",
        verdicts=f"{directory}/verdicts.map",
        rules=f"{directory}/rules.map",
        ticket_keys=f"{directory}/tickets.keys",
        ticket_secret=Secret("of a test"),
        intentions=intentions,
        leaves=f"{directory}/leaves.map",
        token_socket=f"{directory}/tokens.sock",
    )


def result(
    *upstreams: UpstreamState,
    proxy_: Proxy | None = None,
    options_: Options | None = None,
    certificates_: Certificates | None = None,
) -> Result:
    """What `desired` makes of a snapshot with these upstreams."""
    return desired_of(snapshot(*upstreams, proxy_=proxy_), options_ or options(), certificates_ or certificates())


def with_text(rendered_: Rendered, text: str, *, structure: str) -> Rendered:
    """The same, but that it is written otherwise."""
    return replace(rendered_, write=lambda: text, structure=structure)


def rendered(*upstreams: UpstreamState, proxy_: Proxy | None = None, capabilities: Capabilities = V2_6) -> Rendered:
    return render(result(*upstreams, proxy_=proxy_).desired, capabilities)
