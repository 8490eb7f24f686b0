"""`make bench-path`: the data path of two sidecars against a hand-tuned pair, Consul's built-in proxy, and none.

Rounds of all ways take turns in random order, and ratios to the hand-tuned pair count: everything shares one machine.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tests import binaries
from tests.bench.bare import bare_pair
from tests.bench.builtin import builtin
from tests.bench.load import Load, connecting, kept_alive, paced
from tests.bench.machine import load_average, machine
from tests.bench.memory import Member, cpu_s, family, pss_kib
from tests.bench.mesh import Agent, Pair, agent, pair, sidecar, wait_open
from tests.bench.origin import BODY_BYTES, LARGE, LARGE_BYTES, origin
from tests.bench.programs import Program
from tests.bench.report import Cell, Report, Table

HCC, CEILING, BUILTIN, NONE = "hcc", "hand-tuned HAProxy", "Consul's built-in proxy", "no proxy"
PARTS = ("client's proxy", "server's proxy", "beside")
CONNECTIONS = 16
STEADY_RATE = 1000.0

Generate = Callable[[int, float], Load]


@dataclass(frozen=True)
class Pace:
    """How long everything takes."""

    rounds: int
    round_s: float
    steady_s: float


FULL, QUICK = Pace(8, 1.5, 20.0), Pace(3, 0.8, 5.0)

# Title, protocol, load. What is new for each request in the third is the application's connection to its sidecar.
SCENES: tuple[tuple[str, str, Generate], ...] = (
    ("New tcp connections", "tcp", lambda port, seconds: connecting(port, CONNECTIONS, seconds)),
    ("Http requests, kept alive", "http", lambda port, seconds: kept_alive(port, CONNECTIONS, seconds)),
    ("Http requests, each on a new connection", "http", lambda port, seconds: connecting(port, CONNECTIONS, seconds)),
    (f"Http bodies of {LARGE_BYTES >> 20} MiB", "http", lambda port, seconds: kept_alive(port, 8, seconds, LARGE)),
)


@dataclass(frozen=True)
class Side:
    """The processes of one side: those that carry the bytes, and those beside them."""

    proxy: tuple[Member, ...]
    beside: tuple[Member, ...]


Start = Callable[[], AbstractContextManager[Side]]


@dataclass(frozen=True)
class Kind:
    """One of the ways that are compared, before it runs: where clients call, how each side is started."""

    port: int
    server: Start
    client: Start


@dataclass
class Way:
    """A running way, and what was measured on it; processor time by `PARTS`, in us each."""

    port: int
    parts: tuple[tuple[Member, ...], ...]
    loads: list[Load] = field(default_factory=list)
    cpu_us: list[tuple[float, ...]] = field(default_factory=list)

    def run(self, generate: Generate, seconds: float) -> None:
        """One round."""
        before = [cpu_s(part) for part in self.parts]
        load = generate(self.port, seconds)
        after = [cpu_s(part) for part in self.parts]
        self.loads.append(load)
        spent = (end - begin for begin, end in zip(before, after, strict=True))
        self.cpu_us.append(tuple(seconds * 1e6 / max(1, load.done) for seconds in spent))


def main() -> None:
    """Run it, print the tables, write the file."""
    pace = _pace()
    haproxy, consul = os.environ.get("HAPROXY_BIN") or binaries.haproxy_2_8(), binaries.consul()
    before = load_average()
    ours = {protocol: pair(protocol) for protocol in ("tcp", "http")}
    theirs = {protocol: replace(pair(protocol, "builtin"), app=one.app) for protocol, one in ours.items()}
    # Short, as unix sockets must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hcc-bench-") as name:
        folder = Path(name)
        with agent(consul, (*ours.values(), *theirs.values()), folder) as running:
            bench = _Bench(haproxy, consul, running, folder, pace)
            kinds = {protocol: bench.kinds(one, theirs[protocol]) for protocol, one in ours.items()}
            tables = [table for protocol, one in ours.items() for table in bench.rates(protocol, one, kinds[protocol])]
            tables.append(bench.steady(ours["http"], kinds["http"]))
    facts = {**machine(haproxy, consul), "load": f"{before} before, {load_average()} after"}
    settings: dict[str, Cell] = {
        "rounds": pace.rounds, "round_s": pace.round_s, "steady_s": pace.steady_s, "steady_rate": STEADY_RATE,
        "connections": CONNECTIONS, "body_bytes": BODY_BYTES,
    }  # fmt: skip
    report = Report("path", facts, settings, tuple(tables))
    print(report.text())
    print(f"\nwritten to {report.write()}")


def _pace() -> Pace:
    parser = argparse.ArgumentParser(prog="make bench-path ARGS=")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: about two minutes")
    return QUICK if parser.parse_args().quick else FULL


@dataclass(frozen=True)
class _Bench:
    haproxy: str
    consul: str
    agent: Agent
    folder: Path
    pace: Pace

    def kinds(self, ours: Pair, theirs: Pair) -> dict[str, Kind]:
        """The three ways through proxies, of one protocol."""
        both = bare_pair(ours, self.agent, self.haproxy, self._threads(ours), self.folder)
        return {
            HCC: Kind(
                ours.upstream,
                partial(self._hcc, ours.server, ours.server_stats),
                partial(self._hcc, ours.client, ours.client_stats),
            ),
            CEILING: Kind(both.upstream, partial(_bare, both.server), partial(_bare, both.client)),
            BUILTIN: Kind(
                theirs.upstream,
                partial(self._builtin, theirs.server, theirs.server_public),
                partial(self._builtin, theirs.client, theirs.upstream),
            ),
        }

    def rates(self, protocol: str, one: Pair, kinds: Mapping[str, Kind]) -> Iterator[Table]:
        """A table for each load of a protocol; all ways run side by side and take turns."""
        with ExitStack() as stack:
            stack.enter_context(origin(self.haproxy, one.app, self.folder))
            ways = {}
            for name, kind in kinds.items():
                server, client = stack.enter_context(kind.server()), stack.enter_context(kind.client())
                ways[name] = Way(kind.port, (client.proxy, server.proxy, client.beside + server.beside))
            ways[NONE] = Way(one.app, ((), (), ()))
            for way in ways.values():
                wait_open(way.port)
            for title, wanted, generate in SCENES:
                if wanted == protocol:
                    yield self._scene(title, ways, generate)

    def steady(self, one: Pair, kinds: Mapping[str, Kind]) -> Table:
        """Processor time and memory of each process of the server's side at a steady rate, one way after the other."""
        rows: list[tuple[Cell, ...]] = []
        for name, kind in kinds.items():
            _say(f"{name}: {STEADY_RATE:g} requests/s for {self.pace.steady_s:g} s")
            # Memory when all else of the bench has ended: pages shared with other HAProxys would count for less.
            with kind.server() as server:
                cpu, load = self._steady_load(one, kind, server)
                memory = {member: pss_kib(member.pid) / 1024 for member in (*server.proxy, *server.beside)}
            rows += [(name, member.role, cpu[member], memory[member], *[None] * 4) for member in memory if name == HCC]
            latency = [load.quantile_ms(part) for part in (0.5, 0.99)]
            total = sum(cpu.values()), sum(memory.values())
            rows.append((name, "sum", *total, *latency, load.per_second, load.failed))
        columns = ("way", "process", "vCPU", "PSS MiB", "p50 ms", "p99 ms", "per s", "failed")
        note = "Of the server's sidecar; kept-alive requests of 1 KiB at even intervals. PSS right after, alone."
        return Table(f"At a steady {STEADY_RATE:g} http requests/s", columns, tuple(rows), note)

    def _steady_load(self, one: Pair, kind: Kind, server: Side) -> tuple[dict[Member, float], Load]:
        members = (*server.proxy, *server.beside)
        with origin(self.haproxy, one.app, self.folder), kind.client():
            wait_open(kind.port)
            paced(kind.port, CONNECTIONS, 1.0, STEADY_RATE)
            before = {member: cpu_s((member,)) for member in members}
            begin = time.monotonic()
            load = paced(kind.port, CONNECTIONS, self.pace.steady_s, STEADY_RATE)
            passed = time.monotonic() - begin
            return {member: (cpu_s((member,)) - before[member]) / passed for member in members}, load

    def _scene(self, title: str, ways: Mapping[str, Way], generate: Generate) -> Table:
        pace = self.pace
        _say(f"{title}: {pace.rounds} rounds of each way")
        for way in ways.values():
            way.loads, way.cpu_us = [], []
            generate(way.port, pace.round_s / 2)
        for _ in range(pace.rounds):
            for way in random.sample(list(ways.values()), len(ways)):
                way.run(generate, pace.round_s)
        return _table(title, ways)

    @contextmanager
    def _hcc(self, service: str, stats_port: int) -> Iterator[Side]:
        with sidecar(service, stats_port, self.agent, self.haproxy, self.folder) as one:
            members = family(one.program.pid, str(one.directory))
            proxy = tuple(member for member in members if member.program == "haproxy")
            yield Side(proxy, tuple(member for member in members if member not in proxy))

    @contextmanager
    def _builtin(self, service: str, port: int) -> Iterator[Side]:
        with builtin(service, port, self.agent, self.consul, self.folder) as program:
            yield Side(family(program.pid), ())

    def _threads(self, one: Pair) -> int:
        """As many as hcc gives its HAProxy."""
        with sidecar(one.client, one.client_stats, self.agent, self.haproxy, self.folder) as running:
            text = (running.directory / "haproxy.cfg").read_text()
        found = re.search(r"^\s*nbthread (\d+)$", text, re.MULTILINE)
        assert found, "expected nbthread in hcc's haproxy.cfg"
        return int(found[1])


