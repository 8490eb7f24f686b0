"""ProcessSupervisor: HAProxy runs as soon as there is a configuration, and again as soon as it does not.

HAProxy outlives this actor, and hcc itself: a new one adopts what it finds. The Data Plane API, where it is
used, runs from the start on, and never without hcc: a new hcc ends what it finds and starts its own.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

from hcc.actors.actor import Actor
from hcc.actors.backoff import STABLE_S, BackOff
from hcc.actors.draining import Draining, Quiet
from hcc.actors.lifecycle import StopReason
from hcc.actors.messages import (
    ADMIN,
    AUTHORISER,
    CERT_MANAGER,
    CONFIG_RECONCILER,
    VERIFIER,
    ConfigurationInstalled,
    Drain,
    FactsReported,
    HAProxyDown,
    HAProxyUp,
    Publish,
    Reloading,
)
from hcc.actors.readiness import HAProxyFacts
from hcc.haproxy.control import ControlError
from hcc.haproxy.dataplane_process import DataplaneProcess
from hcc.haproxy.process import LOST, Closing, HAProxyProcess, NotReadyError
from hcc.log import LastingProblem
from hcc.metrics import Metrics

# So long a start or a reload may take: thousands of servers on half a processor take it beyond any heartbeat.
PATIENCE_S = 120.0
# A start is waited for in pieces, between which others are heard.
READY_TIMEOUT_S = 2.0
KILL_AFTER_S = 2.0
# So long ConfigReconciler may look at what HAProxy is started with again; it may be busy, or be restarted.
ANSWER_S = 3.0
IN_FLIGHT_CHECK_S = 0.1
# So long HAProxy may take in a drain to close the public listener, and to say what all of its workers do; less as the
# time for open connections ends, but so long at least.
CLOSE_TIMEOUT_S = 2.0
COUNT_TIMEOUT_S = 5.0
LEAST_TIMEOUT_S = 0.1
# In a drain, connections that nothing was asked on for so long are cut: callers close them only much later.
QUIET_S = 2.0
QUIET_CHECK_S = 0.25
# HAProxy and the Data Plane API are asked this often.
PROBE_S = 2.0
PROBE_TIMEOUT_S = 2.0
# A process that no thread watches is looked at this often.
LOOK_AGAIN_S = 1.0
# HAProxy hangs when it has been silent so many times, 4 s each: a certificate that 10,000 servers use keeps it busy for
# 5 s, and a reload with these its master.
HAPROXY_MISSES = 4
# Nobody listens on its sockets any more when that was seen so many times, one right after the other: nothing can be
# enforced meanwhile.
LOST_MISSES = 3
# The Data Plane API hangs when it answered before and has been silent so many times.
MISSES = 3
START_MISSES = 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Ended:
    """From the watching thread: the master with that process id is gone."""

    pid: int


@dataclass(frozen=True, slots=True)
class _LookAgain:
    """To itself: see whether a process is gone that no thread watches; `ended` is what it is told then."""

    process: HAProxyProcess | DataplaneProcess
    pid: int
    ended: object


@dataclass(frozen=True, slots=True)
class _StartAgain:
    """To itself: the pause after a failed start is over."""

    coalesce_key: ClassVar[str] = "start-again"


@dataclass(frozen=True, slots=True)
class _StartUnasked:
    """To itself: ConfigReconciler was asked whether HAProxy may start, and does not answer."""


@dataclass(frozen=True, slots=True)
class _AwaitReady:
    """To itself: HAProxy was started and does not answer yet; look again."""


@dataclass(frozen=True, slots=True)
class _Stable:
    """To itself: HAProxy has run long enough for its next death to count as the first."""


@dataclass(frozen=True, slots=True)
class _Probe:
    """To itself: time to see whether HAProxy answers."""


@dataclass(frozen=True, slots=True)
class _DataplaneEnded:
    """From the watching thread: the Data Plane API with that process id is gone."""

    pid: int


@dataclass(frozen=True, slots=True)
class _StartDataplane:
    """To itself: the pause after its end is over."""

    coalesce_key: ClassVar[str] = "start-dataplane"


@dataclass(frozen=True, slots=True)
class _DataplaneStable:
    """To itself: it has run long enough for its next death to count as the first."""


@dataclass(frozen=True, slots=True)
class _ProbeDataplane:
    """To itself: time to see whether it answers."""


@dataclass(frozen=True, slots=True)
class _CheckInFlight:
    """To itself: see whether the public listener is closed, and its callers are served."""


@dataclass(frozen=True, slots=True)
class _CheckQuiet:
    """To itself: HAProxy ends as soon as all is closed; see whether anything is still asked."""


@dataclass(frozen=True, slots=True)
class _Force:
    """To itself: the time for open connections is over. `kill` when even that was asked for before."""

    kill: bool


class ProcessSupervisor(Actor):
    """Owns the HAProxy process, and that of the Data Plane API when there is one."""

    def init(
        self,
        *,
        process: HAProxyProcess,
        installed: str,
        on_version: Callable[[str], None],
        metrics: Metrics,
        on_drained: Callable[[], None],
        draining: Draining,
        dataplane: DataplaneProcess | None = None,
    ) -> None:
        self._process = process
        # What the program on disk was when hcc started; what runs, as far as it was heard.
        self._installed = self._version = installed
        self._on_version = on_version
        self._metrics = metrics
        self._on_drained = on_drained
        self._draining = draining
        self._back_off = BackOff()
        # By `time.monotonic`; when a start is given up, None when none is under way; until when no silence counts.
        self._ready_by_s: float | None = None
        self._patient_until_s = 0.0
        self._misses = 0
        self._lost = False
        # Process id of the worker that answered last, 0 where another one may: one by a reload that we did not ask for
        # may not run what was done since the files were written.
        self._worker = 0
        self._dataplane = dataplane
        self._dataplane_back_off = BackOff()
        self._dataplane_answered = False
        self._dataplane_misses = 0
        self._quiet = Quiet()
        self._scarcity = LastingProblem(_log)
        # Whether the time to drain was not enough.
        self._forced = False
        # Readable when this actor ends; who watches a process for it ends then, too.
        self._leaving = -1

    def setup(self) -> None:
        self._leaving = os.eventfd(0)
        if self._dataplane is not None:
            self._start_dataplane(self._dataplane)
        if not self._process.pid:
            self._process.adopt()
        if self._process.starting:
            self._launched()
        elif self._process.pid:
            _log.info("adopted the running HAProxy, process %d", self._process.pid)
            if self._process.access_log_is_in_file():
                _log.warning(
                    "until HAProxy is started anew its access log goes to haproxy.log, which keeps a megabyte at most"
                )
            self._watch(self._process, _Ended(self._process.pid))
            self._look_after()
            if self.context.generation == 1 and self._version != self._installed:
                _log.info("HAProxy %s runs, %s is installed: the next reload brings it", self._version, self._installed)
        if self._draining.deadline_s is not None:
            self._drain(self._draining.deadline_s)
        elif self.context.generation > 1:
            # Nobody may have heard that there is something to start, or it was about to be tried again.
            self.tell(CONFIG_RECONCILER, Publish())

    def handle(self, message: object) -> None:
        match message:
            case ConfigurationInstalled() | _StartAgain() | _StartUnasked() | _AwaitReady():
                self._about_start(message)
            case _Ended(pid):
                self._ended(pid)
            case _LookAgain(process, pid, ended):
                self._look_again(process, pid, ended)
            case _Stable():
                self._back_off.reset()
            case _Probe() | Reloading():
                self._about_silence(message)
            case _DataplaneEnded() | _StartDataplane() | _DataplaneStable() | _ProbeDataplane():
                self._about_dataplane(message)
            case Publish():
                self._publish()
            case Drain() | _CheckInFlight() | _CheckQuiet() | _Force():
                self._about_drain(message)

    def teardown(self, reason: StopReason) -> None:  # noqa: ARG002 (Actor's signature)
        """HAProxy goes on, and the successor or the next hcc adopts it."""
        if self._leaving >= 0:
            os.eventfd_write(self._leaving, 1)
            os.close(self._leaving)

    def _about_start(self, message: ConfigurationInstalled | _StartAgain | _StartUnasked | _AwaitReady) -> None:
        match message:
            case _StartAgain():
                # Somebody may have damaged what it starts with, or taken a port: ConfigReconciler sees to that first.
                self.tell(CONFIG_RECONCILER, Publish())
                self.after(ANSWER_S, _StartUnasked(), key="start")
            case _AwaitReady():
                self._await_ready()
            case _:
                self._start()

    def _start(self) -> None:
        self.cancel("start")
        if self._draining.deadline_s is not None or self._process.pid:
            return
        try:
            self._process.launch()
        except ControlError as exc:
            self._start_failed(str(exc))
            return
        self._launched()

    def _launched(self) -> None:
        self._watch(self._process, _Ended(self._process.pid))
        self._ready_by_s = time.monotonic() + PATIENCE_S
        self._await_ready()

    def _await_ready(self) -> None:
        if self._ready_by_s is None or self._draining.deadline_s is not None:
            return
        try:
            self._process.wait_ready(timeout_s=READY_TIMEOUT_S)
        except NotReadyError as exc:
            if time.monotonic() < self._ready_by_s:
                self.after(0.0, _AwaitReady(), key="ready")
            else:
                self._start_failed(f"given up after {PATIENCE_S:g} s: {exc}")
            return
        except ControlError as exc:
            self._start_failed(str(exc))
            return
        self._ready_by_s = None
        self._metrics.haproxy_starts.inc()
        self._look_after()
        _log.info("HAProxy %s runs, process %d", self._version, self._process.pid)

    def _look_after(self) -> None:
        """Tell that HAProxy runs, and see its silence."""
        seen = self._process.look(PROBE_TIMEOUT_S)
        self._misses, self._lost, self._worker = 0, False, seen.worker
        self._see_version(seen.version)
        self.after(PROBE_S, _Probe(), key="probe")
        self._publish()

    def _about_silence(self, message: _Probe | Reloading) -> None:
        match message:
            case Reloading(under_way=True):
                self._patient_until_s = time.monotonic() + PATIENCE_S
            case Reloading(replaced=replaced):
                self._patient_until_s = 0.0
                worker = self._process.look(PROBE_TIMEOUT_S).worker
                if replaced:
                    self._worker = worker
                elif worker:
                    self._see_worker(worker)
            case _:
                self._probe()

    def _probe(self) -> None:
        if not self._process.pid or self._draining.deadline_s is not None:
            return
        self._process.trim_log()
        self._process.keep_record()
        seen = self._process.look(PROBE_TIMEOUT_S)
        is_reloaded_by_us = time.monotonic() < self._patient_until_s
        lost, before = seen.silent == LOST, self._lost
        self._see_version(seen.version)
        if lost != before:
            self._lost, self._misses = lost, 0
            self._report()
        self._misses = self._misses + 1 if seen.silent and not is_reloaded_by_us else 0
        if seen.worker and not is_reloaded_by_us:
            self._see_worker(seen.worker)
        if self._misses >= (LOST_MISSES if lost else HAPROXY_MISSES):
            what = "sockets are gone, somebody removed them" if lost else f"{seen.silent} hangs"
            _log.error("HAProxy's %s, process %d: killing all of it", what, self._process.pid)
            self._process.kill()
        else:
            self.after(PROBE_S, _Probe(), key="probe")

    def _see_worker(self, pid: int) -> None:
        before, self._worker = self._worker, pid
        if before not in (0, pid):
            _log.warning("HAProxy was reloaded, not by hcc or late: what its new worker %d runs is looked at", pid)
            self._publish()

    def _see_version(self, version: str) -> None:
        """It may run since before an upgrade, or was reloaded after one."""
        if version and version != self._version:
            self._version = version
            self._on_version(version)
            self._report()

    def _start_failed(self, reason: str) -> None:
        self._ready_by_s = None
        self.cancel("ready")
        self._process.kill()
        self._process.reap()
        delay = self._next_delay()
        _log.error("HAProxy did not start, next try in %.1f s: %s", delay, reason)
        self._tell_down(reason)
        self.after(delay, _StartAgain(), key="start")

    def _ended(self, pid: int) -> None:
        if pid != self._process.pid:
            return
        if self._ready_by_s is not None and self._draining.deadline_s is None:
            # It says why.
            self._await_ready()
            return
        ended = self._process.reap()
        status = ended.status if ended else None
        self._report()
        if self._draining.deadline_s is not None:
            _log.info("HAProxy ended%s", "" if self._forced else ", all connections are done")
            self._on_drained()
            return
        self._tell_down(f"ended with status {status}")
        delay = self._next_delay()
        _log.error("HAProxy ended with status %s, starting it again in %.2f s", status, delay)
        self.after(delay, _StartAgain(), key="start")

    def _tell_down(self, reason: str) -> None:
        """Who owns a file that it starts with puts it back: that may be why it does not start."""
        for hearer in (CERT_MANAGER, AUTHORISER, VERIFIER, CONFIG_RECONCILER):
            self.tell(hearer, HAProxyDown(reason))

    def _next_delay(self) -> float:
        self.after(STABLE_S, _Stable(), key="stable")
        return self._back_off.next_delay_s()

    def _about_dataplane(self, message: _DataplaneEnded | _StartDataplane | _DataplaneStable | _ProbeDataplane) -> None:
        if self._dataplane is None:
            return
        match message:
            case _DataplaneEnded(pid):
                if pid == self._dataplane.pid:
                    self._dataplane_ended(self._dataplane)
            case _StartDataplane():
                self._start_dataplane(self._dataplane)
            case _DataplaneStable():
                self._dataplane_back_off.reset()
            case _ProbeDataplane():
                self._probe_dataplane(self._dataplane)

    def _start_dataplane(self, dataplane: DataplaneProcess) -> None:
        dataplane.reap()
        try:
            # One of an earlier generation of this actor goes on.
            pid = dataplane.pid or dataplane.launch()
        except ControlError as exc:
            self._start_dataplane_again(str(exc))
            return
        self._watch(dataplane, _DataplaneEnded(pid))
        # One that has not answered yet is starting, which takes it up to half a minute.
        self._dataplane_answered, self._dataplane_misses = False, 0
        self.after(PROBE_S, _ProbeDataplane(), key="probe-dataplane")

    def _probe_dataplane(self, dataplane: DataplaneProcess) -> None:
        if not dataplane.pid:
            return
        dataplane.trim_log()
        if dataplane.answers(PROBE_TIMEOUT_S):
            if not self._dataplane_answered:
                _log.info("the Data Plane API runs, process %d", dataplane.pid)
            self._dataplane_answered, self._dataplane_misses = True, 0
        else:
            self._dataplane_misses += 1
        allowed = MISSES if self._dataplane_answered else START_MISSES
        if self._dataplane_misses >= allowed:
            _log.error("the Data Plane API hangs, process %d: killing it", dataplane.pid)
            dataplane.kill()
        else:
            self.after(PROBE_S, _ProbeDataplane(), key="probe-dataplane")

    def _dataplane_ended(self, dataplane: DataplaneProcess) -> None:
        ended = dataplane.reap()
        self._start_dataplane_again(f"ended with status {ended.status if ended else None}")

    def _start_dataplane_again(self, reason: str) -> None:
        delay = self._dataplane_back_off.next_delay_s()
        self.after(STABLE_S, _DataplaneStable(), key="dataplane-stable")
        _log.error("the Data Plane API: %s; starting it again in %.2f s", reason, delay)
        self.after(delay, _StartDataplane(), key="start-dataplane")

    def _about_drain(self, message: object) -> None:
        match message:
            case Drain() if self._draining.deadline_s is not None:
                self._drain(self._draining.deadline_s)
            case _CheckInFlight():
                self._stop_when_served()
            case _CheckQuiet():
                self._cut_when_quiet()
            case _Force(kill):
                self._force(kill=kill)

    def _drain(self, deadline_s: float) -> None:
        self.cancel("start")
        if not self._process.pid:
            self._on_drained()
            return
        self.after(max(0.0, deadline_s - time.monotonic()), _Force(kill=False), key="force")
        if self._draining.ending:
            self._await_quiet()
        elif self._process.starting:
            # It has served nobody yet.
            self._end_gracefully()
        else:
            self._stop_when_served()

    def _stop_when_served(self) -> None:
        """The application may need its upstreams to answer what it was asked already: they close last."""
        if not self._process.pid:
            return
        closing = self._process.close_public(self._time_to_ask_s(CLOSE_TIMEOUT_S))
        self._note_closing(closing)
        # Where HAProxy does not say, somebody may come in, or wait, too.
        if (
            closing is not Closing.UNKNOWN
            and self._process.requests_in_flight(self._time_to_ask_s(COUNT_TIMEOUT_S)) == 0
        ):
            self._end_gracefully()
        else:
            self.after(IN_FLIGHT_CHECK_S, _CheckInFlight(), key="in-flight")

    def _note_closing(self, closing: Closing) -> None:
        """One that was closed before was so by a generation before, or when HAProxy took too long to say so."""
        before = self._draining.public_is_closed
        self._draining.public_is_closed = before or closing in (Closing.CLOSED, Closing.WAS_CLOSED)
        if before and closing is Closing.CLOSED:
            _log.info("the public listener is closed again, after a reload")
        elif self._draining.public_is_closed and not before:
            _log.info("the public listener is closed")

    def _time_to_ask_s(self, most_s: float) -> float:
        """How long HAProxy may take to answer: one that hangs must not keep connections from being cut in time."""
        deadline_s = self._draining.deadline_s
        left_s = most_s if deadline_s is None else deadline_s - time.monotonic()
        return min(max(left_s, LEAST_TIMEOUT_S), most_s)

    def _end_gracefully(self) -> None:
        self._draining.ending = True
        self._process.stop_gracefully()
        self._await_quiet()

    def _await_quiet(self) -> None:
        self._quiet = Quiet()
        self.after(QUIET_CHECK_S, _CheckQuiet(), key="quiet")

    def _cut_when_quiet(self) -> None:
        if not self._process.pid:
            return
        if self._process.goes_on(self._time_to_ask_s(COUNT_TIMEOUT_S)):
            _log.info("HAProxy was reloading as it was told to end, and listens again: it is told again")
            self._end_gracefully()
            return
        activity = self._process.activity(self._time_to_ask_s(COUNT_TIMEOUT_S))
        if self._quiet.lasts_s(activity, time.monotonic()) < QUIET_S:
            self.after(QUIET_CHECK_S, _CheckQuiet(), key="quiet")
            return
        _log.info("nothing was asked for %g s, closing the connections that callers keep", QUIET_S)
        self._process.terminate()

    def _force(self, *, kill: bool) -> None:
        if not self._process.pid:
            return
        if kill:
            self._process.kill()
            return
        self._forced = True
        _log.warning("HAProxy has not ended after the time to drain, cutting the connections that are still open")
        self._process.terminate()
        self.after(KILL_AFTER_S, _Force(kill=True), key="force")

    def _watch(self, process: HAProxyProcess | DataplaneProcess, ended: object) -> None:
        """Send that message to ourselves when the process is gone."""
        try:
            self._start_watch(process, ended)
        except RuntimeError as exc:
            self._scarcity.say(f"no thread to watch a process in ({exc}); it is looked at every {LOOK_AGAIN_S:g} s")
            self.after(LOOK_AGAIN_S, _LookAgain(process, process.pid, ended), key=f"look {type(process).__name__}")
        else:
            self._scarcity.over()

    def _look_again(self, process: HAProxyProcess | DataplaneProcess, pid: int, ended: object) -> None:
        """Find out without a thread whether it is gone; watch it once there is one."""
        if process.pid != pid:
            return
        poll = select.poll()
        poll.register(process.fileno(), select.POLLIN)
        if poll.poll(0):
            self.address.tell(ended)
        else:
            self._watch(process, ended)

    def _start_watch(self, process: HAProxyProcess | DataplaneProcess, ended: object) -> None:
        address = self.address
        with ExitStack() as failed:
            # Descriptors of its own, so that the actor may close the others at any time.
            gone = os.dup(process.fileno())
            failed.callback(os.close, gone)
            leaving = os.dup(self._leaving)
            failed.callback(os.close, leaving)

            def wait() -> None:
                poll = select.poll()
                for descriptor in (gone, leaving):
                    poll.register(descriptor, select.POLLIN)
                readable = {descriptor for descriptor, _ in poll.poll()}
                os.close(gone)
                os.close(leaving)
                if gone in readable:
                    address.tell(ended)

            threading.Thread(target=wait, name="process-watch", daemon=True).start()
            failed.pop_all()

    def _publish(self) -> None:
        if self._runs():
            for listener in (CONFIG_RECONCILER, AUTHORISER, VERIFIER):
                self.tell(listener, HAProxyUp(self._process.pid))
        self._report()

    def _runs(self) -> bool:
        return bool(self._process.pid) and self._ready_by_s is None

    def _report(self) -> None:
        running = self._runs()
        self._metrics.haproxy_up.set(running)
        facts = HAProxyFacts(running, self._process.pid, self._version, reachable=not (running and self._lost))
        self.tell(ADMIN, FactsReported(facts))
