"""Every command, as somebody types it who has just started `make demo ARGS=--keep`: in a pipe and on a terminal."""

from __future__ import annotations

import http.client
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hcc.cli.commands import COMMANDS
from tests.e2e.test_demo import WHOLE_S, Demo
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e

# `run` is what the demo itself types.
TYPED = {
    "doctor": "hcc doctor --sidecar-for client",
    "settings": "hcc settings --sidecar-for client",
    "status": "hcc status --sidecar-for client",
    "wait-ready": "hcc wait-ready --sidecar-for client --timeout 10s",
    "actors": "hcc actors --sidecar-for client",
    "restart": "hcc restart CertManager --sidecar-for client",
    "explain": "hcc explain --source client --sidecar-for server",
    "plan": "hcc plan --sidecar-for client",
    "config": "hcc config --sidecar-for client",
    "snapshot": "hcc snapshot --sidecar-for client",
    "troubleshoot": "hcc troubleshoot upstream server --sidecar-for client",
    "log-level": "hcc log-level debug --sidecar-for client",
    "completion": "hcc completion bash",
}
NAMES = [command.name for commands in COMMANDS.values() for command in commands if command.name != "run"]
SILENT = {"wait-ready", "plan"}


class Shell:
    """A shell beside the running demo, with what the demo says to export."""

    def __init__(self, text: str) -> None:
        exported = re.findall(r"\$ export PATH=(\S+):\$PATH", text)[-1]
        state = re.findall(r"--state-dir (\S+)", text)[-1]
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("HCC_", "CONSUL_"))}
        addresses = re.findall(r"-http-addr[ =](\S+)", text)
        self._url = re.findall(r"curl (http://127.0.0.1:\d+/)\n", text)[-1]
        self._environ = {
            **mine,
            "PATH": f"{exported}:{mine['PATH']}",
            "HCC_STATE_DIR": state,
            "HCC_CONFIG_FILE": "/dev/null",
            "TERM": "xterm",
            **({"CONSUL_HTTP_ADDR": addresses[-1]} if addresses else {}),
        }
        self._environ.pop("NO_COLOR", None)

    def fetched(self) -> str:
        """What client is answered; nothing when it is refused."""
        with suppress(OSError, http.client.HTTPException), urllib.request.urlopen(self._url, timeout=5) as response:
            return str(response.read().decode())
        return ""

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", line],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
            env=self._environ,
        )


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    # Short, as unix sockets must fit into 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="hcc-tc-"))
    demo = Demo(folder, "--keep")
    try:
        wait_until("the demo to stay up", lambda: demo.says("Your turn"), WHOLE_S)
        wait_until("all it says", lambda: demo.says("Logs: "))
        yield Shell(demo.text())
    finally:
        demo.close()
        shutil.rmtree(folder)


def test_every_command_is_among_those_that_are_typed() -> None:
    assert set(NAMES) <= TYPED.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_command_does_what_it_says_in_a_pipe_and_on_a_terminal(shell: Shell, name: str) -> None:
    piped = shell.run(f"{TYPED[name]} | cat; exit ${{PIPESTATUS[0]}}")
    assert piped.returncode == 0, piped.stderr + piped.stdout
    assert piped.stdout or name in SILENT
    assert "\x1b" not in piped.stdout

    shown = shell.run(f"script --quiet --return --command {shlex.quote(TYPED[name])} /dev/null")
    assert shown.returncode == 0, shown.stdout
    assert "Traceback" not in shown.stdout
    # And traffic goes on, whatever was asked or ordered.
    assert "Hello!" in shell.fetched()


def test_the_readme_s_intentions_refuse_and_allow(shell: Shell) -> None:
    assert shell.run("consul intention create -replace -deny client server").returncode == 0
    wait_until("the refusal", lambda: not shell.fetched())
    assert shell.run("consul intention create -replace -allow client server").returncode == 0
    wait_until("the answer", lambda: "Hello!" in shell.fetched())
