"""Processes of the demo: a log file each, watched while something is waited for, all gone at the end."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from demo.talk import Progress, StepError

_STOP_S = 10.0
_POLL_S = 0.01
_MARK = "HCC_DEMO"
# What would send the demo's programs elsewhere than to the demo's own agent, or have them do other things there.
_FOREIGN = ("CONSUL_", "CONNECT_", "HCC_")


@dataclass(frozen=True, slots=True)
class Child:
    """One program, running in a session of its own so that Ctrl-C reaches only the demo."""

    name: str
    log: Path
    process: "subprocess.Popen[bytes]"


class Children:
    """All programs of one demo; `folder` holds their logs and marks them (in their environment) as ours."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[Child] = []
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)} | {
            _MARK: str(folder),
            # So that the machine's own settings, which may be for another agent, are not read.
            "HCC_CONFIG_FILE": os.devnull,
            "PYTHONUNBUFFERED": "1",
        }

    def log(self, name: str) -> Path:
        """Where the output of the program started under that name goes."""
        return self._folder / f"{name}.log"

    def start(self, name: str, command: Sequence[str | Path]) -> None:
        """Start a program.

        Raises:
            StepError: it cannot be started.
        """
        log = self.log(name)
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    env=self._environment, start_new_session=True,
                )  # fmt: skip
            except OSError as exc:
                raise StepError(f"cannot start {command[0]}: {exc.strerror}") from exc
        self._children.append(Child(name, log, process))

    def output_of(self, command: Sequence[str | Path]) -> str:
        """What a short command printed.

        Raises:
            StepError: it cannot be run or failed.
        """
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=30, env=self._environment, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise StepError(f"cannot run {command[0]}: {exc}") from exc
        if done.returncode != 0:
            raise StepError(f"{Path(command[0]).name} failed ({done.returncode}): {done.stderr.strip()}")
        return done.stdout

    def wait(self, what: str, missing: Callable[[], str], deadline_s: float, log: Path) -> float:
        """Seconds until `missing` found nothing missing; it says what is, in a few words.

        Raises:
            StepError: the deadline passed, or some program of the demo ended meanwhile.
        """
        started = time.monotonic()
        progress = Progress(what)
        try:
            while found := missing():
                self._check_alive()
                if time.monotonic() - started > deadline_s:
                    raise StepError(f"{what}: not within {deadline_s:.0f} s, {found}", log)
                progress.show(found)
                time.sleep(_POLL_S)
        finally:
            progress.clear()
        return time.monotonic() - started

    def pause(self) -> NoReturn:
        """Wait until a signal comes.

        Raises:
            StepError: a program of the demo ended.
        """
        while True:
            self._check_alive()
            time.sleep(0.2)

    def stop(self) -> list[str]:
        """End everything, the last started first.

        Returns:
            What did not go by itself, in words; empty when all is well.
        """
        problems = []
        for child in reversed(self._children):
            problems += self._stop(child)
        # A sidecar has children of its own; if it was killed they are ended here.
        for pid, command in self._left():
            problems.append(f"process {pid} was left over and had to be killed: {command}")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._children.clear()
        return problems

    def _check_alive(self) -> None:
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                raise StepError(f"{child.name} ended unexpectedly ({_ending(code)})", child.log)

    def _stop(self, child: Child) -> list[str]:
        if child.process.poll() is not None:
            return []
        child.process.terminate()
        try:
            child.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
            return [f"{child.name} did not end within {_STOP_S:.0f} s of SIGTERM and was killed"]
        return []

    def _left(self) -> Iterator[tuple[int, str]]:
        mark = f"{_MARK}={self._folder}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                command = _read(entry / "cmdline")
                ours = mark in _read(entry / "environ").split(b"\0") or os.fsencode(self._folder) in command
                if ours and command:
                    yield int(entry.name), command.replace(b"\0", b" ").decode(errors="replace").strip()


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # gone meanwhile, or somebody else's
        return b""
