"""What can be watched in Consul, as values: one key, one thread of `hcc.consul.watch`, one answer.

Two users of the same question have equal keys and thus share one watch: connections to the agent are a budget
(reference/consul.md section 2, rule 10). Fields that say "default" or nothing are left out of the question.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class ProxyWatch:
    """The sidecar's own registration; answers `Registration`."""

    proxy_id: str

    def label(self) -> str:
        return f"proxy {self.proxy_id}"


@dataclass(frozen=True, slots=True, order=True)
class ServiceWatch:
    """The application's registration, for a proxy that does not say its port; answers `Application`."""

    service_id: str

    def label(self) -> str:
        return f"service {self.service_id}"


@dataclass(frozen=True, slots=True, order=True)
class RootsWatch:
    """The CA certificates; answers `Roots`."""

    def label(self) -> str:
        return "CA roots"


@dataclass(frozen=True, slots=True, order=True)
class LeafWatch:
    """The certificate of a service, by name; answers `Leaf`."""

    service: str

    def label(self) -> str:
        return f"leaf {self.service}"


@dataclass(frozen=True, slots=True, order=True)
class IntentionsWatch:
    """The intentions with this destination, and the default policy; answers `IntentionList`.

    Trust domain and datacenter make the impossible caller that the default policy is asked with.
    """

    service: str
    trust_domain: str
    datacenter: str

    def label(self) -> str:
        return f"intentions for {self.service}"


@dataclass(frozen=True, slots=True, order=True)
class MeshWatch:
    """What every sidecar of the mesh is to do alike; answers `MeshEntry`."""

    def label(self) -> str:
        return "mesh entry"


@dataclass(frozen=True, slots=True, order=True)
class TokenProvidersWatch:
    """Who may sign the tokens that intentions demand; answers `TokenProviders`."""

    def label(self) -> str:
        return "jwt-provider entries"


@dataclass(frozen=True, slots=True, order=True)
class ChainWatch:
    """A compiled discovery chain; answers `Chain`.

    Args:
        datacenter: the one to compile in, empty for the agent's.
        protocol, mesh_gateway: what the upstream's registration overrides, empty for nothing.
    """

    service: str
    datacenter: str = ""
    namespace: str = ""
    partition: str = ""
    protocol: str = ""
    mesh_gateway: str = ""

    def label(self) -> str:
        return f"chain {_dotted(self.service, self.datacenter)}"


@dataclass(frozen=True, slots=True, order=True)
class EndpointsWatch:
    """The instances of one service's sidecars; answers a tuple of `Instance`.

    Args:
        filter: Consul's filter expression, empty for all.
        wan: take the addresses meant for callers of another datacenter.
    """

    service: str
    datacenter: str
    namespace: str = "default"
    partition: str = "default"
    filter: str = ""
    wan: bool = False

    def label(self) -> str:
        return f"endpoints {_dotted(self.service, self.datacenter)}"


@dataclass(frozen=True, slots=True, order=True)
class QueryWatch:
    """A prepared query, executed again and again; answers a tuple of `Instance`.

    Args:
        datacenter: where it is executed, empty for the agent's.
        home: our datacenter; instances of another one are reached by their WAN address.
    """

    name: str
    datacenter: str
    home: str
    poll_interval_ms: int

    def label(self) -> str:
        return f"query {_dotted(self.name, self.datacenter)}"


WatchKey = (
    ProxyWatch
    | ServiceWatch
    | RootsWatch
    | LeafWatch
    | IntentionsWatch
    | MeshWatch
    | TokenProvidersWatch
    | ChainWatch
    | EndpointsWatch
    | QueryWatch
)


def _dotted(name: str, datacenter: str) -> str:
    return f"{name}.{datacenter}" if datacenter else name
