"""Real processes with a log file, ended by pid; their logs are the evidence of a failed test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.e2e.waiting import wait_until

ROOT = Path(__file__).parents[2]
TAIL_BYTES = 12_000
_STARTED = "--- "


class Process:
    """One program writing to `log`; it stays in EVIDENCE until `forget`."""

    def __init__(self, title: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.title = title
        self._command = command
        self._env = env
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        EVIDENCE.append(self)

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.title} was not started"
        return self._process.pid

    def start(self) -> None:
        """Start it; output is appended to the log."""
        with self._log.open("ab") as log:
            log.write(f"{_STARTED}{' '.join(self._command)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, env=self._env
            )

    def status(self) -> int | None:
        """Exit code, None while it runs."""
        return self._process.poll() if self._process else 0

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(5)

    def wait(self, deadline_s: float) -> int:
        """Exit code of a process that ends by itself; DeadlineError when it does not."""
        wait_until(f"{self.title} to end", lambda: self.status() is not None, deadline_s)
        code = self.status()
        assert code is not None
        return code

    def stop(self, deadline_s: float = 10.0) -> int:
        """Exit code after SIGTERM; it is killed, and DeadlineError raised, when it does not end in time."""
        if self._process is None or self._process.poll() is not None:
            return self._process.returncode if self._process else 0
        self._process.terminate()
        try:
            return self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"{self.title} did not end within {deadline_s:g} s of SIGTERM") from None

    def end(self, deadline_s: float = 10.0) -> None:
        """End it whatever it takes, without complaint: for clearing up."""
        with contextlib.suppress(TimeoutError):
            self.stop(deadline_s)

    def log_text(self) -> str:
        """All that it wrote; without the command lines that started it, which name what a test may look for."""
        try:
            lines = self._log.read_bytes().decode(errors="replace").splitlines(keepends=True)
        except OSError as exc:
            return f"no log: {exc}"
        return "".join(line for line in lines if not line.startswith(_STARTED))

    def log_tail(self) -> str:
        """The end of it, as evidence."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, self._log.stat().st_size - TAIL_BYTES))
                return log.read().decode(errors="replace")
        except OSError as exc:
            return f"no log: {exc}"

    def forget(self) -> None:
        """Drop it from the evidence once the present test is reported."""
        OBSOLETE.append(self)


OBSOLETE: list[Process] = []
EVIDENCE: list[Process] = []
"""Processes of this test run, running or ended, whose logs explain a failure."""


def drop_obsolete() -> None:
    """Forget the processes that `Process.forget` was called for."""
    for process in OBSOLETE:
        if process in EVIDENCE:
            EVIDENCE.remove(process)
    OBSOLETE.clear()