@contextmanager
def _bare(start: Callable[[], Program]) -> Iterator[Side]:
    with start() as program:
        yield Side(family(program.pid), ())


def _table(title: str, ways: Mapping[str, Way]) -> Table:
    columns = (
        "way", "per s", "failed", "p50 ms", "p99 ms", "ratio", "min", "max",
        *(f"{part} us" for part in PARTS), "CPU ratio", "generator busy",
    )  # fmt: skip
    note = (
        f"Ratio: to the {CEILING} pair in the same round, median of rounds. us: processor time each; beside: hcc and "
        "its workers. Generator near 1, or 'no proxy' near the others: the generator limits, CPU tells more."
    )
    return Table(title, columns, tuple(_row(name, way, ways[CEILING]) for name, way in ways.items()), note)


def _row(name: str, way: Way, base: Way) -> tuple[Cell, ...]:
    ratios = [mine.per_second / other.per_second for mine, other in zip(way.loads, base.loads, strict=True)]
    cpus = [sum(mine) / (sum(other) or 1) for mine, other in zip(way.cpu_us, base.cpu_us, strict=True)]
    has_proxy = any(way.parts)
    return (
        name,
        statistics.median(load.per_second for load in way.loads),
        sum(load.failed for load in way.loads),
        *(_median(load.quantile_ms(part) for load in way.loads) for part in (0.5, 0.99)),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        *(_median(part) if has_proxy else None for part in zip(*way.cpu_us, strict=True)),
        statistics.median(cpus) if has_proxy else None,
        statistics.median(load.busy for load in way.loads),
    )


def _median(values: Iterator[float | None] | tuple[float, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _say(what: str) -> None:
    print(f"... {what}", flush=True)


if __name__ == "__main__":
    main()
