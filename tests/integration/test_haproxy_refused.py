"""`hcc run` with a HAProxy that cannot serve, or that nobody knows yet: a script that says so of itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.haproxy_stage import DEADLINE_S
from tests.ports import free_port

pytestmark = pytest.mark.integration

CAPTURED = Path(__file__).parents[1] / "unit/haproxy/captured/haproxy-3.4-vv.txt"


def program(directory: Path, *changes: tuple[str, str]) -> Path:
    """A program that answers `-vv` with what 3.4 says, changed."""
    text = CAPTURED.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (directory / "vv.txt").write_text(text)
    script = directory / "haproxy"
    script.write_text(f'#!/bin/sh\n[ "$1" = -vv ] && exec cat {directory}/vv.txt\nexit 1\n')
    script.chmod(0o700)
    return script


def command(script: Path, directory: Path) -> list[str]:
    where = ["--http-addr", f"127.0.0.1:{free_port()}", "--state-dir", str(directory / "state")]
    return [sys.executable, "-m", "hcc", "run", "--sidecar-for", "web", "--haproxy", str(script), *where]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([("HAProxy version 3.4.7-1", "HA-Proxy version 1.9.16")], "found 1.9.16, too old (without HTTP/2"),
        ([("+OPENSSL ", "-OPENSSL ")], "built without OpenSSL (USE_OPENSSL)"),
        ([("[SPOE] spoe", "")], "built without the SPOE filter"),
        ([("HAProxy version", "nginx version")], "is no HAProxy"),
    ],
)
def test_a_haproxy_that_cannot_serve_is_refused_in_one_line_that_names_what_is_missing(
    tmp_path: Path, changes: list[tuple[str, str]], said: str
) -> None:
    done = subprocess.run(
        command(program(tmp_path, *changes), tmp_path), capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert not (tmp_path / "state").exists()


@pytest.fixture
def unknown(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    script = program(tmp_path, ("HAProxy version 3.4.7-1", "HAProxy version 9.1-dev3"))
    with subprocess.Popen(command(script, tmp_path), stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_newer_haproxy_than_known_is_used_and_one_line_says_so(unknown: subprocess.Popen[str]) -> None:
    assert unknown.stderr is not None
    lines = [unknown.stderr.readline() for _ in range(3)]
    unknown.terminate()
    lines += unknown.communicate(timeout=DEADLINE_S)[1].splitlines()
    found = [line for line in lines if "9.1-dev3 is newer than what this hcc knows, it is treated like 3.4" in line]
    assert len(found) == 1
