"""The maps by which one HAProxy decides who may come in, on disk and in its memory; and the cutting of sessions.

A worker that stops after a reload still has maps and sessions of its own; it is told what matters, too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.files import read_text, write_private
from hcc.haproxy.layout import Layout
from hcc.haproxy.map_commands import COMMAND_BYTES, NoTransactionError, change_map, read_map, refill_map, swap_map
from hcc.haproxy.map_text import MapChange, map_file, parse_map_file, parse_sessions
from hcc.haproxy.names import APP
from hcc.haproxy.replies import ReplyError, parse_servers
from hcc.haproxy.request_rules import bound
from hcc.haproxy.runtime import MasterSocket, NotListeningError, RuntimeSocket, RuntimeSocketError
from hcc.haproxy.session_commands import end_sessions

# A verdict must not wait for a HAProxy that hangs.
TIMEOUT_S = 5.0


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
        self._master = MasterSocket(layout.master_socket, TIMEOUT_S)

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
        """Make `wanted` the verdicts of every worker: at once, where HAProxy can, when more than one changes.

        Whether there is a current one with that map; else nothing is done.
        """
        if not self._verdicts_changed(change, wanted):
            return False
        for send in self._master.stopping_workers():
            # Whom it does not know it does not find, and one that is gone decides nothing any more.
            with contextlib.suppress(RuntimeSocketError):
                for key, value in (*change.added, *change.changed):
                    send(f"set map {self._verdicts} {key} {value}")
                for key in change.removed:
                    send(f"del map {self._verdicts} {key}")
        return True

    def _verdicts_changed(self, change: MapChange, wanted: Mapping[str, str]) -> bool:
        """Whether they are, in the current worker."""
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

    def cut(self, denied: Callable[[str | None], bool], owner: Callable[[str], str | None]) -> tuple[str | None, ...]:
        """End the sessions of callers that are denied; whose each was.

        Args:
            denied: whether that caller is, by its name; None is one that nobody knows.
            owner: whose a session on the common line is, by where it calls from.
        """
        cut: list[str | None] = []
        # Where none runs it has no sessions.
        with contextlib.suppress(NotListeningError):
            cut += _cut(self._runtime.send, denied, owner)
        for send in self._master.stopping_workers():
            with contextlib.suppress(RuntimeSocketError):
                cut += _cut(send, denied, owner)
        return tuple(cut)

    def _change(self, path: str, change: MapChange) -> bool:
        return change_map(self._runtime, path, change, self._payload_bytes)

    def _read(self, path: str) -> dict[str, str] | None:
        return read_map(self._runtime.send, path)

    def _swap(self, path: str, wanted: Mapping[str, str]) -> bool:
        return swap_map(self._runtime, path, wanted, self._payload_bytes)


def _write(path: str, text: str) -> None:
    if read_text(path) != text:
        write_private(path, text)


def _cut(
    send: Callable[[str], str], denied: Callable[[str | None], bool], owner: Callable[[str], str | None]
) -> list[str | None]:
    found = [one for one in parse_sessions(send("show sess")) if one.backend == APP]
    on_lines = [one.server for one in found if one.server != APP]
    leaving = {caller for caller in set(on_lines) if denied(caller)}
    for caller in sorted(leaving):
        end_sessions(send, APP, caller, found)
    cut: list[str | None] = [caller for caller in on_lines if caller in leaving]
    for one in found:
        if one.server == APP and denied(owner(one.peer)):
            send(f"shutdown session {one.id}")
            cut.append(owner(one.peer))
    return cut
