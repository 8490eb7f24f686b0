"""Processes of one sidecar: which they are, what memory and processor time each takes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Member:
    """One process and what it is for."""

    pid: int
    parent: int
    program: str
    role: str


def family(root: int, *directories: str) -> tuple[Member, ...]:
    """A process, its descendants, and whoever runs with a path below `directories` on its command line."""
    parents = dict(_parents())
    found = {root} | {pid for pid in parents if _mentions(pid, directories)}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    programs = {pid: _program(pid) for pid in sorted(found)}
    return tuple(
        Member(pid, parents.get(pid, 0), program, _role(pid, root, parents, programs))
        for pid, program in programs.items()
        if program
    )


def pss_kib(pid: int) -> int:
    """Memory of a process, shared pages divided among those who share them; KiB, 0 when it has ended.

    Source: Linux, Documentation/filesystems/proc.rst, smaps_rollup.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB$", text, re.MULTILINE)
    assert found, f"no Pss for process {pid}"
    return int(found[1])


def cpu_s(members: Iterable[Member], *, ended: bool = False) -> float:
    """Processor time all of them have used, in user and kernel mode; with `ended`, also their ended children.

    Source: proc(5), /proc/PID/stat, utime, stime, cutime, cstime.
    """
    total = 0
    for member in members:
        with suppress(OSError):
            total += sum(map(int, _stat(member.pid)[11 : 15 if ended else 13]))
    return total / _TICKS_PER_S


def connections(pid: int, port: int) -> int:
    """Established TCP connections of a process to a port of this machine.

    Source: proc(5), /proc/net/tcp: remote address, state 01 is ESTABLISHED, inode.
    """
    own = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            own.add(entry.readlink().name)
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" and f"socket:[{row[9]}]" in own for row in rows)


def _role(pid: int, root: int, parents: dict[int, int], programs: dict[int, str]) -> str:
    parent = parents.get(pid, 0)
    if programs[pid] == "haproxy":
        return "HAProxy worker" if programs.get(parent) == "haproxy" else "HAProxy master"
    if pid == root:
        return "hcc"
    if programs[pid] == "dataplaneapi":
        return "Data Plane API"
    return "zygote" if parent == root else "SPOE worker"


def _parents() -> Iterable[tuple[int, int]]:
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield int(entry.name), int(_stat(int(entry.name))[1])


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (the state), as the second may contain anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _mentions(pid: int, directories: Iterable[str]) -> bool:
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return any(os.fsencode(directory) in command for directory in directories)
    return False


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return ""
