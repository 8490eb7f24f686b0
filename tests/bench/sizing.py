"""`make bench-sizing`: what one sidecar takes, and what upstreams, endpoints, connections and requests add.

Memory is PSS: of HAProxy, and of hcc with its SPOE workers. Processor time is that of each sidecar for what crosses
both. docs/sizing.md is written from it by hand. Two minutes; `--quick` one.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests import binaries
from tests.bench.farm import Service
from tests.bench.farm_client import client_of, wait_serving
from tests.bench.load import Load, connecting, kept_alive
from tests.bench.machine import load_average, machine
from tests.bench.memory import Member, connections, cpu_s, pss_kib
from tests.bench.mesh import Agent, Pair, Sidecar, agent, pair, sidecar, wait_open
from tests.bench.origin import origin
from tests.bench.report import Cell, Report, Table
from tests.ports import free_ports

PARALLEL = 16
_ASK = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
_GENERATORS: dict[str, Callable[[int, int, float], Load]] = {
    "kept-alive requests": kept_alive,
    "new connections, each with a request": connecting,
}
_REST_S = 10.0


@dataclass(frozen=True)
class Sizes:
    """What is tried: upstreams with endpoints each; connections that are open at once."""

    meshes: tuple[tuple[int, int], ...] = ((1, 1), (1, 100), (1, 1000), (10, 10), (100, 10))
    open: tuple[int, ...] = (0, 1000, 2000)
    seconds: float = 6.0


QUICK = Sizes(meshes=((1, 1), (1, 100), (10, 10)), open=(0, 500), seconds=2.0)


@dataclass(frozen=True)
class Bench:
    """One HAProxy, one Consul."""

    haproxy: str
    consul: str
    folder: Path
    sizes: Sizes

    def meshes(self) -> Table:
        """Memory and connections of a client's sidecar by what it has to know."""
        rows = [self._mesh(upstreams, endpoints) for upstreams, endpoints in self.sizes.meshes]
        columns = ("upstreams", "endpoints each", "HAProxy MiB", "hcc MiB", "connections to the agent")
        return Table("What a sidecar has to know", columns, tuple(rows), "Once every endpoint may serve; no traffic.")

    def traffic(self) -> tuple[Table, ...]:
        """Memory by open connections; processor time of connections and requests, http and tcp."""
        pairs = {protocol: pair(protocol) for protocol in ("http", "tcp")}
        opened: list[tuple[Cell, ...]] = []
        work: list[tuple[Cell, ...]] = []
        rest: list[tuple[Cell, ...]] = []
        with agent(self.consul, pairs.values(), self.folder) as running:
            for protocol, one in pairs.items():
                with self._sidecars(one, running) as sidecars:
                    rest.append((protocol, *_rested(sidecars)))
                    opened += [(protocol, *self._opened(one, count, sidecars)) for count in self.sizes.open]
                    work += [(protocol, what, *self._worked(one, what, sidecars)) for what in _GENERATORS]
        return (
            Table("At rest", ("protocol", "caller's cores", "called one's cores"), tuple(rest), "All its processes."),
            Table(
                "Connections that stay open",
                ("protocol", "client's connections", "caller's HAProxy MiB", "called one's HAProxy MiB"),
                tuple(opened),
                "Each has carried one request. Http: the sidecars share fewer connections between them.",
            ),
            Table(
                "What crosses both sidecars",
                ("protocol", "what", "per s", "failed", "caller's ms CPU", "called one's ms CPU", "hcc's part"),
                tuple(work),
                "Processor time of each sidecar, all its processes, for a thousand of them; answers of 1 KiB.",
            ),
        )

    def _mesh(self, upstreams: int, endpoints: int) -> tuple[Cell, ...]:
        print(f"... {upstreams} upstreams, {endpoints} endpoints each", flush=True)
        ports = free_ports(2 * upstreams)
        services = [Service(f"s{number}", *ports[2 * number : 2 * number + 2]) for number in range(upstreams)]
        with ExitStack() as stack:
            running = stack.enter_context(agent(self.consul, (), self.folder))
            for one in services:
                one.grow(running, endpoints)
            client = stack.enter_context(client_of(services, running, self.haproxy, self.folder))
            for one in services:
                wait_serving(client, one, endpoints)
            haproxy, hcc = _mib(client)
            return upstreams, endpoints, haproxy, hcc, connections(client.program.pid, running.port)

    @contextmanager
    def _sidecars(self, one: Pair, running: Agent) -> Iterator[tuple[Sidecar, Sidecar]]:
        """Those of the caller and of the called one, with requests getting through."""
        with (
            origin(self.haproxy, one.app, self.folder),
            sidecar(one.server, one.server_stats, running, self.haproxy, self.folder) as server,
            sidecar(one.client, one.client_stats, running, self.haproxy, self.folder) as client,
        ):
            wait_open(one.upstream)
            yield client, server

    def _opened(self, one: Pair, count: int, sidecars: tuple[Sidecar, Sidecar]) -> tuple[Cell, ...]:
        print(f"... {one.protocol}: {count} open connections", flush=True)
        with ExitStack() as stack:
            for _ in range(count):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", one.upstream), 10.0))
                sock.sendall(_ASK)
                assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
            return count, *(_mib(each)[0] for each in sidecars)

    def _worked(self, one: Pair, what: str, sidecars: tuple[Sidecar, Sidecar]) -> tuple[Cell, ...]:
        print(f"... {one.protocol}: {what}", flush=True)
        members = {each: each.members() for each in sidecars}
        before = _used(members)
        load = _GENERATORS[what](one.upstream, PARALLEL, self.sizes.seconds)
        used = {member: seconds - before[member] for member, seconds in _used(members).items()}
        thousands = max(1, load.done) / 1000
        each_ms = [sum(used[member] for member in members[one]) * 1e3 / thousands for one in sidecars]
        hcc = sum(seconds for member, seconds in used.items() if member.program != "haproxy")
        return load.per_second, load.failed, *each_ms, hcc / max(sum(used.values()), 1e-9)


