"""FakeWatcher, which ConsulWatcher's tests rely on, does what the real Watcher does with an agent.

What is not held: a FakeWatcher may say the same again, which the real one does only when Consul answers after an error.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator

import pytest

from hcc.consul.client import ConsulClient
from hcc.consul.environment import consul_settings
from hcc.consul.errors import ConsulError, ConsulPermissionError, ConsulStatusError, ConsulUnavailableError
from hcc.consul.keys import RootsWatch, WatchKey
from hcc.consul.watch import Watcher, WatchEvent, WatchFailed, WatchValue
from hcc.mesh.snapshot import Roots
from tests.builders import PEM, roots
from tests.fake_consul import FakeConsul, Fault
from tests.fakes import FakeWatchers
from tests.haproxy_stage import wait_until

pytestmark = pytest.mark.integration
DEADLINE_S = 10.0
# How long a watch that is not to ask again gets to do so.
LEAVE_S = 0.2
KEY = RootsWatch()
# It asks again after a minute, unless somebody makes it hurry.
LATER = (("Retry-After", "60"),)
FAULTS: dict[str, Fault] = {
    "unavailable": Fault("close"),
    "broken": Fault("status", code=500, text="No cluster leader"),
    "busy": Fault("status", code=503, text="overloaded", headers=LATER),
    "throttling": Fault("status", code=429, text="rate limit", headers=LATER),
    "refusing": Fault("status", code=403, text="Permission denied", headers=LATER),
}
ERRORS: dict[str, ConsulError] = {
    "unavailable": ConsulUnavailableError("no answer"),
    "broken": ConsulStatusError("No cluster leader", 500),
    "busy": ConsulStatusError("overloaded", 503),
    "throttling": ConsulStatusError("rate limit", 429),
    "refusing": ConsulPermissionError("Permission denied", 403),
}


class Subject:
    """What a watch told."""

    def __init__(self) -> None:
        self.events: queue.Queue[tuple[WatchKey, WatchEvent]] = queue.Queue()

    def next(self) -> WatchEvent:
        key, event = self.events.get(timeout=DEADLINE_S)
        assert key == KEY
        return event

    def value(self) -> WatchValue:
        event = self.next()
        assert isinstance(event, WatchValue), event
        return event

    def failure(self) -> WatchFailed:
        event = self.next()
        assert isinstance(event, WatchFailed), event
        return event

    def deliver(self, key: WatchKey, event: WatchEvent) -> None:
        self.events.put((key, event))


class FakeSubject(Subject):
    """A fake, which knows of Consul what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.watchers = FakeWatchers()
        self.watcher = self.watchers.make(KEY, self.deliver)
        self._pems = [PEM]

    def close(self) -> None:
        self.watcher.stop()

    def running(self) -> bool:
        return self.watchers.running() == {KEY}

    def answer(self) -> None:
        """Consul answers what it is asked."""
        self.watcher.answer(roots(*self._pems))

    def change(self) -> None:
        """There is a new root."""
        self._pems.append(PEM)
        self.answer()

    def fail(self, fault: str) -> None:
        """The question that waits, or the next, fails; the next but one is answered."""
        self.watcher.fail(ERRORS[fault])

    def hurry(self) -> None:
        """Have it hurry; Consul answers if it does."""
        self.watcher.hurry()
        if self.watcher.hurried:
            self.answer()


class RealSubject(Subject):
    """A watch of an agent that answers by itself, as the watch asks by itself."""

    def __init__(self) -> None:
        super().__init__()
        self._listening = contextlib.ExitStack()
        self._consul = self._listening.enter_context(FakeConsul())
        settings = consul_settings(http_addr=self._consul.http_addr)
        self.watcher = Watcher(KEY, lambda: ConsulClient(settings, wait_s=60.0), self.deliver, jitter=lambda: 0.0)

    def close(self) -> None:
        self.watcher.stop()
        assert self.watcher.join(DEADLINE_S)
        self._listening.close()

    def running(self) -> bool:
        return not self.watcher.join(0)

    def answer(self) -> None:
        """It does."""

    def change(self) -> None:
        self._consul.rotate_roots()

    def fail(self, fault: str) -> None:
        self._consul.fail("ca/roots", FAULTS[fault])

    def hurry(self) -> None:
        self.watcher.hurry()


