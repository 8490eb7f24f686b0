"""Faults of actors in the running daemon: errors, exits, hangs, floods, and too many of them."""

from __future__ import annotations

import json
from functools import partial

from tests.e2e.faults.scene import Scene, sidecar_of
from tests.e2e.faults.table import fault
from tests.e2e.sidecar import ACTORS
from tests.e2e.waiting import wait_until

GROUP = "actors"
ALONE = "no request lost; that actor alone is restarted"
LEAVES = tuple(actor for actor in ACTORS if actor != "SPOE")
IN_ROOT = tuple(actor for actor in LEAVES if actor != "SPOEPool")


def order(scene: Scene, side: str, **what: object) -> None:
    """Let the saboteur inside do that."""
    path, process = scene.orders[side], sidecar_of(scene, side).process
    wait_until("the last order to be obeyed", lambda: not path.exists() or process.status() is not None)
    whole = path.with_suffix(".whole")
    whole.write_text(json.dumps(what))
    whole.replace(path)


def _failing(scene: Scene, side: str, kind: str, actors: tuple[str, ...]) -> None:
    sidecar = sidecar_of(scene, side)
    before = sidecar.actors()
    # One that is told to fail twice in its start is up at the third.
    starts = 3 if kind == "start" else 1

    def up(actor: str) -> bool:
        now = sidecar.actors()[actor]
        return bool(now["state"] == "running" and now["generation"] >= before[actor]["generation"] + starts)

    scene.inject()
    for actor in actors:
        order(scene, side, actor=actor, kind=kind)
    scene.mended("their restarts", lambda: all(map(up, actors)) and scene.healthy(), 60.0)
    after = sidecar.actors()
    assert {name for name in after if after[name]["generation"] > before[name]["generation"]} == set(actors)
    assert all(actor["state"] == "running" for actor in after.values())


fault(GROUP, "an exception in a handler of each actor in turn", ALONE)(
    partial(_failing, side="called", kind="raise", actors=LEAVES)
)
fault(GROUP, "SystemExit in a handler", ALONE)(partial(_failing, side="calling", kind="exit", actors=("CertManager",)))
fault(GROUP, "an exception in start, twice", ALONE)(
    partial(_failing, side="calling", kind="start", actors=("ConsulWatcher",))
)
fault(GROUP, "an exception in stop", ALONE)(partial(_failing, side="calling", kind="stop", actors=("Admin",)))
fault(GROUP, "a handler that never returns", "no request lost; abandoned, counted, replaced", slow=True)(
    partial(_failing, side="calling", kind="hang", actors=("CertManager",))
)


@fault(GROUP, "100,000 messages to one actor at once", "no request lost; the mailbox is bounded, losses are counted")
def _flood(scene: Scene) -> None:
    sidecar = scene.caller.sidecar
    before = sidecar.actors()
    scene.inject()
    order(scene, "calling", actor="ConfigReconciler", kind="flood")
    scene.mended("the flood to be over", lambda: not scene.orders["calling"].exists() and scene.healthy())
    scene.mended("an empty mailbox", lambda: not sidecar.actors()["ConfigReconciler"]["mailbox_depth"])
    after = sidecar.actors()
    assert {name: actor["generation"] for name, actor in after.items()} == {
        name: actor["generation"] for name, actor in before.items()
    }


@fault(
    GROUP, "restart intensity exceeded", "hcc exits with 1 and the cause; no request lost; the next one adopts HAProxy"
)
def _too_often(scene: Scene) -> None:
    sidecar = scene.caller.sidecar
    masters, worker = sidecar.haproxy_masters(), sidecar.worker_pid()
    scene.inject()
    for _ in range(3):
        for actor in IN_ROOT:
            if sidecar.process.status() is None:
                order(scene, "calling", actor=actor, kind="raise")
                scene.wait(0.1)
    assert sidecar.process.wait(20) == 1
    scene.orders["calling"].unlink(missing_ok=True)
    assert "giving up, HAProxy goes on without hcc" in sidecar.log_text()
    sidecar.start()
    scene.mended("readiness", scene.healthy)
    assert sidecar.haproxy_masters() == masters
    assert sidecar.worker_pid() == worker
