"""What is not known takes nothing away: servers stay until it is known which there are, and that one may serve. Pure.

A chain that leads to another service asks a new question, and so does an hcc that starts beside a HAProxy that serves.
Until the answer is there, or if it never comes, an empty list would be a guess. So would be one of instances of which
none has been probed yet. With the servers stays what is asked of their answers.
"""

from __future__ import annotations

from dataclasses import replace

from hcc.haproxy.model import MAX_WEIGHT, ActualServers, Backend, Desired, PeerCheck, Server
from hcc.haproxy.slots import is_spare


def is_guessed(wanted: Desired) -> bool:
    """Whether some servers are not known."""
    return any(not backend.known for backend in wanted.backends)


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
    return replace(wanted, backends=tuple(kept))


def _braked(backend: Backend, running: tuple[Server, ...], check: PeerCheck | None) -> Backend:
    if backend.known or backend.tls is None:
        return backend
    stay = [replace(one, weight=min(max(one.weight, 1), MAX_WEIGHT)) for one in running if not is_spare(one)]
    return replace(backend, servers=tuple(stay), check=check) if stay else backend
