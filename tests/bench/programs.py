"""Programs that a bench starts, each with a log; all of them end with the bench."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

START_S = 10.0
STOP_S = 10.0
POLL_S = 0.001
_FOREIGN = ("CONSUL_", "CONNECT_")


class Program:
    """A running program; leaving its context ends it."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        with self.log.open("ab") as output:
            # A session each: Linux shares a processor among sessions (autogroup), so that programs which share one
            # wake each other cheaper than those which do not. hcc gives HAProxy its own, and so does every host.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Nothing, while it runs."""
        code = self._process.poll()
        assert code is None, f"{self.name} ended with {code}:\n{self.log.read_text()[-2000:]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            print(f"warning: {self.name} did not end within {STOP_S:g} s of SIGTERM and was killed")


def started(name: str, command: Sequence[str], folder: Path, port: int) -> Program:
    """The program, listening on its port of 127.0.0.1."""
    program = Program(name, command, folder)
    with ExitStack() as stack:
        stack.push(program)
        end = time.monotonic() + START_S
        while not _listens(port):
            program.check()
            assert time.monotonic() < end, f"{name} does not listen on {port} after {START_S:g} s"
            time.sleep(POLL_S)
        stack.pop_all()
    return program


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
