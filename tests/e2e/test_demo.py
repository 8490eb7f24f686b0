"""`make demo` as a stranger sees it: the whole story, taken ports, failure, and nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests import binaries
from tests.e2e.processes import ROOT
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e

WHOLE_S = 60.0
REFUSED = "the connection was closed without an answer"
# Tells its version and its flags, but runs no agent.
CANNOT_START = """#!/bin/sh
[ "$1" = version ] && exec echo Consul v0
[ "$*" = "agent -help" ] && exec echo "-dns-port=<int>"
echo "no can do" >&2
exit 3
"""


class Demo:
    """One run of deploy/demo/run; `folder` is its TMPDIR, by which its processes are known, too."""

    def __init__(self, folder: Path, *flags: str, **environment: str) -> None:
        self.folder = folder
        self._output = folder / "output"
        programs = {"CONSUL_BIN": binaries.consul(), "HAPROXY_BIN": binaries.haproxy_2_8()}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "deploy" / "demo" / "run", *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **programs, **environment, "TMPDIR": str(folder)},
            )

    def text(self) -> str:
        return self._output.read_text()

    def end(self) -> int:
        try:
            return self.process.wait(WHOLE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the demo did not end within {WHOLE_S:g} s; its output:\n{self.text()}")

    def says(self, words: str) -> bool:
        code = self.process.poll()
        assert code is None, f"ended with {code}:\n{self.text()}"
        return words in self.text()

    def left(self) -> list[str]:
        """What it did not clean up: processes and files."""
        files = [str(path) for path in self.folder.iterdir() if path != self._output]
        return [*processes_with(f"TMPDIR={self.folder}"), *files]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            self.process.kill()
            self.process.wait()


@pytest.fixture
def folder() -> Iterator[Path]:
    # Short, as unix sockets must fit into 107 bytes.
    path = Path(tempfile.mkdtemp(prefix="hcc-td-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def run(closing: ExitStack, folder: Path, *flags: str, **environment: str) -> Demo:
    demo = Demo(folder, *flags, **environment)
    closing.callback(demo.close)
    return demo


@pytest.mark.parametrize("consul_line", [binaries.CONSUL_LINES[0], binaries.CONSUL_LINES[-1]])
def test_the_demo_shows_success_refusal_success_and_leaves_nothing_behind(
    closing: ExitStack, folder: Path, consul_line: str
) -> None:
    demo = run(closing, folder, CONSUL_BIN=binaries.consul(consul_line))
    code, text = demo.end(), demo.text()
    assert code == 0, text
    answers = re.findall(rf"This is request number (\d+)|({REFUSED})", text)
    # The test server never hears of what was refused: its count goes on where it was.
    assert [bool(number) for number, _ in answers] == [True, False, True], text
    late = re.search(r"the refusal came after \d+ ms, to request (\d+)", text)
    before = int(late[1]) - 1 if late else 0
    first, last = (int(number) for number, _ in answers if number)
    # Of those before it the last one may have been cut on its way there.
    assert last - first - 1 in (before, max(before - 1, 0)), text
    assert "warning" not in text
    assert demo.left() == []


def test_the_demo_shows_the_registrations_the_commands_and_what_is_inside(closing: ExitStack, folder: Path) -> None:
    # What is set for hcc on the machine that it is shown on is none of its settings.
    demo = run(closing, folder, HCC_SSL="true", HCC_CONTROL="dataplane", HCC_CONFIG_FILE="/nonexistent")
    code, text = demo.end(), demo.text()
    assert code == 0, text
    for words in (
        '"destination_name": "server"',
        "$ hcc run --sidecar-for server",
        "$ haproxy-consul-connect -sidecar-for client -log-level debug",
        "ConfigReconciler",
        "| hcc_ready 1",
        "denied: source=client",
        "/metrics",
        "/health",
        "/ready",
    ):
        assert words in text


def test_a_taken_port_is_named_and_another_one_used(closing: ExitStack, folder: Path) -> None:
    for port in (8181, 8500, 9191, 20000, 21000):
        taken = closing.enter_context(socket.socket())
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # then somebody else has it, which serves as well
            taken.bind(("127.0.0.1", port))
            taken.listen()
    demo = run(closing, folder)
    code, text = demo.end(), demo.text()
    assert code == 0, text
    for port in (8181, 8500, 9191, 20000, 21000):
        assert re.search(rf"Port {port} \(.+\) is taken: using (?!{port})\d+ instead\.", text), text
    assert demo.left() == []


def test_keep_leaves_it_running_until_ctrl_c(closing: ExitStack, folder: Path) -> None:
    demo = run(closing, folder, "--keep")
    wait_until("the demo to stay up", lambda: demo.says("Your turn"), WHOLE_S)
    url = re.findall(r"curl (http://127.0.0.1:\d+/)\n", demo.text())[-1]
    assert "Hello!" in urllib.request.urlopen(url, timeout=5).read().decode()
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 0, demo.text()
    assert demo.left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_ends_it_and_cleans_up(closing: ExitStack, folder: Path, number: signal.Signals) -> None:
    demo = run(closing, folder)
    wait_until("the first sidecar to start", lambda: demo.says("hcc run --sidecar-for"), WHOLE_S)
    demo.process.send_signal(number)
    assert demo.end() == 128 + number, demo.text()
    assert "Cleaned up" in demo.text()
    assert demo.left() == []


def test_a_failed_step_is_named_with_the_end_of_its_log_which_is_kept(closing: ExitStack, folder: Path) -> None:
    consul = folder / "consul"
    consul.write_text(CANNOT_START)
    consul.chmod(0o755)
    demo = run(closing, folder, CONSUL_BIN=str(consul))
    assert demo.end() == 1
    text = demo.text()
    assert "FAILED: Step 1 (Start Consul, with both services registered): consul ended" in text
    assert "| no can do" in text
    kept = re.search(r"The logs are kept in (\S+) ", text)
    assert kept, text
    assert (Path(kept[1]) / "consul.log").read_text() == "no can do\n"
    assert processes_with(f"TMPDIR={folder}") == []


def test_a_missing_program_is_named(closing: ExitStack, folder: Path) -> None:
    demo = run(closing, folder, CONSUL_BIN="/nonexistent/consul")
    assert demo.end() == 1
    assert "expected a program at /nonexistent/consul" in demo.text()
    assert demo.left() == []


def processes_with(variable: str) -> list[str]:
    """Command lines of the processes with that variable in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(f"{entry.name}: {(entry / 'cmdline').read_bytes()!r}")
    return found
