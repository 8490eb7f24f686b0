"""`make bench-churn`: endpoints, upstreams, certificates and CAs change under load, with real Consul as the source.

For each of the two ways to control HAProxy: changes one by one and in bursts; an upstream with very many endpoints;
very many upstreams; new CAs and leaves. Each scene says what was reloaded, what failed, how soon a change served, and
what each process took. `--quick` does less of everything, in two minutes; all of it takes about half an hour.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from tests import binaries
from tests.bench.farm import Service, address
from tests.bench.farm_client import client_of, wait_created, wait_serving
from tests.bench.machine import load_average, machine
from tests.bench.mesh import Agent, Pair, Sidecar, agent, pair, sidecar, wait_open
from tests.bench.origin import origin
from tests.bench.report import Report
from tests.bench.rotation import Rotation
from tests.bench.scene import Scene, Tables
from tests.ports import free_ports

SERVED_S = 120.0
PAUSE_S = (0.06, 0.12)

HEAVY = 256


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    standing: int = 10
    singles: int = 500
    bursts: int = 10
    burst: int = 50
    endpoints: int = 10_000
    endpoint_changes: int = 20
    upstreams: int = 100
    endpoints_each: int = 10
    upstream_changes: int = 50
    new_cas: int = 3
    per_second: float = 400.0


QUICK = Sizes(
    singles=30, bursts=2, burst=25, endpoints=1000, endpoint_changes=6, upstreams=30, upstream_changes=10, new_cas=1,
    per_second=200.0,
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """One agent, and one way of controlling HAProxy."""

    control: str
    flags: tuple[str, ...]
    haproxy: str
    agent: Agent
    folder: Path
    sizes: Sizes
    tables: Tables

    def few_endpoints(self) -> None:
        """One service, whose endpoints come and go one by one, then in bursts."""
        one = Service("few", *free_ports(2))
        one.grow(self.agent, self.sizes.standing)
        with self._client(one) as client:
            wait_open(one.upstream)
            with self._scene("one by one", self.sizes.singles * 2, one.upstream, client) as scene:
                for _ in range(self.sizes.singles):
                    self._replace(one, 1, scene)
            changes = self.sizes.burst * 2
            with self._scene(f"in bursts of {changes}", self.sizes.bursts * changes, one.upstream, client) as scene:
                for _ in range(self.sizes.bursts):
                    self._replace(one, self.sizes.burst, scene)
                    time.sleep(1.0)

    def many_endpoints(self) -> None:
        """One upstream with very many endpoints: the start, then single changes."""
        one = Service("many", *free_ports(2))
        one.grow(self.agent, self.sizes.endpoints)
        with self._client(one) as client:
            what = f"{self.sizes.endpoints:,} endpoints"
            self._started(what, client, [one], self.sizes.endpoints)
            there: list[float] = []
            with self._scene(f"{what}, one more", self.sizes.endpoint_changes, one.upstream, client) as scene:
                for _ in range(self.sizes.endpoint_changes):
                    # Heavy, or its turn would only come after all the others'.
                    ((number, began),) = one.grow(self.agent, 1, weight=HEAVY)
                    wait_created(client, one, number)
                    there.append(time.perf_counter() - began)
                    scene.seconds.append(scene.load.until_served_by(address(number), SERVED_S) - began)
                    time.sleep(random.uniform(0.2, 0.4))
            self.tables.note_times(self.control, "of these, in HAProxy", there)

    def many_upstreams(self) -> None:
        """Very many upstreams: the start, then single changes of one of them."""
        ports = free_ports(2 * self.sizes.upstreams)
        services = [
            Service(f"one-{number}", *ports[2 * number : 2 * number + 2]) for number in range(self.sizes.upstreams)
        ]
        for one in services:
            one.grow(self.agent, self.sizes.endpoints_each)
        with self._client(*services) as client:
            what, busy = f"{len(services)} upstreams", services[0]
            self._started(what, client, services, self.sizes.endpoints_each)
            with self._scene(what, self.sizes.upstream_changes * 2, busy.upstream, client) as scene:
                for _ in range(self.sizes.upstream_changes):
                    self._replace(busy, 1, scene)

    def new_cas(self, one: Pair) -> None:
        """Both sidecars of a pair get new roots and leaves."""
        with ExitStack() as stack:
            stack.enter_context(origin(self.haproxy, one.app, self.folder, body_bytes=0))
            sidecars = [
                stack.enter_context(sidecar(name, port, self.agent, self.haproxy, self.folder, *self.flags))
                for name, port in ((one.server, one.server_stats), (one.client, one.client_stats))
            ]
            wait_open(one.upstream)
            leaves = []
            with self._scene("new CA", self.sizes.new_cas, one.upstream, *sidecars) as scene:
                for number in range(self.sizes.new_cas):
                    roots_s, leaf_s = Rotation(one, self.agent, self.folder, f"{self.control}-{number}").times()
                    scene.seconds.append(roots_s)
                    leaves.append(leaf_s)
            self.tables.note_times(self.control, "of these, new leaf", leaves)

    def _started(self, what: str, client: Sidecar, services: Sequence[Service], each: int) -> None:
        """A row on the start of the client, once all that there is may serve."""
        began = time.monotonic()
        for one in services:
            wait_serving(client, one, each)
        seconds = client.seconds + time.monotonic() - began
        self.tables.note_start(self.control, what, each * len(services), client, seconds, self.agent.port)

    def _scene(self, what: str, changes: int, port: int, *sidecars: Sidecar) -> AbstractContextManager[Scene]:
        return self.tables.scene(self.control, what, changes, port, self.sizes.per_second, *sidecars)

    def _replace(self, one: Service, count: int, scene: Scene) -> None:
        """So many new endpoints; when all of them have served, so many old ones go.

        After pauses: hcc gathers changes within 50 ms, and from 20 a second on asks Consul less often.
        """
        time.sleep(random.uniform(*PAUSE_S))
        for number, began in one.grow(self.agent, count):
            scene.seconds.append(scene.load.until_served_by(address(number), SERVED_S) - began)
        time.sleep(random.uniform(*PAUSE_S))
        for number, began in one.shrink(self.agent, count):
            scene.gone[address(number)] = began

    def _client(self, *services: Service) -> AbstractContextManager[Sidecar]:
        return client_of(services, self.agent, self.haproxy, self.folder, *self.flags)


def main() -> None:
    """Run it, print the tables, write the file."""
    words = argparse.ArgumentParser(description="Changes under load, for both ways of controlling HAProxy.")
    words.add_argument("--quick", action="store_true", help="less of everything, in two minutes")
    words.add_argument("--control", choices=("direct", "dataplane"), help="only this one")
    words.add_argument("--only", choices=SCENES, help="only this scene")
    given = words.parse_args()
    sizes = QUICK if given.quick else Sizes()
    haproxy, consul = os.environ.get("HAPROXY_BIN") or binaries.haproxy_2_8(), binaries.consul()
    ways = {"direct": (), "dataplane": ("--dataplane", binaries.dataplaneapi())}
    before, tables = load_average(), Tables()
    # Short, as unix sockets must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hcc-bench-") as name:
        for control in [given.control] if given.control else ways:
            folder = Path(name) / control
            folder.mkdir()
            for scene in [given.only] if given.only else SCENES:
                one = pair("http", control)
                # An agent for each scene, or it would also do the work of those before.
                with agent(consul, [one], folder) as running:
                    bench = Bench(control, ways[control], haproxy, running, folder, sizes, tables)
                    try:
                        SCENES[scene](bench, one)
                    except AssertionError as exc:
                        tables.note_end(control, scene, exc)
    facts = {**machine(haproxy, consul), "load": f"{before} before, {load_average()} after"}
    report = Report("churn-quick" if given.quick else "churn", facts, asdict(sizes), tables.all())
    print(report.text())
    print(f"\nwritten to {report.write()}")


SCENES: dict[str, Callable[[Bench, Pair], None]] = {
    "few-endpoints": lambda bench, _: bench.few_endpoints(),
    "many-endpoints": lambda bench, _: bench.many_endpoints(),
    "many-upstreams": lambda bench, _: bench.many_upstreams(),
    "new-cas": lambda bench, one: bench.new_cas(one),
}


if __name__ == "__main__":
    main()
