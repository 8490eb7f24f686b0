import logging
import threading
import time
from collections.abc import Iterator

import pytest

from hcc.actors import spoe_pool
from hcc.actors.messages import (
    ADMIN,
    AUTHORISER,
    CONSUL_WATCHER,
    SPOE_POOL,
    CallersMet,
    PolicyChanged,
    Publish,
)
from hcc.actors.readiness import PolicyFacts
from hcc.actors.spoe_pool import DENIALS_LOGGED, SPOEPool
from hcc.mesh.intentions import Policy
from hcc.metrics import Metrics
from hcc.spoe.events import Denied, Met, WorkerExited, WorkerPhase, ZygoteExited
from tests.actors.scene import Scene, playing
from tests.actors.stage import DEADLINE_S, eventually
from tests.builders import policy
from tests.fakes import FakePool


class PoolScene(Scene):
    def __init__(self, *, enforced: bool = True, pool: FakePool | None = None, shutdown_s: float = 5.0) -> None:
        self.pool = pool or FakePool()
        self.metrics = Metrics()
        edges = {"pool": self.pool, "metrics": self.metrics, "enforced": enforced}
        super().__init__(SPOE_POOL, SPOEPool, edges, (ADMIN, AUTHORISER, CONSUL_WATCHER), shutdown_s=shutdown_s)

    def callers(self) -> list[tuple[str, bool]]:
        facts = self.facts(ADMIN, PolicyFacts) or PolicyFacts()
        return [(caller.service, caller.current) for caller in facts.callers]

    def knows(self, version: int | None, deciding: int, current: int) -> None:
        expected = PolicyFacts(version, deciding, current)
        eventually(lambda: self.facts(ADMIN, PolicyFacts) == expected, f"{expected}")


@pytest.fixture
def scene() -> Iterator[PoolScene]:
    made = PoolScene()
    with playing(made):
        yield made


def test_a_policy_goes_to_the_workers_and_readiness_follows_theirs(scene: PoolScene) -> None:
    scene.tell(PolicyChanged(policy(version=5)))

    scene.knows(5, 2, 2)
    assert [given.version for given in scene.pool.policies] == [5]


def test_a_pool_that_cannot_be_listened_to_restarts_the_actor_which_goes_on(scene: PoolScene) -> None:
    scene.tell(PolicyChanged(policy(version=5)))
    scene.knows(5, 2, 2)

    scene.pool.happen(OSError("read-only file system"))

    eventually(lambda: scene.generation() == 2, "another one")
    scene.pool.happen(WorkerExited(1, 101, -9))
    eventually(lambda: 1 in scene.pool.respawned, "it hears what happens, or sees it")


def test_workers_that_no_thread_can_be_started_to_hear_are_heard_once_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spoe_pool, "READ_AGAIN_S", 0.02)
    start = threading.Thread.start
    refused: list[threading.Thread] = []

    def refuse_twice(thread: threading.Thread) -> None:
        if thread.name == "spoe-events" and len(refused) < 2:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_twice)
    with playing(PoolScene()) as scene:
        assert isinstance(scene, PoolScene)
        scene.pool.happen(Denied(0, "web", "no"))
        eventually(lambda: [service for service, _ in scene.callers()] == ["web"], "the denial is heard")
        assert len(refused) == 2
        assert scene.generation() == 1


def test_a_dead_worker_is_started_again_at_once(scene: PoolScene) -> None:
    scene.tell(PolicyChanged(policy(version=5)))
    scene.knows(5, 2, 2)

    scene.pool.happen(WorkerExited(1, 101, -9))

    eventually(lambda: scene.pool.respawned == [1], "a new worker")
    scene.knows(5, 2, 2)


