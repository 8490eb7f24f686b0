"""What is not known takes nothing away: servers stay until it is known which there are, and that one may serve. Pure.

A chain that leads to another service asks a new question, and so does an hcc that starts beside a HAProxy that serves.
Until the answer is there, or if it never comes, an empty list would be a guess. So would be one of instances of which
none has been probed yet. With the servers stays what is asked of their answers. And where a router or splitter leads
somewhere new, requests are sent as before until it is known who serves there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hcc.haproxy.model import MAX_WEIGHT, ActualServers, Backend, Desired, PeerCheck, Server, UpstreamListener
from hcc.haproxy.slots import is_spare


def is_guessed(wanted: Desired) -> bool:
    """Whether some servers are not known."""
    return any(not backend.known for backend in wanted.backends)


def is_astray(wanted: Desired, running: ActualServers) -> bool:
    """Whether requests would be sent to what does not run yet, and it is not known who serves there."""
    there = {name for name, _ in running}
    return any(not one.known and one.name not in there for one in wanted.backends)


def braked(wanted: Desired, running: ActualServers, before: Desired | None = None) -> Desired:
    """The same, with the servers that run where they are not known.

    Args:
        wanted: what Consul, and the probes, have said so far.
        running: the servers of the HAProxy that runs.
        before: what was wanted last, None when nothing was.
    """
    if not is_guessed(wanted):
        return wanted
    found, checks = dict(running), {one.name: one.check for one in before.backends} if before else {}
    kept = (_braked(one, found.get(one.name, ()), checks.get(one.name, one.check)) for one in wanted.backends)
    made = replace(wanted, backends=tuple(kept))
    return _sent_as_before(made, found, before) if before else made


def _braked(backend: Backend, running: tuple[Server, ...], check: PeerCheck | None) -> Backend:
    if backend.known or backend.tls is None:
        return backend
    stay = [replace(one, weight=min(max(one.weight, 1), MAX_WEIGHT)) for one in running if not is_spare(one)]
    return replace(backend, servers=tuple(stay), check=check) if stay else backend


def _sent_as_before(wanted: Desired, running: Mapping[str, tuple[Server, ...]], before: Desired) -> Desired:
    """The same, with requests sent where they were until it is known who serves in all the places they are new to."""
    here, there = ({one.name: one for one in desired.backends} for desired in (wanted, before))
    listening = {listener.name: listener for listener in before.upstreams}
    serving = {name for name, servers in running.items() if any(server.enabled for server in servers)}
    upstreams = tuple(
        replace(now, backend=old.backend, ways=old.ways)
        if (old := listening.get(now.name)) is not None and _sends_on(now, old, here, serving)
        else now
        for now in wanted.upstreams
    )
    held = [now for now, asked in zip(upstreams, wanted.upstreams, strict=True) if now is not asked]
    used = {name for listener in upstreams for name in listener.backends}
    used_by_held = {name for listener in held for name in listener.backends}
    heirs = {(now.name, here[name].resolver): here[name] for now in wanted.upstreams for name in now.backends}
    backends = [
        # What is changed about requests goes by the number of their way.
        replace(one, changes=there[name].changes) if name in used_by_held else one
        for name, one in here.items()
        if name in used
    ]
    backends += (
        _gone_on(there[name], heirs.get((listener.name, there[name].resolver)), running.get(name, ()))
        for listener in held
        for name in listener.backends
        if name not in here
    )
    return replace(wanted, upstreams=upstreams, backends=tuple(backends))


def _sends_on(now: UpstreamListener, old: UpstreamListener, here: Mapping[str, Backend], serving: set[str]) -> bool:
    """Whether a listener that is wanted as `now` goes on sending requests as `old`.

    `here` are the backends that are wanted; `serving` names those in which somebody serves.
    """
    new = [here[name] for name in now.backends if name not in old.backends]
    leads_to_unknown = any(not one.known and not any(server.enabled for server in one.servers) for one in new)
    can_go_on = old.mode == now.mode and here[now.backend].tls is not None
    return leads_to_unknown and can_go_on and not serving.isdisjoint(old.backends)


def _gone_on(old: Backend, heir: Backend | None, running: tuple[Server, ...]) -> Backend:
    """A backend that is not wanted any more: with the servers of the one that is there for the same instances."""
    if heir is not None and heir.known:
        return replace(heir, name=old.name, changes=old.changes)
    return _braked(replace(old, known=False, servers=()), running, old.check)
