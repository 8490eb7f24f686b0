"""Which Data Plane API program is used, what it can keep, and its command line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import hcc
from hcc.children import child_environment
from hcc.errors import SettingError
from hcc.haproxy.binary import signature
from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.dataplane_text import USER
from hcc.haproxy.layout import Layout

VARIABLE = "DATAPLANEAPI_BIN"
NAME = "dataplaneapi"
PROBE_TIMEOUT_S = 20.0
# Of one that came in the place of another while hcc runs: an actor waits for it.
LOOK_TIMEOUT_S = 3.0
# Generation -> what its parser drops from the text, behind a 202. Source: reference/dataplane-api.md section 5.
DROPS: dict[int, frozenset[Feature]] = {
    1: frozenset((
        Feature.POOL_LOW_CONN,  # server keyword, measured on 1.2.5
        Feature.DENY_HEADERS,  # of `http-request deny ... hdr`, the latter (1.2.5)
        Feature.NORMALIZE_URI,  # http-request rule newer than it, which it moves behind all others (1.2.5)
        Feature.NO_SNI_AUTO,  # server keyword newer than it; all that it does not know are dropped (1.2.5)
    )),
}  # fmt: skip
# Of these there is a spelling without, at the cost named; what is not here cannot be done without.
SPARED = frozenset((
    Feature.POOL_LOW_CONN,  # slower authorisation on HAProxy 3.1 and newer
    Feature.DENY_HEADERS,  # callers that are denied keep http/1.1 connections, however many there are
    Feature.NORMALIZE_URI,  # under layer-7 permissions a path that is not in its normal form is refused
))  # fmt: skip
_LONG = re.compile(r"--([a-z][a-z-]+)")
_YAML = re.compile(r"^\s*-f[,=]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class DataplaneProgram:
    """A Data Plane API program.

    Args:
        binary: its absolute path, as it is run in another directory.
        origin: where it came from, in words.
        flags: that it knows, by their long names; `f` when it has a YAML file.
        seen: the `signature` of its file before it was asked for these.
    """

    binary: str
    origin: str
    flags: frozenset[str]
    seen: tuple[int, ...] | None = None

    @property
    def generation(self) -> int:
        """1, 2 or 3, by its flags; which paths it serves is asked of the running one."""
        if "dataplane-storage-dir" in self.flags:
            return 3
        return 2 if "f" in self.flags or "spoe-dir" in self.flags else 1


def find_dataplane(flag: str = "") -> DataplaneProgram:
    """The program to use: the flag's, else that of DATAPLANEAPI_BIN, else the one on PATH.

    Raises:
        SettingError: there is none, or it is something else.
    """
    given = ((flag, "--dataplane"), (os.environ.get(VARIABLE, ""), VARIABLE), (NAME, "PATH"))
    name, origin = next((name, origin) for name, origin in given if name)
    binary = shutil.which(name)
    if binary is None:
        raise SettingError(f"expected the Data Plane API at {name} (from {origin}), found no program there; "
                           "install it, name it with --dataplane, or use --control direct")  # fmt: skip
    seen = signature(binary)
    return DataplaneProgram(str(Path(binary).absolute()), origin, known_flags(_help(binary, PROBE_TIMEOUT_S)), seen)


def looked_at_again(program: DataplaneProgram) -> DataplaneProgram:
    """The same with the flags that it has now, where an upgrade put another one in its place.

    One that cannot be asked is as it was: whoever starts it sees what is wrong.
    """
    seen = signature(program.binary)
    if seen in (None, program.seen):
        return program
    try:
        return replace(program, flags=known_flags(_help(program.binary, LOOK_TIMEOUT_S)), seen=seen)
    except SettingError:
        return program


def known_flags(text: str) -> frozenset[str]:
    """The flags in the output of --help.

    Raises:
        SettingError: it is not that of a Data Plane API.
    """
    flags = frozenset(_LONG.findall(text)) | (frozenset("f") if _YAML.search(text) else frozenset())
    if not {"haproxy-bin", "socket-path", "userlist"} <= flags:
        raise SettingError("expected --dataplane to name a HAProxy Data Plane API, found a program without its flags")
    return flags


def without_dropped(able: Capabilities, program: DataplaneProgram) -> Capabilities:
    """What can be used of HAProxy through that program.

    Raises:
        SettingError: HAProxy needs something that the program drops; the message says what to use instead.
    """
    dropped = frozenset(feature for feature in DROPS.get(program.generation, frozenset()) if able.has(feature))
    needed = sorted(feature.name.lower().replace("_", "-") for feature in dropped - SPARED)
    if needed:
        raise SettingError(
            f"HAProxy {able.version} needs {', '.join(needed)}, which the Data Plane API {program.generation}.x "
            "drops from the configuration; use --control direct, a Data Plane API 2.9 or newer, or HAProxy 3.2 or older"
        )
    return Capabilities(able.version, able.without | dropped)


def reload_command(layout: Layout) -> str:
    """The command by which the Data Plane API reloads HAProxy.

    Raises:
        SettingError: a path has a space, at which the Data Plane API would split it.
    """
    for path in (sys.executable, layout.directory):
        if " " in path:
            raise SettingError(f"the Data Plane API cannot run a command with a space in a path, found {path!r}; "
                               "move it, or use --control direct")  # fmt: skip
    return f"{sys.executable} -P -m hcc.haproxy.reload_helper {layout.directory}"


def python_path() -> str:
    """Where the reload command finds this very hcc."""
    return str(Path(hcc.__file__).parent.parent)


def command_line(program: DataplaneProgram, haproxy: str, layout: Layout) -> list[str]:
    """The program with its flags, those that it knows."""
    own = layout.dataplane_directory
    values = {
        "scheme": "unix",
        "socket-path": layout.dataplane_socket,
        "config-file": layout.config,
        "userlist": USER,
        "haproxy-bin": haproxy,
        "reload-delay": "1",
        "reload-cmd": reload_command(layout),
        # 1.2 puts the bad text back after this; we post the good one again.
        "restart-cmd": shutil.which("true") or "/bin/true",
        "reload-strategy": "custom",
        "transaction-dir": layout.dataplane_transactions,
        "spoe-transaction-dir": f"{own}/spoe-tx",
        "dataplane-storage-dir": f"{own}/storage",
    }
    values |= {flag: f"{own}/{flag}" for flag in _DIRECTORIES}
    made = [program.binary, *(f"--{flag}={value}" for flag, value in values.items() if flag in program.flags)]
    if "f" in program.flags:
        made += ["-f", f"{own}/dataplaneapi.yaml"]
    return [*made, "--disable-inotify"] if "disable-inotify" in program.flags else made


_DIRECTORIES = ("maps-dir", "ssl-certs-dir", "general-storage-dir", "spoe-dir", "backups-dir")


def _help(binary: str, timeout_s: float) -> str:
    try:
        done = subprocess.run(
            [binary, "--help"],
            capture_output=True,
            timeout=timeout_s,
            check=False,
            text=True,
            errors="replace",
            env=child_environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise SettingError(f"expected {binary} to be a HAProxy Data Plane API; it cannot be run: {exc}") from exc
    return done.stdout + done.stderr
