"""ConfigReconciler: what HAProxy runs becomes, and stays, what the newest snapshot asks for.

Thin: `desired` and `plan` decide, `Control` reads and acts. Whatever fails leaves the last good state serving
and is tried again.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass, replace
from typing import ClassVar

from hcc.actors.actor import Actor
from hcc.actors.lifecycle import StopReason
from hcc.actors.messages import (
    ADMIN,
    AUTHORISER,
    CERT_MANAGER,
    CONSUL_WATCHER,
    PROCESS_SUPERVISOR,
    CallersChanged,
    ConfigurationInstalled,
    CredentialsReady,
    Drain,
    FactsReported,
    HAProxyDown,
    HAProxyUp,
    Publish,
    SnapshotChanged,
    WorkerReplaced,
)
from hcc.actors.readiness import ReconcilerFacts
from hcc.actors.status import PlanStatus
from hcc.haproxy.control import Applied, Control, ControlError, Taken
from hcc.haproxy.desired import Certificates, Options, desired
from hcc.haproxy.model import Desired
from hcc.haproxy.plan import Actual, Install, Plan, Reload, plan
from hcc.haproxy.render import Rendered, render
from hcc.mesh.snapshot import Snapshot
from hcc.metrics import Metrics

# A change is applied at once when the last one is this long ago; changes in between are applied together.
WINDOW_S = 0.05
# At the start Consul's answers arrive within this of each other; one start of HAProxy then serves them all.
FIRST_GRACE_S = 0.25
# Beside a HAProxy that runs already, what is not known yet must not make it drop what it serves.
ADOPTED_GRACE_S = 30.0
RETRY_S = 1.0
MAX_RETRY_S = 30.0
TAKEN_RETRY_S = 5.0
PENDING_RETRY_S = 2.0
RESYNC_S = 300.0
# More operations than this are counted in the log, not listed.
MAX_LISTED = 8
# Plans that are told to whoever wants to see the last ones.
PLANS_KEPT = 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Reconcile:
    """To itself, from timers; `retry` allows what failed before to be tried again."""

    retry: bool = False
    coalesce_key: ClassVar[str] = "reconcile"


@dataclass(frozen=True, slots=True)
class _Resync:
    """To itself: time to compare what runs with what is wanted, without any news."""


class ConfigReconciler(Actor):
    """Owns what HAProxy should do, and the control of it."""

    def init(self, *, control: Control, options: Options, metrics: Metrics) -> None:
        self._control = control
        self._options = options
        self._metrics = metrics
        self._draining = False
        self._snapshot: Snapshot | None = None
        self._certificates = Certificates()
        self._callers: tuple[str, ...] = ()
        self._facts = ReconcilerFacts()
        self._taken: tuple[Taken, ...] = ()
        self._refused_structure = ""
        self._failures = 0
        self._waited = False
        self._gathering = False
        self._grace_s = FIRST_GRACE_S
        self._last_s = float("-inf")
        self._drift = False

    def setup(self) -> None:
        if self.context.generation > 1:
            for source in (CONSUL_WATCHER, CERT_MANAGER, PROCESS_SUPERVISOR, AUTHORISER):
                self.tell(source, Publish())
        self._grace_s = ADOPTED_GRACE_S if self._control.running() else FIRST_GRACE_S
        self._arm_resync()

    def handle(self, message: object) -> None:
        match message:
            case SnapshotChanged() | CredentialsReady() | CallersChanged():
                self._take(message)
                self._soon()
            case HAProxyUp():
                # No change of Consul's that others may follow: nothing to gather.
                self._soon(window_s=0.0)
            case HAProxyDown(reason):
                self._report(replace(self._facts, applied=False, public_bound=False, failure=reason))
            case _Reconcile(retry):
                if retry:
                    self._refused_structure = ""
                self._reconcile()
            case _Resync():
                self._arm_resync()
                self._reconcile(drift=self._facts.applied and not self._gathering)
            case Publish():
                self._report(self._facts)
            case Drain():
                self._draining = True

    def _take(self, news: SnapshotChanged | CredentialsReady | CallersChanged) -> None:
        match news:
            case SnapshotChanged(snapshot):
                self._snapshot = snapshot
            case CredentialsReady(certificate, ca):
                self._certificates = Certificates(certificate, ca)
            case CallersChanged(callers):
                self._callers = callers

    def teardown(self, reason: StopReason) -> None:
        """Nothing: what runs goes on, and the successor reads it back."""

    def _soon(self, window_s: float = WINDOW_S) -> None:
        """Reconcile now, or at the end of the window in which changes are gathered."""
        if self._snapshot is None or self._draining:
            return
        wait = self._last_s + window_s - time.monotonic()
        if not self._waited and self._complete(self._snapshot):
            # The grace is over as soon as nothing is missing any more.
            self._waited, self._gathering = True, False
            self.cancel("soon")
        elif not self._waited:
            wait = self._grace_s
        if wait <= 0:
            self._reconcile()
        elif not self._gathering:
            self._gathering = True
            self.after(wait, _Reconcile(), key="soon")

    def _complete(self, snapshot: Snapshot) -> bool:
        return snapshot.complete(intentions=self._options.intentions) and self._certificates.leaf is not None

    def _reconcile(self, *, drift: bool = False) -> None:
        """Plan and apply; `drift` when there is no news, so that whatever is to be done was not asked for."""
        self._drift = drift
        self._gathering = False
        self._waited = True
        self.cancel("soon")
        if self._snapshot is None or self._draining:
            return
        wanted = desired(self._snapshot, self._options, self._certificates, self._callers)
        problems = tuple(str(problem) for problem in wanted.problems)
        self._tell_problems(problems)
        try:
            rendered, actual = self._brought_about(wanted.desired)
        except ControlError as exc:
            self._failed(exc)
            return
        finally:
            self._last_s = time.monotonic()
        self._settled(self._snapshot.version, rendered, actual)

    def _brought_about(self, wanted: Desired) -> tuple[Rendered, Actual]:
        """Do what has to be done for `wanted`; what was rendered, and what ran before."""
        rendered = render(wanted, self._control.capabilities, self._control.servers())
        actual = self._control.read_actual(rendered)
        steps = self._plan(rendered, actual)
        if any(isinstance(operation, Install | Reload) for operation in steps.operations):
            self._note_taken(self._control.taken(wanted, actual))
            if self._taken:
                free = wanted.without(taken.bind for taken in self._taken)
                rendered = render(free, self._control.capabilities, self._control.servers())
                actual = self._control.read_actual(rendered)
                steps = self._plan(rendered, actual)
        if steps:
            self._apply(steps)
        return rendered, actual

    def _plan(self, rendered: Rendered, actual: Actual) -> Plan:
        return plan(rendered, actual, may_reload=rendered.structure != self._refused_structure)

    def _apply(self, steps: Plan) -> None:
        began_s = time.monotonic()
        applied = self._control.apply(steps)
        self._note(steps, applied, time.monotonic() - began_s)
        _log.info("%s: %s", "; ".join(steps.reasons), _listed(steps.describe()))
        if applied.failure is not None:
            for operation in steps.operations:
                if isinstance(operation, Reload | Install) and operation not in applied.done:
                    self._refused_structure = operation.rendered.structure
            raise applied.failure
        if applied.pending:
            self.after(PENDING_RETRY_S, _Reconcile(), key="pending")

    def _note(self, steps: Plan, applied: Applied, took_s: float) -> None:
        outcome = "failed" if applied.failure else "applied"
        done = PlanStatus(
            at=time.time() - took_s,
            took_s=took_s,
            outcome=outcome,
            reasons=steps.reasons,
            operations=tuple(one.describe() for one in steps.operations[:MAX_LISTED]),
            operation_count=len(steps.operations),
            reloaded=applied.reloaded,
            drift=self._drift,
            failure=str(applied.failure or ""),
        )
        self._facts = replace(self._facts, plans=(done, *self._facts.plans)[:PLANS_KEPT])
        self._metrics.plans.labels(outcome).inc()
        self._metrics.plan_seconds.observe(took_s)
        self._metrics.drift.inc(self._drift)
        for operation in applied.done:
            self._metrics.operations.labels(type(operation).__name__).inc()
        if applied.reloaded:
            self._metrics.reloads.inc()
            self.tell(AUTHORISER, WorkerReplaced())

    def _settled(self, version: int, rendered: Rendered, actual: Actual) -> None:
        """All of it was applied, or is on disk for HAProxy to start with."""
        self._failures = 0
        self._refused_structure = ""
        self.cancel("retry")
        if self._taken:
            self.after(TAKEN_RETRY_S, _Reconcile(), key="taken")
        if not actual.running:
            self.tell(PROCESS_SUPERVISOR, ConfigurationInstalled())
        self._metrics.applied_version.set(version)
        self._report(
            replace(
                self._facts,
                applied=actual.running,
                public_bound=actual.running and rendered.desired.public is not None,
                public_expected=self._snapshot is not None and bool(self._snapshot.proxy.service_id),
                snapshot_version=version,
                failure="",
            )
        )

    def _failed(self, error: ControlError) -> None:
        delay = min(MAX_RETRY_S, RETRY_S * 2.0**self._failures)
        self._failures += 1
        _log.error("not applied, the last good configuration stays; next try in %.0f s: %s", delay, error)
        self._report(replace(self._facts, applied=False, failure=str(error)))
        self.after(delay, _Reconcile(retry=True), key="retry")

    def _note_taken(self, taken: tuple[Taken, ...]) -> None:
        for one in taken:
            if one not in self._taken:
                again = f"tried again every {TAKEN_RETRY_S:.0f} s"
                _log.error("cannot listen on %s, %s: %s", one.bind, again, one.reason)
        for one in self._taken:
            if one not in taken:
                _log.info("%s is free now", one.bind)
        self._taken = taken

    def _tell_problems(self, problems: tuple[str, ...]) -> None:
        for problem in problems:
            if problem not in self._facts.problems:
                _log.warning("%s", problem)
        self._metrics.problems.set(len(problems))
        self._facts = replace(self._facts, problems=problems)

    def _report(self, facts: ReconcilerFacts) -> None:
        self._facts = facts
        self.tell(ADMIN, FactsReported(facts))

    def _arm_resync(self) -> None:
        # Spread, so that the sidecars of one host do not all look at the same moment.
        self.after(RESYNC_S * random.uniform(0.9, 1.1), _Resync(), key="resync")  # noqa: S311


def _listed(lines: tuple[str, ...]) -> str:
    shown = "; ".join(lines[:MAX_LISTED])
    return shown if len(lines) <= MAX_LISTED else f"{shown}; and {len(lines) - MAX_LISTED} more"
