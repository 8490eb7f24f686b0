import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hcc.actors import process_supervisor
from hcc.actors.draining import Draining
from hcc.actors.messages import (
    ADMIN,
    AUTHORISER,
    CERT_MANAGER,
    CONFIG_RECONCILER,
    PROCESS_SUPERVISOR,
    VERIFIER,
    ConfigurationInstalled,
    Drain,
    FactsReported,
    HAProxyDown,
    HAProxyUp,
    Publish,
    Reloading,
)
from hcc.actors.process_supervisor import ProcessSupervisor
from hcc.actors.readiness import Facts, HAProxyFacts, missing_parts
from hcc.haproxy.process import LOST, Look
from hcc.metrics import Metrics
from tests.actors.scene import Scene, playing
from tests.actors.stage import eventually
from tests.fakes import Ear, FakeProcess

HEARERS = (ADMIN, AUTHORISER, CERT_MANAGER, CONFIG_RECONCILER, VERIFIER)


class Confirming(Ear):
    """ConfigReconciler with something on disk to start HAProxy with."""

    def handle(self, message: object) -> None:
        super().handle(message)
        if isinstance(message, Publish):
            self.tell(PROCESS_SUPERVISOR, ConfigurationInstalled())


class ProcessScene(Scene):
    def __init__(self, process: FakeProcess, dataplane: FakeProcess | None = None, reconciler: type[Ear] = Ear) -> None:
        self.process = process
        self.drained = threading.Event()
        self.versions: list[str] = []
        self.draining = Draining()
        kwargs = {
            "process": process,
            "installed": "2.6.12",
            "on_version": self.versions.append,
            "metrics": Metrics(),
            "on_drained": self.drained.set,
            "draining": self.draining,
            "dataplane": dataplane,
        }
        super().__init__(PROCESS_SUPERVISOR, ProcessSupervisor, kwargs, HEARERS, {CONFIG_RECONCILER: reconciler})

    def drain(self, timeout_s: float) -> None:
        self.draining.begin(timeout_s)
        self.tell(Drain())


