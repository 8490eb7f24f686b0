"""Programs for the tests that only the machine's own package manager brings well: `ip` and Chromium."""

import os
from pathlib import Path

from installer.places import cache, on_path
from installer.talk import InstallError, run_long, say


def from_debian(program: str, package: str) -> Path:
    """The path of `program`; root on a Debian machine gets its package installed when it is not there.

    Raises:
        InstallError: it is missing and cannot be installed from here.
    """
    found = on_path(program)
    if found is None:
        _install(program, package)
        found = on_path(program)
    if found is None:
        raise InstallError(f"{package}: the Debian package brought no {program}")
    return found


def install_ip() -> None:
    """See that the tests can make network namespaces."""
    found = from_debian("ip", "iproute2")
    say("iproute2", f"{found}" + ("" if os.geteuid() == 0 else " (note: the e2e tests need root)"))


def choose_chromium() -> Path:
    """The browser to look at the status page with: $CHROMIUM_BIN, else the one on PATH, else Debian's.

    Raises:
        InstallError: there is none.
    """
    given = os.environ.get("CHROMIUM_BIN")
    path = on_path(given) if given else from_debian("chromium", "chromium")
    if path is None:
        raise InstallError(f"chromium: $CHROMIUM_BIN names {given}, which is not there")
    say("chromium", str(path))
    return path


def _install(program: str, package: str) -> None:
    apt = on_path("apt-get")
    if apt is None or os.geteuid() != 0:
        raise InstallError(f"{package}: the tests need the program {program}; install it (Debian package: {package})")
    say(package, f"installing the Debian package {package}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", package]):
        log = cache() / "log" / f"apt-{arguments[0]}.log"
        command: list[str | Path] = [apt, *arguments]
        run_long(package, command, log, env=environment)
