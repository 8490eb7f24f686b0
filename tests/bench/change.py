"""`make bench-change`: one more endpoint, from Consul's answer to `add server`, step by step, by the size of the mesh.

The steps are those of the watch, of ConsulWatcher and of ConfigReconciler, called one after the other on a real
HAProxy; the answer is made here, in the form and size that Consul 1.20 gives it. What is left out: Consul itself, HTTP,
and the mailboxes. `make bench-churn` measures all of it together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hcc.actors.changes import Changes, noted
from hcc.consul.answers import ChainOverride, Registration
from hcc.consul.assembly import State, endpoints_watch, snapshot, updated
from hcc.consul.entries import Reading, read
from hcc.consul.keys import ChainWatch, LeafWatch, ProxyWatch, RootsWatch
from hcc.haproxy.capabilities import Capabilities
from hcc.haproxy.desired import desired
from hcc.haproxy.desired_terms import Options
from hcc.haproxy.model import GlobalOptions
from hcc.haproxy.plan import changes, fits_what_runs, plan
from hcc.haproxy.render import render
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import Snapshot
from hcc.settings import Enforcement
from tests.bench.machine import load_average, versions
from tests.bench.report import Report, Table
from tests.builders import chain, leaf, proxy, roots, upstream
from tests.haproxy_stage import Stage, stage
from tests.ports import free_port

SIZES = ((1, 10), (1, 1_000), (1, 10_000), (100, 10))
ROUNDS = 15
STEPS = ("read", "assemble", "note", "desired", "glance", "render", "plan", "apply", "served", "settle")


@dataclass
class Mesh:
    """One sidecar's upstreams, all with as many endpoints; the first gets more."""

    there: Stage
    upstreams: int
    endpoints: int
    took_ms: dict[str, list[float]] = field(default_factory=dict)
    first_s: float = 0.0

    def __post_init__(self) -> None:
        registered = [upstream(f"u{number}", free_port()) for number in range(self.upstreams)]
        self.proxy = proxy(local_port=0, upstreams=registered)
        self.state = State(self.proxy.id)
        self.key = endpoints_watch(chain("u0").targets[0], "dc1")
        self.reading = Reading()
        self.told: Snapshot | None = None
        self.changes: Changes = {}

    def start(self) -> None:
        """The first apply, HAProxy's start included."""
        for number in range(self.upstreams):
            self._first_answers(number)
        began_s = time.monotonic()
        wanted = render(desired(self._snapshot(), self._options(), self.there.certificates()).desired, self._able)
        self.there.converge(wanted)
        self.first_s = time.monotonic() - began_s
        self.there.actual(wanted)

    def one_more(self, number: int) -> None:
        """One more endpoint of the first upstream."""
        body, control = _answer(self.endpoints + number), self.there.control
        certificates, options, before = self.there.certificates(), self._options(), self.told
        with self._timed("served"):
            with self._timed("read"):
                self.reading = read(body, self.reading, wan=False)
            with self._timed("assemble"):
                self.state = updated(self.state, self.key, self.reading.instances)
                told = self._snapshot()
            with self._timed("note"):
                self.changes = noted(self.changes, before, told, 0.0)
            with self._timed("desired"):
                wanted = desired(told, options, certificates).desired
            with self._timed("glance"):
                actual = control.glance()
                assert actual is not None
            with self._timed("render"):
                rendered = render(wanted, self._able, actual.servers)
            with self._timed("plan"):
                assert fits_what_runs(rendered, actual)
                steps = changes(rendered, actual)
            with self._timed("apply"):
                assert len(steps.operations) <= 3
                assert control.apply(steps).failure is None
        with self._timed("settle"):
            left = plan(rendered, control.read_actual(rendered))
            assert len(left.operations) == 1, left.describe()
            assert control.apply(left).failure is None

    def row(self) -> tuple[str | int | float, ...]:
        medians = (round(statistics.median(self.took_ms[step]), 2) for step in STEPS)
        return (self.upstreams, self.endpoints, round(self.first_s, 1), *medians)

    @property
    def _able(self) -> Capabilities:
        return self.there.capabilities

    def _snapshot(self) -> Snapshot:
        self.told = snapshot(self.state, 1)
        assert self.told is not None
        return self.told

    def _first_answers(self, number: int) -> None:
        name, overrides = f"u{number}", tuple(ChainOverride() for _ in self.proxy.upstreams)
        key = endpoints_watch(chain(name).targets[0], "dc1")
        reading = read(_answer(self.endpoints), Reading(), wan=False)
        if number == 0:
            self.reading = reading
            for watch, value in (
                (ProxyWatch(self.proxy.id), Registration(self.proxy, "dc1", overrides)),
                (RootsWatch(), roots()),
                (LeafWatch(self.proxy.service), leaf(self.proxy.service)),
            ):
                self.state = updated(self.state, watch, value)
        self.state = updated(self.state, ChainWatch(name), chain(name))
        self.state = updated(self.state, key, reading.instances)

    def _options(self) -> Options:
        layout = self.there.layout
        process = GlobalOptions(layout.stats_socket, layout.directory, max_connections=500)
        maps = (layout.identities, layout.verdicts, layout.rules)
        keys = layout.ticket_keys, Secret("of a bench")
        return Options(process, (layout.agent_socket(1),), *maps, *keys, Enforcement.OFF)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began_s = time.perf_counter()
        yield
        self.took_ms.setdefault(step, []).append((time.perf_counter() - began_s) * 1000)


