"""One question to Consul for each kind of watch: what to ask, from which position, and what came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from hcc.consul.abilities import Lack, default_intention_policy, is_unknown_kind, lacks_of_agent
from hcc.consul.answers import Answer, IntentionList
from hcc.consul.client import ConsulClient
from hcc.consul.decode import answer, intentions, probe
from hcc.consul.entries import Reading, read
from hcc.consul.errors import (
    ConsulAnswerError,
    ConsulError,
    ConsulPermissionError,
    ConsulStatusError,
    ConsulUnavailableError,
)
from hcc.consul.fields import fields
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
from hcc.consul.pacing import next_index
from hcc.consul.policy import (
    Probe,
    configured_default,
    is_outdated,
    may_stand,
    names_everyone,
    probe_uri,
    probed_default,
)
from hcc.consul.response import Result
from hcc.mesh.intentions import Intention

# How often an endpoint that cannot block is asked.
POLL_S = 5.0
_NO_MATCH = frozenset((Lack.BLOCKING_MATCH, Lack.BLOCKING_INTENTIONS))
# When authorize still spoke of an older list, it is asked again after this.
UNCERTAIN_S = 1.0
# The agent answers `authorize` from a cache that follows a write within a millisecond or so.
_PROBES = 6
_PROBE_PAUSE_S = 0.02
# Denied, gone, or never there: the header must do.
_NO_PROBE = (403, 404, 405, 410)


@dataclass(frozen=True, slots=True)
class Unprobed:
    """A list that was told with the default policy as it had been; `header` is what its answer said of that."""

    told: IntentionList
    header: str


@dataclass(frozen=True, slots=True)
class Position:
    """Where the last good answer left us; all empty: ask at once.

    Args:
        index, hash: for the next blocking question.
        lacks: of the agent, None before it was asked; of intentions only, as what follows.
        default: what the default policy was found to be, by a list in which nobody names everyone.
        certain: the last list of which it was found out, whatever is in that; kept when a question failed.
        unprobed: the default policy is to be asked for before the next question.
        reading: of instances only.
    """

    index: int = 0
    hash: str = ""
    lacks: frozenset[Lack] | None = None
    default: bool | None = None
    certain: IntentionList | None = None
    unprobed: Unprobed | None = None
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True, slots=True)
class Fetched:
    """One good answer.

    Args:
        poll_s: the next question cannot block, so ask it no sooner.
        cut_off_s: the agent has it from its cache, and lost its servers so long ago (whole seconds); None: from them.
        lacking: why the default policy is that of before, although another list may have come with another; None: it
            is not.
    """

    value: Answer
    position: Position
    poll_s: float = 0.0
    cut_off_s: int | None = None
    lacking: ConsulError | None = None


def fetch(
    client: ConsulClient, key: WatchKey, position: Position, pause: Callable[[float], object], *, cached: bool = False
) -> Fetched:
    """Ask Consul once, blocking where the position allows it.

    Args:
        client: used by this thread alone.
        key: what to ask.
        position: of the last good answer.
        pause: waits for some seconds; used between probes of the default policy.
        cached: let the agent answer from its cache; of chains only.

    Raises:
        ConsulError: no answer, a bad one, or one that the token's rights made empty.
    """
    if isinstance(key, IntentionsWatch):
        return _fetch_intentions(client, key, position, pause)
    result = client.chain(key, cached=True) if cached and isinstance(key, ChainWatch) else _ask(client, key, position)
    value = _value(key, result)
    if isinstance(value, tuple) and not value and result.filtered_by_acls:
        msg = f"{key.label()}: expected all instances, found an empty list that the token's rights made so; "
        raise ConsulPermissionError(f"{msg}give it service:read and node:read", 403)
    asked = _service_behind(key, result) if not value else None
    if asked is not None:
        # Consul 1.8.7 and 1.14.4 do not mark what ACLs emptied (tried), but refuse this to the same token. What it may
        # is up to the datacenter that was asked.
        client.chain(asked, asked_in=asked.datacenter)
    return _fetched(key, value, result, position)


def _ask(  # noqa: C901, PLR0911 - one return for each kind of key
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
        case TokenProvidersWatch():
            return client.token_providers(position.index)
        case ChainWatch():
            return client.chain(key, position.index)
        case EndpointsWatch():
            before, wan = position.reading, key.wan
            return client.endpoints(key, position.index, lambda body: read(body, before, wan=wan))
        case IntentionsWatch():
            return client.intentions(key.service, position.index)
        case QueryWatch():
            return client.execute_query(key.name, key.datacenter)


def _service_behind(key: WatchKey, result: Result) -> ChainWatch | None:
    """The chain of the service that instances were asked for; None where it was something else."""
    if isinstance(key, EndpointsWatch):
        return ChainWatch(key.service, key.datacenter, key.namespace, key.partition)
    # What a prepared query finds is of the service that it names.
    service = fields(result.data, "").text("Service") if isinstance(key, QueryWatch) else ""
    return ChainWatch(service, key.datacenter) if service and isinstance(key, QueryWatch) else None


def _value(key: WatchKey, result: Result) -> Answer:
    if not isinstance(key, EndpointsWatch):
        return answer(key, result.data)
    if not isinstance(result.data, Reading):
        raise ConsulAnswerError("answer", "a list", "nothing")
    return result.data.instances


def _mesh(client: ConsulClient, position: Position) -> Result:
    try:
        return client.mesh(position.index)
    except ConsulStatusError as exc:
        if is_unknown_kind(str(exc)):
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
            read_so_far = result.data if isinstance(result.data, Reading) else Reading()
            # Of a leaf the agent says how old it is.
            cut_off_s = None if isinstance(key, LeafWatch) else result.cut_off_s
            if result.index is None:
                return Fetched(value, Position(reading=read_so_far), POLL_S, cut_off_s)
            position = Position(next_index(position.index, result.index), reading=read_so_far)
            return Fetched(value, position, cut_off_s=cut_off_s)


def _fetch_intentions(
    client: ConsulClient, key: IntentionsWatch, position: Position, pause: Callable[[float], object]
) -> Fetched:
    """A changed list is told with the default as it was; the probe, 1 to 2 ms, is made before the next question.

    Where the probe fails, too, if that lets in nobody by mistake: what was denied since must not wait until both
    questions succeed in a row.
    """
    if position.unprobed is not None:
        told = position.unprobed.told
        checked = _probed(client, key, told, position.unprobed.header, position.index, pause)
        if checked.value != told or checked.poll_s:
            return checked
        position = replace(position, unprobed=None)
    result, index, lacks = _matched(client, key, position)
    value = IntentionList(intentions(result.data), position.default, lacks)
    if position.default is not None and index is not None and not any(map(names_everyone, value.intentions)):
        unprobed = Unprobed(value, result.default_policy)
        return Fetched(value, replace(position, index=index, lacks=lacks, unprobed=unprobed))
    try:
        return _probed(client, key, value, result.default_policy, index, pause)
    except (ConsulStatusError, ConsulUnavailableError) as exc:
        last = position.certain
        if last is None or not may_stand(last.default_allow, last.intentions, value.intentions):
            raise
        return Fetched(replace(value, default_allow=last.default_allow), position, lacking=exc)


def _probed(
    client: ConsulClient,
    key: IntentionsWatch,
    value: IntentionList,
    header: str,
    index: int | None,
    pause: Callable[[float], object],
) -> Fetched:
    """A list with the default policy of now; `index` is None where the next question cannot block."""
    default, is_certain = _default_allow(client, key, value.intentions, header, pause)
    value = replace(value, default_allow=default)
    if not is_certain:
        return Fetched(value, Position(lacks=value.lacks), UNCERTAIN_S)
    if index is None:
        return Fetched(value, Position(lacks=value.lacks, certain=value), POLL_S)
    known = None if any(map(names_everyone, value.intentions)) else default
    return Fetched(value, Position(index, lacks=value.lacks, default=known, certain=value))


def _matched(
    client: ConsulClient, key: IntentionsWatch, position: Position
) -> tuple[Result, int | None, frozenset[Lack]]:
    """The match answer, the index to block on next (None: nothing blocks), and what the agent lacks."""
    lacks = position.lacks
    if lacks is None or not lacks & _NO_MATCH:
        result = _ask(client, key, position)
        lacks = _lacks(client, key, result) if lacks is None else lacks
        if result.index is not None:
            return result, next_index(position.index, result.index), lacks
        position = Position()
    # The list first, so that no change falls between the two.
    index = _any_change(client, position)
    lack = Lack.BLOCKING_INTENTIONS if index is None else Lack.BLOCKING_MATCH
    return client.intentions(key.service), index, (lacks - _NO_MATCH) | {lack}


def _any_change(client: ConsulClient, position: Position) -> int | None:
    """Waits for a change of any intention; the index after it, None where that cannot be waited for."""
    try:
        index = client.all_intentions(position.index).index
    except ConsulPermissionError:
        return None
    return None if index is None else next_index(position.index, index)


def _lacks(client: ConsulClient, key: IntentionsWatch, matched: Result) -> frozenset[Lack]:
    """For the log only, so that no refusal or odd answer here may cost the list."""
    lacks = set() if matched.default_policy else {Lack.POLICY_HEADER}
    try:
        client.config_entry("service-intentions", key.service)
    except (ConsulStatusError, ConsulAnswerError) as exc:
        if is_unknown_kind(str(exc)):
            lacks.add(Lack.INTENTION_ENTRIES)
    return frozenset(lacks | lacks_of_agent(_agent(client)))


def _agent(client: ConsulClient) -> Mapping[str, object]:
    """What the agent says of itself; nothing where the token may not ask, as it needs agent:read, which few have."""
    with contextlib.suppress(ConsulStatusError, ConsulAnswerError):
        said = client.agent_self().data
        return said if isinstance(said, Mapping) else {}
    return {}


def _default_allow(
    client: ConsulClient,
    key: IntentionsWatch,
    found: tuple[Intention, ...],
    header: str,
    pause: Callable[[float], object],
) -> tuple[bool | None, bool]:
    """What no intention decides, None when unknown; and whether asking again at once would say the same."""
    probed = _authorized(client, key)
    if probed is None or not probed.by_intention:
        return probed_default(probed, header), True
    configured = _configured(client)
    for _ in range(_PROBES if configured is None else 0):
        if not is_outdated(probed, found):
            break
        pause(_PROBE_PAUSE_S)
        probed = _authorized(client, key)
        if probed is None or not probed.by_intention:
            return probed_default(probed, header), True
    return configured_default(configured, header), configured is not None or not is_outdated(probed, found)


def _configured(client: ConsulClient) -> str | None:
    """The agent's default_intention_policy, None where the token may not read it."""
    try:
        return default_intention_policy(client.agent_self().data)
    except ConsulPermissionError:
        return None


def _authorized(client: ConsulClient, key: IntentionsWatch) -> Probe | None:
    try:
        return probe(client.authorize(key.service, probe_uri(key.trust_domain, key.datacenter)).data)
    except ConsulStatusError as exc:
        if exc.code in _NO_PROBE:
            return None
        raise