@pytest.fixture(autouse=True)
def busy_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain ends by its deadline, or when HAProxy does; tests of quiet have a time of their own."""
    monkeypatch.setattr(process_supervisor, "QUIET_S", 60.0)


class Clock:
    """In place of the module `time`: it stands still but for the test."""

    def __init__(self) -> None:
        self.now_s = time.monotonic()

    def monotonic(self) -> float:
        return self.now_s


def looked(process: FakeProcess) -> None:
    """Return when a look at what it does has begun and ended after this call."""
    before = process.activity_asked
    eventually(lambda: process.activity_asked >= before + 3, "a look at what HAProxy does")


@contextmanager
def scene(
    process: FakeProcess, dataplane: FakeProcess | None = None, reconciler: type[Ear] = Confirming
) -> Iterator[ProcessScene]:
    made = ProcessScene(process, dataplane, reconciler)
    try:
        with playing(made):
            yield made
    finally:
        process.close()
        if dataplane is not None:
            dataplane.close()


def test_haproxy_starts_when_a_configuration_is_there_and_not_before() -> None:
    with scene(FakeProcess()) as there:
        assert there.process.launched == 0

        there.tell(ConfigurationInstalled())

        assert there.expect(CONFIG_RECONCILER, HAProxyUp).pid == 1001


def test_a_second_configuration_does_not_start_a_second_haproxy() -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)

        there.tell(ConfigurationInstalled())
        there.tell(Publish())

        eventually(lambda: len(there.heard[CONFIG_RECONCILER]) == 2, "the answer to Publish")
        assert there.process.launched == 1


def test_a_haproxy_that_an_earlier_hcc_left_is_adopted() -> None:
    with scene(FakeProcess(left_running=77)) as there:
        assert there.expect(CONFIG_RECONCILER, HAProxyUp).pid == 77
        assert there.process.launched == 0


def test_a_haproxy_that_an_earlier_hcc_had_just_started_is_waited_for() -> None:
    process = FakeProcess(left_running=77, left_starting=True)
    process.answering = False
    with scene(process) as there:
        there.settle()
        assert not there.all_of(CONFIG_RECONCILER, HAProxyUp)

        process.answering = True

        assert there.expect(CONFIG_RECONCILER, HAProxyUp).pid == 77
        assert (process.launched, process.said) == (0, [])


def test_the_version_that_is_told_is_that_of_what_runs_not_of_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process_supervisor, "PROBE_S", 0.02)
    caplog.set_level("INFO")
    process = FakeProcess(left_running=77)
    process.version = "2.6.9"
    with scene(process) as there:
        there.expect(ADMIN, FactsReported, lambda told: told.facts == HAProxyFacts(True, 77, "2.6.9"))
        there.settle()
        assert "HAProxy 2.6.9 runs, 2.6.12 is installed: the next reload brings it" in caplog.text
        assert there.versions == ["2.6.9"]
        there.restart()
        there.expect(ADMIN, FactsReported, lambda told: told.facts == HAProxyFacts(True, 77, "2.6.9"))

        process.version = "2.6.12"
        process.reload()

        there.expect(ADMIN, FactsReported, lambda told: told.facts == HAProxyFacts(True, 77, "2.6.12"))
        assert there.versions[-1] == "2.6.12"
    assert caplog.text.count("is installed") == 1


@pytest.mark.parametrize("in_file", [False, True])
def test_where_the_access_log_of_an_adopted_haproxy_goes_is_said_when_it_is_not_where_it_should(
    in_file: bool, caplog: pytest.LogCaptureFixture
) -> None:
    process = FakeProcess(left_running=77)
    process.logs_to_file = in_file
    with scene(process) as there:
        there.expect(CONFIG_RECONCILER, HAProxyUp)

    assert ("its access log goes to haproxy.log" in caplog.text) is in_file


def test_logs_are_kept_small_while_their_writers_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_supervisor, "PROBE_S", 0.02)
    dataplane = FakeProcess()
    with scene(FakeProcess(left_running=77), dataplane) as there:
        eventually(lambda: min(there.process.trimmed, dataplane.trimmed) > 2, "looks at both")


def test_the_pid_file_of_a_haproxy_that_runs_is_looked_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_supervisor, "PROBE_S", 0.02)
    with scene(FakeProcess(left_running=77)) as there:
        eventually(lambda: there.process.noted > 2, "looks at it")


def test_a_haproxy_that_dies_is_started_again_and_the_reconciler_knows() -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)

        # Or it is up again before anybody heard that it was down.
        there.process.failing = 1
        there.process.die()

        for hearer in (CERT_MANAGER, AUTHORISER, VERIFIER, CONFIG_RECONCILER):
            there.expect(hearer, HAProxyDown)
        there.expect(CONFIG_RECONCILER, HAProxyUp, lambda up: up.pid == 1003)


def test_what_haproxy_starts_with_again_is_looked_at_before() -> None:
    with scene(FakeProcess(), reconciler=Ear) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)

        there.process.die()

        there.expect(CONFIG_RECONCILER, Publish)
        assert there.process.launched == 1
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp, lambda up: up.pid == 1002)


def test_haproxy_starts_again_when_nobody_can_look_at_what_it_starts_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_supervisor, "ANSWER_S", 0.05)
    with scene(FakeProcess(), reconciler=Ear) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)

        there.process.die()

        there.expect(CONFIG_RECONCILER, HAProxyUp, lambda up: up.pid == 1002)


def test_a_start_that_fails_is_tried_again() -> None:
    with scene(FakeProcess(failing=2)) as there:
        there.tell(ConfigurationInstalled())

        there.expect(CONFIG_RECONCILER, HAProxyDown, lambda down: "[ALERT] no" in down.reason)
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        assert there.process.launched == 3


def test_a_restarted_actor_goes_on_with_the_running_haproxy_and_sees_its_death() -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)

        there.restart()
        there.process.die()

        there.expect(CONFIG_RECONCILER, HAProxyUp, lambda up: up.pid == 1002)
        assert there.process.said == []


def test_a_watch_that_no_thread_could_be_started_for_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_supervisor, "LOOK_AGAIN_S", 0.02)
    start, refused = threading.Thread.start, threading.Event()

    def refuse_once(thread: threading.Thread) -> None:
        if thread.name == "process-watch" and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        # Those of other tests may still be ending, and have files until they have.
        eventually(lambda: [one.name for one in threading.enumerate()].count("process-watch") == 1, "its watch alone")
        before = len(list(Path("/proc/self/fd").iterdir()))
        monkeypatch.setattr(threading.Thread, "start", refuse_once)
        there.heard[CONFIG_RECONCILER].clear()

        there.restart()

        assert refused.is_set()
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        eventually(lambda: len(list(Path("/proc/self/fd").iterdir())) == before, "as many files as before")


def test_a_process_that_no_thread_can_watch_is_started_again_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_supervisor, "LOOK_AGAIN_S", 0.02)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "process-watch":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp, lambda up: up.pid == 1001)
        there.process.die()
        there.expect(CONFIG_RECONCILER, HAProxyUp, lambda up: up.pid == 1002)
        assert there.generation() == 1


def test_an_actor_restarted_while_haproxy_is_down_asks_whether_there_is_something_to_start() -> None:
    with scene(FakeProcess(failing=4)) as there:
        there.tell(ConfigurationInstalled())
        eventually(lambda: there.process.launched >= 3, "tries that fail")
        there.heard[CONFIG_RECONCILER].clear()

        there.restart()

        there.expect(CONFIG_RECONCILER, Publish)


@pytest.mark.parametrize("ended", [False, True])
def test_an_actor_restarted_while_it_drains_goes_on_and_starts_nothing(ended: bool) -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.drain(10.0)
        eventually(lambda: "stop gracefully" in there.process.said, "it drains")

        if ended:
            there.process.die()
        there.restart()
        if not ended:
            there.process.die()

        assert there.drained.wait(5.0)
        there.tell(ConfigurationInstalled())
        there.settle()
        assert there.process.launched == 1


def test_an_actor_restarted_while_it_drains_keeps_the_time_at_which_connections_are_cut() -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.drain(0.5)
        eventually(lambda: "stop gracefully" in there.process.said, "it drains")

        there.restart()

        eventually(lambda: "terminate" in there.process.said, "the cut")


def test_an_actor_restarted_while_callers_are_served_waits_for_them() -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.process.in_flight = 1
        there.drain(30.0)
        eventually(lambda: there.process.said == ["close public"], "it drains")

        there.restart()
        asked = there.process.in_flight_asked
        eventually(lambda: there.process.in_flight_asked > asked + 1, "the other one looks")

        assert there.process.said == ["close public"]
        there.process.in_flight = 0
        eventually(lambda: there.process.said == ["close public", "stop gracefully"], "a graceful stop")


def test_an_actor_restarted_while_haproxy_starts_waits_until_it_is_ready() -> None:
    with scene(FakeProcess()) as there:
        there.process.answering = False
        there.tell(ConfigurationInstalled())
        eventually(lambda: there.process.launched == 1, "it is launched")

        there.restart()

        there.tell(Publish())
        eventually(lambda: there.facts(ADMIN, HAProxyFacts) == HAProxyFacts(False, 1001, "2.6.12"), "an answer")
        assert not there.all_of(CONFIG_RECONCILER, HAProxyUp)
        there.process.answering = True
        assert there.expect(CONFIG_RECONCILER, HAProxyUp).pid == 1001
        assert there.process.launched == 1


def test_a_public_listener_that_a_late_reload_opened_again_is_closed_again() -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.process.in_flight = 1
        there.drain(10.0)
        eventually(lambda: there.process.in_flight_asked > 0, "it waits for whom it serves")

        there.process.reload()

        eventually(lambda: there.process.said == ["close public"] * 2, "it is closed again")
        there.process.in_flight = 0
        eventually(lambda: there.process.said[-1:] == ["stop gracefully"], "a graceful stop")


def test_a_haproxy_that_was_told_to_end_while_it_reloads_is_told_again_after_that() -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.process.loading = True
        there.drain(10.0)
        eventually(lambda: there.process.activity_asked > 0, "it was told")

        there.process.reload()
        there.process.loading = False

        eventually(lambda: there.process.said == ["close public", *["stop gracefully"] * 2], "it is told again")
        asked = there.process.activity_asked
        eventually(lambda: there.process.activity_asked > asked + 1, "it was looked at again")
        assert there.process.said[3:] == []


@pytest.mark.parametrize("reloaded", [False, True])
def test_an_actor_restarted_after_that_tells_haproxy_again_only_where_it_goes_on(reloaded: bool) -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.drain(10.0)
        eventually(lambda: there.process.said == ["close public", "stop gracefully"], "a graceful stop")

        there.restart()
        if reloaded:
            there.process.reload()

        asked = there.process.activity_asked
        eventually(lambda: there.process.activity_asked > asked + 1, "it was looked at")
        assert there.process.said[2:] == ["stop gracefully"] * reloaded


@pytest.mark.parametrize("in_time", [True, False])
def test_the_log_says_that_all_is_done_only_where_it_is(in_time: bool, caplog: pytest.LogCaptureFixture) -> None:
    with scene(FakeProcess()) as there, caplog.at_level(logging.INFO):
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)

        there.drain(10.0 if in_time else 0.1)
        eventually(lambda: "stop gracefully" in there.process.said, "a graceful stop")
        if in_time:
            there.process.die()

        assert there.drained.wait(5.0)
    assert ("all connections are done" in caplog.text) is in_time


def test_a_restarted_actor_leaves_no_thread_behind() -> None:
    earlier = set(threading.enumerate())  # those of other tests may still be ending; they are not counted

    def watching() -> list[threading.Thread]:
        return [thread for thread in set(threading.enumerate()) - earlier if thread.name == "process-watch"]

    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        for _ in range(3):
            there.restart()
        eventually(lambda: len(watching()) == 1, "the watches of earlier generations to end")
    eventually(lambda: not watching(), "the last one to end")


def test_draining_lets_connections_finish_and_tells_when_they_have() -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)

        there.drain(10.0)
        eventually(lambda: there.process.said == ["close public", "stop gracefully"], "a graceful stop")
        there.process.die()

        assert there.drained.wait(5.0)
        stopped = HAProxyFacts(False, 0, "2.6.12")
        eventually(lambda: there.facts(ADMIN, HAProxyFacts) == stopped, "the end is reported")
        assert there.process.launched == 1


def test_connections_that_nothing_is_asked_on_are_cut_when_it_was_quiet_for_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hcc.actors.process_supervisor.QUIET_CHECK_S", 0.01)
    monkeypatch.setattr(process_supervisor, "QUIET_S", 2.0)
    clock = Clock()
    monkeypatch.setattr(process_supervisor, "time", clock)
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.drain(60.0)
        eventually(lambda: there.process.said[-1:] == ["stop gracefully"], "a graceful stop")

        def not_cut_after(seconds: float, why: str) -> None:
            looked(there.process)
            clock.now_s += seconds
            looked(there.process)
            assert "terminate" not in there.process.said, why

        there.process.in_flight = 1
        not_cut_after(10.0, "a request is in progress")
        there.process.in_flight = 0
        for _ in range(6):
            there.process.asked += 1
            not_cut_after(process_supervisor.QUIET_S - 0.5, "requests come and are answered in between")

        clock.now_s += process_supervisor.QUIET_S
        eventually(lambda: there.process.said[2:3] == ["terminate"], "an end")
        assert there.drained.wait(5.0)


def test_one_that_does_not_say_what_it_does_has_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hcc.actors.process_supervisor.QUIET_CHECK_S", 0.01)
    monkeypatch.setattr(process_supervisor, "QUIET_S", 2.0)
    clock = Clock()
    monkeypatch.setattr(process_supervisor, "time", clock)
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.drain(60.0)
        eventually(lambda: there.process.said[-1:] == ["stop gracefully"], "a graceful stop")
        there.process.answering = False
        looked(there.process)

        clock.now_s += 10.0

        looked(there.process)
        assert there.process.said[-1] == "stop gracefully"


def test_after_the_deadline_open_connections_are_cut() -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)

        there.drain(0.05)

        eventually(lambda: there.process.said[1:3] == ["stop gracefully", "terminate"], "an end at the deadline")


def test_upstreams_stay_open_until_the_callers_are_served() -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.process.in_flight = 1

        there.drain(10.0)
        there.tell(Publish())
        eventually(lambda: len(there.heard[CONFIG_RECONCILER]) == 2, "the answer to Publish")
        assert there.process.said == ["close public"]
        assert not there.draining.ending
        there.process.in_flight = 0

        eventually(lambda: there.process.said == ["close public", "stop gracefully"], "a graceful stop")
        assert there.draining.ending


def test_callers_that_are_not_served_in_time_are_cut() -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.process.in_flight = 1

        there.drain(0.05)

        eventually(lambda: there.process.said[:2] == ["close public", "terminate"], "an end at the deadline")


def test_upstreams_stay_open_while_haproxy_does_not_say_whether_callers_are_served() -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.process.in_flight = 1
        there.drain(30.0)
        eventually(lambda: there.process.said == ["close public"], "it drains")

        there.process.counts = False
        asked = there.process.in_flight_asked
        eventually(lambda: there.process.in_flight_asked > asked + 2, "it looks")

        assert there.process.said == ["close public"]
        there.process.in_flight, there.process.counts = 0, True
        eventually(lambda: there.process.said == ["close public", "stop gracefully"], "a graceful stop")


@pytest.mark.parametrize("restarted", [False, True])
def test_upstreams_stay_open_when_haproxy_is_silent_as_the_drain_begins(
    restarted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.process.in_flight = 1
        there.process.answering = False

        there.drain(30.0)
        eventually(lambda: len(there.process.may_take_s) > 2, "it is asked again and again")
        if restarted:
            there.restart()

        assert there.process.said == []
        assert not there.draining.ending
        there.process.answering = True
        eventually(lambda: there.process.said == ["close public"], "the public listener is closed")
        there.process.in_flight = 0
        eventually(lambda: there.process.said == ["close public", "stop gracefully"], "a graceful stop")
        assert caplog.text.count("the public listener is closed") == 1


def test_one_whose_public_listener_may_be_open_is_not_ended_though_nobody_waits() -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.process.closes = False

        there.drain(0.5)

        eventually(lambda: there.process.said == ["terminate"], "the cut")


def test_a_listener_that_an_actor_closed_before_it_could_note_that_is_taken_for_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.process.in_flight = 1
        there.process.close_public()

        there.drain(30.0)
        eventually(lambda: there.process.in_flight_asked > 1, "it waits for whom it serves")

        assert there.process.said == ["close public"]
        assert caplog.text.count("the public listener is closed") == 1


def test_haproxy_is_waited_for_no_longer_than_until_connections_are_cut() -> None:
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.process.in_flight = 1

        there.drain(0.5)

        eventually(lambda: "terminate" in there.process.said, "the cut")
        assert len(there.process.may_take_s) > 1
        assert max(there.process.may_take_s) <= 0.5


def test_a_proxy_without_a_public_listener_stops_at_once() -> None:
    with scene(FakeProcess()) as there:
        there.process.public = False
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)

        there.drain(10.0)

        eventually(lambda: there.process.said == ["stop gracefully"], "a graceful stop")


def test_draining_without_a_haproxy_is_done_at_once() -> None:
    with scene(FakeProcess()) as there:
        there.drain(10.0)

        assert there.drained.wait(5.0)


def test_the_data_plane_api_runs_from_the_start_without_a_configuration() -> None:
    dataplane = FakeProcess()
    with scene(FakeProcess(), dataplane) as there:
        eventually(lambda: dataplane.pid == 1001, "the Data Plane API runs")
        assert there.process.launched == 0


def test_a_data_plane_api_that_dies_is_started_again_and_haproxy_goes_on() -> None:
    dataplane = FakeProcess()
    with scene(FakeProcess(), dataplane) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)

        dataplane.die()

        eventually(lambda: dataplane.pid == 1002, "the Data Plane API runs again")
        assert there.process.pid == 1001
        assert not [message for message in there.heard[CONFIG_RECONCILER] if isinstance(message, HAProxyDown)]


def test_a_data_plane_api_that_does_not_start_is_tried_again() -> None:
    dataplane = FakeProcess(failing=2)
    with scene(FakeProcess(), dataplane):
        eventually(lambda: dataplane.pid == 1003, "the third try")


def test_a_haproxy_that_hangs_is_killed_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_supervisor, "PROBE_S", 0.02)
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        time.sleep(0.2)  # Some probes that it answers.
        assert there.process.said == []

        there.process.answering = False

        there.expect(CONFIG_RECONCILER, HAProxyUp, lambda up: up.pid == 1002)
        assert there.process.said == ["kill"]


def test_a_haproxy_that_is_silent_and_then_not_found_for_once_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_supervisor, "PROBE_S", 0.01)
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        usual, found = there.process.look, [Look("worker"), Look("worker"), Look(LOST), Look(LOST), Look("worker")]
        monkeypatch.setattr(there.process, "look", lambda timeout_s: found.pop(0) if found else usual(timeout_s))

        eventually(lambda: not found, "all of that is seen")
        time.sleep(0.1)
        assert there.process.said == []


def test_a_haproxy_whose_sockets_are_gone_is_not_ready_and_then_killed_and_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of facts that wait to be heard only the newest counts.
    monkeypatch.setattr(process_supervisor, "PROBE_S", 1.0)
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)

        there.process.lost = True

        there.expect(ADMIN, FactsReported, lambda told: told.facts == HAProxyFacts(True, 1001, "2.6.12", False))
        there.expect(CONFIG_RECONCILER, HAProxyUp, lambda up: up.pid == 1002)
        assert there.process.said == ["kill"]
        again = HAProxyFacts(True, 1002, "2.6.12")
        eventually(lambda: there.facts(ADMIN, HAProxyFacts) == again, "it can be reached again")
        assert missing_parts(Facts(haproxy=replace(again, reachable=False)), 0.0)[-2].startswith("haproxy: its sockets")


def test_a_worker_that_comes_by_a_reload_of_somebody_elses_is_told_and_one_of_ours_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process_supervisor, "PROBE_S", 0.02)
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.tell(Reloading(True))
        there.settle()
        time.sleep(0.1)  # Some probes, as after it: it may take seconds until the new worker is there.
        there.process.reload()
        time.sleep(0.1)
        there.tell(Reloading(False, replaced=True))
        there.settle()
        time.sleep(0.1)
        assert len(there.all_of(CONFIG_RECONCILER, HAProxyUp)) == 1

        there.process.reload()

        hearers = (CONFIG_RECONCILER, AUTHORISER, VERIFIER)
        eventually(lambda: [len(there.all_of(one, HAProxyUp)) for one in hearers] == [2, 2, 2], "all hear of it")
        time.sleep(0.1)
        assert len(there.all_of(CONFIG_RECONCILER, HAProxyUp)) == 2
    assert [one.message for one in caplog.records if "not by hcc" in one.message] == [
        "HAProxy was reloaded, not by hcc or late: what its new worker 1004 runs is looked at"
    ]


@pytest.mark.parametrize("late", [False, True])
def test_a_worker_of_a_reload_that_was_told_as_failed_is_told(monkeypatch: pytest.MonkeyPatch, *, late: bool) -> None:
    monkeypatch.setattr(process_supervisor, "PROBE_S", 0.02 if late else 60.0)
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.tell(Reloading(True))
        if not late:
            there.process.reload()
        there.tell(Reloading(False))
        there.settle()
        if late:
            assert len(there.all_of(CONFIG_RECONCILER, HAProxyUp)) == 1
            there.process.reload()

        hearers = (CONFIG_RECONCILER, AUTHORISER, VERIFIER)
        eventually(lambda: [len(there.all_of(one, HAProxyUp)) for one in hearers] == [2, 2, 2], "all hear of it")


def test_a_haproxy_that_is_slow_to_start_is_waited_for() -> None:
    with scene(FakeProcess()) as there:
        there.process.answering = False
        there.tell(ConfigurationInstalled())
        eventually(lambda: there.process.launched == 1, "it is launched")

        # Others are heard meanwhile, and told nothing that is not so.
        there.tell(Publish())
        eventually(lambda: there.facts(ADMIN, HAProxyFacts) == HAProxyFacts(False, 1001, "2.6.12"), "an answer")
        assert not there.all_of(CONFIG_RECONCILER, HAProxyUp)
        assert there.process.said == []
        there.process.answering = True

        there.expect(CONFIG_RECONCILER, HAProxyUp)
        assert there.process.launched == 1


def test_a_haproxy_that_dies_while_it_starts_is_started_again_and_its_reason_is_told() -> None:
    with scene(FakeProcess()) as there:
        there.process.answering = False
        there.tell(ConfigurationInstalled())
        eventually(lambda: there.process.launched == 1, "it is launched")

        there.process.die(1)

        there.expect(CONFIG_RECONCILER, HAProxyDown, lambda down: "[ALERT] no" in down.reason)
        there.expect(CONFIG_RECONCILER, HAProxyUp, lambda up: up.pid == 1002)


def test_a_haproxy_that_is_never_ready_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_supervisor, "PATIENCE_S", 0.05)
    with scene(FakeProcess()) as there:
        there.process.answering = False
        there.tell(ConfigurationInstalled())

        there.expect(CONFIG_RECONCILER, HAProxyDown, lambda down: "not ready" in down.reason)
        there.expect(CONFIG_RECONCILER, HAProxyUp, lambda up: up.pid == 1002)


def test_a_haproxy_that_is_still_starting_is_ended_when_it_is_to_drain() -> None:
    with scene(FakeProcess()) as there:
        there.process.public = there.process.answering = False
        there.tell(ConfigurationInstalled())
        eventually(lambda: there.process.launched == 1, "it is launched")

        there.drain(10.0)
        eventually(lambda: "stop gracefully" in there.process.said, "a graceful stop")
        there.process.die()

        assert there.drained.wait(5.0)
        assert there.process.launched == 1


def test_a_haproxy_that_is_silent_during_a_reload_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_supervisor, "PROBE_S", 0.01)
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.tell(Reloading(True))
        there.process.answering = False
        time.sleep(0.3)  # More probes than one that hangs may miss.
        assert there.process.said == []

        there.tell(Reloading(False))

        there.expect(CONFIG_RECONCILER, HAProxyUp, lambda up: up.pid == 1002)
        assert there.process.said == ["kill"]


def test_a_data_plane_api_that_hangs_is_killed_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_supervisor, "PROBE_S", 0.02)
    dataplane = FakeProcess()
    with scene(FakeProcess(), dataplane):
        eventually(lambda: dataplane.pid == 1001, "the Data Plane API runs")
        time.sleep(0.2)  # Some probes that it answers.
        assert dataplane.said == []

        dataplane.answering = False

        eventually(lambda: dataplane.pid == 1002, "the Data Plane API runs again")
        assert dataplane.said == ["kill"]


def test_a_data_plane_api_that_has_not_answered_yet_gets_the_time_to_start_and_is_not_said_to_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(process_supervisor, "PROBE_S", 0.01)
    monkeypatch.setattr(process_supervisor, "START_MISSES", 1000)
    dataplane = FakeProcess()
    dataplane.answering = False
    with scene(FakeProcess(), dataplane):
        eventually(lambda: dataplane.pid == 1001, "the Data Plane API runs")
        time.sleep(0.2)  # More probes than one that answered before may miss.
        assert dataplane.said == []
        assert "the Data Plane API runs" not in caplog.text

        dataplane.answering = True

        eventually(lambda: "the Data Plane API runs, process 1001" in caplog.text, "it runs")


def test_one_that_ignores_sigterm_at_the_end_of_a_drain_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_supervisor, "KILL_AFTER_S", 0.1)
    with scene(FakeProcess()) as there:
        there.tell(ConfigurationInstalled())
        there.expect(CONFIG_RECONCILER, HAProxyUp)
        there.process.answering = False
        there.drain(0.2)
        eventually(lambda: there.process.said == ["terminate", "kill"], "the kill")
