import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from hcc.actors import keeping
from hcc.actors.keeping import Keeper
from hcc.consul.assembly import State
from tests.actors.stage import DEADLINE_S, eventually

EMPTY = State("web-sidecar-proxy")


def state(version: int) -> State:
    return State("web-sidecar-proxy", (), version)


@dataclass
class Disk:
    """Takes answers while it may; at first it may not.

    Args:
        result: whether it takes them; called by its own thread.
        tried, taken: versions.
    """

    result: Callable[[], bool] = lambda: True
    tried: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    may: threading.Event = field(default_factory=threading.Event)

    def store(self, kept: State) -> bool:
        self.tried.append(kept.policy_version)
        assert self.may.wait(3 * DEADLINE_S)
        is_stored = self.result()
        if is_stored:
            self.taken.append(kept.policy_version)
        return is_stored


def test_one_is_stored_after_the_other_and_of_those_that_come_meanwhile_the_newest() -> None:
    disk = Disk()
    keeper = Keeper(disk.store, EMPTY)
    keeper.keep(state(1))
    eventually(lambda: disk.tried == [1], "the first is being stored")
    for version in range(2, 9):
        keeper.keep(state(version))
    last = state(9)
    keeper.keep(last)
    assert keeper.has(last)

    disk.may.set()
    keeper.finish(DEADLINE_S)

    assert disk.tried == disk.taken == [1, 9]


def test_without_a_thread_its_owner_stores_and_later_ones_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    disk = Disk()
    disk.may.set()
    keeper = Keeper(disk.store, EMPTY)
    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", refuse)
        keeper.keep(state(1))
        assert disk.taken == [1]
        keeper.keep(state(2))
        assert disk.taken == [1, 2]
    keeper.keep(state(3))
    keeper.finish(DEADLINE_S)
    assert disk.taken == [1, 2, 3]


def fail() -> bool:
    raise TypeError("no JSON form")


@pytest.mark.parametrize("failure", [lambda: False, fail])
def test_what_was_not_stored_is_tried_again_also_after_a_fault_of_ours(
    failure: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "AGAIN_S", 0.01)
    disk = Disk(failure)
    disk.may.set()
    keeper = Keeper(disk.store, EMPTY)
    kept = state(1)
    keeper.keep(kept)
    eventually(lambda: len(disk.tried) > 2, "it is tried again")

    disk.result = lambda: True

    eventually(lambda: disk.taken == [1], "it is stored")
    assert keeper.has(kept)


def test_the_end_waits_for_one_more_try_and_leaves_what_failed_to_who_comes_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping, "AGAIN_S", 60.0)
    disk = Disk(lambda: False)
    disk.may.set()
    keeper = Keeper(disk.store, EMPTY)
    kept = state(1)
    keeper.keep(kept)
    eventually(lambda: disk.tried == [1], "it fails, and is to be tried again in a while")
    # Else what is tried now is the first try.
    waiting = keeper._changed._waiters  # type: ignore[attr-defined] # the library tells it nowhere else
    eventually(lambda: bool(waiting), "its thread waits for that while")

    keeper.finish(DEADLINE_S)
    assert disk.tried == [1, 1]
    assert not keeper.has(kept)

    disk.result = lambda: True
    keeper.keep(kept)
    eventually(lambda: disk.taken == [1], "it is stored")


def test_the_end_waits_for_a_disk_that_hangs_only_so_long() -> None:
    disk = Disk()
    keeper = Keeper(disk.store, EMPTY)
    kept = state(1)
    keeper.keep(kept)

    keeper.finish(0.01)

    assert disk.taken == []
    disk.may.set()
    eventually(lambda: disk.taken == [1], "it is stored all the same")
