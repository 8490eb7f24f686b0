"""The map by which one HAProxy knows the leaf certificates of upstreams, on disk and in its memory.

And the way to take endpoints out at once that are not who they should be.

A worker that stops after a reload still has a map and sessions of its own; it is told what matters, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from hcc.haproxy import words
from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.control import ControlError
from hcc.haproxy.files import read_text, write_private
from hcc.haproxy.layout import Layout
from hcc.haproxy.map_commands import COMMAND_BYTES, change_map, read_map
from hcc.haproxy.map_text import MapChange, map_file, parse_sessions
from hcc.haproxy.replies import ReplyError, parse_servers
from hcc.haproxy.runtime import NotListeningError, RuntimeSocket
from hcc.haproxy.session_commands import end_sessions
from hcc.haproxy.stopping import Send, StoppingWorkers

TIMEOUT_S = 5.0

# Endpoints by address and port, with the backends, by name, of which each is to be taken out.
Meant = Mapping[tuple[str, int], Callable[[str], bool]]


class LeafMap:
    """SPIFFE URIs by the digest of a certificate.

    Not safe to be called from two threads at once. Every method is bounded in time.

    Args:
        layout: where files and sockets are.
        capabilities: of the HAProxy that reads the map.
    """

    def __init__(self, layout: Layout, capabilities: Capabilities) -> None:
        self._path = layout.leaves
        self._payload_bytes = capabilities.payload_bytes - COMMAND_BYTES
        self.looks = capabilities.has(Feature.SERVER_CERTIFICATE)
        self._runtime = RuntimeSocket(layout.stats_socket, capabilities.payload_bytes, TIMEOUT_S, layout.master_socket)
        self._stopping = StoppingWorkers(layout)

    def prepare(self, *, running: bool) -> None:
        """Have the file: HAProxy does not start without it."""
        if not running or not Path(self._path).exists():
            write_private(self._path, "")

    def store(self, entries: Mapping[str, str]) -> None:
        """Write the file, unless it is so already."""
        text = map_file(entries)
        if read_text(self._path) != text:
            write_private(self._path, text)

    # ---- in HAProxy's memory; all raise ControlError

    def entries(self) -> dict[str, str] | None:
        """Those of the current worker; None when none runs, or one that looks at no answers."""
        return read_map(self._runtime.send, self._path)

    def change(self, change: MapChange) -> bool:
        """Whether there is a worker with the map; its map is changed then."""
        return change_map(self._runtime, self._path, change, self._payload_bytes)

    def take_out(self, meant: Meant) -> bool:
        """Put endpoints into maintenance in the current worker and end all sessions to them; whether there is one.

        In a backend that is not meant one may be who it should be: an address goes from one service to another. Whoever
        plans what HAProxy does finds it so; until then it may be busy with something else.
        """
        try:
            _take_out(meant, self._runtime.send)
        except NotListeningError:
            return False
        return True

    def take_out_of_stopping(self, meant: Meant) -> ControlError | None:
        """The same in workers that stop; why not in all, None if it was. Those that hang take seconds."""
        return self._stopping.each(partial(_take_out, meant))


def _take_out(meant: Meant, send: Send) -> None:
    # One that has no servers any more has nobody to be taken out.
    with contextlib.suppress(ReplyError):
        out = [
            (backend, server.name)
            for backend, servers in parse_servers(send("show servers state"))
            for server in servers
            if (is_meant := meant.get((server.address, server.port))) and is_meant(backend)
        ]
        if out:
            # A worker that stops after a reload refuses it; its new sessions are of old clients only.
            send(*(f"set server {words.name(backend)}/{words.name(server)} state maint" for backend, server in out))
            known = parse_sessions(send("show sess"))
            for backend, server in out:
                end_sessions(send, backend, server, known)
