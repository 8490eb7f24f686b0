"""What figures depend on: processor, kernel, versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path


def machine(haproxy: str, consul: str) -> dict[str, str]:
    """Facts by name, of this machine and these two programs."""
    return {
        "haproxy": _first(r"version (\S+)", [haproxy, "-v"]),
        "openssl": _first(r"Running on OpenSSL version : (.+)", [haproxy, "-vv"]),
        "consul": _first(r"Consul v?(\S+)", [consul, "version"]),
        **versions(),
    }


def versions() -> dict[str, str]:
    """Facts by name, of this machine alone."""
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
    }


def load_average() -> float:
    """Of the last minute; when others use the machine too, rates are small and noisy."""
    return round(os.getloadavg()[0], 1)


def _first(pattern: str, command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    found = re.search(pattern, done.stdout)
    return found[1] if found else "unknown"


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()
