"""The entry point, whatever it is started with."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from hcc.cli import commands
from hcc.errors import SettingError

WITHOUT_STREAMS = 'exec "$@" <&- >&- 2>&-'
PROGRAM = """
import os, sys
from hcc.cli.commands import main
code = main(["run", "--sidecar-for"])
print("told", file=sys.stderr)
streams = [(os.readlink(f"/proc/self/fd/{number}"), os.get_inheritable(number)) for number in range(3)]
open(sys.argv[1], "w").write(repr((code, streams)))
"""

# It waits for a sidecar that is not there, as somebody at a terminal may.
INTERRUPTED = """
import signal, sys, time
from hcc.cli import commands
# Who runs the tests in the background of a shell ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
time.sleep = lambda _: signal.raise_signal(signal.SIGINT)
sys.exit(commands.main(["wait-ready", "--state-dir", sys.argv[1], "--config-file", ""]))
"""


def test_who_closed_the_standard_streams_gets_a_command_that_works_and_nothing_in_their_place(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    words = ("sh", "-c", WITHOUT_STREAMS, "sh", sys.executable, "-c", PROGRAM, str(seen))
    subprocess.run(words, timeout=30, check=True)
    assert seen.read_text() == repr((2, [("/dev/null", True)] * 3))


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("settings", "--json"), ("run", "--help")])
def test_what_cannot_be_written_is_one_line(words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = hcc(*words, stdout=full)
    assert (done.returncode, done.stderr) == (1, "hcc: No space left on device\n")


def test_a_full_disk_is_named_and_in_the_log_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/hcc/web/verdicts.map")

    monkeypatch.setattr(commands, "_command", full)
    monkeypatch.setattr(commands, "_drop_output", lambda: None)

    assert commands.main(["run"]) == 1

    (told,) = caplog.records
    assert (told.levelname, told.message) == ("CRITICAL", "No space left on device: /run/hcc/web/verdicts.map")


@pytest.mark.parametrize(
    ("lack", "told"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "Too many open files"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "/run/hcc/web/lock"), "Input/output error: /run/hcc/web/lock"),
        (MemoryError(), "there is no memory left"),
        (RuntimeError("can't start new thread"), "no further thread can be started"),
    ],
)
def test_what_the_machine_lacks_is_one_line(
    lack: Exception, told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> int:
        raise lack

    monkeypatch.setattr(commands, "_command", fail)

    assert commands.main(["run"]) == 1

    assert [(one.levelname, one.message) for one in caplog.records] == [("CRITICAL", told)]


def test_a_reason_is_one_line_whatever_it_quotes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise SettingError("found x\n\x1b[2Jy")

    monkeypatch.setattr(commands, "_command", fail)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    assert commands.main(["run"]) == 2
    assert capsys.readouterr().err == "hcc: found x\\n\\x1b[2Jy\n"


def test_a_bug_shows_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(commands, "_command", fail)

    with pytest.raises(RuntimeError, match="a bug"):
        commands.main(["run"])


def test_letters_that_the_output_has_not_are_written_as_their_numbers() -> None:
    done = hcc("settings", "--sidecar-for", "w\u00e9b", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "w\\xe9b" in done.stdout


def test_ctrl_c_ends_a_command_without_a_traceback(tmp_path: Path) -> None:
    words = (sys.executable, "-c", INTERRUPTED, str(tmp_path / "none"))
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def hcc(*words: str, stdout: IO[str] | int = subprocess.PIPE, **env: str) -> subprocess.CompletedProcess[str]:
    line = (sys.executable, "-m", "hcc", *words)
    # Where nothing is buffered argparse keeps the error of its help to itself.
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | env
    return subprocess.run(line, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=30, check=False, env=usual)


def test_once_there_is_a_log_the_reason_of_the_end_is_a_line_of_it() -> None:
    program = """
import sys
from hcc.cli import commands
from hcc.errors import HccError
from hcc.log import set_up_logging
def run(options):
    set_up_logging("info", "json")
    raise HccError("another hcc runs this proxy")
commands._command = run
sys.exit(commands.main([]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    told = json.loads(done.stderr)
    assert (told["level"], told["message"]) == ("critical", "another hcc runs this proxy")
