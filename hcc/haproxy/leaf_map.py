"""The map by which one HAProxy knows the leaf certificates of upstreams, on disk and in its memory.

And the way to take an endpoint out at once that is not who it should be.

A worker that stops after a reload still has a map and sessions of its own; it is told what matters, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from hcc.haproxy import words
from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.files import read_text, write_private
from hcc.haproxy.layout import Layout
from hcc.haproxy.map_commands import COMMAND_BYTES, change_map, read_map
from hcc.haproxy.map_text import MapChange, map_file, parse_sessions
from hcc.haproxy.replies import ReplyError, parse_servers
from hcc.haproxy.runtime import NotListeningError, RuntimeSocket
from hcc.haproxy.session_commands import end_sessions
from hcc.haproxy.stopping import Send, StoppingWorkers

TIMEOUT_S = 5.0


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
        self._stopping = StoppingWorkers(layout.master_socket)

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

    def take_out(self, address: str, port: int, is_meant: Callable[[str], bool]) -> None:
        """Put an endpoint of the backends that are meant into maintenance and end all sessions to it.

        In others it may be who it should be: an address goes from one service to another. Whoever plans what HAProxy
        does finds it so; until then it may be busy with something else.
        """

        def take_out(send: Send) -> None:
            # One that has no servers any more has nobody to be taken out.
            with contextlib.suppress(ReplyError):
                _take_out(send, address, port, is_meant)

        try:
            take_out(self._runtime.send)
        except NotListeningError:
            # None runs.
            return
        failure = self._stopping.each(take_out)
        if failure is not None:
            raise failure


def _take_out(send: Send, address: str, port: int, is_meant: Callable[[str], bool]) -> None:
    for backend, servers in parse_servers(send("show servers state")):
        for server in servers:
            if (server.address, server.port) == (address, port) and is_meant(backend):
                # A worker that stops after a reload refuses it; its new sessions are of old clients only.
                send(f"set server {words.name(backend)}/{words.name(server.name)} state maint")
                end_sessions(send, backend, server.name, parse_sessions(send("show sess")))
