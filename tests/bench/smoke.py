"""`make bench-smoke`: start-up, memory, and what the way through both sidecars costs, in under two minutes.

Compared with two bare HAProxys in the same run: rounds of both take turns in random order, and ratios
count, since everything shares one machine.
"""

from __future__ import annotations

import os
import random
import re
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests import binaries
from tests.bench.bare import bare
from tests.bench.load import Load, connecting, kept_alive
from tests.bench.machine import load_average, machine
from tests.bench.memory import Member, cpu_s, family, pss_kib
from tests.bench.mesh import Agent, Pair, Sidecar, agent, pair, sidecar, wait_open
from tests.bench.origin import BODY_BYTES, origin
from tests.bench.report import Cell, Report, Table

STARTS = 6
ROUNDS = 6
ROUND_S = 1.2
CONNECTIONS = 16
BASE = "two bare HAProxys"

Generate = Callable[[int, int, float], Load]
Memory = Mapping[Member, int]


@dataclass
class Way:
    """One of the ways that are compared: where to call, whose processor time counts, what was measured."""

    port: int
    members: tuple[Member, ...]
    loads: list[Load] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def run(self, generate: Generate) -> None:
        """One round."""
        before = cpu_s(self.members)
        load = generate(self.port, CONNECTIONS, ROUND_S)
        self.loads.append(load)
        self.cpu_us.append((cpu_s(self.members) - before) * 1e6 / max(1, load.done))


def main() -> None:
    """Run it, print the tables, write the file."""
    haproxy, consul = _haproxy(), binaries.consul()
    before = load_average()
    pairs = {protocol: pair(protocol) for protocol in ("http", "tcp")}
    # Short, as unix sockets must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hcc-bench-") as name:
        folder = Path(name)
        with agent(consul, pairs.values(), folder) as running:
            bench = _Bench(haproxy, running, folder)
            tables = (
                bench.starts(pairs["http"]),
                *bench.ways(pairs["http"], "requests over kept-alive connections", kept_alive),
                *bench.ways(pairs["tcp"], "new connections", connecting)[1:],
            )
    facts = {**machine(haproxy, consul), "load": f"{before} before, {load_average()} after"}
    settings: dict[str, Cell] = {
        "rounds": ROUNDS, "round_s": ROUND_S, "connections": CONNECTIONS, "body_bytes": BODY_BYTES,
    }  # fmt: skip
    report = Report("smoke", facts, settings, tables)
    print(report.text())
    print(f"\nwritten to {report.write()}")


@dataclass(frozen=True)
class _Bench:
    haproxy: str
    agent: Agent
    folder: Path

    def starts(self, pair: Pair) -> Table:
        """How long from start to ready, one sidecar at a time."""
        rows = []
        for service, port in ((pair.server, pair.server_stats), (pair.client, pair.client_stats)):
            _say(f"starting {service}'s sidecar {STARTS} times")
            starts = [self._start_ms(service, port) for _ in range(STARTS)]
            times, cpu = zip(*starts, strict=True)
            rows.append((service, STARTS, statistics.median(times), max(times), statistics.median(cpu)))
        columns = ("sidecar", "starts", "p50 ms", "max ms", "CPU p50 ms")
        note = "From starting the process to 200 from /ready. CPU: of all its processes, also those that have ended."
        return Table("Start to ready", columns, tuple(rows), note)

    def ways(self, pair: Pair, what: str, generate: Generate) -> tuple[Table, Table]:
        """Memory of the server's sidecar, and rates through both sidecars against two bare HAProxys."""
        _say(f"{pair.protocol}: {what}, {ROUNDS} rounds of each way")
        with sidecar(pair.server, pair.server_stats, self.agent, self.haproxy, self.folder) as server:
            # Alone, before and after: pages shared with other HAProxys would count for less.
            ready = _memory(server)
            rates = self._rates(pair, server, f"{pair.protocol}: {what}", generate)
            return _memory_table(ready, _memory(server)), rates

    def _rates(self, pair: Pair, server: Sidecar, title: str, generate: Generate) -> Table:
        with (
            origin(self.haproxy, pair.app, self.folder),
            sidecar(pair.client, pair.client_stats, self.agent, self.haproxy, self.folder) as client,
            bare(pair, self.agent, self.haproxy, _threads(server), self.folder) as plain,
        ):
            bare_members = family(plain.server.pid) + family(plain.client.pid)
            ways = {
                "both sidecars": Way(pair.upstream, _members(server) + _members(client)),
                BASE: Way(plain.upstream, bare_members),
                "no proxy": Way(pair.app, ()),
            }
            for way in ways.values():
                wait_open(way.port)
                generate(way.port, CONNECTIONS, ROUND_S / 4)
            for _ in range(ROUNDS):
                for way in random.sample(list(ways.values()), len(ways)):
                    way.run(generate)
        return _rates_table(title, ways)

    def _start_ms(self, service: str, port: int) -> tuple[float, float]:
        """From start to ready: time passed and processor time."""
        with sidecar(service, port, self.agent, self.haproxy, self.folder) as running:
            return running.seconds * 1000, cpu_s(_members(running), ended=True) * 1000


def _memory_table(ready: Memory, after: Memory) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (member.role, *(_mib(memory.get(member, 0)) for memory in (ready, after))) for member in ready
    ]
    rows.append(("sum", *(_mib(sum(memory.values())) for memory in (ready, after))))
    note = "PSS, with no other HAProxy of this bench running; pages of Python are shared with the bench's own."
    return Table("Memory of the server's sidecar", ("process", "ready MiB", "after load MiB"), tuple(rows), note)


def _rates_table(title: str, ways: Mapping[str, Way]) -> Table:
    base = ways[BASE]
    rows = tuple(_rates_row(name, way, base) for name, way in ways.items())
    columns = ("way", "per s", "failed", "ratio", "ratio min", "ratio max", "CPU us each", "generator busy")
    note = (
        "Ratio: to two bare HAProxys in the same round, median of rounds. CPU: of both proxies and hcc. "
        "Generator near 1 or 'no proxy' near the others: the generator limits, and CPU tells more than the rate."
    )
    return Table(title, columns, rows, note)


def _rates_row(name: str, way: Way, base: Way) -> tuple[Cell, ...]:
    pairs = zip(way.loads, base.loads, strict=True)
    ratios = [mine.per_second / other.per_second for mine, other in pairs]
    return (
        name,
        statistics.median(load.per_second for load in way.loads),
        sum(load.failed for load in way.loads),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(way.cpu_us) if way.members else None,
        statistics.median(load.busy for load in way.loads),
    )


def _members(one: Sidecar) -> tuple[Member, ...]:
    return family(one.program.pid, str(one.directory))


def _memory(one: Sidecar) -> Memory:
    return {member: pss_kib(member.pid) for member in _members(one)}


def _mib(kib: int) -> float:
    return round(kib / 1024, 1)


def _threads(one: Sidecar) -> int:
    """As many as hcc gives its HAProxy."""
    found = re.search(r"^\s*nbthread (\d+)$", (one.directory / "haproxy.cfg").read_text(), re.MULTILINE)
    assert found, "expected nbthread in hcc's haproxy.cfg"
    return int(found[1])


def _haproxy() -> str:
    return os.environ.get("HAPROXY_BIN") or binaries.haproxy_2_8()


def _say(what: str) -> None:
    print(f"... {what}", flush=True)


if __name__ == "__main__":
    main()
