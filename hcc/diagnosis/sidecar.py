"""What a running sidecar says of itself, as findings."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from hcc.actors.lifecycle import ActorState
from hcc.actors.status import Status
from hcc.diagnosis.finding import Finding, failed, ok, skipped, warning

REPLACE = "if it is stopped, let it go on (kill -CONT); if it hangs, kill -9 it and start it anew: HAProxy goes on"
TAKE_OVER = "start it: hcc run takes its HAProxy over, which lets nobody new in once hcc was away for five minutes"
RENEW = "restart it to have this hcc, or ask it with its own"


@dataclass(frozen=True, slots=True)
class Running:
    """The running sidecar: its status, or why there is none.

    Args:
        hangs: it is there, but does not answer.
        other: it answers, but as another version of hcc does: what it says cannot be read.
        ended: it ran and does not any more, without a drain.
        barred: it may run where we may not look.
    """

    status: Status | None
    problem: str = ""
    hangs: bool = False
    other: bool = False
    ended: bool = False
    barred: bool = False

    def finding(self, subject: str) -> Finding:
        """What is said where there is no status, to who expects one."""
        if self.other:
            return warning(subject, self.problem, RENEW)
        if self.barred:
            return skipped(subject, self.problem)
        return failed(subject, self.problem, REPLACE if self.hangs else "start it: hcc run")


def check_sidecar(running: Running, pid: int = 0, told: Collection[str] = ()) -> Iterator[Finding]:
    """Whether it is ready, and what in it does not do as it should.

    Args:
        running: what is known of it.
        pid: of the process that has its state directory, 0 where none is known.
        told: warnings of its registration that were found already: it complains of the same.
    """
    status = running.status
    if status is None:
        yield _absent(running, pid)
        return
    yield ok("running", f"{status.sidecar.proxy_id}, process {status.sidecar.pid}, hcc {status.versions.hcc}")
    yield from check_answers(status)
    for text in status.readiness.missing:
        yield failed("ready", text, "see what is said above; else the sidecar's log, and `hcc status`")
    if status.readiness.ready:
        yield ok("ready", "yes")
    for text in (one for one in status.readiness.warnings if one.removeprefix("registration: ") not in told):
        yield warning("complains", text, "mend what it says; until then the last good state serves")
    for actor in status.actors:
        if actor.state is not ActorState.RUNNING:
            yield warning(f"actor {actor.name}", f"{actor.state.value}: {actor.last_error or 'no error'}", "hcc actors")


def _absent(running: Running, pid: int) -> Finding:
    """What is said where there is no status; that none runs yet is no fault."""
    if running.other:
        return running.finding("running")
    if pid:
        return failed("running", f"process {pid} has its state directory, but: {running.problem}", REPLACE)
    if running.ended:
        return warning("running", running.problem, TAKE_OVER)
    return running.finding("running") if running.hangs else skipped("running", running.problem)


def check_answers(status: Status) -> Iterator[Finding]:
    """Whether HAProxy runs, and said how it does; nothing when it did."""
    haproxy = status.haproxy
    if not haproxy.running:
        yield failed("HAProxy", "does not run", "see its last words in the sidecar's log")
    elif haproxy.problem:
        remedy = "wait: one that hangs is killed and started anew; else look at its alerts in the sidecar's log"
        yield failed("HAProxy", f"process {haproxy.pid} does not say how it does: {haproxy.problem}", remedy)
