"""What gives reason to doubt servers: answers that were cut, and those that did not come, as HAProxy counts them.

Leaves to others: what is thought of it (`hcc.mesh.peer_book`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hcc.haproxy.rises import Rises
from hcc.haproxy.stats import Row, RowKind, Stats
from hcc.haproxy.stats_reader import StatsUnavailableError

# What of the time may be spent on reading the counters of single servers: of ten thousand it takes 0.3 s.
SHARE = 0.1


@dataclass(frozen=True, slots=True)
class News:
    """What was counted since the last look.

    Args:
        cut: answers that were not let through, by backend.
        quiet: of backends' servers, the addresses (`10.0.0.1:21000`) of those that could not be reached, or did not
            answer before the client gave up.
        liars: the addresses of those whose answers were cut; none where it is not known which they are. They may come
            later than `cut`.
    """

    cut: tuple[tuple[str, int], ...] = ()
    quiet: tuple[tuple[str, frozenset[str]], ...] = ()
    liars: tuple[tuple[str, frozenset[str]], ...] = ()


class BackendCounts:
    """Outlives who looks at it, one at a time.

    Args:
        backends: counters of all backends.
        servers: those of one backend's servers; None where nobody is to be doubted.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        backends: Callable[[], Stats],
        servers: Callable[[str], Stats] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backends = backends
        self._servers = servers
        self._clock = clock
        self._began_s = clock()
        # Answers cut and failures, by backend, made with the first look.
        self._cut: Rises | None = None
        self._failed: Rises | None = None
        # Backends whose servers are to be looked at, for answers that did not come or were cut, and when that may be.
        self._troubled: set[str] = set()
        self._deceived: set[str] = set()
        self._closer_at_s = 0.0
        # By backend, what a worker has counted of each server: at most, and of answers cut; and how old it was.
        self._most: dict[str, dict[str, int]] = {}
        self._denied: dict[str, Rises] = {}
        self._uptime_s = 0
        # Backends of which a worker that is older than we are had counted cuts by the first look.
        self._cut_before: frozenset[str] = frozenset()

    def look(self, wanted: Callable[[str], bool]) -> News:
        """What is new of the backends that are `wanted`, by name; nothing while HAProxy does not say."""
        try:
            stats = self._backends()
        except StatsUnavailableError:
            return News()
        if self._cut is None or self._failed is None:
            # What one counted that is older than we are was told by whoever was there then.
            younger = stats.process.uptime_s <= self._clock() - self._began_s
            self._cut, self._failed = Rises(from_nothing=younger), Rises(from_nothing=younger)
            if not younger:
                cut_before = (row.proxy for row in stats.rows if row.kind is RowKind.BACKEND and row.denied_responses)
                self._cut_before = frozenset(cut_before)
        if stats.process.uptime_s < self._uptime_s:
            self._most.clear()
            self._denied.clear()
            self._cut_before = frozenset()
        self._uptime_s = stats.process.uptime_s
        rows = [row for row in stats.rows if row.kind is RowKind.BACKEND and wanted(row.proxy)]
        cut = self._cut.of({row.proxy: row.denied_responses for row in rows})
        there = {row.proxy for row in rows}
        self._troubled = there & (self._troubled | self._failed.of({row.proxy: row.failures for row in rows}).keys())
        self._deceived = there & (self._deceived | cut.keys())
        return replace(self._closer(), cut=tuple(cut.items()))

    def _closer(self) -> News:
        """What single servers have counted, of backends where that may be news; what cannot be read is read later."""
        began_s = self._clock()
        if self._servers is None or not (self._troubled or self._deceived) or began_s < self._closer_at_s:
            return News()
        quiet, liars = [], []
        for backend in sorted(self._troubled | self._deceived):
            try:
                rows = [row for row in self._servers(backend).rows if row.kind is RowKind.SERVER]
            except StatsUnavailableError:
                continue
            quiet.append((backend, self._quiet_of(backend, rows)))
            # Of those the first reading does not tell new cuts from old ones: it is what later ones start from.
            denied = self._denied.setdefault(backend, Rises(from_nothing=backend not in self._cut_before))
            risen = denied.of({row.server: row.denied_responses for row in rows})
            if risen or backend in self._deceived:
                liars.append((backend, frozenset(row.address for row in rows if row.server in risen)))
            self._troubled.discard(backend)
            self._deceived.discard(backend)
        ended_s = self._clock()
        self._closer_at_s = ended_s + (ended_s - began_s) / SHARE
        return News(quiet=tuple(quiet), liars=tuple(liars))

    def _quiet_of(self, backend: str, rows: Sequence[Row]) -> frozenset[str]:
        before = self._most.get(backend, {})
        # Of those that are there now.
        most = {row.server: _known(row, before.get(row.server, 0)) for row in rows}
        self._most[backend] = {row.server: max(row.unanswered, most[row.server]) for row in rows}
        return frozenset(row.address for row in rows if row.unanswered > most[row.server])


def _known(row: Row, most: int) -> int:
    """What is no news of that; nothing of one that was deleted and added again, and counts from nothing."""
    under_way = row.open_sessions if row.http else 0
    return most if most <= row.unanswered + under_way else 0
