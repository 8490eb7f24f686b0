"""SPOEPool: the worker processes that decide who may come in hold the newest policy, and there are enough of them.

The processes belong to `WorkerPool`, which outlives this actor: a restarted one goes on with the workers it finds.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from hcc.actors.actor import Actor
from hcc.actors.backoff import STABLE_S, BackOff
from hcc.actors.callers import Callers
from hcc.actors.lifecycle import StopReason
from hcc.actors.messages import (
    ADMIN,
    AUTHORISER,
    CONSUL_WATCHER,
    CallersMet,
    FactsReported,
    PolicyChanged,
    Publish,
    TokenRefused,
)
from hcc.actors.readiness import PolicyFacts
from hcc.log import LastingProblem
from hcc.mesh.rules import DENY
from hcc.metrics import Metrics
from hcc.spoe.events import (
    Denied,
    Met,
    PolicyApplied,
    PoolEvent,
    WorkerExited,
    WorkerPhase,
    WorkerReady,
    ZygoteExited,
)
from hcc.spoe.pool import SpoePoolError, WorkerPool

POLL_S = 5.0
# Callers that come within this time of one another are remembered together, which costs a tenth of one by one; they are
# let in meanwhile, as the workers are asked.
GATHER_S = 0.02
# Workers and zygote are asked for a sign of life this often; a worker that gave none so many times is replaced.
LOOK_S = 1.0
# Until the reading thread is started that there was no room for.
READ_AGAIN_S = 1.0
MISSES = 3
# Callers wait for what died.
MAX_DELAY_S = 5.0
# Denials logged in a row, and how long until that many may be logged again.
DENIALS_LOGGED = 10
DENIALS_EVERY_S = 10.0
ZYGOTE = "zygote"
# How often at most it is told who came.
CALLERS_EVERY_S = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _News:
    """From the reading thread."""

    event: PoolEvent


@dataclass(frozen=True, slots=True)
class _Calls:
    """From the reading thread: callers let in, certificate and origin each."""

    calls: tuple[tuple[bytes, str], ...]


class SPOEPoolError(RuntimeError):
    """What keeps this actor from going on."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """From the reading thread: it cannot go on."""

    reason: str


@dataclass(frozen=True, slots=True)
class _ReadAgain:
    """To itself: start the reading thread that there was no room for."""


@dataclass(frozen=True, slots=True)
class _Respawn:
    """To itself: time to start that worker again."""

    index: int


@dataclass(frozen=True, slots=True)
class _RespawnZygote:
    """To itself: time to start the zygote again."""


@dataclass(frozen=True, slots=True)
class _Look:
    """To itself: time to see whether all workers answer."""


@dataclass(frozen=True, slots=True)
class _Stable:
    """To itself: nothing died for a while."""


@dataclass(frozen=True, slots=True)
class _DenialsAgain:
    """To itself: denials may be logged again."""


@dataclass(frozen=True, slots=True)
class _ReportCallers:
    """To itself: time to tell who came."""


class SPOEPool(Actor):
    """Owns the policy that the workers hold."""

    def init(self, *, pool: WorkerPool, metrics: Metrics, enforced: bool = True) -> None:
        self._pool = pool
        self._metrics = metrics
        self._denied = "denied" if enforced else "let in, would be denied"
        self._policy_version: int | None = None
        # Keys of timers that are to start what died.
        self._due: set[str] = set()
        self._back_off = BackOff(MAX_DELAY_S)
        self._denials = 0
        self._callers = Callers()
        self._destination = ""
        self._report_due = False
        self._socket_problem = LastingProblem(_log)
        self._scarcity = LastingProblem(_log)
        self._stopping = threading.Event()
        self._reader: threading.Thread | None = None

    def setup(self) -> None:
        if self.context.generation > 1:
            self.tell(CONSUL_WATCHER, Publish())
        self._start_missing()
        self._read()
        self.after(LOOK_S, _Look(), key="look")

    def handle(self, message: object) -> None:
        match message:
            case PolicyChanged(policy):
                if policy.version != self._policy_version:
                    self._callers.policy_changed()
                self._policy_version = policy.version
                self._destination = policy.destination
                self._pool.set_policy(policy)
                self._report()
            case _News(event):
                self._hear(event)
            case TokenRefused(source, reason):
                self._note_denial(source, reason)
            case _Calls(calls):
                self.tell(AUTHORISER, CallersMet(calls))
            case _Respawn() | _RespawnZygote() | _Look() | _ReadAgain() | _Ended():
                self._mend(message)
            case _Stable():
                self._back_off.reset()
            case _DenialsAgain():
                self._end_of_denials()
            case _ReportCallers() | Publish():
                self._report_due = False
                self._report()

    def teardown(self, reason: StopReason) -> None:  # noqa: ARG002 (Actor's signature)
        """End the reading thread; the workers go on, their owner stops them."""
        self._stopping.set()
        self._pool.wake()
        if self._reader is not None:
            self._reader.join(timeout=2)

    def _mend(self, message: _Respawn | _RespawnZygote | _Look | _ReadAgain | _Ended) -> None:
        match message:
            case _Ended(reason):
                raise SPOEPoolError(reason)
            case _Respawn(index):
                self._respawn(index)
            case _RespawnZygote():
                self._respawn_zygote()
            case _ReadAgain():
                self._read()
            case _Look():
                for name in self._pool.replace_hung(MISSES):
                    _log.error("SPOE %s does not answer: killed", name)
                self._restore_sockets()
                # Who was abandoned may have heard of a death, or of a policy that is applied, in our place.
                self._start_missing()
                self._report()
                self.after(LOOK_S, _Look(), key="look")

    def _start_missing(self) -> None:
        """Start what is dead and nobody is about to start."""
        if ZYGOTE not in self._due:
            self._respawn_zygote()
        for worker in self._pool.workers():
            if worker.phase is WorkerPhase.EXITED and _key(worker.index) not in self._due:
                self._respawn(worker.index)

    def _restore_sockets(self) -> None:
        try:
            for path in self._pool.restore_sockets():
                _log.warning("somebody removed %s, it is bound anew and its worker replaced", path)
        except SpoePoolError as exc:
            self._socket_problem.say(f"somebody removed a socket that new callers are asked about on: {exc}")
            return
        self._socket_problem.over()

    def _hear(self, event: PoolEvent) -> None:
        match event:
            case WorkerReady(index, pid):
                _log.info("SPOE worker %d runs, process %d", index + 1, pid)
            case PolicyApplied():
                self._report()
            case WorkerExited(index, pid, status, reason):
                self._metrics.worker_exits.inc()
                _log.error("SPOE worker %d (process %d) ended: %s", index + 1, pid, reason or f"status {status}")
                self._respawn_later(index)
                self._report()
            case ZygoteExited():
                _log.error("the SPOE zygote ended; the workers go on")
                self._later(ZYGOTE, _RespawnZygote())
            case Denied(_, source, reason):
                self._note_denial(source, reason)

    def _respawn(self, index: int) -> None:
        self._due.discard(_key(index))
        if self._pool.workers()[index].phase is not WorkerPhase.EXITED:
            # Found dead and started again before this actor heard of the death.
            return
        try:
            self._pool.respawn(index)
        except SpoePoolError as exc:
            _log.error("SPOE worker %d cannot be started: %s", index + 1, exc)
            self._respawn_later(index)

    def _respawn_later(self, index: int) -> None:
        self._later(_key(index), _Respawn(index))

    def _respawn_zygote(self) -> None:
        self._due.discard(ZYGOTE)
        if self._pool.zygote_pid:
            return
        try:
            self._pool.respawn_zygote()
        except SpoePoolError as exc:
            _log.error("the SPOE zygote cannot be started: %s", exc)
            self._later(ZYGOTE, _RespawnZygote())

    def _later(self, key: str, start: _Respawn | _RespawnZygote) -> None:
        """Start it after a pause, which grows while things die."""
        delay_s = self._back_off.next_delay_s()
        self._due.add(key)
        self.after(STABLE_S, _Stable(), key="stable")
        self.after(delay_s, start, key=key)

    def _note_denial(self, source: str, reason: str) -> None:
        label = self._callers.denied(source, reason, time.time())
        self._metrics.decisions.labels(label, self._destination, DENY).inc()
        # Many may come at once; who looks at them does so rarely.
        if not self._report_due:
            self._report_due = True
            self.after(CALLERS_EVERY_S, _ReportCallers(), key="callers")
        self._log_denial(source, reason)

    def _log_denial(self, source: str, reason: str) -> None:
        self._denials += 1
        if self._denials == 1:
            self.after(DENIALS_EVERY_S, _DenialsAgain(), key="denials")
        if self._denials <= DENIALS_LOGGED:
            _log.warning("%s: source=%s reason=%r", self._denied, source or "unknown", reason)

    def _end_of_denials(self) -> None:
        left = self._denials - DENIALS_LOGGED
        if left > 0:
            _log.warning("%d more denials in the last %.0f s", left, DENIALS_EVERY_S)
        self._denials = 0

    def _report(self) -> None:
        version = self._policy_version
        held = [one.policy_version for one in self._pool.workers() if one.policy_version is not None]
        facts = PolicyFacts(version, len(held), sum(one == version for one in held), self._callers.newest())
        self.tell(ADMIN, FactsReported(facts))

    def _read(self) -> None:
        address, pool, stopping = self.address, self._pool, self._stopping

        def read() -> None:
            while not stopping.is_set():
                try:
                    events = pool.poll(POLL_S)
                except Exception as exc:  # noqa: BLE001 (told to whoever can start another)
                    address.tell(_Ended(f"{type(exc).__name__}: {exc}"))
                    return
                calls = tuple((event.der, event.peer) for event in events if isinstance(event, Met))
                for event in events:
                    if not isinstance(event, Met) and not address.tell(_News(event)):
                        # Another has our place, and hears the rest.
                        return
                if calls:
                    if not address.tell(_Calls(calls)):
                        # They are asked about again.
                        return
                    stopping.wait(GATHER_S)

        reader = threading.Thread(target=read, name="spoe-events", daemon=True)
        try:
            reader.start()
        except RuntimeError as exc:
            # Workers decide meanwhile, by what they know.
            self._scarcity.say(f"no thread to hear the SPOE workers in ({exc}); it is tried again")
            self.after(READ_AGAIN_S, _ReadAgain(), key="read")
        else:
            self._scarcity.over()
            self._reader = reader


def _key(index: int) -> str:
    """Of the timer that starts a worker."""
    return f"respawn-{index}"
