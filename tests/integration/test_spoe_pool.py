"""The pool: births, deaths, respawns, and nothing left at the end."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hcc.children import KEPT
from hcc.mesh.intentions import Action, Intention, Policy
from hcc.spoe.counters import CounterMemory
from hcc.spoe.events import PolicyApplied, PoolEvent, WorkerExited, WorkerPhase, WorkerReady, ZygoteExited
from hcc.spoe.listener import Listener
from hcc.spoe.pool import SpoePoolError, WorkerPool
from hcc.spoe.readiness import is_readable
from hcc.spoe.spawner import Spawner
from tests.integration.spoe_frontend import events_until, wait_for
from tests.spop_frames import hello

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
LARGE = Policy(
    "server", "td", tuple(Intention(f"source-{number}", Action.ALLOW, 9) for number in range(10_000)), False, 9
)


@pytest.fixture
def paths(tmp_path: Path) -> tuple[str, str]:
    return str(tmp_path / "w0.sock"), str(tmp_path / "w1.sock")


@pytest.fixture
def pool(paths: tuple[str, str]) -> Iterator[WorkerPool]:
    made = WorkerPool(paths)
    try:
        made.start()
        events_until(made, lambda seen: len(seen) == 2)
        yield made
    finally:
        made.close(0)


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_all_workers_are_ready_after_start(paths: tuple[str, str]) -> None:
    pool = WorkerPool(paths)
    try:
        pool.start()
        states = pool.workers()
        assert [state.phase for state in states] == [WorkerPhase.READY] * 2
        assert set(pool.poll(0)) == {WorkerReady(state.index, state.pid) for state in states}
        assert [stat.S_IMODE(Path(path).stat().st_mode) for path in paths] == [0o600] * 2
    finally:
        pool.close(0)


def test_closing_leaves_no_process_socket_or_descriptor(paths: tuple[str, str]) -> None:
    before = open_descriptors()
    pool = WorkerPool(paths)
    pool.start()
    pids = [pool.zygote_pid, *(state.pid for state in pool.workers())]
    pool.close(5)
    pool.close(5)
    assert not any(map(alive, pids))
    assert not any(map(os.path.exists, paths))
    assert open_descriptors() == before
    assert pool.counters() == ()
    assert {event.status for event in pool.poll(None) if isinstance(event, WorkerExited)} == {0}


def test_a_policy_of_ten_thousand_intentions_reaches_all_and_each_successor_first(pool: WorkerPool) -> None:
    pool.set_policy(LARGE)
    events_until(pool, lambda seen: {PolicyApplied(0, 9), PolicyApplied(1, 9)} <= set(seen))
    pid = pool.workers()[0].pid
    os.kill(pid, signal.SIGKILL)
    events_until(pool, lambda seen: WorkerExited(0, pid, -9) in seen)
    pool.respawn(0)
    events_until(pool, lambda seen: PolicyApplied(0, 9) in seen)
    assert [state.policy_version for state in pool.workers()] == [9, 9]
    assert [state.starts for state in pool.workers()] == [2, 1]


def test_a_worker_that_reads_slowly_gets_the_last_policy_only(pool: WorkerPool) -> None:
    pid = pool.workers()[0].pid
    os.kill(pid, signal.SIGSTOP)
    for version in range(10, 60):
        pool.set_policy(Policy("server", "td", LARGE.intentions, False, version))
    os.kill(pid, signal.SIGCONT)
    seen = events_until(pool, lambda events: PolicyApplied(0, 59) in events)
    assert len([event for event in seen if isinstance(event, PolicyApplied) and event.index == 0]) < 10


def test_workers_outlive_their_zygote_and_a_new_one_takes_over(pool: WorkerPool) -> None:
    zygote, pids = pool.zygote_pid, [state.pid for state in pool.workers()]
    os.kill(zygote, signal.SIGKILL)
    events_until(pool, lambda seen: ZygoteExited(zygote, -9) in seen)
    assert pool.zygote_pid == 0
    assert all(map(alive, pids))
    os.kill(pids[1], signal.SIGKILL)
    events_until(pool, lambda seen: WorkerExited(1, pids[1], None) in seen)
    with pytest.raises(SpoePoolError, match="its zygote is gone"):
        pool.respawn(1)
    pool.respawn_zygote()
    pool.respawn(1)
    events_until(pool, lambda seen: any(isinstance(event, WorkerReady) and event.index == 1 for event in seen))
    assert pool.workers()[0].pid == pids[0]


def test_an_unread_request_to_a_stopped_zygote_ends_with_that_zygote(pool: WorkerPool) -> None:
    pid = pool.workers()[0].pid
    os.kill(pool.zygote_pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    events_until(pool, lambda seen: WorkerExited(0, pid, None) in seen)
    pool.respawn(0)
    assert pool.workers()[0].phase is WorkerPhase.STARTING
    pool.respawn_zygote()
    events_until(pool, lambda seen: any(isinstance(event, WorkerExited) and event.reason for event in seen))
    pool.respawn(0)
    events_until(pool, lambda seen: any(isinstance(event, WorkerReady) for event in seen))


def killed_as_hung(pool: WorkerPool, hung: int, seen: list[PoolEvent]) -> tuple[str, ...]:
    """What was killed at the third look; all but the worker of that index answered the looks before."""
    sound = [slot for slot in pool._slots if slot.index != hung]

    def answered() -> bool:
        seen.extend(pool.poll(0.1))
        return all(slot._unanswered == 0 for slot in sound)

    for _ in range(2):
        assert pool.replace_hung(2) == ()
        wait_for("the others answer", answered)
    return pool.replace_hung(2)


def test_a_worker_that_hangs_is_killed_and_others_are_left_alone(pool: WorkerPool) -> None:
    hung, sound = (worker.pid for worker in pool.workers())
    os.kill(hung, signal.SIGSTOP)
    seen: list[PoolEvent] = []
    assert killed_as_hung(pool, 0, seen) == (f"worker 1 (process {hung})",)
    events_until(pool, lambda news: WorkerExited(0, hung, -signal.SIGKILL) in news, seen)
    pool.respawn(0)
    events_until(pool, lambda news: any(isinstance(one, WorkerReady) and one.index == 0 for one in news))
    assert pool.workers()[1].pid == sound


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_who_comes_to_a_worker_that_is_dead_or_hangs_is_answered_by_another(
    pool: WorkerPool, number: signal.Signals
) -> None:
    pool.set_policy(LARGE)
    events_until(pool, lambda seen: {PolicyApplied(0, 9), PolicyApplied(1, 9)} <= set(seen))
    for index in (0, 1):
        state = pool.workers()[index]
        os.kill(state.pid, number)
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(state.socket_path)
                client.sendall(hello())
                assert client.recv(1000)
        finally:
            with suppress(ProcessLookupError):
                os.kill(state.pid, signal.SIGKILL)
        events_until(pool, lambda seen, gone=state: WorkerExited(gone.index, gone.pid, -9) in seen)  # type: ignore[misc]
        pool.respawn(index)
        events_until(pool, lambda seen, index=index: PolicyApplied(index, 9) in seen)  # type: ignore[misc]
    assert [one.connections_total for one in pool.counters()] == [1, 1]


def test_a_zygote_that_hangs_is_killed_when_a_worker_waits_for_it(pool: WorkerPool) -> None:
    zygote = pool.zygote_pid
    os.kill(zygote, signal.SIGSTOP)
    os.kill(pool.workers()[0].pid, signal.SIGKILL)
    events_until(pool, lambda seen: any(isinstance(one, WorkerExited) for one in seen))
    pool.respawn(0)
    seen: list[PoolEvent] = []
    assert killed_as_hung(pool, 0, seen) == (f"zygote (process {zygote})",)
    events_until(pool, lambda news: any(isinstance(one, ZygoteExited) for one in news), seen)
    pool.respawn_zygote()
    pool.respawn(0)
    events_until(pool, lambda seen: any(isinstance(one, WorkerReady) and one.index == 0 for one in seen))


# An interpreter that ends on a busy machine: what nobody holds any more is closed long before the process is gone.
_LEAVES = """
import gc, sys, time
from hcc.mesh.intentions import Policy
from hcc.spoe.events import PolicyApplied
from hcc.spoe.pool import WorkerPool

