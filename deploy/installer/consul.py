"""Which Consul to use: the one asked for, else on PATH, else built once from its pinned source."""

import os
from functools import cache
from pathlib import Path

from installer.debian import fetch_program
from installer.gobuild import Source, built
from installer.places import on_path
from installer.present import present, variable_of
from installer.talk import InstallError, output_of, say
from installer.versions import Version, consul_version, dotted

_STEP = "consul"
_OLDEST: Version = (1, 8)
_PACKAGE = "github.com/hashicorp/consul"
# Which Debian suite has which line; None: a Go module of deploy/tools builds it.
_SUITES = {"1.8": "bullseye", "1.14": None, "1.20": None}


def choose_consul() -> Path:
    """The Consul to run with: $CONSUL_BIN, else on PATH, else built with Go into the cache.

    Raises:
        InstallError: the one asked for does not serve, or there is no Go to build one.
    """
    given = os.environ.get("CONSUL_BIN")
    if given:
        path = on_path(given)
        if path is None or not _serves(path):
            raise InstallError(f"{_STEP}: $CONSUL_BIN names {given}, which is no Consul >= {dotted(_OLDEST)}")
        say(_STEP, f"{path} (from $CONSUL_BIN)")
        return path
    path = on_path("consul")
    if path and _serves(path):
        say(_STEP, f"{path} (from PATH)")
        return path
    return _built("1.20")


def test_consuls(chosen: Path) -> dict[str, Path]:
    """Every Consul the tests run, by the name of its variable; what is there and of its line is taken.

    Raises:
        InstallError: one of them cannot be had.
    """
    return {variable_of(_STEP, line): _of_line(line, suite, chosen) for line, suite in _SUITES.items()}


def _of_line(line: str, suite: str | None, chosen: Path) -> Path:
    """A Consul of that line: one that is there, else that Debian suite's in the cache, else built."""
    path = present(_STEP, line, chosen, lambda path: _is(path, line))
    if path is None:
        path = _fetched(suite, line) if suite else _built(line)
    say(_STEP, f"{path} ({line} for the tests)")
    return path


def _fetched(suite: str, line: str) -> Path:
    path = fetch_program(suite, "consul", "usr/bin/consul")
    if not _is(path, line):
        raise InstallError(f"{_STEP}: expected Consul {line} at {path}, found another one")
    return path


def _built(line: str) -> Path:
    otherwise = f"Consul >= {dotted(_OLDEST)}, or a Go that can build it"
    return built(Source(f"consul-{line}", _PACKAGE, lambda path: _is(path, line), otherwise))


def _is(path: Path, line: str) -> bool:
    version = _version(path)
    return version is not None and dotted(version[:2]) == line


def _serves(path: Path) -> bool:
    version = _version(path)
    return version is not None and version >= _OLDEST


@cache
def _version(path: Path) -> Version | None:
    return consul_version(output_of(path, "version"))
