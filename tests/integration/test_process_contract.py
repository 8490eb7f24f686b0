"""FakeProcess, which the actors' tests rely on, does what a real HAProxy and a real Data Plane API do."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from hcc.haproxy.control import ControlError
from hcc.haproxy.dataplane_process import DataplaneProcess
from hcc.haproxy.dataplane_program import find_dataplane
from hcc.haproxy.files import remove, write_private
from hcc.haproxy.process import LOST, Closing, Exit, HAProxyProcess, LaunchError, Look, NotReadyError
from hcc.haproxy.replies import Activity
from hcc.haproxy.runtime import RuntimeSocket
from tests.binaries import HAPROXY_BRANCHES, dataplaneapi
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.dataplane_stage import DataplaneStage
from tests.fakes import FakeProcess
from tests.haproxy_stage import BINARIES, DEADLINE_S, Stage, stage, wait_until
from tests.pki import service_uri
from tests.ports import free_port

pytestmark = pytest.mark.integration


class FakeSubject:
    """What becomes of the fake as HAProxy's end, its faults and its callers come about."""

    def __init__(self) -> None:
        self.process = FakeProcess()

    def succeed_earlier_hcc(self, *, left_running: bool) -> int:
        """Be a new hcc; the process id of the HAProxy it finds, 0 for none."""
        self.process.close()
        self.process = FakeProcess(left_running=77 if left_running else 0)
        return 77 if left_running else 0

    def lose_program(self) -> None:
        """No launch succeeds for want of a program."""
        self.process = FakeProcess(failing=1)

    def spoil(self) -> None:
        """The next HAProxy that is launched ends at once."""
        self.process.failing, self.process.ends_at_once = 1, True

    def repair(self) -> None:
        """And then no more."""

    def hang(self) -> None:
        self.process.answering = False

    def reload(self) -> None:
        """Somebody else makes it reload."""
        self.process.reload()

    def pause(self) -> None:
        """Somebody else disables the public listener."""

    def lose_sockets(self) -> None:
        self.process.lost = True

    def die(self) -> None:
        self.process.die(-signal.SIGKILL)

    @contextmanager
    def call(self) -> Iterator[None]:
        """One caller is served meanwhile."""
        self.process.in_flight += 1
        yield
        self.process.in_flight -= 1
        self.process.asked += 1

    def takes_callers(self) -> bool:
        return self.process.takes_callers()

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Somebody is connected to an upstream; whoever stops gracefully may end thereafter."""
        yield
        self.process.die()

    def without_public(self) -> None:
        """What is launched next has no public listener."""
        self.process.public = False


class RealSubject:
    """A HAProxy with an upstream and a public listener that is about to be launched."""

    def __init__(self, made: Stage) -> None:
        self._stage = made
        self._app, self._peer = made.app(), made.peer("peer")
        self._bind_port, self._upstream_port = free_port(), free_port()
        self._released = 0
        self._install(local_port=self._app.port)

    @property
    def process(self) -> HAProxyProcess:
        return self._stage.process

    def bury(self) -> None:
        """Wait for the dead HAProxy that was let go, unless who ended its session has done so."""
        if self._released:
            with suppress(ChildProcessError):
                os.waitpid(self._released, 0)

    def succeed_earlier_hcc(self, *, left_running: bool) -> int:
        if left_running:
            self._released = self.process.launch()
            self.process.wait_ready(timeout_s=DEADLINE_S)
            self.process.release()
        self._stage.process = HAProxyProcess(self._stage.binary, self._stage.layout)
        return self._released

    def lose_program(self) -> None:
        self._stage.process = HAProxyProcess("/nowhere/haproxy", self._stage.layout)

    def spoil(self) -> None:
        write_private(self._stage.layout.config, "global\n  nonsense 1\n")

    def repair(self) -> None:
        self._install(local_port=self._app.port)

    def hang(self) -> None:
        hold(self._stage.worker())

    def reload(self) -> None:
        self._stage.reload_by_signal()

    def pause(self) -> None:
        said = RuntimeSocket(self._stage.layout.stats_socket).send("disable frontend public")
        assert not said.strip()

    def lose_sockets(self) -> None:
        remove(self._stage.layout.stats_socket, self._stage.layout.master_socket)

    def die(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)

    @contextmanager
    def call(self) -> Iterator[None]:
        context = self._stage.context(ssl.PROTOCOL_TLS_CLIENT, self._stage.authority.leaf(service_uri("web")))
        with (
            socket.create_connection(("127.0.0.1", self._bind_port), timeout=DEADLINE_S) as raw,
            context.wrap_socket(raw) as caller,
        ):
            assert caller.recv(100) == b"app\n"
            yield

    def takes_callers(self) -> bool:
        """Whether the kernel takes a connection to the public port; it may be that nobody answers there."""
        with socket.socket() as caller:
            caller.settimeout(DEADLINE_S)
            taken = caller.connect_ex(("127.0.0.1", self._bind_port))
            assert taken in (0, errno.ECONNREFUSED)
            return not taken

    @contextmanager
    def connected(self) -> Iterator[None]:
        with socket.create_connection(("127.0.0.1", self._upstream_port), timeout=DEADLINE_S) as client:
            assert client.recv(100) == b"peer\n"
            yield

    def without_public(self) -> None:
        self._install(local_port=0)

    def _install(self, local_port: int) -> None:
        state = upstream_state(upstream("web", self._upstream_port), [endpoint("127.0.0.1", self._peer.port)])
        wanted = snapshot(state, proxy_=proxy(bind_port=self._bind_port, local_port=local_port))
        applied = self._stage.control.apply(self._stage.plan(self._stage.rendered(wanted)))
        assert applied.failure is None


def hold(pid: int) -> None:
    """Stop a process; each of its threads has stopped then, which the signal alone does not wait for."""
    os.kill(pid, signal.SIGSTOP)

    def stopped() -> bool:
        try:
            threads = [(thread / "stat").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
        except OSError:  # one has ended meanwhile
            return False
        return all(thread.rpartition(")")[2].split()[0] == "T" for thread in threads)

    wait_until(stopped, "all threads stop")


Subject = FakeSubject | RealSubject


@pytest.fixture(params=["fake", "2.6", "2.8"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    if request.param == "fake":
        fake = FakeSubject()
        yield fake
        fake.process.close()
    else:
        with stage(request.param) as made:
            real = RealSubject(made)
            yield real
        real.bury()


def launched(subject: Subject) -> int:
    """Process id of a HAProxy that serves."""
    pid = subject.process.launch()
    subject.process.wait_ready(timeout_s=DEADLINE_S)
    return pid


# Where versions differ.
every_version = pytest.mark.parametrize("subject", ["fake", *HAPROXY_BRANCHES], indirect=True)


def readable(descriptor: int, timeout_s: float = DEADLINE_S) -> bool:
    return bool(select.select([descriptor], [], [], timeout_s)[0])


def test_before_a_launch_there_is_nothing_to_watch_ask_or_end(subject: Subject) -> None:
    process = subject.process

    assert (process.pid, process.fileno()) == (0, -1)
    assert (process.close_public(), process.requests_in_flight(), process.look(DEADLINE_S)) == (
        Closing.UNKNOWN,
        0,
        Look(),
    )
    with pytest.raises(LaunchError, match="HAProxy ended at once"):
        process.wait_ready(timeout_s=DEADLINE_S)
    process.kill()
    assert process.reap() is None


def test_one_that_was_launched_runs_with_a_worker_until_something_happens(subject: Subject) -> None:
    process = subject.process
    pid = process.launch()

    worker = process.wait_ready(timeout_s=DEADLINE_S)

    assert not process.starting
    assert pid == process.pid
    assert worker not in (0, pid)
    assert process.wait_ready(timeout_s=DEADLINE_S) == worker
    assert process.look(DEADLINE_S).silent == ""
    assert not readable(process.fileno(), 0)
    assert process.reap() is None


def test_the_worker_that_answers_is_another_one_after_a_reload(subject: Subject) -> None:
    process = subject.process
    process.launch()
    worker = process.wait_ready(timeout_s=DEADLINE_S)
    found = process.look(DEADLINE_S)
    assert (found.silent, found.worker) == ("", worker)
    assert found.version.startswith("2.")

    subject.reload()

    found = process.look(DEADLINE_S)
    assert found.silent == ""
    assert found.worker not in (0, worker, process.pid)
    assert found.worker == process.wait_ready(timeout_s=DEADLINE_S)


def test_one_that_lives_and_does_not_answer_is_not_ready(subject: Subject) -> None:
    launched(subject)
    subject.hang()

    with pytest.raises(NotReadyError, match="HAProxy was not ready within"):
        subject.process.wait_ready(timeout_s=0.1)

    assert subject.process.reap() is None
    assert not subject.process.starting  # It answered before.


def test_there_is_one_at_a_time(subject: Subject) -> None:
    pid = launched(subject)

    with pytest.raises(LaunchError, match=f"expected no HAProxy to run, found process {pid}"):
        subject.process.launch()

    assert subject.process.pid == pid
    assert subject.process.reap() is None


def test_a_death_is_seen_by_whoever_watches_and_told_once_and_another_can_be_launched(subject: Subject) -> None:
    process, pid = subject.process, launched(subject)
    # As the actor has it, which may close its own any time.
    watched = os.dup(process.fileno())
    try:
        subject.die()

        assert readable(watched)
    finally:
        os.close(watched)
    assert process.reap() == Exit(pid, -signal.SIGKILL)
    assert process.reap() is None
    assert (process.pid, process.fileno()) == (0, -1)
    assert launched(subject) != pid
    assert process.reap() is None


def test_one_that_an_earlier_hcc_left_is_adopted_and_its_end_is_seen_without_a_status(subject: Subject) -> None:
    pid = subject.succeed_earlier_hcc(left_running=True)
    process = subject.process
    assert process.pid == 0

    assert process.adopt() == pid

    assert process.pid == pid
    assert process.wait_ready(timeout_s=DEADLINE_S) not in (0, pid)
    assert not readable(process.fileno(), 0)
    subject.die()
    assert readable(process.fileno())
    assert process.reap() == Exit(pid, None)
    assert process.adopt() is None


def test_where_no_earlier_hcc_left_any_there_is_none_to_adopt(subject: Subject) -> None:
    subject.succeed_earlier_hcc(left_running=False)

    assert subject.process.adopt() is None
    assert subject.process.pid == 0


def test_one_that_ends_at_once_says_so_while_it_is_waited_for_and_leaves_room_for_another(subject: Subject) -> None:
    process = subject.process
    subject.spoil()
    pid = process.launch()
    assert pid == process.pid

    with pytest.raises(LaunchError, match="HAProxy ended at once: "):
        process.wait_ready(timeout_s=DEADLINE_S)

    assert process.starting
    process.kill()
    assert process.reap() == Exit(pid, 1)
    assert (process.pid, process.starting) == (0, False)
    subject.repair()
    launched(subject)


def test_a_program_that_cannot_be_run_is_an_error_of_the_launch(subject: Subject) -> None:
    subject.lose_program()

    with pytest.raises(LaunchError, match="cannot run "):
        subject.process.launch()

    subject.process.kill()
    assert subject.process.pid == 0
    assert subject.process.reap() is None


@every_version
def test_the_public_listener_is_closed_once_and_callers_are_counted_until_they_are_served(subject: Subject) -> None:
    process = subject.process
    launched(subject)
    assert process.requests_in_flight() == 0

    with subject.call():
        assert process.requests_in_flight() == 1
        assert subject.takes_callers()
        assert process.close_public() is Closing.CLOSED
        assert not subject.takes_callers()
        assert process.requests_in_flight() == 1
        # It is closed, which is not what was asked.
        assert process.close_public() is Closing.WAS_CLOSED
        assert not subject.takes_callers()

    # A new worker listens again.
    subject.reload()
    assert process.close_public() is Closing.CLOSED
    assert process.close_public() is Closing.WAS_CLOSED
    assert not subject.takes_callers()
    wait_until(lambda: not process.requests_in_flight(), "the caller is served")
    assert process.reap() is None


@every_version
def test_callers_of_before_a_reload_are_counted_with_those_of_after_it(subject: Subject) -> None:
    process = subject.process
    launched(subject)

    with subject.call():
        subject.reload()
        wait_until(lambda: process.requests_in_flight() == 1, "the caller of before")
        with subject.call():
            assert process.requests_in_flight() == 2
        assert process.close_public() is Closing.CLOSED
        wait_until(lambda: process.requests_in_flight() == 1, "the one of after to be served")
    wait_until(lambda: process.requests_in_flight() == 0, "all to be served")


@every_version
def test_a_public_listener_that_somebody_paused_is_closed_all_the_same(subject: Subject) -> None:
    process = subject.process
    launched(subject)
    subject.pause()

    assert process.close_public() is Closing.CLOSED
    assert process.close_public() is Closing.WAS_CLOSED
    assert not subject.takes_callers()


def test_what_is_done_for_callers_is_seen_while_it_stops_too(subject: Subject) -> None:
    process = subject.process
    assert process.activity() is None
    launched(subject)
    with subject.call():
        pass
    wait_until(lambda: process.activity() == Activity(0, 1), "one call that is over")

    with subject.call():
        assert process.activity() == Activity(1, 2)
        process.stop_gracefully()
        assert process.activity() == Activity(1, 2)


def test_who_has_no_public_listener_cannot_close_it(subject: Subject) -> None:
    subject.without_public()
    launched(subject)

    assert subject.process.close_public() is Closing.ABSENT
    assert subject.process.requests_in_flight() == 0


def test_a_graceful_stop_waits_for_whoever_is_connected(subject: Subject) -> None:
    process, pid = subject.process, launched(subject)

    with subject.connected():
        process.stop_gracefully()
        assert process.reap() is None

    assert readable(process.fileno())
    assert process.reap() == Exit(pid, 0)


def test_one_that_was_told_to_end_does_not_go_on(subject: Subject) -> None:
    process = subject.process
    assert not process.goes_on()
    process.launch()
    process.wait_ready(timeout_s=DEADLINE_S)
    assert process.goes_on()
    with subject.connected():
        process.stop_gracefully()
        wait_until(lambda: not process.goes_on(), "the stop")
        assert process.reap() is None


def test_one_that_is_to_terminate_waits_for_nobody(subject: Subject) -> None:
    process, pid = subject.process, launched(subject)

    with subject.call():
        process.terminate()
        assert readable(process.fileno())
        ended = process.reap()
        assert process.requests_in_flight() == 0

    assert ended is not None
    assert ended.pid == pid


def test_one_that_hangs_is_silent_and_nothing_but_a_kill_ends_it(subject: Subject) -> None:
    process, pid = subject.process, launched(subject)

    subject.hang()

    assert process.look(0.2).silent == "worker"
    assert process.requests_in_flight(0.2) is None
    assert process.close_public(0.2) is Closing.UNKNOWN
    assert process.activity(0.2) is None
    process.terminate()
    assert process.reap() is None
    process.kill()
    # At once: whoever failed to start it reaps without having watched.
    assert process.reap() == Exit(pid, -signal.SIGKILL)
    assert process.look(0.2).silent == ""


def test_one_whose_sockets_were_removed_is_told_apart_until_it_has_ended(subject: Subject) -> None:
    process = subject.process
    launched(subject)
    assert process.look(DEADLINE_S).silent == ""

    subject.lose_sockets()

    assert process.look(DEADLINE_S).silent == LOST
    process.kill()
    assert process.look(DEADLINE_S).silent == ""


# The Data Plane API, for which a FakeProcess stands in as well.


class FakeDataplane:
    """A fake and its faults."""

    def __init__(self) -> None:
        self.process = FakeProcess()

    def close(self) -> None:
        self.process.close()

    def spoil(self, *, runs: bool) -> None:
        """The program cannot be run, or it ends at once."""
        self.process.failing, self.process.ends_at_once = 1, runs

    def hang(self) -> None:
        self.process.answering = False


class RealDataplane:
    """A real one, about to be launched, and its faults."""

    def __init__(self) -> None:
        self.stage = DataplaneStage(BINARIES["2.8"]())
        self.process = self.stage.dataplane

    def close(self) -> None:
        self.process.stop()
        self.stage.close()

    def spoil(self, *, runs: bool) -> None:
        program = replace(find_dataplane(dataplaneapi()), binary="/bin/false" if runs else "/nowhere/dataplaneapi")
        self.process = DataplaneProcess(program, self.stage.binary, self.stage.layout, self.stage.password)

    def hang(self) -> None:
        hold(self.process.pid)


Dataplane = FakeDataplane | RealDataplane


@pytest.fixture(params=["fake", "real"])
def dataplane(request: pytest.FixtureRequest) -> Iterator[Dataplane]:
    made = FakeDataplane() if request.param == "fake" else RealDataplane()
    try:
        yield made
    finally:
        made.close()


def test_a_data_plane_api_answers_until_it_hangs_and_its_end_is_seen_and_told_once(dataplane: Dataplane) -> None:
    process = dataplane.process
    assert (process.pid, process.reap(), process.answers(DEADLINE_S)) == (0, None, False)
    pid = process.launch()
    assert pid == process.pid
    wait_until(lambda: process.answers(1.0), "it answers", 60.0)
    assert not readable(process.fileno(), 0)
    assert process.reap() is None

    dataplane.hang()
    assert not process.answers(0.2)
    process.kill()

    assert readable(process.fileno())
    assert process.reap() == Exit(pid, -signal.SIGKILL)
    assert (process.pid, process.reap(), process.answers(DEADLINE_S)) == (0, None, False)


def test_there_is_one_data_plane_api_at_a_time_and_another_after_it(dataplane: Dataplane) -> None:
    process = dataplane.process
    pid = process.launch()

    with pytest.raises(ControlError, match=f"to run, found process {pid}"):
        process.launch()

    process.kill()
    assert readable(process.fileno())
    assert process.reap()
    assert process.launch() != pid


def test_a_data_plane_api_that_cannot_be_run_is_an_error_of_the_launch(dataplane: Dataplane) -> None:
    dataplane.spoil(runs=False)

    with pytest.raises(ControlError, match="cannot run "):
        dataplane.process.launch()

    assert (dataplane.process.pid, dataplane.process.reap()) == (0, None)


def test_one_that_cannot_be_watched_is_not_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the last descriptor goes to another thread just then."""
    dataplane = RealDataplane()
    started: list[int] = []

    def none_left(pid: int) -> int:
        started.append(pid)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    try:
        with monkeypatch.context() as full:
            full.setattr(os, "pidfd_open", none_left)
            for process in (dataplane.process, dataplane.stage.process):
                with pytest.raises(ControlError, match=r"cannot run .*: .*Too many open files"):
                    process.launch()
                assert (process.pid, process.reap()) == (0, None)
        assert len(started) == 2
        assert not any(Path(f"/proc/{pid}").exists() for pid in started)
        assert dataplane.process.launch()
    finally:
        dataplane.close()


def test_a_data_plane_api_that_ends_at_once_is_seen_as_any_other(dataplane: Dataplane) -> None:
    dataplane.spoil(runs=True)
    pid = dataplane.process.launch()

    assert readable(dataplane.process.fileno())

    assert dataplane.process.reap() == Exit(pid, 1)