pool, applied = WorkerPool(tuple(sys.argv[1:])), 0
pool.start()
pool.set_policy(Policy("server", "td", (), False, 1))
while applied < 2:
    applied += sum(isinstance(event, PolicyApplied) for event in pool.poll(5))
print(*(state.pid for state in pool.workers()))
pool.leave()
del pool
gc.collect()
time.sleep(2.5)
"""


def test_workers_of_a_main_process_that_leaves_go_on_however_long_its_end_takes(paths: tuple[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LEAVES, *paths], stdout=subprocess.PIPE, text=True, timeout=30, check=True, cwd=ROOT
    )
    pids = [int(pid) for pid in done.stdout.split()]
    try:
        assert len(pids) == 2
        assert all(map(alive, pids))
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(paths[0])
            client.sendall(hello())
            assert client.recv(4)
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_socket_that_somebody_removed_is_bound_anew_with_another_worker_and_the_policy(
    pool: WorkerPool, paths: tuple[str, str]
) -> None:
    pool.set_policy(LARGE)
    events_until(pool, lambda seen: len([one for one in seen if isinstance(one, PolicyApplied)]) == 2)
    assert pool.restore_sockets() == ()
    before = len(open_descriptors())
    Path(paths[0]).unlink()
    left = pool.workers()[1]

    assert pool.restore_sockets() == (paths[0],)

    events_until(pool, lambda seen: WorkerPhase.EXITED in [state.phase for state in pool.workers()])
    pool.respawn(0)
    events_until(pool, lambda seen: PolicyApplied(0, LARGE.version) in seen)
    assert pool.workers()[1] == left
    assert pool.restore_sockets() == ()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(paths[0])
        client.sendall(hello())
        assert client.recv(4)
    assert len(open_descriptors()) == before


def test_a_socket_that_is_not_in_its_place_yet_is_not_lost(tmp_path: Path) -> None:
    # Else its worker would be replaced again and again before it listens.
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as before:
        before.bind(path)
        listener = Listener(path)
        try:
            assert not listener.lost()
            listener.take_place()
            assert not listener.lost()
            Path(path).unlink()
            assert listener.lost()
        finally:
            listener.close()


def test_a_socket_that_cannot_be_bound_anew_leaves_its_worker_and_is_bound_when_it_can_be(
    pool: WorkerPool, paths: tuple[str, str]
) -> None:
    before = pool.workers()
    Path(paths[0]).parent.rename(Path(paths[0]).parent.with_name("elsewhere"))

    with pytest.raises(SpoePoolError, match="No such file"):
        pool.restore_sockets()

    assert pool.workers() == before
    Path(paths[0]).parent.mkdir()
    assert pool.restore_sockets() == paths


@contextmanager
def no_file_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_a_file_nothing_can_be_started_and_later_it_can_be(pool: WorkerPool, paths: tuple[str, str]) -> None:
    os.kill(pool.workers()[0].pid, signal.SIGKILL)
    events_until(pool, lambda seen: any(isinstance(event, WorkerExited) for event in seen))
    Path(paths[1]).unlink()
    with no_file_left():
        for act in (lambda: pool.respawn(0), pool.restore_sockets, pool.respawn_zygote):
            with pytest.raises(SpoePoolError, match="Too many open files"):
                act()

    assert pool.restore_sockets() == (paths[1],)
    pool.respawn_zygote()
    pool.respawn(0)
    events_until(pool, lambda seen: any(isinstance(event, WorkerReady) and event.index == 0 for event in seen))


def test_a_worker_whose_descriptor_has_no_place_ends_and_another_is_started_when_there_is(pool: WorkerPool) -> None:
    os.kill(pool.workers()[0].pid, signal.SIGKILL)
    events_until(pool, lambda seen: any(isinstance(event, WorkerExited) for event in seen))

    pool.respawn(0)
    with no_file_left():
        seen = events_until(pool, lambda seen: any(isinstance(event, WorkerExited) for event in seen))

    assert "no file descriptor" in next(event.reason for event in seen if isinstance(event, WorkerExited))
    pool.respawn(0)
    events_until(pool, lambda seen: any(isinstance(event, WorkerReady) and event.index == 0 for event in seen))


def test_a_living_worker_is_not_started_again(pool: WorkerPool) -> None:
    with pytest.raises(SpoePoolError, match="it is ready"):
        pool.respawn(0)


def test_workers_do_not_mind_the_signals_of_a_terminal_or_a_service_manager(pool: WorkerPool) -> None:
    pids = [pool.zygote_pid, *(state.pid for state in pool.workers())]
    assert all(os.getsid(pid) != os.getsid(0) for pid in pids)
    for pid in pids:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
    assert pool.poll(0.3) == ()
    assert all(map(alive, pids))


def test_a_worker_that_does_not_drain_is_killed(pool: WorkerPool) -> None:
    pid = pool.workers()[0].pid
    os.kill(pid, signal.SIGSTOP)
    pool.close(0.2)
    assert WorkerExited(0, pid, -9) in pool.poll(0)
    assert not alive(pid)


def test_waking_ends_a_poll_in_another_thread(pool: WorkerPool) -> None:
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(pool.poll(30)))
    thread.start()
    pool.wake()
    thread.join(10)
    assert answers == [()]


def test_closing_ends_a_poll_in_another_thread(pool: WorkerPool) -> None:
    def read() -> None:
        while pool.counters():
            pool.poll(None)

    thread = threading.Thread(target=read)
    thread.start()
    pool.close(2)
    thread.join(10)
    assert not thread.is_alive()
    pool.wake()


def test_a_poll_waits_no_longer_than_asked(pool: WorkerPool) -> None:
    assert pool.poll(0) == ()
    assert not select.select([pool], [], [], 0)[0]


def test_another_kind_of_file_than_a_socket_is_not_replaced(paths: tuple[str, str]) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(paths[0])
    Path(paths[1]).write_text("precious")
    pool = WorkerPool(paths)
    with pytest.raises(SpoePoolError, match="expected a socket or nothing"):
        pool.start()
    assert Path(paths[1]).read_text() == "precious"
    assert not list(Path(paths[0]).parent.glob("*~"))
    assert pool.counters() == ()


@pytest.mark.parametrize(
    ("paths", "reason"), [(("/nowhere/at/all.sock",), "cannot listen"), (("/" + "x" * 108,), "at most 106 bytes")]
)
def test_a_socket_that_cannot_be_made_is_said(paths: tuple[str, ...], reason: str) -> None:
    with pytest.raises(SpoePoolError, match=reason):
        WorkerPool(paths).start()


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false"])
def test_an_interpreter_that_does_not_work_is_said(paths: tuple[str, str], python: str) -> None:
    with pytest.raises(SpoePoolError, match="cannot start SPOE workers"):
        WorkerPool(paths, python=python).start()
    assert not any(map(os.path.exists, paths))


@contextmanager
def killed_main(path: Path, *, policy: bool) -> Iterator[tuple[int, int]]:
    """Process ids of the zygote and the worker of a main process that was killed."""
    program = (
        "import sys, time\n"
        "from hcc.mesh.intentions import Policy\n"
        "from hcc.spoe.pool import WorkerPool\n"
        "pool = WorkerPool((sys.argv[1],))\n"
        "pool.start()\n"
        "if sys.argv[2:]: pool.set_policy(Policy('server', 'td', (), True, 1))\n"
        "while sys.argv[2:] and pool.workers()[0].policy_version != 1: pool.poll(1)\n"
        "print(pool.zygote_pid, pool.workers()[0].pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(path), *(["policy"] if policy else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as main:
        assert main.stdout is not None
        zygote, worker = (int(word) for word in main.stdout.readline().split())
        main.kill()
    try:
        yield zygote, worker
    finally:
        for pid in (zygote, worker):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def test_zygote_and_workers_without_a_policy_leave_when_the_main_process_is_killed(tmp_path: Path) -> None:
    with killed_main(tmp_path / "w.sock", policy=False) as pids:
        wait_for("the orphans are gone", lambda: not any(map(alive, pids)))


def test_a_zygote_whose_last_word_nobody_reads_ends_as_any_other(tmp_path: Path) -> None:
    listener, counters, zygote = Listener(str(tmp_path / "w.sock")), CounterMemory(1), Spawner(sys.executable)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            zygote.spawn(0, 1, (listener.sock.fileno(), theirs.fileno(), counters.fd))
            assert is_readable(zygote.fileno(), 10)
        finally:
            status = zygote.close(10)
            listener.close()
            counters.close()

    assert status == 0


def test_the_workers_of_a_killed_main_process_serve_until_those_of_its_successor_can_decide(tmp_path: Path) -> None:
    path = str(tmp_path / "w.sock")
    with killed_main(tmp_path / "w.sock", policy=True) as (zygote, worker):
        wait_for("the zygote is gone", lambda: not alive(zygote))
        place = os.lstat(path).st_ino
        successor = WorkerPool((path,))
        try:
            successor.start()
            assert os.lstat(path).st_ino == place, "it took the place before it can decide"
            assert alive(worker)
            assert accepts(path)
            successor.set_policy(LARGE)
            events_until(successor, lambda seen: PolicyApplied(0, LARGE.version) in seen)
            assert os.lstat(path).st_ino != place
            assert accepts(path)
            wait_for("the old worker is gone", lambda: not alive(worker))
        finally:
            successor.close(0)
    assert not list(tmp_path.iterdir())


def test_workers_leave_with_the_directory_of_their_socket(tmp_path: Path) -> None:
    with killed_main(tmp_path / "w.sock", policy=True) as (_, worker):
        assert alive(worker)
        (tmp_path / "w.sock").unlink()
        wait_for("the old worker is gone", lambda: not alive(worker))


def test_workers_load_nothing_heavy_and_see_no_secret(pool: WorkerPool) -> None:
    heavy = ("cryptography", "requests", "pykka", "consul", "prometheus_client", "asyncio", "ssl", "http", "logging")
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", "import sys, hcc.spoe.zygote; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert not set(heavy) & set(done.stdout.split())
    for pid in (pool.zygote_pid, pool.workers()[0].pid):
        names = {entry.split("=")[0] for entry in Path(f"/proc/{pid}/environ").read_text().split("\0") if entry}
        assert names <= {*KEPT, "PYTHONPATH"}
        assert "site-packages" not in Path(f"/proc/{pid}/maps").read_text()


def test_the_zygote_says_who_starts_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hcc.spoe.zygote"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert "--control-fd" in done.stderr
