"""The entry point, whatever it is started with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WITHOUT_STREAMS = 'exec "$@" <&- >&- 2>&-'
PROGRAM = """
import os, sys
from hcc.cli.commands import main
code = main(["run", "--sidecar-for"])
print("told", file=sys.stderr)
streams = [(os.readlink(f"/proc/self/fd/{number}"), os.get_inheritable(number)) for number in range(3)]
open(sys.argv[1], "w").write(repr((code, streams)))
"""


def test_who_closed_the_standard_streams_gets_a_command_that_works_and_nothing_in_their_place(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    words = ("sh", "-c", WITHOUT_STREAMS, "sh", sys.executable, "-c", PROGRAM, str(seen))
    subprocess.run(words, timeout=30, check=True)
    assert seen.read_text() == repr((2, [("/dev/null", True)] * 3))
