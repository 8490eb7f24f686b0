"""The main process's end of the zygote: starts it, asks it for workers, hears of their ends."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hcc.children import child_environment
from hcc.errors import HccError
from hcc.spoe.zygote import PACKET_BYTES

# Where this very package lives; workers need it and the standard library, nothing from site-packages.
_ROOT = str(Path(__file__).resolve().parent.parent.parent)


class SpawnError(HccError):
    """The zygote cannot be started, or is gone."""


@dataclass(frozen=True, slots=True)
class Forked:
    """A worker has a process; `pidfd` belongs to the receiver."""

    index: int
    start: int
    pid: int
    pidfd: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker's process has ended."""

    index: int
    start: int
    pid: int
    status: int


@dataclass(frozen=True, slots=True)
class NotForked:
    """A worker could not be started."""

    index: int
    start: int
    reason: str


Report = Forked | Ended | NotForked


class Spawner:
    """One zygote process, from its start to its end.

    Args:
        python: the interpreter to run it with.

    Raises:
        SpawnError: the interpreter cannot be run, or there is no file left.
    """

    def __init__(self, python: str) -> None:
        self.ended = False
        try:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as exc:
            raise SpawnError(f"cannot talk to a zygote of SPOE workers: {exc.strerror}") from exc
        try:
            # -S, -P: nothing but the standard library and PYTHONPATH can be imported.
            self._process = subprocess.Popen(
                [python, "-S", "-P", "-m", "hcc.spoe.zygote", "--control-fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=child_environment(PYTHONPATH=_ROOT),
            )
        except OSError as exc:
            self._control.close()
            raise SpawnError(f"cannot run {python!r} for SPOE workers: {exc.strerror}") from exc
        finally:
            theirs.close()
        self._control.setblocking(False)

    @property
    def pid(self) -> int:
        """Of the zygote."""
        return self._process.pid

    def fileno(self) -> int:
        return self._control.fileno()

    def spawn(self, index: int, start: int, descriptors: Sequence[int]) -> None:
        """Ask for a worker; the answer comes by `receive`.

        Args:
            index: of the worker.
            start: how often it was started, to tell its processes apart.
            descriptors: control socket, counters, its listener, and those of the other workers.

        Raises:
            SpawnError: the zygote is gone, or does not read.
        """
        request = json.dumps({"index": index, "start": start}).encode("ascii")
        try:
            socket.send_fds(self._control, [request], descriptors)
        except OSError as exc:
            raise SpawnError(f"cannot start SPOE worker {index + 1}: the zygote is gone ({exc.strerror})") from exc

    def receive(self) -> list[Report]:
        """What has come; `ended` is set when the zygote is gone."""
        reports: list[Report] = []
        while not self.ended:
            try:
                packet, descriptors, _, _ = socket.recv_fds(self._control, PACKET_BYTES, 1)
            except BlockingIOError:
                break
            except OSError:
                packet, descriptors = b"", []
            if packet:
                reports.append(_report(json.loads(packet), descriptors))
            else:
                self.ended = True
        return reports

    def kill(self) -> None:
        """End the zygote at once; `receive` then sees it."""
        self._process.kill()

    def close(self, timeout_s: float) -> int:
        """End the zygote, by force after this long; its exit status."""
        self.ended = True
        self._control.close()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _report(fields: dict[str, Any], descriptors: list[int]) -> Report:
    index, start = fields["index"], fields["start"]
    if "reason" in fields:
        return NotForked(index, start, fields["reason"])
    if "status" in fields:
        return Ended(index, start, fields["pid"], fields["status"])
    if not descriptors:
        # The kernel drops what has no place here. Nobody would see the worker's death: it is not taken, and exits.
        return NotForked(index, start, "there is no file descriptor left to watch its process by")
    return Forked(index, start, fields["pid"], descriptors[0])
