"""Every fault of the table under constant load: what was promised is kept. `make faults` writes docs/faults.md."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.e2e.faults import actors, consul, edges, processes, resources
from tests.e2e.faults.scene import LOADS, MENDED_S, Scene
from tests.e2e.faults.table import FAULTS, FEW, RECORDS, Fault, Lost, Record
from tests.e2e.mesh import Site
from tests.e2e.waiting import wait_until

# One HAProxy is enough for every run; FAULT_HAPROXY=2.2,2.6 names others.
VERSIONS = os.environ.get("FAULT_HAPROXY", "2.8").split(",")
pytestmark = [pytest.mark.e2e, pytest.mark.parametrize("haproxy_version", VERSIONS, indirect=True)]
GROUPS = (processes, actors, consul, resources, edges)
# Where Consul's check saw a gap, which looks once a second, nobody is healthy until it looks again and all have heard.
BACK_S = 10.0
CHOSEN = [fault for fault in FAULTS if not fault.slow or RECORDS in os.environ]


@pytest.fixture(scope="module")
def scene(site: Site, haproxy: str) -> Iterator[Scene]:
    made = Scene(site, haproxy)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("fault", CHOSEN, ids=lambda fault: fault.id)
def test_what_was_promised_is_kept(scene: Scene, fault: Fault, haproxy_version: str) -> None:
    wait_until("health before the fault", scene.healthy, MENDED_S)
    scene.begin()
    before = _counted(scene)
    good = False
    try:
        fault.run(scene)
        back_s = scene.mended_s
        if fault.lost is Lost.GAP:
            scene.wait_back()
            back_s = time.monotonic()
        for load in scene.loads:
            load.go_on(20)
        _kept(fault, scene, _counted(scene) - before, back_s)
        good = True
    finally:
        _record(fault, scene, _counted(scene) - before, haproxy_version, good).append()
        if not good:
            scene.heal()


def _counted(scene: Scene) -> Counter[str]:
    """Requests so far: answered ones under "", failed ones under their error."""
    total = Counter({"": sum(load.ok for load in scene.loads)})
    for name, load in zip(LOADS, scene.loads, strict=True):
        total += Counter({f"{name}: {error}": times for error, times in load.failed.items()})
    return total


def _failed(found: Counter[str]) -> int:
    return found.total() - found[""]


def _kept(fault: Fault, scene: Scene, found: Counter[str], back_s: float) -> None:
    assert scene.injected_s, "the row injected nothing"
    assert scene.mended_s >= scene.injected_s
    if fault.lost is Lost.NONE:
        assert not _failed(found), found
    elif fault.lost is Lost.FEW:
        assert _failed(found) <= FEW, found
    assert back_s <= scene.mended_s + BACK_S
    assert max(load.last_failed_began_s for load in scene.loads) <= back_s, found


def _record(fault: Fault, scene: Scene, found: Counter[str], haproxy: str, good: bool) -> Record:
    injected = scene.injected_s or time.monotonic()
    last_failure_s = max(load.last_failure_s for load in scene.loads)
    return Record(
        fault.group,
        fault.injected,
        fault.promised,
        haproxy,
        sent=found.total(),
        failed=_failed(found),
        outage_s=max(0.0, last_failure_s - injected) if _failed(found) else 0.0,
        mended_s=max(0.0, scene.mended_s - injected),
        good=good,
    )
