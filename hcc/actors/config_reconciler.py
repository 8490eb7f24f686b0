"""ConfigReconciler: what HAProxy runs becomes, and stays, what the newest snapshot asks for.

Thin: `desired` and `plan` decide, `Control` reads and acts. Whatever fails leaves the last good state serving
and is tried again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from hcc.actors import plan_words
from hcc.actors.actor import Actor
from hcc.actors.backoff import Retries
from hcc.actors.basis import Basis
from hcc.actors.draining import Draining
from hcc.actors.lifecycle import StopReason
from hcc.actors.messages import (
    ADMIN,
    AUTHORISER,
    CERT_MANAGER,
    CONSUL_WATCHER,
    PROCESS_SUPERVISOR,
    VERIFIER,
    AdmissionChanged,
    CallersChanged,
    ConfigurationInstalled,
    CredentialsReady,
    Drain,
    FactsReported,
    HAProxyDown,
    HAProxyUp,
    Preview,
    Previewed,
    Publish,
    Reloading,
    SnapshotChanged,
    WorkerReplaced,
)
from hcc.actors.pace import Pace
from hcc.actors.readiness import ReconcilerFacts
from hcc.actors.writing import Writer, Written
from hcc.errors import HccError
from hcc.haproxy.brake import braked, is_astray, is_guessed
from hcc.haproxy.capabilities import Feature
from hcc.haproxy.control import Applied, Control, ControlError, Taken
from hcc.haproxy.desired import Result
from hcc.haproxy.desired_terms import Certificates, Options
from hcc.haproxy.model import ActualListener, Desired, DesiredError, Listening
from hcc.haproxy.names import APP
from hcc.haproxy.plan import (
    Actual,
    Install,
    Operation,
    Plan,
    Reload,
    RunTimeOperation,
    are_too_many,
    changes,
    fits_what_runs,
    plan,
)
from hcc.haproxy.render import Rendered, render
from hcc.haproxy.sayable import sayable
from hcc.haproxy.sight import sight_by
from hcc.haproxy.words import WordError
from hcc.mesh.peer_book import Admission
from hcc.mesh.snapshot import Snapshot
from hcc.metrics import Metrics
from hcc.settings import Enforcement

# Endpoints that are new are probed before they get traffic; what comes of it within this is applied together with them.
PROBE_S = 0.01
# So much longer for each of them: to add thousands takes seconds, and who is admitted meanwhile waits for that.
PROBE_EACH_S, MOST_PROBE_S = 0.0001, 0.25
# At the start Consul's answers arrive within this of each other; one start of HAProxy then serves them all.
FIRST_GRACE_S = 0.25
# So much longer where a target for failover would serve only because nobody has said yet who is in the first one, which
# another datacenter may be slow to say.
FAILOVER_GRACE_S = 2.0
# Beside a HAProxy that runs already, what is not known yet must not make it drop what it serves.
ADOPTED_GRACE_S = 30.0
RETRY_S = 1.0
# After so many changes that HAProxy refused at run time, a new worker takes over that has read all of it.
MOST_REFUSALS = 3
MAX_RETRY_S = 30.0
TAKEN_RETRY_S = 5.0
PENDING_RETRY_S = 2.0
# Plans that are told to whoever wants to see the last ones.
PLANS_KEPT = 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Reconcile:
    """To itself, from timers.

    Args:
        retry: what failed before may be tried again.
        thorough: with all read back.
    """

    retry: bool = False
    thorough: bool = False
    coalesce_key: ClassVar[str] = "reconcile"


@dataclass(frozen=True, slots=True)
class _Settle:
    """To itself: time to see whether what was done at run time took effect, and to write it down."""


@dataclass(frozen=True, slots=True)
class _Resync:
    """To itself: time to compare what runs with what is wanted, without any news."""


@dataclass(frozen=True, slots=True)
class _Release:
    """To itself: the snapshot that was held counts, whatever it lacks."""


class ConfigReconciler(Actor):
    """Owns what HAProxy should do, and the control of it."""

    def init(
        self,
        *,
        control: Control,
        options: Options,
        probes: bool,
        metrics: Metrics,
        resync_s: float,
        draining: Draining,
        on_rest: Callable[[], None],
    ) -> None:
        self._control = control
        self._on_rest = on_rest
        self._resync_s = resync_s
        self._basis = Basis(options, probes)
        self._metrics = metrics
        self._draining = draining
        # As ProcessSupervisor told.
        self._haproxy_is_up = False
        self._reconciled_version = 0
        # What was wanted last, and done.
        self._applied: Desired | None = None
        # Whether each part of what is wanted is tried by itself, as some could not be written; and whether some cannot.
        self._picks, self._leaves_out = False, False
        self._facts = ReconcilerFacts()
        self._taken: tuple[Taken, ...] = ()
        self._refused_structure = ""
        # How often HAProxy refused to be changed at run time since all was as it should be.
        self._refusals = 0
        self._retries = Retries()
        self._waited = self._waits_for_targets = False
        self._gathering = False
        self._grace_s = FIRST_GRACE_S
        self._pace = Pace()
        # Whether this actor has read anything back; whether it did something since that is not written down either.
        self._looked = False
        self._unsettled = False
        # Whether there is something on disk for HAProxy to start with.
        self._installed = False
        # Whatever reads all back waits for it.
        self._writer = Writer(control, self.address)
        self._look_when_written = False
        # Whether what is on disk is not what was to be written.
        self._write_failed = False
        # Process id of the worker where nobody else was seen to listen since the last resync, 0 for none.
        self._alone = 0
        # Whether there are news that nothing was done about.
        self._news = False
        self._late: frozenset[Operation] = frozenset()
        self._drift = False

    def setup(self) -> None:
        if self.context.generation > 1:
            for source in (CONSUL_WATCHER, CERT_MANAGER, PROCESS_SUPERVISOR, AUTHORISER, VERIFIER):
                self.tell(source, Publish())
        running = self._control.running()
        self._grace_s = ADOPTED_GRACE_S if running else FIRST_GRACE_S
        # One that refuses nobody must not go on where intentions are to be enforced, whatever is not known.
        enforced = self._basis.options.intentions is Enforcement.ENFORCE
        self._basis = replace(self._basis, untouched=running and not (enforced and self._control.unguarded()))
        self.after_about(self._resync_s, _Resync(), key="resync")

    def handle(self, message: object) -> object | None:
        match message:
            case Preview():
                return self._previewed()
            case SnapshotChanged() | CredentialsReady() | CallersChanged() | HAProxyUp():
                self._take(message)
                # That HAProxy has come up is no change of Consul's that others may follow: nothing to gather.
                self._soon(0.0 if isinstance(message, HAProxyUp) else self._pace.last_s)
            case AdmissionChanged(admission):
                self._admit(admission)
            case HAProxyDown(reason):
                self._haproxy_is_up = False
                self._report(replace(self._facts, applied=False, public_bound=False, failure=reason))
            case Publish():
                self._report(self._facts)
                if self._installed:
                    self._let_start()
            case Drain():
                self._writer.finish()
                # What is done to HAProxy from now on is done at run time.
                self._on_rest()
            case _:
                self._go_on(message)
        return None

    def _go_on(self, message: object) -> None:
        """With what was begun."""
        match message:
            case _Reconcile() if self._has_to_wait_for_targets():
                self._waits_for_targets = True
                self.after(FAILOVER_GRACE_S, _Reconcile(), key="soon")
            case _Reconcile(retry, thorough):
                thorough = thorough and not self._draining.frozen
                if retry and self._refused_structure:
                    # A reload may take long to fail again: what can be done without does not wait for it.
                    self._reconcile(thorough=thorough)
                    self._refused_structure = ""
                self._reconcile(thorough=thorough)
            case _Settle() | _Resync():
                # Either way all is looked at: the next time without news is that much later.
                self.after_about(self._resync_s, _Resync(), key="resync")
                self._alone = 0 if isinstance(message, _Resync) else self._alone
                self._look()
            case Written():
                self._written(message)
            case _Release():
                self._release()

    def _take(self, news: SnapshotChanged | CredentialsReady | CallersChanged | HAProxyUp) -> None:
        self._news = True
        match news:
            case SnapshotChanged(snapshot):
                self._take_snapshot(snapshot)
            case CredentialsReady(certificate, ca):
                self._basis = replace(self._basis, certificates=Certificates(certificate, ca))
            case CallersChanged(callers):
                self._basis = replace(self._basis, callers=callers)
            case HAProxyUp():
                self._haproxy_is_up = True

    def _take_snapshot(self, snapshot: Snapshot) -> None:
        serves = self._applied is not None and self._applied.public is not None
        before, self._basis = self._basis, self._basis.with_snapshot(snapshot, serves=serves)
        if self._basis.held is None:
            self.cancel("held")
        elif before.held is None:
            self.after(ADOPTED_GRACE_S, _Release(), key="held")

    def _release(self) -> None:
        if self._basis.held is not None:
            self._basis, self._news = self._basis.released, True
            self._soon(self._pace.last_s)

    def teardown(self, reason: StopReason) -> None:
        """Write down what was done; what runs goes on, and the successor reads it back."""
        if reason is StopReason.FAILURE:
            return
        self._writer.finish()
        if self._unsettled and self._facts.applied:
            self._reconcile(thorough=True)
            self._writer.finish()

    def _admit(self, admission: Admission) -> None:
        before, self._basis = self._basis, replace(self._basis, admission=admission)
        snapshot = self._basis.snapshot
        if snapshot is None or admission.version > snapshot.version:
            # The snapshot that it is about comes next.
            return
        if self._gathering or self._basis.vetted != before.vetted:
            # Who may serve now waits for others of its kind, not for the change that named it.
            applied = snapshot.version == self._reconciled_version
            self._news = True
            self._soon(self._pace.admitted_s if applied else self._pace.last_s)

    def _soon(self, last_s: float) -> None:
        """Reconcile now, or at the end of the window in which changes are gathered."""
        if not self._basis.decides:
            return
        wait = self._pace.wait_s(last_s, time.monotonic())
        enough = self._basis.complete or (self._waits_for_targets and not self._basis.stands_in)
        if not self._waited and enough and not self._astray():
            # The grace is over as soon as nothing is missing any more.
            self._waited, self._gathering = True, False
            self.cancel("soon")
        elif not self._waited:
            wait = self._grace_s
        if self._being_probed():
            wait = max(wait, min(PROBE_S + self._basis.unknown * PROBE_EACH_S, MOST_PROBE_S))
        if wait <= 0:
            self._reconcile()
        elif not self._gathering:
            self._gathering = True
            self.after(wait, _Reconcile(), key="soon")

    def _has_to_wait_for_targets(self) -> bool:
        """Whether the first configuration is worth waiting for a second time."""
        return not (self._waited or self._waits_for_targets) and self._basis.stands_in

    def _being_probed(self) -> bool:
        """Whether a snapshot that was not applied yet has endpoints of which it is not known yet who they are."""
        snapshot = self._basis.snapshot
        return self._basis.probing and snapshot is not None and snapshot.version != self._reconciled_version

    def _astray(self) -> bool:
        """Whether probes will tell who serves where a HAProxy that ran before us would send requests now."""
        snapshot = self._basis.snapshot
        if snapshot is None or not self._basis.untouched or not self._being_probed():
            return False
        try:
            return is_astray(self._wanted(snapshot).desired, self._control.servers())
        except (HccError, OSError):
            # Told by whoever tries to bring it about.
            return False

    def _look(self) -> None:
        """Compare all of what runs and what is on disk with what is wanted, and repair it."""
        if self._facts.applied and not self._gathering and not self._writer.busy:
            self._reconcile(thorough=True)
        elif self._unsettled:
            self._unsettled = False
            self._settle_soon()

    def _reconcile(self, *, thorough: bool = False) -> None:
        """Do what is to be done; what only concerns run time at once, the rest with all read back."""
        self._gathering = False
        self._waited = True
        self.cancel("soon")
        snapshot = self._basis.snapshot
        if snapshot is None or not self._basis.decides or self._draining.ending:
            return
        # Without news whatever is to be done was not asked for.
        news, self._news = self._news, False
        self._drift = not news and self._facts.applied
        began_s = time.monotonic()
        if self._reconciled_version == snapshot.version:
            self._pace.admitted_s = began_s
        self._reconciled_version = snapshot.version
        try:
            wanted = self._wanted(snapshot)
            self._tell_problems(tuple(str(problem) for problem in wanted.problems), snapshot.proxy.warnings)
            done = None if thorough else self._done_at_run_time(wanted.desired)
            if done is None and self._draining.frozen:
                return
            if done is None and self._writer.busy:
                self._look_when_written, self._news = True, news
                return
            rendered, actual = done or self._brought_about(wanted.desired)
        except (HccError, OSError) as exc:
            # Whatever it is, such as a word of Consul's that cannot be in HAProxy's configuration: what runs goes on.
            self._failed(exc)
            return
        finally:
            self._pace.last_s = time.monotonic()
        self._pace.applied(began_s, self._pace.last_s, looked=done is None)
        self._settled(snapshot.version, rendered, actual)

    def _done_at_run_time(self, wanted: Desired) -> tuple[Rendered, Actual] | None:
        """As `_brought_about`; None when files or a reload are needed for it, or nothing is known of what runs.

        What was done is believed for a moment: then all is read back, and written down. Not during a drain, where what
        is not known is read here.
        """
        free = wanted.without(taken.bind for taken in self._taken)
        actual = self._control.glance() if self._looked else None
        if actual is None and self._draining.frozen and self._control.running():
            _, actual, _ = self._compared(free)
            self._looked = True
        if actual is None:
            return None
        if self._draining.frozen:
            actual = replace(actual, listeners=_all_open(free))
        rendered = render(braked(free, actual.servers, self._applied), self._control.capabilities, actual.servers)
        if not fits_what_runs(rendered, actual):
            return None
        steps = changes(rendered, actual)
        if are_too_many(steps):
            return None
        if steps:
            self._settle_soon()
            self._apply(steps)
        return rendered, actual

    def _brought_about(self, wanted: Desired) -> tuple[Rendered, Actual]:
        """Do what has to be done for `wanted`; what was rendered, and what ran before."""
        rendered, actual, steps, taken = self._planned(wanted, alone=self._alone)
        if taken is not None:
            self._note_taken(taken, wanted)
        self._alone = actual.pid if taken is not None else 0
        if self._drift and not (self._unsettled or self._write_failed) and steps.parted()[1]:
            _log.warning("the file on disk differs from what was written there; it is put back")
        self._looked, self._unsettled = True, False
        self._write_failed = self._write_failed and bool(steps.parted()[1])
        self.cancel("settle")
        if steps:
            self._apply(steps)
        if steps.reloads:
            # A new worker: seen before it is believed.
            self._settle_soon()
            self._pace.reloaded_s = time.monotonic()
        return rendered, actual

    def _let_start(self) -> None:
        """HAProxy may start, with what was put right before: somebody else may have damaged it, or taken a port.

        When that fails it starts with what is there.
        """
        if not (self._facts.applied or self._writer.busy or self._draining.frozen or self._control.running()):
            self._put_back()
        self.tell(PROCESS_SUPERVISOR, ConfigurationInstalled())

    def _put_back(self) -> None:
        snapshot = self._basis.snapshot
        if snapshot is None:
            return
        try:
            self._brought_about(self._wanted(snapshot).desired)
        except (HccError, OSError) as exc:
            self._failed(exc)

    def _planned(self, wanted: Desired, alone: int = 0) -> tuple[Rendered, Actual, Plan, tuple[Taken, ...] | None]:
        """What is to be done, with all read back; and the addresses that others have, None when that matters not.

        Args:
            wanted: all of it.
            alone: the worker with that process id needs not be looked at: nobody shares its ports.
        """
        rendered, actual, steps = self._compared(wanted)
        if rendered.structure == self._refused_structure:
            # Not to be tried now.
            return rendered, actual, steps, None
        binds = any(isinstance(operation, Install | Reload) for operation in steps.operations)
        if actual.running and actual.pid == alone and not binds:
            return rendered, actual, steps, ()
        # Also when HAProxy is to start with what is there: it would fail as a whole, or share a port with a stranger.
        taken = self._control.taken(wanted, actual)
        if taken:
            rendered, actual, steps = self._compared(wanted.without(one.bind for one in taken))
        return rendered, actual, steps, taken

    def _compared(self, wanted: Desired) -> tuple[Rendered, Actual, Plan]:
        able = self._control.capabilities
        running = self._control.servers() if is_guessed(wanted) or not able.has(Feature.DYNAMIC_SERVERS) else ()
        rendered = render(braked(wanted, running, self._applied), able, running)
        actual = self._control.read_actual(rendered)
        if self._haproxy_is_up and not actual.running:
            # Taken for none, it would keep what it does, and its ports would look like somebody else's.
            raise ControlError("HAProxy runs, but nobody listens on its sockets")
        may_reload = rendered.structure != self._refused_structure
        because = "HAProxy refuses to be changed at run time" if self._refusals >= MOST_REFUSALS else ""
        return rendered, actual, plan(rendered, actual, may_reload=may_reload, because=because)

    def _previewed(self) -> Previewed:
        """What would be done now.

        Raises:
            ControlError: nothing is known yet, HAProxy does not answer, what is on disk cannot be read, or the sidecar
                is stopping.
        """
        if self._draining.frozen:
            raise ControlError("the sidecar is stopping: HAProxy is changed at run time alone until it ends")
        if lacking := self._basis.lacks:
            raise ControlError(f"there is no {lacking} that can be used yet, HAProxy is left as it is; ask again")
        snapshot = self._basis.snapshot
        if snapshot is None or not self._basis.decides:
            raise ControlError("Consul has not told of this proxy yet; ask again")
        try:
            rendered, _, steps, taken = self._planned(self._wanted(snapshot).desired)
        except OSError as exc:
            raise ControlError(f"it cannot be told: {exc}") from exc
        review = self._basis.review(snapshot, self._who_calls())
        left_out = tuple(str(one) for one in (self._taken if taken is None else taken))
        return Previewed(steps.reasons, steps.describe(), steps.reloads, rendered.config, review, left_out)

    def _wanted(self, snapshot: Snapshot) -> Result:
        wanted = self._basis.wanted(snapshot, self._who_calls())
        if not self._picks:
            return wanted
        if self._applied is None and self._control.running():
            # Whatever it is that cannot be written may serve, and nobody remembers how: all goes on as it is.
            return wanted
        picked = sayable(wanted, self._control.capabilities, self._applied)
        self._leaves_out = picked.problems != wanted.problems
        return picked

    def _who_calls(self) -> tuple[str, ...]:
        if self._basis.callers is not None:
            return self._basis.callers
        lines = dict(self._control.servers()).get(APP, ()) if self._basis.options.intentions.asks else ()
        return tuple(line.name for line in lines if line.name != APP)

    def _settle_soon(self) -> None:
        if not self._unsettled:
            self._unsettled = True
            self.after(self._pace.settle_s, _Settle(), key="settle")

    def _apply(self, steps: Plan) -> None:
        at_once, written = steps.parted()
        late, self._late = self._late, frozenset()
        # To wait for connections is no drift, nor to write down what was done.
        self._drift = self._drift and any(one not in late for one in at_once.operations)
        if at_once:
            began_s = time.monotonic()
            applied = self._reloaded(at_once) if at_once.reloads else self._control.apply(at_once)
            self._late = frozenset(applied.pending)
            self._follow_up(at_once, applied, time.monotonic() - began_s)
        if written:
            self._drift = False
            self._writer.start(written)

    def _reloaded(self, steps: Plan) -> Applied:
        """With thousands of servers the master says nothing for long, and must not be taken for hung."""
        replaced = False
        self.tell(PROCESS_SUPERVISOR, Reloading(True))
        try:
            applied = self._control.apply(steps)
            replaced = applied.reloaded
            return applied
        finally:
            self.tell(PROCESS_SUPERVISOR, Reloading(False, replaced))

    def _written(self, told: Written) -> None:
        self._writer.over()
        if told.error is not None:
            raise told.error
        self._pace.wrote(told.took_s)
        if self._unsettled:
            self._unsettled = False
            self._settle_soon()
        look, self._look_when_written = self._look_when_written, False
        try:
            self._follow_up(told.steps, told.applied, told.took_s)
        except ControlError as exc:
            # The next try is thorough: it does what waits, too.
            self._write_failed = True
            self._failed(exc)
            return
        self._write_failed = False
        if look or self._retries.failing:
            self._reconcile(thorough=True)

    def _follow_up(self, steps: Plan, applied: Applied, took_s: float) -> None:
        """Of a plan that was carried out, or not. Raises its failure."""
        applied = plan_words.with_origin(applied, steps, self._basis.snapshot)
        self._note(steps, applied, took_s)
        _log.log(logging.INFO if plan_words.shown(steps) else logging.DEBUG, "%s", plan_words.line(steps))
        if applied.failure is not None:
            left = [one for one in steps.operations if one not in applied.done and one not in applied.pending]
            for operation in left:
                if isinstance(operation, Reload | Install):
                    self._refused_structure = operation.rendered.structure
            self._refusals += isinstance(left[0], RunTimeOperation)
            raise applied.failure
        if applied.pending:
            self.after(PENDING_RETRY_S, _Reconcile(), key="pending")

    def _note(self, steps: Plan, applied: Applied, took_s: float) -> None:
        done = plan_words.plan_status(steps, applied, time.time() - took_s, took_s, drift=self._drift)
        if plan_words.shown(steps) or applied.failure:
            self._facts = replace(self._facts, plans=(done, *self._facts.plans)[:PLANS_KEPT])
        self._metrics.plans.labels(done.outcome).inc()
        self._metrics.plan_seconds.observe(took_s)
        self._metrics.drift.inc(self._drift)
        for operation in applied.done:
            self._metrics.operations.labels(type(operation).__name__).inc()
        if applied.reloaded:
            self._metrics.reloads.inc()
            runs = next(one.rendered.desired for one in reversed(steps.operations) if isinstance(one, Reload))
            for hearer in (AUTHORISER, VERIFIER):
                self.tell(hearer, WorkerReplaced(sight_by(runs.authorisation)))

    def _settled(self, version: int, rendered: Rendered, actual: Actual) -> None:
        """All of it was applied, or is on disk for HAProxy to start with; or is being written there."""
        if rendered.structure == self._refused_structure or self._write_failed:
            # It was not, but for what can be done in what runs; another try is on its way.
            return
        self._applied = rendered.desired
        self._picks = self._picks and self._leaves_out
        self._basis = replace(self._basis, untouched=False)
        if self._retries.failing and self._writer.busy:
            # Whether that failure is over will be seen when it is written.
            return
        self._retries.reset()
        self._refusals = 0
        self._refused_structure = ""
        self.cancel("retry")
        if self._taken:
            self.after(TAKEN_RETRY_S, _Reconcile(thorough=True), key="taken")
        self._installed = True
        if not actual.running:
            self.tell(PROCESS_SUPERVISOR, ConfigurationInstalled())
        self._metrics.applied_version.set(version)
        self._report(
            replace(
                self._facts,
                applied=actual.running,
                public_bound=actual.running and rendered.desired.public is not None,
                public_expected=self._basis.snapshot is not None and bool(self._basis.snapshot.proxy.service_id),
                snapshot_version=version,
                failure="",
            )
        )

    def _failed(self, error: HccError | OSError) -> None:
        if isinstance(error, WordError | DesiredError) and not self._picks:
            _log.error("some of what is wanted cannot be written for HAProxy: %s", error)
            self._picks = self._news = True
            self.after(0.0, _Reconcile(retry=True, thorough=True), key="retry")
            return
        delay = self._retries.next_delay_s(time.monotonic(), RETRY_S, MAX_RETRY_S)
        _log.error("not applied, the last good configuration stays; next try in %.0f s: %s", delay, error)
        self._report(replace(self._facts, applied=False, failure=str(error)))
        self.after(delay, _Reconcile(retry=True, thorough=True), key="retry")

    def _note_taken(self, taken: tuple[Taken, ...], wanted: Desired) -> None:
        for one in taken:
            if one not in self._taken:
                _log.error("left out and tried again every %.0f s: %s", TAKEN_RETRY_S, one)
        for one in self._taken:
            if one not in taken and one.bind in wanted.binds():
                _log.info("%s is free now", one.bind)
        self._taken = taken
        self._metrics.listeners_left_out.set(len(taken))
        self._facts = replace(self._facts, taken=tuple(str(one) for one in taken))

    def _tell_problems(self, problems: tuple[str, ...], warnings: tuple[str, ...]) -> None:
        """Those of the registration are in the log and in the status already; all of them count."""
        for problem in problems:
            if problem not in self._facts.problems:
                _log.warning("%s", problem)
        self._metrics.problems.set(len(problems) + len(warnings))
        self._facts = replace(self._facts, problems=problems)

    def _report(self, facts: ReconcilerFacts) -> None:
        self._facts = facts
        self.tell(ADMIN, FactsReported(facts))


def _all_open(wanted: Desired) -> tuple[ActualListener, ...]:
    """What is not seen in a drain: that listeners were closed, so that none is opened again."""
    limit = wanted.options.max_connections
    return tuple(ActualListener(name, Listening.OPEN, limit) for name in wanted.listener_names())
