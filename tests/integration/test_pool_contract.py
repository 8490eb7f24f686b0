"""FakePool, which the actor's tests rely on, does what real workers and their zygote do."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hcc.mesh.intentions import Action, Intention, Policy
from hcc.spoe.events import (
    Denied,
    Met,
    PolicyApplied,
    PoolEvent,
    WorkerExited,
    WorkerPhase,
    WorkerReady,
    WorkerState,
    ZygoteExited,
)
from hcc.spoe.pool import SpoePoolError, WorkerPool
from tests.builders import policy
from tests.fakes import FakePool
from tests.spoe_certificates import TRUST_DOMAIN, Authority
from tests.spop_frames import called, hello

pytestmark = pytest.mark.integration
DEADLINE_S = 15.0
ORIGIN = "10.0.0.1:4711"
MESH = Authority()
WEB, DB = MESH.service("web").der(), MESH.service("db").der()
WEB_ALONE = Policy("server", TRUST_DOMAIN, (Intention("web", Action.ALLOW, 9),), False, 5)


class FakeSubject:
    """A fake whose workers and zygote die, and are asked, as the test says."""

    def __init__(self) -> None:
        self.pool = FakePool()

    def kill(self, index: int) -> None:
        self.pool.happen(WorkerExited(index, self.pool.workers()[index].pid, -signal.SIGKILL))

    def kill_zygote(self) -> None:
        self.pool.happen(ZygoteExited(self.pool.zygote_pid, -signal.SIGKILL))

    def call(self, der: bytes) -> None:
        """Ask the first worker about this caller, by the policy `WEB_ALONE`."""
        met = der == WEB
        self.pool.happen(Met(0, der, ORIGIN) if met else Denied(0, "db", "no intention allows it"))

    def close(self) -> None:
        """Nothing is left of it."""


class RealSubject:
    """Two workers that serve."""

    def __init__(self, directory: Path) -> None:
        self.pool = WorkerPool((str(directory / "w0.sock"), str(directory / "w1.sock")))
        self._callers: list[socket.socket] = []
        self.pool.start()
        heard_until(self.pool, lambda seen: len(seen) == 2)

    def kill(self, index: int) -> None:
        os.kill(self.pool.workers()[index].pid, signal.SIGKILL)

    def kill_zygote(self) -> None:
        os.kill(self.pool.zygote_pid, signal.SIGKILL)

    def call(self, der: bytes) -> None:
        caller = socket.socket(socket.AF_UNIX)
        self._callers.append(caller)
        caller.connect(self.pool.workers()[0].socket_path)
        host, _, port = ORIGIN.partition(":")
        caller.sendall(hello() + called(der, host, int(port)))

    def close(self) -> None:
        for caller in self._callers:
            caller.close()
        self.pool.close(0)


Subject = FakeSubject | RealSubject
Pool = FakePool | WorkerPool


@pytest.fixture(params=["fake", "real"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    made = FakeSubject() if request.param == "fake" else RealSubject(tmp_path)
    yield made
    made.close()


@pytest.fixture
def pool(subject: Subject) -> Pool:
    return subject.pool


def heard_until(pool: Pool, enough: Callable[[list[PoolEvent]], bool]) -> list[PoolEvent]:
    """What `poll` tells until it is enough."""
    seen: list[PoolEvent] = []
    deadline = time.monotonic() + DEADLINE_S
    while not enough(seen):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s; seen: {seen}"
        seen += pool.poll(0.1)
    return seen


def apply(pool: Pool, version: int) -> None:
    """Let both workers decide by a policy of that version."""
    pool.set_policy(policy(version=version))
    heard_until(pool, lambda seen: {PolicyApplied(0, version), PolicyApplied(1, version)} <= set(seen))


def kill(subject: Subject, index: int) -> WorkerExited:
    """The end of that worker."""
    subject.kill(index)
    (event,) = heard_until(subject.pool, bool)
    assert isinstance(event, WorkerExited)
    return event


def start(pool: Pool, index: int) -> WorkerReady:
    """The start of that worker, which is dead."""
    pool.respawn(index)
    seen = heard_until(pool, lambda seen: any(isinstance(event, WorkerReady) for event in seen))
    (ready,) = [event for event in seen if isinstance(event, WorkerReady)]
    return ready


def brief(state: WorkerState) -> tuple[WorkerPhase, int | None, int]:
    return state.phase, state.policy_version, state.starts


def test_at_first_all_workers_are_ready_have_no_policy_and_have_nothing_to_tell(pool: Pool) -> None:
    states = pool.workers()

    assert [state.index for state in states] == [0, 1]
    assert [brief(state) for state in states] == [(WorkerPhase.READY, None, 1)] * 2
    assert len({pool.zygote_pid, *(state.pid for state in states)} - {0}) == 3
    assert pool.poll(0) == ()


def test_a_poll_of_nothing_takes_the_time_it_is_given(pool: Pool) -> None:
    began = time.monotonic()

    assert pool.poll(0.05) == ()

    assert 0.05 <= time.monotonic() - began < DEADLINE_S / 2


def test_waking_ends_one_poll_now_or_later(pool: Pool) -> None:
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(pool.poll(None)), daemon=True)
    thread.start()
    pool.wake()
    thread.join(DEADLINE_S)
    assert answers == [()]

    pool.wake()
    pool.wake()
    began = time.monotonic()
    assert pool.poll(DEADLINE_S) == ()
    assert time.monotonic() - began < DEADLINE_S / 2
    began = time.monotonic()
    assert pool.poll(0.05) == ()
    assert time.monotonic() - began >= 0.05


def test_a_policy_is_applied_by_each_worker_which_says_so_once(pool: Pool) -> None:
    for version in (5, 7):
        pool.set_policy(policy(version=version))

        seen = heard_until(pool, lambda seen: len(seen) == 2)

        assert set(seen) == {PolicyApplied(0, version), PolicyApplied(1, version)}
        assert [state.policy_version for state in pool.workers()] == [version] * 2


def test_a_policy_that_is_older_than_the_last_is_not_taken_nor_given_to_a_worker_that_starts(subject: Subject) -> None:
    apply(subject.pool, 7)
    kill(subject, 1)

    subject.pool.set_policy(policy(version=6))

    subject.pool.respawn(1)
    seen = heard_until(subject.pool, lambda seen: any(isinstance(event, PolicyApplied) for event in seen))
    assert [event for event in seen if isinstance(event, PolicyApplied)] == [PolicyApplied(1, 7)]
    assert [state.policy_version for state in subject.pool.workers()] == [7, 7]


def test_a_worker_that_was_killed_is_told_of_and_one_that_is_started_takes_its_place(subject: Subject) -> None:
    pool = subject.pool
    apply(pool, 5)
    before = pool.workers()
    subject.kill(1)
    # Nobody knows before it is told.
    assert pool.workers() == before

    assert heard_until(pool, bool) == [WorkerExited(1, before[1].pid, -signal.SIGKILL)]

    assert pool.workers()[0] == before[0]
    assert (pool.workers()[1].pid, *brief(pool.workers()[1])) == (0, WorkerPhase.EXITED, None, 1)
    pool.respawn(1)
    assert brief(pool.workers()[1]) == (WorkerPhase.STARTING, None, 2)
    seen = heard_until(pool, lambda seen: len(seen) == 2)
    (ready,) = [event for event in seen if isinstance(event, WorkerReady)]
    assert ready.index == 1
    assert ready.pid not in (0, before[1].pid)
    assert PolicyApplied(1, 5) in seen
    assert pool.workers()[0] == before[0]
    assert (pool.workers()[1].pid, *brief(pool.workers()[1])) == (ready.pid, WorkerPhase.READY, 5, 2)


def test_a_policy_reaches_those_that_live_and_later_those_that_did_not(subject: Subject) -> None:
    pool = subject.pool
    kill(subject, 1)

    pool.set_policy(policy(version=6))

    assert heard_until(pool, bool) == [PolicyApplied(0, 6)]
    pool.respawn(1)
    heard_until(pool, lambda seen: PolicyApplied(1, 6) in seen)


def test_a_policy_reaches_one_that_is_being_started(subject: Subject) -> None:
    kill(subject, 0)
    subject.pool.respawn(0)

    subject.pool.set_policy(policy(version=6))

    heard_until(subject.pool, lambda seen: {PolicyApplied(0, 6), PolicyApplied(1, 6)} <= set(seen))


def test_a_living_worker_is_not_started_again(subject: Subject) -> None:
    with pytest.raises(SpoePoolError, match="expected SPOE worker 1 to have exited; it is ready"):
        subject.pool.respawn(0)

    kill(subject, 0)
    subject.pool.respawn(0)
    with pytest.raises(SpoePoolError, match="expected SPOE worker 1 to have exited; it is starting"):
        subject.pool.respawn(0)


def test_without_a_zygote_workers_go_on_and_none_is_started_until_there_is_another(subject: Subject) -> None:
    pool, zygote, before = subject.pool, subject.pool.zygote_pid, subject.pool.workers()
    subject.kill_zygote()

    assert heard_until(pool, bool) == [ZygoteExited(zygote, -signal.SIGKILL)]

    assert pool.zygote_pid == 0
    assert pool.workers() == before
    assert kill(subject, 1).pid == before[1].pid
    with pytest.raises(SpoePoolError, match="cannot start SPOE worker 2: its zygote is gone"):
        pool.respawn(1)
    pool.respawn_zygote()
    assert pool.zygote_pid not in (0, zygote)
    assert start(pool, 1).index == 1
    assert pool.workers()[0] == before[0]


def test_a_zygote_that_is_replaced_is_another_each_time_and_nobody_is_told(pool: Pool) -> None:
    before, zygotes = pool.workers(), [pool.zygote_pid]

    for _ in range(2):
        pool.respawn_zygote()
        zygotes.append(pool.zygote_pid)

    assert len(set(zygotes)) == 3
    assert pool.poll(0) == ()
    assert pool.workers() == before


def test_workers_that_were_asked_too_rarely_to_seem_to_hang_are_left_alone(pool: Pool) -> None:
    before = pool.workers()

    assert [pool.replace_hung(3) for _ in range(3)] == [()] * 3

    assert pool.workers() == before


def test_who_was_denied_or_is_not_remembered_is_told_and_nothing_else_changes(subject: Subject) -> None:
    pool = subject.pool
    pool.set_policy(WEB_ALONE)
    heard_until(pool, lambda seen: len(seen) == 2)
    before = pool.workers()

    subject.call(DB)
    (denied,) = heard_until(pool, bool)
    subject.call(WEB)
    (met,) = heard_until(pool, bool)

    assert isinstance(denied, Denied)
    assert (denied.index, denied.source) == (0, "db")
    assert denied.reason
    assert met == Met(0, WEB, ORIGIN)
    assert pool.workers() == before
