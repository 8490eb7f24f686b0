"""What gives reason to doubt servers: answers that were cut, and those that did not come, as HAProxy counts them.

Leaves to others: what is thought of it (`hcc.mesh.peer_book`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

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
    """

    cut: tuple[tuple[str, int], ...] = ()
    quiet: tuple[tuple[str, frozenset[str]], ...] = ()


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
        # Backends whose servers are to be looked at, and when that may be.
        self._troubled: set[str] = set()
        self._closer_at_s = 0.0
        # What a worker has counted at most of each server, by backend, and how old it was.
        self._most: dict[str, dict[str, int]] = {}
        self._uptime_s = 0

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
        if stats.process.uptime_s < self._uptime_s:
            self._most.clear()
        self._uptime_s = stats.process.uptime_s
        rows = [row for row in stats.rows if row.kind is RowKind.BACKEND and wanted(row.proxy)]
        cut = self._cut.of({row.proxy: row.denied_responses for row in rows})
        self._troubled.update(self._failed.of({row.proxy: row.failures for row in rows}))
        return News(tuple(cut.items()), self._quiet())

    def _quiet(self) -> tuple[tuple[str, frozenset[str]], ...]:
        began_s = self._clock()
        if self._servers is None or not self._troubled or began_s < self._closer_at_s:
            return ()
        troubled, self._troubled = sorted(self._troubled), set()
        found = tuple((backend, self._quiet_of(backend, self._servers)) for backend in troubled)
        ended_s = self._clock()
        self._closer_at_s = ended_s + (ended_s - began_s) / SHARE
        return found

    def _quiet_of(self, backend: str, servers: Callable[[str], Stats]) -> frozenset[str]:
        try:
            rows = [row for row in servers(backend).rows if row.kind is RowKind.SERVER]
        except StatsUnavailableError:
            return frozenset()
        before = self._most.get(backend, {})
        # Of those that are there now.
        most = {row.server: _known(row, before.get(row.server, 0)) for row in rows}
        self._most[backend] = {row.server: max(row.unanswered, most[row.server]) for row in rows}
        return frozenset(row.address for row in rows if row.unanswered > most[row.server])


def _known(row: Row, most: int) -> int:
    """What is no news of that; nothing of one that was deleted and added again, and counts from nothing."""
    under_way = row.open_sessions if row.http else 0
    return most if most <= row.unanswered + under_way else 0