def test_a_socket_that_cannot_be_bound_anew_is_said_once(
    scene: PoolScene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spoe_pool, "LOOK_S", 0.02)
    scene.pool.lost = "cannot listen on 'spoe-1.sock': No such file or directory"
    eventually(lambda: "No such file" in caplog.text, "the line")

    scene.pool.lost = ""
    looks = scene.pool.looks
    eventually(lambda: scene.pool.looks > looks + 3, "looks at which it is there")
    scene.pool.lost = "cannot listen on 'spoe-1.sock': Permission denied"
    eventually(lambda: "Permission denied" in caplog.text, "another line")
    looks = scene.pool.looks
    eventually(lambda: scene.pool.looks > looks + 3, "looks at which it is not")
    assert caplog.text.count("somebody removed a socket") == 2


def test_a_dead_zygote_is_started_again(scene: PoolScene) -> None:
    scene.pool.happen(ZygoteExited(1, -9))

    eventually(lambda: scene.pool.zygotes == 1, "a new zygote")


def test_a_restarted_pool_actor_goes_on_with_the_workers_it_finds(scene: PoolScene) -> None:
    scene.tell(PolicyChanged(policy(version=5)))
    scene.knows(5, 2, 2)

    scene.restart()
    scene.expect(CONSUL_WATCHER, Publish)
    scene.tell(PolicyChanged(policy(version=5)))

    scene.knows(5, 2, 2)
    assert scene.pool.respawned == []


def test_a_worker_that_died_while_nobody_looked_is_started_by_the_restarted_actor(scene: PoolScene) -> None:
    scene.pool._phases[0] = WorkerPhase.EXITED

    scene.restart()

    eventually(lambda: scene.pool.respawned == [0], "a new worker")


def test_what_died_unheard_is_started_all_the_same(scene: PoolScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoe_pool, "LOOK_S", 0.02)
    scene.restart()
    # As when the thread of one that was abandoned hears of it.
    scene.pool._phases[0], scene.pool.zygote_pid = WorkerPhase.EXITED, 0

    eventually(lambda: scene.pool.respawned == [0], "a new worker")
    assert scene.pool.zygotes == 1


def test_that_workers_apply_a_policy_is_seen_though_another_heard_of_it(
    scene: PoolScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spoe_pool, "LOOK_S", 0.02)
    scene.restart()
    scene.tell(PolicyChanged(policy(version=5)))
    scene.knows(5, 2, 2)

    # As when the thread of one that was abandoned hears of it.
    scene.pool._versions[0] = 4

    scene.knows(5, 2, 1)


