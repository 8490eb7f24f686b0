"""Everything Consul said that matters for one proxy, as one immutable value.

Leaves to others: reading it from Consul's answers (`hcc.consul`) and deciding what HAProxy should do
(`hcc.haproxy.desired`). Durations are milliseconds, 0 meaning "not given" unless a field says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

from hcc.mesh.chain import Chain, Node, targets_in_order
from hcc.mesh.identity import DEFAULT_PARTITION
from hcc.mesh.intentions import Policy
from hcc.mesh.secret import Secret
from hcc.mesh.tls import MeshTls
from hcc.mesh.ways import served_resolvers


class Protocol(Enum):
    """What a service speaks; anything that Consul may say besides these counts as tcp."""

    TCP = "tcp"
    HTTP = "http"
    HTTP2 = "http2"
    GRPC = "grpc"

    @property
    def is_http(self) -> bool:
        """Whether HAProxy looks at requests (http, http2 and grpc)."""
        return self is not Protocol.TCP

    @property
    def is_h2(self) -> bool:
        """Whether the application speaks HTTP/2 (http2 and grpc)."""
        return self in (Protocol.HTTP2, Protocol.GRPC)


class UpstreamType(Enum):
    """How Consul finds the instances of an upstream."""

    SERVICE = "service"
    PREPARED_QUERY = "prepared_query"


class Health(StrEnum):
    """State of one endpoint: its worst check, node checks included."""

    PASSING = "passing"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, order=True)
class UpstreamKey:
    """What makes two upstreams of one proxy two; duplicates of one key differ by where they listen."""

    type: str
    name: str
    datacenter: str = ""
    namespace: str = ""
    partition: str = ""
    peer: str = ""

    def label(self) -> str:
        """The upstream in one word, for log lines and metrics: `web`, `web.dc2`, `query:web`."""
        prefix = "query:" if self.type == UpstreamType.PREPARED_QUERY.value else ""
        return prefix + ".".join(part for part in (self.name, self.datacenter, self.peer) if part)


@dataclass(frozen=True, slots=True)
class Upstream:
    """One upstream as the proxy's registration has it, its opaque Config decoded.

    Args:
        local_bind_address: an IP address; `local_bind_socket` replaces address and port when set.
        protocol: from the registration; a service upstream follows its discovery chain's instead.
        poll_interval_ms: how often a prepared query is executed.
        max_connections: most concurrent connections, 0 for no limit.
        max_requests: most requests in progress over http, http2 and grpc, 0 for no limit.
    """

    key: UpstreamKey
    local_bind_address: str
    local_bind_port: int
    local_bind_socket: str = ""
    local_bind_socket_mode: str = ""
    protocol: Protocol = Protocol.TCP
    connect_timeout_ms: int = 0
    read_timeout_ms: int = 0
    poll_interval_ms: int = 30_000
    max_connections: int = 0
    max_requests: int = 0
    mesh_gateway: str = ""


@dataclass(frozen=True, slots=True)
class ExposedPath:
    """A path of the application that anybody may ask for at the proxy, without TLS: for checks and scrapers.

    Args:
        path: the whole of it, without a query.
        port: where the proxy listens for it.
        local_port: where the application answers it, in HTTP/2 if `h2`.
    """

    path: str
    port: int
    local_port: int
    h2: bool = False


@dataclass(frozen=True, slots=True)
class Proxy:
    """The sidecar's own registration, its opaque Config decoded and defaults filled in.

    Args:
        service: name of the service it stands for (`DestinationServiceName`).
        service_id: ID of that instance, empty for a proxy that only has upstreams.
        bind_address, bind_port: where the public listener goes.
        local_address, local_port: where the application listens; port 0 while unknown.
        local_answer_timeout_ms: how long the application may be silent before and in an answer, of http alone;
            `read_timeout_ms`, if given, counts instead.
        max_inbound_connections: 0 for no limit.
        partition: where it is registered.
        warnings: what in the registration could not be used, for people.
    """

    id: str
    name: str
    service: str
    service_id: str
    bind_address: str
    bind_port: int
    local_address: str
    local_port: int
    local_socket: str = ""
    protocol: Protocol = Protocol.TCP
    local_connect_timeout_ms: int = 5_000
    local_answer_timeout_ms: int = 0
    read_timeout_ms: int = 0
    max_inbound_connections: int = 0
    forward_for: bool = False
    appname_header: str = ""
    upstreams: tuple[Upstream, ...] = ()
    exposed: tuple[ExposedPath, ...] = ()
    partition: str = DEFAULT_PARTITION
    warnings: tuple[str, ...] = ()


# Of a leaf's life: Consul has a new one by then, and an old one is worth a warning.
RENEWED_BY = 0.9


@dataclass(frozen=True, slots=True)
class Leaf:
    """The service's certificate as Consul issued it: `cert_pem` is the leaf and any intermediates."""

    service: str
    uri: str
    cert_pem: str
    key_pem: Secret
    not_before: str
    not_after: str


@dataclass(frozen=True, slots=True)
class Root:
    """One CA certificate. Old roots stay listed for a while, and stay trusted."""

    id: str
    cert_pem: str


