"""The program `ip`, with which the tests make network namespaces."""

import os
from pathlib import Path

from installer.places import cache, on_path
from installer.talk import InstallError, run_long, say

_STEP = "iproute2"


def install_ip() -> None:
    """See that `ip` is there; root on a Debian machine gets it installed.

    Raises:
        InstallError: it is missing and cannot be installed from here.
    """
    found = on_path("ip")
    if found is None:
        _install()
        found = on_path("ip")
    say(_STEP, f"{found}" + ("" if os.geteuid() == 0 else " (note: the e2e tests need root)"))


def _install() -> None:
    apt = on_path("apt-get")
    if apt is None or os.geteuid() != 0:
        raise InstallError(f"{_STEP}: the tests need the program ip; install it (Debian package: iproute2)")
    say(_STEP, "installing the Debian package iproute2")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "iproute2"]):
        log = cache() / "log" / f"apt-{arguments[0]}.log"
        command: list[str | Path] = [apt, *arguments]
        run_long(_STEP, command, log, env=environment)
