"""What is not known takes nothing away: servers stay until Consul has said which there are. Pure.

A chain that leads to another service asks a new question, and so does an hcc that starts beside a HAProxy that serves.
Until the answer is there, or if it never comes, an empty list would be a guess.
"""

from __future__ import annotations

from dataclasses import replace

from hcc.haproxy.model import MAX_WEIGHT, ActualServers, Backend, Desired, Server
from hcc.haproxy.slots import is_spare


def is_guessed(wanted: Desired) -> bool:
    """Whether some servers are not known."""
    return any(not backend.known for backend in wanted.backends)


def braked(wanted: Desired, running: ActualServers) -> Desired:
    """The same, with the servers that run where they are not known."""
    if not is_guessed(wanted):
        return wanted
    found = dict(running)
    return replace(wanted, backends=tuple(_braked(one, found.get(one.name, ())) for one in wanted.backends))


def _braked(backend: Backend, running: tuple[Server, ...]) -> Backend:
    if backend.known or backend.tls is None:
        return backend
    stay = (replace(one, weight=min(max(one.weight, 1), MAX_WEIGHT)) for one in running if not is_spare(one))
    return replace(backend, servers=tuple(stay))
