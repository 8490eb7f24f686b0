"""One Data Plane API as a child of ours: launched, watched, stopped. A left-over of an earlier hcc is replaced."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time

from hcc.children import child_environment
from hcc.haproxy.control import ControlError
from hcc.haproxy.dataplane_program import DataplaneProgram, command_line, looked_at_again, python_path
from hcc.haproxy.dataplane_text import USER, version_of, versioned, with_user
from hcc.haproxy.files import PRIVATE_FILE, private_directory, read_text, remove, write_private
from hcc.haproxy.layout import Layout
from hcc.haproxy.process import Exit, has_ended, record_pid, recorded_pid, start_time, trim_log, watched
from hcc.mesh.secret import Secret

STOP_TIMEOUT_S = 3.0


def own_password(layout: Layout) -> Secret:
    """The password by which we log in, made once for a state directory."""
    found = (read_text(layout.dataplane_password) or "").strip()
    if not found:
        found = secrets.token_hex(16)
        write_private(layout.dataplane_password, found)
    return Secret(found)


class DataplaneProcess:
    """The Data Plane API of one layout; at most one at a time."""

    def __init__(self, program: DataplaneProgram, haproxy: str, layout: Layout, password: Secret) -> None:
        self._program = program
        self._haproxy = haproxy
        self._layout = layout
        self._password = password
        self._child: subprocess.Popen[bytes] | None = None
        self._pidfd = -1

    @property
    def pid(self) -> int:
        """0 when there is none."""
        return self._child.pid if self._child else 0

    def fileno(self) -> int:
        """A descriptor that becomes readable when it dies; -1 when there is none."""
        return self._pidfd

    def launch(self) -> int:
        """Start it; gives its process id at once, before it answers.

        Raises:
            ControlError: it cannot be run, or runs already.
        """
        if self.pid:
            raise ControlError(f"expected no Data Plane API to run, found process {self.pid}")
        end_left_over(self._layout)
        self._program = looked_at_again(self._program)
        try:
            self._prepare()
            child = self._spawn()
            self._pidfd = watched(child)
        except OSError as exc:
            raise ControlError(f"cannot run {self._program.binary}: {exc}") from exc
        self._child = child
        record_pid(self._layout.dataplane_pid_file, self.pid)
        return self.pid

    def answers(self, timeout_s: float) -> bool:
        """Whether it says anything at all when asked."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(timeout_s)
            try:
                client.connect(self._layout.dataplane_socket)
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return bool(client.recv(1))
            except OSError:
                return False

    def trim_log(self) -> None:
        """Keep its log file from growing without limit."""
        trim_log(self._layout.dataplane_log)

    def kill(self) -> None:
        """End it at once; its death is seen as any other."""
        if self._child is not None:
            self._child.kill()

    def reap(self) -> Exit | None:
        """How it ended, None while it lives or there is none; then `launch` may be called again."""
        if self._child is None or self._child.poll() is None:
            return None
        ended = Exit(self._child.pid, self._child.returncode)
        os.close(self._pidfd)
        self._child, self._pidfd = None, -1
        remove(self._layout.dataplane_pid_file, self._layout.dataplane_socket)
        return ended

    def stop(self) -> None:
        """End it; returns when it is gone."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self.reap()

    def _prepare(self) -> None:
        """An empty directory, no stale socket, and a file that it can log us in by."""
        layout = self._layout
        shutil.rmtree(layout.dataplane_directory, ignore_errors=True)
        private_directory(layout.dataplane_directory)
        remove(layout.dataplane_socket)
        trim_log(layout.dataplane_log)
        config = read_text(layout.config)
        if config is None:
            config = f"global\n  stats socket {layout.stats_socket} mode 600 level admin\n"
        if f"user {USER} insecure-password {self._password.reveal()}\n" not in config:
            write_private(layout.config, versioned(with_user(config, self._password.reveal()), version_of(config)))

    def _spawn(self) -> subprocess.Popen[bytes]:
        layout = self._layout
        log = os.open(layout.dataplane_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            return subprocess.Popen(
                command_line(self._program, self._haproxy, layout),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=layout.dataplane_directory,
                env=child_environment(PYTHONPATH=python_path()),
                start_new_session=True,
                umask=0o077,
            )
        finally:
            os.close(log)


def is_starting(layout: Layout, within_s: float) -> bool:
    """Whether a Data Plane API runs that was launched within that time."""
    pid = recorded_pid(layout.dataplane_pid_file)
    if pid is None:
        return False
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - start_time(pid) / os.sysconf("SC_CLK_TCK")
    return age_s < within_s


def end_left_over(layout: Layout) -> None:
    """Kill the Data Plane API that an earlier hcc, killed itself, left behind."""
    pid = recorded_pid(layout.dataplane_pid_file)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            # The id was free for another between reading the file and opening the process.
            if recorded_pid(layout.dataplane_pid_file) == pid:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                has_ended(descriptor, STOP_TIMEOUT_S)
        finally:
            os.close(descriptor)
    remove(layout.dataplane_pid_file)
