"""One question to Consul for each kind of watch: what to ask, from which position, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hcc.consul.answers import Answer, IntentionList
from hcc.consul.client import ConsulClient
from hcc.consul.decode import answer, intentions, probe
from hcc.consul.errors import ConsulPermissionError, ConsulStatusError
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
    WatchKey,
)
from hcc.consul.pacing import next_index
from hcc.consul.policy import Probe, default_allow, is_outdated, probe_uri
from hcc.consul.response import Result
from hcc.mesh.intentions import Intention

# How often an endpoint that cannot block is asked (intentions before Consul 1.9).
POLL_S = 5.0
# The agent answers `authorize` from a cache that follows a write within a millisecond or so.
_PROBES = 6
_PROBE_PAUSE_S = 0.02
# What Consul says of a kind of config entry that it does not know.
_NO_SUCH_KIND = "invalid config entry kind"
# Denied, gone, or never there: the header must do.
_NO_PROBE = (403, 404, 405, 410)


@dataclass(frozen=True, slots=True)
class Position:
    """Where the last good answer left us; all empty: ask at once."""

    index: int = 0
    hash: str = ""


@dataclass(frozen=True, slots=True)
class Fetched:
    """One good answer; `poll_s`: the next question cannot block, so ask it no sooner."""

    value: Answer
    position: Position
    poll_s: float = 0.0


def fetch(client: ConsulClient, key: WatchKey, position: Position, pause: Callable[[float], object]) -> Fetched:
    """Ask Consul once, blocking where the position allows it.

    Args:
        client: used by this thread alone.
        key: what to ask.
        position: of the last good answer.
        pause: waits for some seconds; used between probes of the default policy.

    Raises:
        ConsulError: no answer, a bad one, or one that the token's rights made empty.
    """
    if isinstance(key, IntentionsWatch):
        return _fetch_intentions(client, key, position, pause)
    result = _ask(client, key, position)
    value = answer(key, result.data)
    if isinstance(value, tuple) and not value and _is_filtered(result):
        msg = f"{key.label()}: expected all instances, found an empty list that the token's rights made so; "
        raise ConsulPermissionError(f"{msg}give it service:read and node:read", 403)
    return _fetched(key, value, result, position)


def _ask(  # noqa: PLR0911 - one return for each kind of key
    client: ConsulClient, key: WatchKey, position: Position
) -> Result:
    match key:
        case ProxyWatch():
            return client.service(key.proxy_id, position.hash)
        case ServiceWatch():
            return client.service(key.service_id, position.hash)
        case RootsWatch():
            return client.roots(position.index)
        case LeafWatch():
            return client.leaf(key.service, position.index)
        case MeshWatch():
            return _mesh(client, position)
        case ChainWatch():
            return client.chain(key, position.index)
        case EndpointsWatch():
            return client.endpoints(key, position.index)
        case IntentionsWatch():
            return client.intentions(key.service, position.index)
        case QueryWatch():
            return client.execute_query(key.name, key.datacenter)


def _mesh(client: ConsulClient, position: Position) -> Result:
    try:
        return client.mesh(position.index)
    except ConsulStatusError as exc:
        if _NO_SUCH_KIND in str(exc):
            # Consul before 1.10; asked again in a while, as it may be upgraded.
            return Result(data=[])
        raise


def _fetched(key: WatchKey, value: Answer, result: Result, position: Position) -> Fetched:
    match key:
        case QueryWatch():
            return Fetched(value, Position(), key.poll_interval_ms / 1000)
        case ProxyWatch() | ServiceWatch():
            return Fetched(value, Position(hash=result.hash), 0.0 if result.hash else POLL_S)
        case _:
            if result.index is None:
                return Fetched(value, Position(), POLL_S)
            return Fetched(value, Position(next_index(position.index, result.index)))


def _fetch_intentions(
    client: ConsulClient, key: IntentionsWatch, position: Position, pause: Callable[[float], object]
) -> Fetched:
    result = _ask(client, key, position)
    found = intentions(result.data)
    probed = _probe(client, key, found, pause)
    value = IntentionList(found, default_allow(probed, found, result.default_policy))
    return _fetched(key, value, result, position)


def _probe(
    client: ConsulClient,
    key: IntentionsWatch,
    found: tuple[Intention, ...],
    pause: Callable[[float], object],
) -> Probe | None:
    last = _authorized(client, key)
    for _ in range(_PROBES):
        if last is None or not is_outdated(last, found):
            break
        pause(_PROBE_PAUSE_S)
        last = _authorized(client, key)
    return last


def _authorized(client: ConsulClient, key: IntentionsWatch) -> Probe | None:
    try:
        return probe(client.authorize(key.service, probe_uri(key.trust_domain, key.datacenter)).data)
    except ConsulStatusError as exc:
        if exc.code in _NO_PROBE:
            return None
        raise


def _is_filtered(result: Result) -> bool:
    in_body = isinstance(result.data, dict) and result.data.get("ResultsFilteredByACLs") is True
    return result.filtered_by_acls or in_body
