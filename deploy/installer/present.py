"""Programs that are there already, taken for the tests where their version serves."""

import os
from collections.abc import Callable
from pathlib import Path

from installer.places import on_path
from installer.talk import say


def variable_of(program: str, line: str) -> str:
    """The name of the variable for a program of that line: HAPROXY_2_6_BIN."""
    return f"{program.upper()}_{line.replace('.', '_')}_BIN"


def present(program: str, line: str, chosen: Path, serves: Callable[[Path], bool]) -> Path | None:
    """The first that serves: the one its own variable names, the one chosen to run with, the one on PATH."""
    variable = variable_of(program, line)
    given = os.environ.get(variable)
    if given:
        path = on_path(given)
        if path and serves(path):
            return path
        say(program, f"{given} of ${variable} passed over: it is no {program} {line} that runs")
    return next((path for path in (chosen, on_path(program)) if path and serves(path)), None)
