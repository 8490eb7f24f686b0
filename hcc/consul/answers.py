"""What a watch answers, where `hcc.mesh` has no value for it because only the assembly needs it."""

from __future__ import annotations

from dataclasses import dataclass

from hcc.consul.abilities import Lack
from hcc.mesh.chain import Chain
from hcc.mesh.identity import DEFAULT_NAMESPACE, DEFAULT_PARTITION
from hcc.mesh.intentions import Intention
from hcc.mesh.request import CONSULS_DEFAULT, Normalization
from hcc.mesh.snapshot import Health, Leaf, Proxy, Roots
from hcc.mesh.tls import LEFT_TO_PROXIES, MeshTls
from hcc.mesh.token_providers import TokenProviders


@dataclass(frozen=True, slots=True)
class ChainOverride:
    """What one upstream's registration wants different in its discovery chain; empty for nothing."""

    protocol: str = ""
    mesh_gateway: str = ""


@dataclass(frozen=True, slots=True)
class Registration:
    """The sidecar's registration.

    Args:
        datacenter: the agent's; empty where Consul does not say (before 1.10 or so).
        overrides: one for each of `proxy.upstreams`, in order.
        names_protocol: whether it says the protocol itself, or `proxy` has the default.
        has_namespaces: whether Consul has namespaces and partitions (Enterprise): it names those of every service then.
    """

    proxy: Proxy
    datacenter: str = ""
    overrides: tuple[ChainOverride, ...] = ()
    names_protocol: bool = True
    has_namespaces: bool = False


@dataclass(frozen=True, slots=True)
class Application:
    """The registration of the service that the sidecar stands for."""

    id: str
    name: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class IntentionList:
    """Intentions and the default policy, learned together, and what the agent that told them lacks.

    Args:
        default_allow: None when it is unknown.
    """

    intentions: tuple[Intention, ...]
    default_allow: bool | None
    lacks: frozenset[Lack] = frozenset()


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance's sidecar, and whom it stands for.

    Args:
        address: IP address or host name; only IP addresses leave `hcc.consul.watch`, but of gateways.
        weight: for its present health, at least 0.
        is_gateway: it is a terminating gateway, in the place of instances outside the mesh, and cannot be called.
    """

    address: str
    port: int
    weight: int
    health: Health
    service: str
    datacenter: str
    namespace: str = DEFAULT_NAMESPACE
    partition: str = DEFAULT_PARTITION
    is_gateway: bool = False

    def __hash__(self) -> int:
        """By what seldom is the same twice: there are thousands, looked up again and again."""
        return hash((self.address, self.port, self.service))


@dataclass(frozen=True, slots=True)
class MeshEntry:
    """What every sidecar of the mesh is to do alike.

    Args:
        hides_callers: applications are not told of callers' certificates.
    """

    normalization: Normalization = CONSULS_DEFAULT
    tls: MeshTls = LEFT_TO_PROXIES
    hides_callers: bool = False


Answer = (
    Registration
    | Application
    | Roots
    | Leaf
    | IntentionList
    | MeshEntry
    | TokenProviders
    | Chain
    | tuple[Instance, ...]
)