AnySubject = FakeSubject | RealSubject


@pytest.fixture(params=[FakeSubject, RealSubject], ids=["fake", "real"])
def subject(request: pytest.FixtureRequest) -> Iterator[AnySubject]:
    made: AnySubject = request.param()
    yield made
    made.close()


def begin(subject: AnySubject) -> Roots:
    """Start it; the roots that it tells of."""
    subject.watcher.start()
    subject.answer()
    value = subject.value().value
    assert isinstance(value, Roots)
    return value


def test_a_watch_tells_nothing_before_its_start_and_then_what_is_so(subject: AnySubject) -> None:
    subject.answer()
    assert subject.watcher.key == KEY
    assert not subject.running()
    assert subject.events.empty()

    found = begin(subject)

    assert len(found.roots) == 1
    assert subject.running()


def test_news_are_told_and_are_no_recovery(subject: AnySubject) -> None:
    before = begin(subject)

    subject.change()

    news = subject.value()
    assert isinstance(news.value, Roots)
    assert len(news.value.roots) == len(before.roots) + 1
    assert not news.recovered


@pytest.mark.parametrize("fault", ["unavailable", "broken", "refusing"])
def test_a_failure_is_told_with_its_kind_and_the_next_answer_though_it_says_the_same(
    subject: AnySubject, fault: str
) -> None:
    before = begin(subject)

    subject.fail(fault)
    failed = subject.failure()
    subject.answer()
    recovery = subject.value()

    assert type(failed.error) is type(ERRORS[fault])
    assert failed.retry_s > 0
    assert (recovery.value, recovery.recovered) == (before, True)
    subject.change()
    assert not subject.value().recovered


def test_how_a_watch_does_is_known_at_any_time(subject: AnySubject) -> None:
    state = subject.watcher.state()
    assert (state.key, state.answered, state.failing_s, state.problem) == (KEY, False, None, "")

    begin(subject)
    state = subject.watcher.state()
    assert (state.answered, state.failing_s, state.problem) == (True, None, "")

    subject.fail("busy")
    failed = subject.failure()
    state = subject.watcher.state()
    assert state.failing_s is not None
    assert (state.answered, state.problem, state.stale) == (True, str(failed.error), False)

    subject.hurry()
    subject.value()
    state = subject.watcher.state()
    assert (state.answered, state.failing_s, state.problem) == (True, None, "")


def test_one_that_failed_because_consul_was_away_asks_sooner_when_it_is_to_hurry(subject: AnySubject) -> None:
    before = begin(subject)
    subject.fail("busy")
    subject.failure()

    subject.hurry()

    recovery = subject.value()
    assert (recovery.value, recovery.recovered) == (before, True)


def test_one_that_failed_because_of_what_it_asked_does_not_hurry(subject: AnySubject) -> None:
    begin(subject)
    subject.fail("throttling")
    subject.failure()

    subject.hurry()

    with pytest.raises(queue.Empty):
        subject.events.get(timeout=LEAVE_S)


@pytest.mark.parametrize("fault", ["", "busy"])
def test_once_it_is_stopped_a_watch_ends_at_once_and_tells_nothing(subject: AnySubject, fault: str) -> None:
    begin(subject)
    if fault:
        subject.fail(fault)
        subject.failure()

    subject.watcher.stop()
    subject.watcher.stop()

    wait_until(lambda: not subject.running(), "the watch ends", DEADLINE_S)
    subject.change()
    assert subject.events.empty()
