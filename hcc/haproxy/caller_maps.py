"""The maps by which one HAProxy decides who may come in, on disk and in its memory; and the cutting of sessions.

A worker that stops after a reload still has maps and sessions of its own; it is told what matters, too, after the one
that serves.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.control import ControlError
from hcc.haproxy.files import read_text, write_private
from hcc.haproxy.layout import Layout
from hcc.haproxy.map_commands import (
    COMMAND_BYTES,
    NoTransactionError,
    change_map,
    loaded_map,
    read_map,
    refill_map,
    swap_map,
)
from hcc.haproxy.map_text import MapChange, map_change, map_file, parse_map_file, parse_sessions
from hcc.haproxy.names import APP
from hcc.haproxy.replies import ReplyError, parse_servers
from hcc.haproxy.request_rules import bound
from hcc.haproxy.runtime import NotListeningError, RuntimeSocket
from hcc.haproxy.session_commands import end_each, end_sessions
from hcc.haproxy.stopping import Send, StoppingWorkers

# A verdict must not wait for a HAProxy that hangs.
TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class DeniedSessions:
    """Sessions of callers that are denied.

    Args:
        denied: whether that caller is, by its name; None is one that nobody knows.
        owner: whose a session on the common line is, by where it calls from; None: nobody knows.
    """

    denied: Callable[[str | None], bool]
    owner: Callable[[str], str | None]


class CallerMaps:
    """Identities by the digest of a certificate, verdicts by the caller's URI, and rules for requests in order.

    Not safe to be called from two threads at once. Every method is bounded in time.

    Args:
        layout: where files and sockets are.
        capabilities: of the HAProxy that reads the maps.
    """

    def __init__(self, layout: Layout, capabilities: Capabilities) -> None:
        self._identities = layout.identities
        self._verdicts = layout.verdicts
        self._rules = layout.rules
        self._payload_bytes = capabilities.payload_bytes - COMMAND_BYTES
        self._transactions = capabilities.has(Feature.MAP_TRANSACTION)
        self.remembers = capabilities.has(Feature.SHA2)
        # What stands before each of its rules.
        self.before_rules = bound(capabilities)
        # Whether callers have server lines of their own.
        self.has_lines = capabilities.has(Feature.DYNAMIC_SERVERS)
        self._runtime = RuntimeSocket(
            layout.stats_socket, capabilities.payload_bytes, TIMEOUT_S, master=layout.master_socket
        )
        self._stopping = StoppingWorkers(layout)

    # ---- on disk

    def prepare(self, *, running: bool) -> None:
        """Have all files: HAProxy does not start without them. Nobody is remembered unless a HAProxy runs by them."""
        for path in (self._identities, self._verdicts, self._rules):
            if not running or not Path(path).exists():
                write_private(path, "")

    def stored_identities(self) -> dict[str, str]:
        return parse_map_file(read_text(self._identities) or "")

    def store_identities(self, entries: Mapping[str, str]) -> None:
        _write(self._identities, map_file(entries))

    def store_verdicts(self, entries: Mapping[str, str]) -> None:
        try:
            _write(self._verdicts, map_file(entries))
        except OSError:
            # The file there may let in who is denied now; a HAProxy that starts with an empty one asks about everybody.
            # To empty it takes no room on a full disk.
            with contextlib.suppress(OSError):
                os.truncate(self._verdicts, 0)
            raise

    def store_rules(self, entries: Mapping[str, str]) -> None:
        _write(self._rules, map_file(entries))

    # ---- in HAProxy's memory; all raise ControlError

    def listening(self) -> bool:
        """Whether there is a worker that can be asked."""
        try:
            self._runtime.info()
        except NotListeningError:
            return False
        return True

    def identities(self) -> dict[str, str] | None:
        """Those of the current worker; None when none runs, or one that has no public listener."""
        return self._read(self._identities)

    def verdicts(self) -> dict[str, str] | None:
        """As `identities`."""
        return self._read(self._verdicts)

    def change_identities(self, change: MapChange) -> bool:
        """Whether there is a current worker with the map; it is changed then."""
        return self._change(self._identities, change)

    def rules(self) -> dict[str, str] | None:
        """As `identities`, in their order; None also when the listener speaks no http."""
        return self._read(self._rules)

    def replace_rules(self, wanted: Mapping[str, str]) -> bool:
        """Make these the rules of the current worker: at once where HAProxy can, else those that are new come last.

        Whether there is one with that map.
        """
        if self._transactions:
            with contextlib.suppress(NoTransactionError):
                return self._swap(self._rules, wanted)
        return refill_map(self._runtime, self._rules, wanted, self._payload_bytes)

    def change_verdicts(self, change: MapChange, wanted: Mapping[str, str]) -> bool:
        """Make `wanted` the verdicts of the current worker: at once, where HAProxy can, when more than one changes.

        Whether there is one with that map.
        """
        if self._transactions and len(change) > 1:
            with contextlib.suppress(NoTransactionError):
                return self._swap(self._verdicts, wanted)
        return self._change(self._verdicts, change)

    def lines(self) -> frozenset[str]:
        """The callers that have a server line of their own in the current worker; nobody when none runs."""
        try:
            found = dict(parse_servers(self._runtime.send(f"show servers state {APP}")))
        except (NotListeningError, ReplyError):
            # Without a public listener there is no such backend.
            return frozenset()
        return frozenset(server.name for server in found.get(APP, ())) - {APP}

    def cut(self, sessions: DeniedSessions) -> tuple[str | None, ...]:
        """End these in the current worker; whose each was."""
        try:
            return tuple(_cut(self._runtime.send, sessions))
        except NotListeningError:
            # Where none runs it has no sessions.
            return ()

    def tell_stopping(
        self, wanted: Mapping[str, str], left: Collection[str], sessions: DeniedSessions | None
    ) -> tuple[tuple[str | None, ...], ControlError | None]:
        """Have workers that stop go by these verdicts, as far as they know the callers: of others they ask.

        Args:
            wanted: as of `change_verdicts`.
            left: keys of callers whose verdicts stay as they are there.
            sessions: to be ended; None: none are.

        Returns:
            Whose sessions were ended, and why not all was done, None if it was.
        """
        cut: list[str | None] = []

        def tell(send: Send) -> None:
            found = loaded_map(send, self._verdicts) or {}
            change = map_change(found, wanted)
            commands = [f"set map {self._verdicts} {key} {value}" for key, value in change.changed if key not in left]
            commands += [f"del map {self._verdicts} {key}" for key in change.removed if key not in left]
            if commands:
                send(*commands)
            if sessions is not None:
                cut.extend(_cut(send, sessions))

        failure = self._stopping.each(tell)
        return tuple(cut), failure

    def _change(self, path: str, change: MapChange) -> bool:
        return change_map(self._runtime, path, change, self._payload_bytes)

    def _read(self, path: str) -> dict[str, str] | None:
        return read_map(self._runtime.send, path)

    def _swap(self, path: str, wanted: Mapping[str, str]) -> bool:
        return swap_map(self._runtime, path, wanted, self._payload_bytes)


def _write(path: str, text: str) -> None:
    if read_text(path) != text:
        write_private(path, text)


def _cut(send: Send, sessions: DeniedSessions) -> list[str | None]:
    denied, owner = sessions.denied, sessions.owner
    found = [one for one in parse_sessions(send("show sess")) if one.backend == APP]
    on_lines = [one.server for one in found if one.server != APP]
    leaving = {caller for caller in set(on_lines) if denied(caller)}
    for caller in sorted(leaving):
        end_sessions(send, APP, caller, found)
    cut: list[str | None] = [caller for caller in on_lines if caller in leaving]
    on_common = [one for one in found if one.server == APP and denied(owner(one.peer))]
    end_each(send, on_common)
    return cut + [owner(one.peer) for one in on_common]
