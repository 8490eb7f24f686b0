"""Prometheus and its promtool for the tests: those asked for, else those on PATH, else Debian's, privately."""

import os
from pathlib import Path

from installer.debian import fetch_program
from installer.places import on_path
from installer.talk import InstallError, output_of, say

_STEP = "prometheus"
_SUITE = "bookworm"


def choose_prometheus() -> dict[str, Path]:
    """Both programs by the variables that name them.

    Raises:
        InstallError: one that is asked for does not run, or there is none.
    """
    chosen = {f"{program.upper()}_BIN": _chosen(program) for program in ("prometheus", "promtool")}
    say(_STEP, f"{chosen['PROMETHEUS_BIN']} and promtool (rules and metrics are tested with them)")
    return chosen


def _chosen(program: str) -> Path:
    variable = f"{program.upper()}_BIN"
    given = os.environ.get(variable)
    path = on_path(given or program)
    if given and (path is None or not _works(path, program)):
        raise InstallError(f"{_STEP}: ${variable} names {given}, which does not run as {program}")
    if path and _works(path, program):
        return path
    # One package has both, and one of them is asked for so that it is fetched once.
    return fetch_program(_SUITE, "prometheus", "usr/bin/prometheus").with_name(program)


def _works(path: Path, program: str) -> bool:
    return f"{program}, version" in output_of(path, "--version")
