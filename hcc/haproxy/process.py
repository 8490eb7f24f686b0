"""One HAProxy master with its workers as an operating-system process: launched, adopted, watched, stopped.

Its standard error goes to a file, never to a pipe: HAProxy outlives hcc. One owner thread calls this;
`fileno` may be waited on in another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from hcc.children import child_environment
from hcc.haproxy.capabilities import version_in
from hcc.haproxy.control import ControlError
from hcc.haproxy.files import PRIVATE_FILE, read_since, read_text, remove, size_of, write_private
from hcc.haproxy.layout import Layout
from hcc.haproxy.names import AGENTS, APP, PUBLIC, TOKEN_AGENT
from hcc.haproxy.replies import Activity, Info, Message, ReplyError, alerts, count_streams, parse_activity
from hcc.haproxy.runtime import (
    MasterSocket,
    NotListeningError,
    RuntimeSocket,
    RuntimeSocketError,
    SilentError,
    lives,
)

MAX_LOG_BYTES = 1024 * 1024
POLL_S = 0.005
ANSWER_TIMEOUT_S = 2.0
# For the answers of all workers.
ANSWERS_TIMEOUT_S = 5.0
# So begins the answer about a proxy, or a frontend, that a worker does not have.
NO_PROXY = "No such proxy"
NO_FRONTEND = "No such frontend"
KILL_TIMEOUT_S = 5.0
# What `Look.silent` says of a HAProxy that cannot be asked at all.
LOST = "sockets"

_log = logging.getLogger(__name__)


class LaunchError(ControlError):
    """HAProxy did not start, or not with what was wanted; the message holds what it said."""


class NotReadyError(LaunchError):
    """It lives, and does not answer yet."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at its processes found.

    Args:
        silent: which of them takes a question and does not answer in time: `worker`, `master`, or empty for none.
            Where the master lives and neither listens it is `LOST`: in a reload one does, so their files were removed.
        worker: process id of the worker that answered, 0 for none.
        version: of that worker, such as `2.6.12`; the program may be another one by now.
    """

    silent: str = ""
    worker: int = 0
    version: str = ""


class Closing(Enum):
    """What became of the public listener that was to be closed."""

    CLOSED = "closed"
    WAS_CLOSED = "was closed before"
    ABSENT = "there is none"
    UNKNOWN = "HAProxy does not say"


@dataclass(frozen=True, slots=True)
class Exit:
    """How the master ended: its exit code, negative for a signal, None when it was not our child."""

    pid: int
    status: int | None


class HAProxyProcess:
    """The HAProxy of one layout; at most one at a time.

    Args:
        shares_stdout: it writes to our standard output (its access log) instead of its log file.
    """

    def __init__(self, binary: str, layout: Layout, *, shares_stdout: bool = False) -> None:
        self._shares_stdout = shares_stdout
        self._binary = binary
        self._layout = layout
        # While it starts its master would let us wait.
        self._starting_worker = RuntimeSocket(layout.stats_socket, timeout_s=ANSWER_TIMEOUT_S)
        self._child: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._pidfd = -1
        self._starting = False
        # Where in its log what it says begins.
        self._logged = 0

    @property
    def pid(self) -> int:
        """Of the master, 0 when there is none."""
        return self._pid

    @property
    def starting(self) -> bool:
        """Whether it was launched, maybe by an earlier hcc, and `wait_ready` has not seen it ready since."""
        return self._starting

    def fileno(self) -> int:
        """A descriptor that becomes readable when the master dies; -1 when there is no master."""
        return self._pidfd

    def launch(self) -> int:
        """Start the master with the configuration on disk; gives its process id at once (see `wait_ready`).

        Raises:
            LaunchError: the program cannot be run, or a master runs already.
        """
        if self._pid:
            raise LaunchError(f"expected no HAProxy to run, found process {self._pid}")
        remove(self._layout.master_socket, self._layout.stats_socket)
        trim_log(self._layout.log)
        self._logged = size_of(self._layout.log)
        try:
            child = self._spawn()
            self._pidfd = watched(child)
        except OSError as exc:
            raise LaunchError(f"cannot run {self._binary}: {exc}") from exc
        self._child, self._pid, self._starting = child, child.pid, True
        record_pid(self._layout.pid_file, self._pid)
        return self._pid

    def adopt(self) -> int | None:
        """Take over the master that an earlier hcc left running; its process id, None when there is none.

        It may not answer: up to 3.0 it listens no more while it loads its configuration, for a start or a reload, and
        that takes as long as it takes. Whoever looks after it sees whether it hangs. What outlives one that is gone is
        killed.
        """
        master = master_pid(self._layout.master_socket) or self._recorded() or self._unrecorded()
        if master is None:
            end_session(_noted(self._layout.pid_file)[0], self._layout.config)
            return None
        self._take(master)
        # One that loads for the first time has no worker.
        self._starting = not children(master)
        record_pid(self._layout.pid_file, master)
        return master

    def wait_ready(self, structure: str = "", timeout_s: float = 30.0) -> int:
        """The worker's process id, once it answers and runs the structure of that digest (any, when empty).

        Raises:
            LaunchError: the master died; with HAProxy's alerts.
            NotReadyError: the deadline passed.
        """
        deadline = time.monotonic() + timeout_s
        pause = POLL_S
        while True:
            worker = self._ready_worker(structure)
            if worker:
                self._starting = False
                return worker
            if not self.alive():
                raise LaunchError(self._complaint("HAProxy ended at once"))
            if time.monotonic() > deadline:
                raise NotReadyError(self._complaint(f"HAProxy was not ready within {timeout_s:g} s"))
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)

    def alive(self) -> bool:
        """Whether the master lives."""
        if self._child is not None:
            return self._child.poll() is None
        return self._pidfd >= 0 and not has_ended(self._pidfd)

    def look(self, timeout_s: float) -> Look:
        """See whether its processes answer.

        One that does not listen just now, or breaks off, is not silent: it starts, stops, or reloads.
        """
        worker, master = self._worker(timeout_s), MasterSocket(self._layout.master_socket, timeout_s)
        pid, version, listening = 0, "", False
        for name, ask in (("worker", worker.info), ("master", master.processes)):
            try:
                answer = ask()
            except SilentError:
                return Look(name, pid, version)
            except NotListeningError:
                continue
            except (RuntimeSocketError, ReplyError):
                pass
            else:
                if isinstance(answer, Info):
                    pid, version = answer.pid, str(version_in(answer.version) or answer.version)
            listening = True
        return Look("" if listening or not self.alive() else LOST, pid, version)

    def reap(self) -> Exit | None:
        """How the master ended, None while it lives or there is none; then `launch` may be called again."""
        if not self._pid or self.alive():
            return None
        ended = Exit(self._pid, self._child.returncode if self._child else None)
        self.forget()
        return ended

    def close_public(self, timeout_s: float = ANSWER_TIMEOUT_S) -> Closing:
        """Close the public listener alone, until a reload. Open connections go on.

        From 2.6 on the kernel goes on accepting for one that was shut, and nobody answers there; one that was disabled
        before refuses (tried on 2.2 to 3.4). Both go on one line, so that nobody finds it disabled and enables it.
        """
        try:
            answer = self._worker(timeout_s).send(f"disable frontend {PUBLIC}", f"shutdown frontend {PUBLIC}")
        except RuntimeSocketError:
            return Closing.UNKNOWN
        # Each answers with an empty line, or with words and one when there is no such frontend, or it is closed. The
        # second counts: somebody may have disabled it before.
        lines = answer.splitlines()
        if lines[-2:] == ["", ""]:
            return Closing.CLOSED
        if not any(lines):
            # Broken off.
            return Closing.UNKNOWN
        return Closing.ABSENT if lines[0].startswith(NO_FRONTEND) else Closing.WAS_CLOSED

    def requests_in_flight(self, timeout_s: float = ANSWERS_TIMEOUT_S) -> int | None:
        """Requests that callers wait for (connections, for tcp), in all workers; None when HAProxy does not say.

        What began before a reload goes on in the worker of then.
        """
        if not self._pid:
            return 0
        end_s = time.monotonic() + timeout_s
        try:
            workers = self._master(end_s).processes().workers
            # A master that starts anew, as in a reload, may know of none.
            return sum(self._in_flight_of(worker.pid, end_s) for worker in workers) if workers else None
        except NotListeningError:
            return self._in_flight_of_the_only_one(end_s)
        except (RuntimeSocketError, ReplyError):
            return None

    def activity(self, timeout_s: float = ANSWERS_TIMEOUT_S) -> Activity | None:
        """What all workers do for callers and applications, also when they stop; None when HAProxy does not say.

        Some versions list no backend any more as soon as they stop (2.2 does so).
        """
        end_s = time.monotonic() + timeout_s
        asked_by_haproxy = (AGENTS, TOKEN_AGENT)
        total = Activity()
        try:
            for worker in self._master(end_s).processes().workers:
                listed = parse_activity(self._master(end_s).of_worker(worker.pid, "show stat -1 2 -1"))
                counted = [one for name, one in listed.items() if name not in asked_by_haproxy]
                if not counted:
                    return None
                total = sum(counted, start=total)
        except (RuntimeSocketError, ReplyError):
            return None
        return total

    def stop_gracefully(self) -> None:
        """Stop listening, let every connection finish, then end (`hard-stop-after` bounds it).

        A master that loads a reload ignores it (2.2 to 3.4). Not to be said again before `goes_on`: a worker that was
        just forked, or is about to end, dies of the signal, and on 2.2, 3.2 and 3.4 all others with it.
        """
        self._signal(signal.SIGUSR1)

    def goes_on(self, timeout_s: float = ANSWER_TIMEOUT_S) -> bool:
        """Whether a worker serves that was not told to stop, and no reload is under way; not where nobody says."""
        end_s = time.monotonic() + timeout_s
        try:
            info = self._worker(timeout_s).info()
            return not info.stopping and self._master(end_s).processes().current == info.pid
        except (RuntimeSocketError, ReplyError):
            return False

    def terminate(self) -> None:
        """End now; connections are cut."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the master and all its workers, whatever they do; returns when the master is gone."""
        workers = children(self._pid)
        self._signal(signal.SIGKILL)
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        self._wait(KILL_TIMEOUT_S)

    def release(self) -> None:
        """Leave the master running, for a later hcc to adopt; this object forgets it."""
        if self._child is not None:
            # Tells subprocess that nobody will wait for it here.
            self._child.returncode = 0
        self._forget_process()

    def forget(self) -> None:
        """Remove what a dead master leaves: its workers, sockets and pid file."""
        end_session(self._pid, self._layout.config)
        remove(self._layout.pid_file, self._layout.master_socket, self._layout.stats_socket)
        self._forget_process()

    def keep_record(self) -> None:
        """Have the master noted for the next hcc again, where somebody removed the pid file."""
        # That there is no room was told when it was first noted; nor may there be a descriptor to look with.
        with contextlib.suppress(OSError):
            # One that names a process is another hcc's, which was started after somebody removed the directory.
            if self._pid and recorded_pid(self._layout.pid_file) is None:
                _note(self._layout.pid_file, self._pid)

    def trim_log(self) -> None:
        """Keep its log file from growing without limit."""
        trim_log(self._layout.log)

    def access_log_is_in_file(self) -> bool:
        """Whether what it is to write to our standard output goes to its log file: an earlier hcc started it so."""
        try:
            return self._shares_stdout and Path(f"/proc/{self._pid}/fd/1").samefile(self._layout.log)
        except OSError:
            return False

    def messages(self) -> tuple[Message, ...]:
        """The alerts in HAProxy's log since its start; of one that was adopted, all that are there."""
        return alerts(read_since(self._layout.log, self._logged))

    def _worker(self, timeout_s: float) -> RuntimeSocket:
        return RuntimeSocket(self._layout.stats_socket, timeout_s=timeout_s, master=self._layout.master_socket)

    def _master(self, end_s: float) -> MasterSocket:
        """To ask one thing that has to be answered by then, and soon."""
        left_s = end_s - time.monotonic()
        return MasterSocket(self._layout.master_socket, max(min(left_s, ANSWER_TIMEOUT_S), POLL_S))

    def _in_flight_of(self, worker: int, end_s: float) -> int:
        """Of one worker; 0 of one that ends meanwhile."""

        def ask(command: str) -> str:
            answer = self._master(end_s).of_worker(worker, command)
            if not answer and lives(worker):
                raise RuntimeSocketError(f"the master passed no answer of worker {worker} on")
            return answer

        try:
            return _in_flight(ask)
        except (RuntimeSocketError, ReplyError):
            if lives(worker):
                raise
            return 0

    def _in_flight_of_the_only_one(self, end_s: float) -> int | None:
        """What the worker says on its own socket, for want of the master's; None if there is another one."""
        try:
            count = _in_flight(self._worker(max(min(end_s - time.monotonic(), ANSWER_TIMEOUT_S), POLL_S)).send)
        except (RuntimeSocketError, ReplyError):
            return None
        return count if has_one_worker(self._pid) else None

    def _spawn(self) -> subprocess.Popen[bytes]:
        layout = self._layout
        log = os.open(layout.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            return subprocess.Popen(
                [self._binary, "-W", "-S", f"{layout.master_socket},mode,600", "-f", layout.config],
                stdin=subprocess.DEVNULL,
                stdout=None if self._shares_stdout else log,
                stderr=log,
                cwd=layout.directory,
                env=child_environment(),
                start_new_session=True,
            )
        finally:
            os.close(log)

    def _take(self, pid: int) -> None:
        self._pidfd = os.pidfd_open(pid)
        self._pid = pid

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.alive() and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def _recorded(self) -> int | None:
        """The master of the pid file; one that has ended and waits for its parent is none."""
        recorded = recorded_pid(self._layout.pid_file)
        return recorded if recorded is not None and lives(recorded) else None

    def _unrecorded(self) -> int | None:
        """The master that works in our directory with our configuration, where somebody removed the pid file."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # It is for our user alone, and in another container another one may have its name.
                if os.getsid(int(process.name)) == int(process.name) and (process / "cwd").samefile(
                    self._layout.directory
                ):
                    words = (process / "cmdline").read_bytes().split(b"\0")
                    if b"-W" in words and self._layout.config.encode() in words:
                        return int(process.name)
        return None

    def _ready_worker(self, structure: str) -> int:
        try:
            info = self._starting_worker.info()
        except RuntimeSocketError:
            return 0
        ready = not structure or info.structure == structure
        # The master starts anew once its first worker runs, and cannot be asked for a moment.
        return info.pid if ready and master_pid(self._layout.master_socket) == self._pid else 0

    def _complaint(self, what: str) -> str:
        said = "; ".join(str(message) for message in self.messages()[:3])
        return f"{what}: {said or 'it said nothing'}"

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _forget_process(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._child, self._pid, self._pidfd, self._starting = None, 0, -1, False


def _in_flight(ask: Callable[[str], str]) -> int:
    """Requests that callers wait for, of the worker that is asked so."""
    listed = ask(f"show stat {APP} 2 -1")
    if listed.startswith(NO_PROXY):
        return 0
    found = parse_activity(listed)
    # A worker of 2.2 that stops lists none, but what it still does: connections that are merely kept are not among it.
    return found[APP].now if APP in found else count_streams(ask("show sess"), APP)


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot, which tells a recycled id apart; 0 when gone.

    Source: proc(5), /proc/pid/stat field 22.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return int(stat.rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def record_pid(pid_file: str, pid: int) -> None:
    """Note a process for the next hcc. A full disk is no reason to stop it: as long as it answers, it is found so."""
    try:
        _note(pid_file, pid)
    except OSError as exc:
        _log.warning("process %d cannot be noted in %s: %s", pid, pid_file, exc.strerror)


def recorded_pid(pid_file: str) -> int | None:
    """The process that a pid file names, when it is still the one that was recorded."""
    pid, started = _noted(pid_file)
    return pid if started and start_time(pid) == started else None


def running_program(pid_file: str) -> str:
    """The path by which the recorded master starts anew in a reload, whatever `--haproxy` says; empty without one."""
    pid = recorded_pid(pid_file)
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes() if pid else b""
    except OSError:
        return ""
    return os.fsdecode(words.partition(b"\0")[0])


def lost_program(pid_file: str) -> str:
    """That path, where nobody can start it any more; empty where it can be started, and without a recorded master."""
    path = running_program(pid_file)
    return path if path and not os.access(path, os.X_OK) else ""


def most_descriptors(pid_file: str) -> int:
    """How many file descriptors the recorded master may have, whoever reloads it; 0 for any number, or without one."""
    pid = recorded_pid(pid_file)
    try:
        # Not of 0, which is ourselves.
        _, hard_limit = resource.prlimit(pid, resource.RLIMIT_NOFILE) if pid else (0, 0)
    except OSError:
        return 0
    return 0 if hard_limit == resource.RLIM_INFINITY else hard_limit


def _note(pid_file: str, pid: int) -> None:
    write_private(pid_file, f"{pid} {start_time(pid)}\n")


def _noted(pid_file: str) -> tuple[int, int]:
    """Process id and start time, as `_note` wrote them; both 0 when there is none."""
    words = (read_text(pid_file) or "").split()
    if len(words) != 2 or not all(word.isdigit() for word in words):  # noqa: PLR2004 - id and start time
        return 0, 0
    return int(words[0]), int(words[1])


def end_session(master: int, config: str) -> None:
    """Kill what is left of a master that is gone, and wait until it is gone, too.

    A worker ends with its master, but not one that hangs: it would keep its share of every port (SO_REUSEPORT), and
    those whom the kernel gives to it wait for ever. They are known by their session, whose number nobody else gets as
    long as one of them lives, and by the configuration that they were started with.
    """
    ending: list[int] = []
    for pid in _session(master, config):
        with contextlib.suppress(ProcessLookupError):
            ending.append(os.pidfd_open(pid))
            signal.pidfd_send_signal(ending[-1], signal.SIGKILL)
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while not all(has_ended(one) for one in ending) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for one in ending:
        # As PID 1 of a container we are the parent of whoever lost its own: nobody else would take it from the kernel.
        with contextlib.suppress(OSError):
            os.waitid(os.P_PIDFD, one, os.WEXITED | os.WNOHANG)
        os.close(one)


def _session(master: int, config: str) -> Iterator[int]:
    if not master:
        return
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        with contextlib.suppress(OSError):
            if os.getsid(pid) == master:
                words = (process / "cmdline").read_bytes().split(b"\0")
                # One that is ending has no words any more, but still its sockets.
                if config.encode() in words or not words[0]:
                    yield pid


def master_pid(master_socket: str) -> int | None:
    """The process that listens on a master socket, as the kernel knows it; None when nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(2.0)
        try:
            client.connect(master_socket)
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return None
    pid, _, _ = struct.unpack("3i", credentials)
    return int(pid) or None


def children(pid: int) -> tuple[int, ...]:
    """Process ids of the children of a process."""
    return tuple(_child_pids(pid))


def has_one_worker(master: int) -> bool:
    """Whether a master has one worker, so that none stops after a reload; the kernel says, whoever listens."""
    return len(children(master)) == 1


def trim_log(path: str, limit_bytes: int = MAX_LOG_BYTES) -> None:
    """Empty a log that has grown beyond the limit; its writer appends, so it goes on at the new start."""
    # One that cannot be is no reason to do without its writer.
    with contextlib.suppress(OSError):
        if Path(path).stat().st_size > limit_bytes:
            os.truncate(path, 0)


def _child_pids(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            yield from (int(word) for word in (thread / "children").read_text(encoding="ascii").split())


def watched(child: subprocess.Popen[bytes]) -> int:
    """The pidfd of a child that was just started.

    Raises:
        OSError: no descriptor is left. The child is ended: nobody would see its death, or know that it runs.
    """
    try:
        return os.pidfd_open(child.pid)
    except OSError:
        child.kill()
        child.wait()
        raise


def has_ended(pidfd: int, timeout_s: float = 0.0) -> bool:
    """Whether the process of a pidfd ends within this time."""
    # Not select(), which takes no descriptor beyond 1023: hcc has more where there are very many upstreams.
    one = select.poll()
    one.register(pidfd, select.POLLIN)
    return bool(one.poll(timeout_s * 1000))