def main() -> None:
    """Run it, print the tables, write the file."""
    words = argparse.ArgumentParser(description="What a sidecar takes.")
    words.add_argument("--quick", action="store_true", help="less of everything")
    sizes = QUICK if words.parse_args().quick else Sizes()
    haproxy, consul = os.environ.get("HAPROXY_BIN") or binaries.haproxy_2_8(), binaries.consul()
    before = load_average()
    # Short, as unix sockets must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hcc-bench-") as name:
        bench = Bench(haproxy, consul, Path(name), sizes)
        tables = (bench.meshes(), *bench.traffic())
    facts = {**machine(haproxy, consul), "load": f"{before} before, {load_average()} after"}
    report = Report("sizing", facts, {key: str(value) for key, value in asdict(sizes).items()}, tables)
    print(report.text())
    print(f"\nwritten to {report.write()}")


def _mib(one: Sidecar) -> tuple[float, float]:
    """Memory of a sidecar's HAProxy, and of its other processes."""
    memory = {member: pss_kib(member.pid) / 1024 for member in one.members()}
    haproxy = sum(mib for member, mib in memory.items() if member.program == "haproxy")
    return round(haproxy, 1), round(sum(memory.values()) - haproxy, 1)


def _rested(sidecars: tuple[Sidecar, ...]) -> tuple[float, ...]:
    """Processor time of each while nothing is asked of it, in cores."""
    print("... nothing", flush=True)
    members = [one.members() for one in sidecars]
    before = [cpu_s(each) for each in members]
    time.sleep(_REST_S)
    return tuple((cpu_s(each) - used) / _REST_S for each, used in zip(members, before, strict=True))


def _used(members: Mapping[Sidecar, tuple[Member, ...]]) -> dict[Member, float]:
    return {member: cpu_s([member]) for each in members.values() for member in each}


if __name__ == "__main__":
    main()