@dataclass(frozen=True, slots=True)
class Roots:
    """All CA certificates that Consul lists, in Consul's order."""

    trust_domain: str
    roots: tuple[Root, ...]


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """One instance's sidecar.

    Args:
        address: an IP address (host names are resolved at the edge).
        weight: Consul's weight for its present health, 1 to 65535; 0 takes it out of balancing.
        identity: SPIFFE URI its certificate must carry.
    """

    address: str
    port: int
    weight: int
    health: Health
    identity: str = ""

    def __hash__(self) -> int:
        """By what seldom is the same twice: there are thousands, looked up again and again."""
        return hash((self.address, self.port, self.identity))

    @property
    def serves(self) -> bool:
        """Whether it may get traffic now."""
        return self.health is not Health.CRITICAL and self.weight > 0


@dataclass(frozen=True, slots=True)
class TargetEndpoints:
    """The instances of one chain target, sorted.

    Args:
        known: false until Consul answered once.
        identity: the SPIFFE URI of the target's service; empty for a prepared query, whose instances may be of several.
        behind_gateway: there are more of them outside the mesh, behind a terminating gateway, which is not called.
    """

    target_id: str
    endpoints: tuple[Endpoint, ...]
    known: bool = True
    identity: str = ""
    behind_gateway: bool = False

    @property
    def serves(self) -> bool:
        """Whether any of its instances may get traffic now."""
        return any(one.serves for one in self.endpoints)

    @property
    def identities(self) -> tuple[str, ...]:
        """All that its instances may have, sorted. The target's is among them when there is no instance now."""
        return tuple(sorted({self.identity, *(one.identity for one in self.endpoints)} - {""}))


@dataclass(frozen=True, slots=True)
class Leg:
    """What one resolver of an upstream's chain has: a set of targets, of which one serves.

    Args:
        name: which of the upstream's it is: of the resolver; empty where it is the only one.
        resolver: None for a prepared query, and while the chain is not known.
        targets: in the order in which they are tried: those after the first are for failover.
    """

    name: str
    resolver: Node | None
    targets: tuple[TargetEndpoints, ...]

    @property
    def known(self) -> bool:
        """Whether its targets up to the one that serves were answered once."""
        at = self._serving_at
        asked = self.targets[: at + 1] if at < len(self.targets) and self.targets[at].serves else self.targets
        return all(target.known for target in asked)

    @property
    def tried(self) -> tuple[TargetEndpoints, ...]:
        """The targets up to the one that gets the traffic: the first that can take it, or the first if none can.

        As Consul's Envoy does: failover begins where a target has no healthy instance left (reference/consul.md section
        4). So none but the last of these has one.
        """
        return self.targets[: self._serving_at + 1]

    @property
    def standby(self) -> tuple[TargetEndpoints, ...]:
        """The targets after that."""
        return self.targets[self._serving_at + 1 :]

    @property
    def identities(self) -> tuple[str, ...]:
        """All that instances of its targets may have, sorted."""
        return tuple(sorted({one for target in self.targets for one in target.identities}))

    @property
    def _serving_at(self) -> int:
        return next((at for at, target in enumerate(self.targets) if target.serves), 0)


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """One upstream with what Consul knows of it now.

    Args:
        chain: None for a prepared query, and for a service until its chain is known.
        targets: endpoints by target, each once; of one resolver in the order in which they are tried. A prepared query
            has one, with ID `query`.
    """

    upstream: Upstream
    chain: Chain | None
    targets: tuple[TargetEndpoints, ...]

    @property
    def known(self) -> bool:
        """Whether its chain, if it has one, and what serves of each leg were answered once."""
        is_service = self.upstream.key.type == UpstreamType.SERVICE.value and not self.upstream.key.peer
        if self.chain is None and is_service:
            return False
        return all(leg.known for leg in self.legs)

    @property
    def legs(self) -> tuple[Leg, ...]:
        """One for each resolver that some of its requests go to, that of the chain's default path first."""
        if self.chain is None:
            return (Leg("", None, self.targets),)
        first, *others = served_resolvers(self.chain)
        if not others:
            return (Leg("", first, self.targets),)
        return tuple(self._leg(self.chain, resolver) for resolver in (first, *others))

    def _leg(self, chain: Chain, resolver: Node) -> Leg:
        found = {target.target_id: target for target in self.targets}
        # Instances in cluster peers are not asked for. Of others nothing may be there: in a file of an older hcc.
        wanted = (target.id for target in targets_in_order(chain, resolver) if not target.peer)
        targets = tuple(found.get(one, TargetEndpoints(one, (), known=False)) for one in wanted)
        return Leg(resolver.name.removeprefix(RESOLVER_PREFIX), resolver, targets)


QUERY_TARGET = "query"
# How Consul names the nodes of chains that are resolvers.
RESOLVER_PREFIX = "resolver:"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of it. `version` grows with every snapshot of one hcc process.

    `hides_callers`: the application is not to be told of callers' certificates, as the mesh entry says.
    `leaf`, `roots`, `policy` and `tls` are None until Consul gave them once; after that the last good one stays.
    """

    version: int
    proxy: Proxy
    datacenter: str
    leaf: Leaf | None
    roots: Roots | None
    policy: Policy | None
    tls: MeshTls | None
    upstreams: tuple[UpstreamState, ...]
    hides_callers: bool = False

    def complete(self, *, intentions: bool) -> bool:
        """Whether every question that Consul was asked has an answer (which may be "nothing there")."""
        policy_known = (self.policy is not None and self.policy.complete) or not intentions
        return (
            self.leaf is not None
            and self.roots is not None
            and policy_known
            and self.tls is not None
            and all(upstream.known for upstream in self.upstreams)
        )
