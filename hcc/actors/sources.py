"""What the admin's threads ask when somebody wants to see how the sidecar does. Every question is bounded in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hcc.actors.consul_watcher import Ledger
from hcc.actors.lifecycle import ActorError, ActorStatus
from hcc.actors.picture import Observed
from hcc.actors.tree import Tree
from hcc.consul.agent_version import AgentVersion
from hcc.haproxy.stats import Stats
from hcc.haproxy.stats_reader import StatsUnavailableError

ASK_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Sources:
    """The places to look at.

    Args:
        tree: raises ActorError while there is none.
        ledger: what ConsulWatcher knows.
        stats: HAProxy's, with every endpoint; raises StatsUnavailableError.
        consul: which Consul is asked.
    """

    tree: Callable[[], Tree]
    ledger: Ledger
    stats: Callable[[], Stats]
    consul: AgentVersion

    def observed(self) -> Observed:
        """All of it, now. What does not answer in time is left out."""
        stats, problem = None, ""
        try:
            stats = self.stats()
        except StatsUnavailableError as exc:
            problem = str(exc)
        return Observed(
            now=time.time(),
            snapshot=self.ledger.page.snapshot,
            changes=self.ledger.page.changes,
            stats=stats,
            stats_problem=problem,
            watches=tuple(watcher.state() for watcher in self.ledger.page.watchers),
            actors=self._actors(),
            consul=self.consul.text,
        )

    def _actors(self) -> tuple[ActorStatus, ...]:
        try:
            return self.tree().actors(ASK_TIMEOUT_S)
        except ActorError:
            return ()