def _answer(count: int) -> bytes:
    """What Consul answers about so many instances."""
    return json.dumps([_entry(number) for number in range(count)], separators=(",", ":")).encode()


def _entry(number: int) -> dict[str, object]:
    where = f"127.{1 + number // 60_000}.{number // 250 % 240}.{1 + number % 250}"
    tagged = {kind: {"Address": where, "Port": 21000} for kind in ("lan_ipv4", "wan_ipv4")}
    check = {
        "Node": f"node-{number}", "Name": "Connect Sidecar Listening", "Status": "passing", "Notes": "",
        "Output": f"TCP connect {where}:21000: Success", "ServiceID": f"web-{number}", "ServiceName": "web",
        "ServiceTags": [], "Type": "tcp", "Interval": "10s", "Timeout": "", "ExposedPort": 0, "Definition": {},
        "CreateIndex": number, "ModifyIndex": number,
    }  # fmt: skip
    return {
        "Node": {
            "ID": f"11111111-2222-3333-4444-{number:012}", "Node": f"node-{number}", "Address": where,
            "Datacenter": "dc1", "TaggedAddresses": dict.fromkeys(("lan", "lan_ipv4", "wan", "wan_ipv4"), where),
            "Meta": {"consul-network-segment": "", "consul-version": "1.20.1"},
            "CreateIndex": number, "ModifyIndex": number,
        },
        "Service": {
            "Kind": "connect-proxy", "ID": f"web-{number}-sidecar-proxy", "Service": "web-sidecar-proxy", "Tags": [],
            "Address": where, "TaggedAddresses": tagged, "Meta": None, "Port": 21000,
            "Weights": {"Passing": 1, "Warning": 1}, "EnableTagOverride": False,
            "Proxy": {"DestinationServiceName": "web", "DestinationServiceID": f"web-{number}", "Mode": "",
                      "LocalServiceAddress": "127.0.0.1", "LocalServicePort": 8080, "MeshGateway": {}, "Expose": {}},
            "Connect": {}, "PeerName": "", "CreateIndex": number, "ModifyIndex": number,
        },
        "Checks": [check | {"CheckID": f"service:web-{number}:{one}"} for one in (1, 2)],
    }  # fmt: skip


def main() -> None:
    """Run it, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--haproxy", default="2.8", help="branch (default: 2.8)")
    branch = parser.parse_args().haproxy
    before, rows = load_average(), []
    for upstreams, endpoints in SIZES:
        with stage(branch) as there:
            mesh = Mesh(there, upstreams, endpoints)
            mesh.start()
            for number in range(1, ROUNDS + 1):
                mesh.one_more(number)
            rows.append(mesh.row())
    columns = ("upstreams", "endpoints each", "first apply s", *(f"{step} ms" for step in STEPS))
    note = "medians; `served` is the sum of what stands before it, `settle` comes later, once for many changes"
    facts = {"haproxy": branch, **versions(), "load": f"{before} before, {load_average()} after"}
    report = Report("change", facts, {"rounds": ROUNDS}, (Table("one more endpoint", columns, tuple(rows), note),))
    print(report.text())
    print(f"\nwritten to {report.write()}")


if __name__ == "__main__":
    main()
