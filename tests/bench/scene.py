"""What goes on while something changes: the load, the sidecars' processes, and rows on what both did."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.bench.live import LiveLoad
from tests.bench.memory import Member, connections, cpu_s, pss_kib
from tests.bench.mesh import Sidecar, ask
from tests.bench.report import Cell, Table

SETTLE_S = 0.3
_CHANGES = (
    *("control", "scene", "changes", "reloads", "requests", "failed", "p50 ms", "p99 ms", "max ms"),
    *("gone p50", "gone max", "slowest ms", "hcc CPU ms"),
)
_CHANGES_NOTE = (
    "p50, p99, max: from the start of the write to Consul to the end of the first request, or handshake, that what is "
    "new served. gone: from the write that took an endpoint away to its last request. slowest: of all requests. hcc "
    "CPU: of the main process of hcc, for each change."
)
_STARTS = ("control", "scene", "endpoints", "ready s", "all serve s", "hcc CPU s", "watches", "connections")
_STARTS_NOTE = (
    "The start of one sidecar, with all of it in Consul before. all serve: until HAProxy may use every endpoint. "
    "connections: to the agent, established."
)
_PROCESSES = ("control", "scene", "process", "count", "CPU s", "cores", "PSS MiB")
_PROCESSES_NOTE = "CPU during the scene; cores: the same for each second. Memory at the end."


@dataclass
class Scene:
    """One row in the making: what took how long, and when which endpoint was taken away.

    Args:
        seconds: from a write to what it was for; one for each change that is timed.
        gone: when the writes began that took endpoints away, by address, as `time.perf_counter` says.
    """

    load: LiveLoad
    seconds: list[float] = field(default_factory=list)
    gone: dict[str, float] = field(default_factory=dict)

    def late_s(self) -> list[float]:
        """How long each endpoint went on serving after it was taken away."""
        return [max(0.0, self.load.last.get(endpoint, 0.0) - at) for endpoint, at in self.gone.items()]


@dataclass
class Tables:
    """Rows of what is handed over, as the scenes add to them."""

    changes: list[tuple[Cell, ...]] = field(default_factory=list)
    starts: list[tuple[Cell, ...]] = field(default_factory=list)
    processes: list[tuple[Cell, ...]] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def all(self) -> tuple[Table, ...]:
        failed = [Table("Failures", ("why", "count"), tuple(self.failures.items()))] if self.failures else []
        return (
            Table("Changes under load", _CHANGES, tuple(self.changes), _CHANGES_NOTE),
            Table("From nothing to ready", _STARTS, tuple(self.starts), _STARTS_NOTE),
            Table("Processes", _PROCESSES, tuple(self.processes), _PROCESSES_NOTE),
            *failed,
        )

    def note_start(
        self, control: str, what: str, endpoints: int, one: Sidecar, serving_s: float, agent_port: int
    ) -> None:
        """A row on how a sidecar started; from its start all endpoints were usable after `serving_s`."""
        main = [member for member in one.members() if member.role == "hcc"]
        watches = len(status(one)["watches"])
        held = connections(one.program.pid, agent_port)
        self.starts.append((control, what, endpoints, one.seconds, serving_s, cpu_s(main, ended=True), watches, held))

    @contextmanager
    def scene(
        self, control: str, what: str, changes: int, port: int, per_second: float, *sidecars: Sidecar
    ) -> Iterator[Scene]:
        """Load on a port while something is done, and rows on what came of it."""
        print(f"... {control}: {what}", flush=True)
        before = _Taken.of(sidecars)
        with LiveLoad(port, per_second) as load:
            scene = Scene(load)
            yield scene
            time.sleep(SETTLE_S)
        after = _Taken.of(sidecars)
        self.failures.update(f"{control}, {what}: {why}" for why in load.failures)
        cpu = {member: used - before.cpu.get(member, 0.0) for member, used in after.cpu.items()}
        main_s = sum(used for member, used in cpu.items() if member.role == "hcc")
        self.changes.append(
            (
                *(control, what, changes, after.reloads - before.reloads, load.done, len(load.failures)),
                *_spread(scene.seconds),
                *_extremes(scene.late_s()),
                load.slowest_s * 1e3,
                main_s * 1e3 / changes,
            )
        )
        for role, used_s, memory_kib, count in _by_role(cpu, after.pss_kib):
            cores = used_s / (after.at - before.at)
            self.processes.append((control, what, role, count, used_s, cores, round(memory_kib / 1024, 1)))

    def note_times(self, control: str, what: str, seconds: list[float]) -> None:
        """A row on something else that was timed during the last scene."""
        rest = (None,) * (len(_CHANGES) - 9)
        self.changes.append((control, what, len(seconds), None, None, None, *_spread(seconds), *rest))

    def note_end(self, control: str, scene: str, error: AssertionError) -> None:
        """A scene that did not come to its end is a result, too; the others go on."""
        print(f"... {control}: {scene} ended early: {error}", flush=True)
        self.failures[f"{control}, {scene} ended early: {str(error).splitlines()[0]}"] += 1


def status(one: Sidecar) -> Any:
    """`/api/v1/status` of a sidecar."""
    return json.loads(ask(one.stats_port, "/api/v1/status")[1])


def reloads(one: Sidecar) -> int:
    """How often the sidecar reloaded HAProxy."""
    found = re.search(r"^hcc_reloads_total (\S+)$", ask(one.stats_port, "/metrics")[1].decode(), re.MULTILINE)
    assert found, "expected hcc_reloads_total in /metrics"
    return int(float(found[1]))


@dataclass(frozen=True)
class _Taken:
    """What sidecars have taken so far."""

    at: float
    reloads: int
    cpu: Mapping[Member, float]
    pss_kib: Mapping[Member, int]

    @classmethod
    def of(cls, sidecars: Iterable[Sidecar]) -> _Taken:
        sidecars = tuple(sidecars)
        members = [member for one in sidecars for member in one.members()]
        cpu = {member: cpu_s([member]) for member in members}
        memory = {member: pss_kib(member.pid) for member in members}
        return cls(time.monotonic(), sum(map(reloads, sidecars)), cpu, memory)


def _by_role(cpu: Mapping[Member, float], memory: Mapping[Member, int]) -> Iterator[tuple[str, float, int, int]]:
    for role in dict.fromkeys(member.role for member in cpu):
        members = [member for member in cpu if member.role == role]
        yield role, _sum(cpu, members), int(_sum(memory, members)), len(members)


def _sum(values: Mapping[Member, float], members: Iterable[Member]) -> float:
    return sum(values[member] for member in members)


def _spread(seconds: list[float]) -> tuple[Cell, Cell, Cell]:
    """p50, p99 and max, in ms."""
    if len(seconds) < 2:
        return (None, None, None) if not seconds else (seconds[0] * 1e3, None, seconds[0] * 1e3)
    return (
        statistics.median(seconds) * 1e3,
        statistics.quantiles(seconds, n=100, method="inclusive")[98] * 1e3,
        max(seconds) * 1e3,
    )


def _extremes(seconds: list[float]) -> tuple[Cell, Cell]:
    return (statistics.median(seconds) * 1e3, max(seconds) * 1e3) if seconds else (None, None)
