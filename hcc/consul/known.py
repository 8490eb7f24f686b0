"""Looking up what Consul has answered so far, by what it is; None while it is not known."""

from __future__ import annotations

from hcc.consul.answers import Answer, Instance, MeshEntry, Registration
from hcc.consul.keys import (
    ChainWatch,
    EndpointsWatch,
    IntentionsWatch,
    LeafWatch,
    MeshWatch,
    ProxyWatch,
    QueryWatch,
    RootsWatch,
    TokenProvidersWatch,
    WatchKey,
)
from hcc.mesh.chain import Chain
from hcc.mesh.snapshot import Leaf, Roots
from hcc.mesh.token_providers import TokenProviders

Known = dict[WatchKey, Answer]


def stands_in(old: WatchKey, keep: frozenset[WatchKey], known: Known) -> bool:
    """Whether an answer nobody wants any more serves until the one that replaces it is there."""
    # A new trust domain or override makes a new key; until its answer is there the last good one serves.
    match old:
        case IntentionsWatch():
            return any(
                isinstance(key, IntentionsWatch) and key.service == old.service and key not in known for key in keep
            )
        case ChainWatch():
            return any(isinstance(key, ChainWatch) and _same_chain(key, old) and key not in known for key in keep)
        case _:
            return False


def _same_chain(one: ChainWatch, other: ChainWatch) -> bool:
    # All but the overrides. Asked for each pair of a hundred upstreams at every answer, so the name comes first.
    return one.service == other.service and (one.datacenter, one.namespace, one.partition) == (
        other.datacenter,
        other.namespace,
        other.partition,
    )


def registration_of(known: Known, proxy_id: str) -> Registration | None:
    """Our own registration."""
    value = known.get(ProxyWatch(proxy_id))
    return value if isinstance(value, Registration) else None


def roots_of(known: Known) -> Roots | None:
    """The CA certificates."""
    value = known.get(RootsWatch())
    return value if isinstance(value, Roots) else None


def leaf_of(known: Known, service: str) -> Leaf | None:
    """A service's certificate."""
    value = known.get(LeafWatch(service))
    return value if isinstance(value, Leaf) else None


def mesh_entry_of(known: Known) -> MeshEntry | None:
    """The mesh entry, or what counts without one."""
    value = known.get(MeshWatch())
    return value if isinstance(value, MeshEntry) else None


def token_providers_of(known: Known) -> TokenProviders | None:
    """Who may sign tokens."""
    value = known.get(TokenProvidersWatch())
    return value if isinstance(value, TokenProviders) else None


def chain_of(known: Known, key: ChainWatch) -> Chain | None:
    """A chain, or the youngest one of that service that was asked for with other overrides."""
    value = known.get(key)
    if value is None:
        others = [other for other in known if isinstance(other, ChainWatch) and _same_chain(other, key)]
        value = known[others[-1]] if others else None
    return value if isinstance(value, Chain) else None


def instances_of(known: Known, key: EndpointsWatch | QueryWatch) -> tuple[Instance, ...] | None:
    """The instances behind one target or query."""
    value = known.get(key)
    return value if isinstance(value, tuple) else None


def datacenter_of(registration: Registration, known: Known) -> str:
    """Our datacenter, from the registration or from our own chain; empty while unknown."""
    if registration.datacenter:
        return registration.datacenter
    own = chain_of(known, ChainWatch(registration.proxy.service))
    return own.datacenter if own is not None else ""