def test_a_worker_whose_death_is_told_after_the_restarted_actor_saw_it_is_started_once(
    scene: PoolScene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.pool._phases[0] = WorkerPhase.EXITED
    scene.restart()
    eventually(lambda: scene.pool.workers()[0].phase is WorkerPhase.READY, "a new worker")

    # As the pool tells of one that was given up before it was born.
    scene.pool.happen(WorkerExited(0, 0, None))
    scene.tell(PolicyChanged(policy(version=5)))

    scene.knows(5, 2, 2)
    assert scene.pool.respawned == [0]
    assert "cannot be started" not in caplog.text


def test_denials_are_logged_but_a_flood_of_them_is_not(scene: PoolScene, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="hcc.actors.spoe_pool"):
        for _ in range(3 * DENIALS_LOGGED):
            scene.pool.happen(Denied(0, "web", "intention web -> deny"))
        scene.pool.happen(ZygoteExited(1, 0))
        eventually(lambda: scene.pool.zygotes == 1, "all of it was heard")

    denials = [record for record in caplog.records if record.getMessage().startswith("denied: source=web")]
    assert len(denials) == DENIALS_LOGGED


def test_denials_beyond_those_logged_are_told_by_their_number_and_then_logged_anew(
    scene: PoolScene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spoe_pool, "DENIALS_EVERY_S", 2.0)
    for _ in range(DENIALS_LOGGED + 7):
        scene.pool.happen(Denied(0, "web", "no"))

    eventually(lambda: "7 more denials in the last" in caplog.text, "the others are counted")
    scene.pool.happen(Denied(0, "db", "no"))
    eventually(lambda: "denied: source=db" in caplog.text, "the next one is logged")


def test_where_nothing_is_enforced_the_log_says_that_the_caller_was_let_in(caplog: pytest.LogCaptureFixture) -> None:
    scene = PoolScene(enforced=False)
    with playing(scene), caplog.at_level(logging.WARNING):
        scene.pool.happen(Denied(0, "web", "no"))
        eventually(lambda: "let in, would be denied: source=web reason='no'" in caplog.text, "the line")


def test_who_was_denied_is_told_and_counted_by_source_and_destination(scene: PoolScene) -> None:
    scene.tell(PolicyChanged(policy(version=5)))
    scene.knows(5, 2, 2)
    for _ in range(2):
        scene.pool.happen(Denied(0, "web", "intention web -> deny"))

    eventually(lambda: bool((scene.facts(ADMIN, PolicyFacts) or PolicyFacts()).callers), "the caller is told")

    facts = scene.facts(ADMIN, PolicyFacts)
    assert facts is not None
    (caller,) = facts.callers
    assert (caller.service, caller.verdict, caller.reason) == ("web", "deny", "intention web -> deny")
    labels = {"source": "web", "destination": policy().destination, "verdict": "deny"}
    counted = scene.metrics.registry
    eventually(lambda: counted.get_sample_value("hcc_spoe_decisions_total", labels) == 2.0, "both are counted")

    scene.tell(PolicyChanged(policy(version=6)))

    eventually(lambda: scene.callers() == [("web", False)], "it is no decision by the policy in force")


def test_callers_that_come_close_together_are_told_of_together_and_each_in_its_turn(scene: PoolScene) -> None:
    calls = tuple((f"{number}".encode(), f"10.0.0.1:{number}") for number in range(1_000))
    for der, peer in calls:
        scene.pool.happen(Met(0, der, peer))

    def told() -> list[CallersMet]:
        return scene.all_of(AUTHORISER, CallersMet)

    eventually(lambda: sum(len(one.calls) for one in told()) == len(calls), "all are told")
    assert tuple(call for one in told() for call in one.calls) == calls
    assert len(told()) < len(calls) / 10


def test_a_worker_that_ends_is_not_waited_for_behind_callers(scene: PoolScene) -> None:
    scene.tell(PolicyChanged(policy(version=5)))
    scene.knows(5, 2, 2)
    scene.pool.happen(Met(0, b"der", "10.0.0.1:1"))
    scene.pool.happen(WorkerExited(1, 101, -9))

    eventually(lambda: scene.pool.respawned == [1], "a new worker")
    scene.expect(AUTHORISER, CallersMet)


class Hanging(FakePool):
    """Hangs with one version of the policy."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs, self.goes_on, self.went_on = threading.Event(), threading.Event(), threading.Event()

    def set_policy(self, policy: Policy) -> None:
        if policy.version == 6:
            self.hangs.set()
            self.goes_on.wait()
        super().set_policy(policy)
        if policy.version == 6:
            self.went_on.set()


def readers() -> int:
    return [thread.name for thread in threading.enumerate()].count("spoe-events")


def test_one_that_was_abandoned_takes_no_callers_from_its_successor_and_brings_no_older_policy() -> None:
    pool = Hanging()
    scene = PoolScene(pool=pool, shutdown_s=0.1)
    with playing(scene):
        scene.tell(PolicyChanged(policy(version=6)))
        assert pool.hangs.wait(DEADLINE_S)
        scene.restart()
        # Whoever waits for the next news gets them: the one that was abandoned ends by them.
        for number in range(1_000):
            pool.happen(Met(0, b"%d" % number, "10.0.0.1:1"))
            if readers() == 1:
                break
            time.sleep(0.01)
        assert readers() == 1
        heard = len(scene.all_of(AUTHORISER, CallersMet))
        pool.happen(Met(0, b"last", "10.0.0.1:1"))
        eventually(lambda: len(scene.all_of(AUTHORISER, CallersMet)) > heard, "the successor tells of who comes")

        scene.tell(PolicyChanged(policy(version=7)))
        scene.knows(7, 2, 2)
        pool.goes_on.set()
        assert pool.went_on.wait(DEADLINE_S)
        assert [given.version for given in pool.policies] == [7]
