"""Names of HAProxy sections and servers, made from Consul's names; HAProxy takes letters, digits and `_.:-`."""

from __future__ import annotations

from hcc.mesh.naming import joined
from hcc.mesh.snapshot import Upstream, UpstreamKey, UpstreamType

PUBLIC = "public"
APP = "app"
AGENTS = "spoe_agents"
EXPOSED = "exposed"
TOKEN_AGENT = "token_agent"  # noqa: S105 (a name)


def upstream_name(upstream: Upstream) -> str:
    """The name of an upstream's frontend: `up:web:9191`, `up:web:dc2:9191`, `query:web:9191`.

    A datacenter alone is one more part; namespace, partition or peer add all four. A unix socket stands for
    the port.
    """
    kind = "query" if upstream.key.type == UpstreamType.PREPARED_QUERY.value else "up"
    where = upstream.local_bind_socket or str(upstream.local_bind_port)
    return joined(kind, *_key_parts(upstream.key), where)


def backend_name(upstream: Upstream, leg: str = "") -> str:
    """The name of an upstream's backend, or of that of one of its legs: `up:web:9191:to`, `up:web:9191:to:v2.web`.

    Never that of the frontend: HAProxy warns of it since 3.2 and refuses it since 3.3.
    """
    parts = ("to", leg) if leg else ("to",)
    return f"{upstream_name(upstream)}:{joined(*parts)}"


def exposed_name(port: int) -> str:
    """The name of the frontend of exposed paths: `exposed:22900`."""
    return joined(EXPOSED, str(port))


def exposed_backend_name(local_port: int, *, h2: bool) -> str:
    """The name of the backend of those that the application answers at one port: `exposed:to:8181`."""
    return joined(EXPOSED, "to", str(local_port), *(("h2",) if h2 else ()))


def server_name(address: str, port: int) -> str:
    """The name of a server: `10.0.0.1:8080`, `2001:db8::1:8080`; `address` is an IP address."""
    return f"{address}:{port}"


def _key_parts(key: UpstreamKey) -> tuple[str, ...]:
    if key.namespace or key.partition or key.peer:
        return key.name, key.datacenter, key.namespace, key.partition, key.peer
    return (key.name, key.datacenter) if key.datacenter else (key.name,)
