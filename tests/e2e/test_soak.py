"""Churn, rotations, restarts and kills together, under load, for a while: nothing is lost and nothing grows.

`make soak MIN=10` runs it for ten minutes, every run of the suite for one.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import pytest

from tests.e2e.certificates import change_ca
from tests.e2e.clients import fresh_requests, kept_requests, tcp_ask, tcp_requests
from tests.e2e.load import Load
from tests.e2e.mesh import Member, Mesh, Service, Site, upstream
from tests.e2e.sidecar import ACTORS
from tests.e2e.versions import on_2_8
from tests.e2e.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(0)]
WEB_PORT, DB_PORT, SPARE_PORT = 9701, 9702, 9703
SHORT_S = 60.0
ROTATION_S = 90.0
SETTLE_S = 30.0
# What caches and allocators may take beyond the first round; a leak of a round is repeated by every round.
MEMORY_SLACK = 1.15
MEMORY_SLACK_KB = 6_000
FEW = 3


@dataclass(frozen=True)
class Sample:
    """What one hcc holds, and how many processes its namespace has."""

    memory_kb: int
    descriptors: int
    threads: int
    children: int


def sample(member: Member) -> Sample:
    pid = member.sidecar.process.pid
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.split()[0] for name, _, value in (row.partition(":") for row in rows) if value.split()}
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    children = len(member.sidecar.descendants())
    return Sample(int(status["VmRSS"]), descriptors, int(status["Threads"]), children)


@dataclass
class Town:
    mesh: Mesh
    web: Member
    db: Member
    caller: Member
    rotated_s: float = float("-inf")

    def loads(self) -> tuple[Load, ...]:
        place, longest_s = self.caller.namespace, 3600.0 * 12
        return (
            Load(fresh_requests(place, WEB_PORT, "sweb"), 1, 0.02, longest_s),
            Load(kept_requests(place, WEB_PORT, "sweb"), 1, 0.02, longest_s),
            Load(tcp_requests(place, DB_PORT, "sdb"), 1, 0.02, longest_s),
        )

    # One round of each.

    def churn(self) -> None:
        """Endpoints at run time, a listener by a reload, intentions."""
        for weight in (7, 1):
            self.web.register(replace(self.web.service, weights={"Passing": weight, "Warning": 1}))
        for health in ("warning", "passing"):
            self.web.set_health(health)
        usual = self.caller.service
        self.caller.register(
            replace(usual, upstreams=(*usual.upstreams, upstream("sdb", SPARE_PORT, Datacenter="dc1")))
        )
        wait_until("the added upstream", lambda: tcp_ask(self.caller.namespace, SPARE_PORT) == "sdb", SETTLE_S)
        self.caller.register(usual)
        wait_until("its end", lambda: not self.caller.namespace.listening(SPARE_PORT), SETTLE_S)
        server = self.mesh.site.server
        server.set_intention("nobody", "sweb", "deny")
        server.remove_intention("nobody", "sweb")

    def rotate(self) -> None:
        """A new CA, and so new roots and leaves; not more often than Consul's own spreading of renewals can follow."""
        if time.monotonic() - self.rotated_s > ROTATION_S:
            self.rotated_s = time.monotonic()
            change_ca(self.mesh.site.server)

    def restart(self) -> None:
        """Every actor of two sidecars, on the operator's word."""
        for member in (self.web, self.caller):
            for actor in ACTORS:
                member.sidecar.restart(actor)

    def kill(self) -> None:
        """A zygote, a SPOE worker, and a whole hcc that comes back."""
        os.kill(self.web.sidecar.zygotes()[0], signal.SIGKILL)
        os.kill(self.web.sidecar.spoe_workers()[0], signal.SIGKILL)
        self.db.sidecar.kill()
        self.db.sidecar.start()
        self.db.sidecar.wait_ready()

    def settled(self) -> bool:
        """Whether all is well, and nothing of what was done to it is under way: no worker that stops, no check."""
        return all(
            member.sidecar.command("plan").stdout.startswith("nothing to do") and len(member.sidecar.haproxies()) == 2
            for member in (self.web, self.caller)
        ) and all(
            member.sidecar.ready() == (200, "ready\n")
            and len(member.sidecar.spoe_workers()) == 2
            and len(member.sidecar.zygotes()) == 1
            for member in (self.web, self.db, self.caller)
        )


@pytest.fixture
def town(site: Site, haproxy: str) -> Iterator[Town]:
    mesh = Mesh(site, haproxy)
    calls = (upstream("sweb", WEB_PORT), upstream("sdb", DB_PORT))
    try:
        web, db, caller = mesh.join(
            Service("sweb", "http"), Service("sdb"), Service("scaller", host="b", upstreams=calls)
        )
        yield Town(mesh, web, db, caller)
    finally:
        mesh.close()


@on_2_8
def test_nothing_is_lost_and_nothing_grows(town: Town) -> None:
    watched = (town.web, town.caller)
    rounds = 0
    with ExitStack() as stack:
        loads = [stack.enter_context(load) for load in town.loads()]
        for work in (town.churn, town.rotate, town.restart, town.kill):
            work()
        wait_until("everything to settle", town.settled, SETTLE_S)
        before = [sample(member) for member in watched]
        end = time.monotonic() + (float(os.environ.get("SOAK_MINUTES", "0")) * 60 or SHORT_S)
        for work in cycle((town.churn, town.rotate, town.restart, town.kill)):
            if time.monotonic() > end:
                break
            work()
            rounds += 1
            for load in loads:
                load.go_on(5)
        wait_until("everything to settle", town.settled, SETTLE_S)
        for load in loads:
            load.go_on(50)
        after = [sample(member) for member in watched]
    report = f"{rounds} pieces of work; {[load.report() for load in loads]}; before {before}; after {after}\n"
    sys.stderr.write(report)
    assert rounds
    assert not any(load.failed for load in loads), [load.report() for load in loads]
    for old, new in zip(before, after, strict=True):
        assert new.memory_kb <= old.memory_kb * MEMORY_SLACK + MEMORY_SLACK_KB, (old, new)
        assert new.descriptors <= old.descriptors + FEW, (old, new)
        assert new.threads <= old.threads + FEW, (old, new)
        assert new.children == old.children, (old, new)
