"""Commands that end sessions of a running HAProxy, of workers that stop after a reload as well."""

from __future__ import annotations

from collections.abc import Iterable

from hcc.haproxy import words
from hcc.haproxy.map_text import Session
from hcc.haproxy.stopping import Send


def end_sessions(send: Send, backend: str, server: str, known: Iterable[Session]) -> None:
    """End all sessions of a server in the worker that `send` sends to; `known` are the sessions that it has told.

    Raises:
        ControlError: it takes no commands.
    """
    if send(f"shutdown sessions server {words.name(backend)}/{words.name(server)}").strip():
        # "Proxy is disabled.": so says a worker that stops after a reload, and ends none (2.6 to 3.4; tried).
        end_each(send, (one for one in known if (one.backend, one.server) == (backend, server)))


def end_each(send: Send, sessions: Iterable[Session]) -> None:
    """End these sessions, of whatever server, as soon after they were told as may be: their names are used again.

    Raises:
        ControlError: it takes no commands.
    """
    commands = [f"shutdown session {one.id}" for one in sessions]
    if commands:
        send(*commands)
