"""Faults of processes: killed, and stopped as if they hung."""

from __future__ import annotations

import os
import signal
from functools import partial

from tests.e2e.clients import tcp_ask
from tests.e2e.faults.scene import SPARE_PORT, Scene, sidecar_of
from tests.e2e.faults.table import Lost, fault
from tests.e2e.namespaces import is_running
from tests.e2e.sidecar import ACTORS, Sidecar

GROUP = "processes"
SIDES = ("called", "calling")
RESTARTED = "a gap until it is started again from the file on disk, below a second"
# Longer than a busy HAProxy may be silent.
HANGS = "a gap until hcc takes it for hung, about 16 s, and starts it again from the file on disk"
ADOPTED = "no request lost; HAProxy is adopted"
# A question that crosses a SPOE worker's farewell is asked again.
RELIEVED = ADOPTED + ", the SPOE workers are relieved"


def _signal(scene: Scene, number: signal.Signals, *pids: int) -> None:
    assert pids
    scene.inject()
    for pid in pids:
        os.kill(pid, number)


def _worker(scene: Scene, side: str, number: signal.Signals) -> None:
    sidecar = sidecar_of(scene, side)
    old = sidecar.worker_pid()
    _signal(scene, number, old)
    scene.mended("another worker", lambda: not is_running(old) and sidecar.worker_pid() != old and scene.healthy())
    assert not is_running(old)


def _master(scene: Scene, side: str, number: signal.Signals) -> None:
    sidecar = sidecar_of(scene, side)
    masters = sidecar.haproxy_masters()
    _signal(scene, number, *masters)
    scene.mended("another master", lambda: set(sidecar.haproxy_masters()).isdisjoint(masters) and scene.healthy())


def _hcc_killed(scene: Scene, side: str) -> None:
    sidecar = sidecar_of(scene, side)
    masters, worker, spoe = sidecar.haproxy_masters(), sidecar.worker_pid(), sidecar.spoe_workers()
    scene.inject()
    sidecar.kill()
    sidecar.start()
    scene.mended("readiness, and the old workers relieved", lambda: scene.healthy() and not _any_of(spoe))
    _adopted(sidecar, masters, worker)


def _upgraded(scene: Scene, side: str) -> None:
    sidecar = sidecar_of(scene, side)
    masters, worker, spoe = sidecar.haproxy_masters(), sidecar.worker_pid(), sidecar.spoe_workers()
    scene.inject()
    assert sidecar.stop(15) == 0
    sidecar.start()
    scene.mended("readiness, and the old workers relieved", lambda: scene.healthy() and not _any_of(spoe))
    _adopted(sidecar, masters, worker)


def _adopted(sidecar: Sidecar, masters: tuple[int, ...], worker: int) -> None:
    assert sidecar.haproxy_masters() == masters
    assert sidecar.worker_pid() == worker
    assert len(sidecar.spoe_workers()) == 2
    assert not list(sidecar.state_dir.glob("*~"))


def _restarted(scene: Scene, side: str) -> None:
    sidecar = sidecar_of(scene, side)
    worker = sidecar.worker_pid()
    scene.inject()
    for actor in ACTORS:
        sidecar.restart(actor)
    scene.mended("readiness", scene.healthy)
    assert sidecar.worker_pid() == worker


for _side in SIDES:
    fault(GROUP, f"SIGKILL of the HAProxy worker, {_side} side", RESTARTED, Lost.GAP)(
        partial(_worker, side=_side, number=signal.SIGKILL)
    )
    fault(GROUP, f"SIGKILL of the HAProxy master, {_side} side", RESTARTED, Lost.GAP)(
        partial(_master, side=_side, number=signal.SIGKILL)
    )
    fault(GROUP, f"SIGSTOP of the HAProxy worker, {_side} side", HANGS, Lost.GAP, slow=True)(
        partial(_worker, side=_side, number=signal.SIGSTOP)
    )
    fault(GROUP, f"SIGSTOP of the HAProxy master, {_side} side", HANGS, Lost.GAP, slow=True)(
        partial(_master, side=_side, number=signal.SIGSTOP)
    )
    _promised = RELIEVED if _side == "called" else ADOPTED
    fault(GROUP, f"SIGKILL of hcc and start, {_side} side", _promised)(partial(_hcc_killed, side=_side))
    fault(
        GROUP,
        f"upgrade: SIGTERM with --on-exit leave and start, {_side} side",
        _promised,
        slow=_side == "calling",
    )(partial(_upgraded, side=_side))
    fault(
        "actors",
        f"operator restart of each actor in turn, {_side} side",
        "no request lost, no reload",
        slow=_side == "calling",
    )(partial(_restarted, side=_side))


@fault(GROUP, "SIGKILL of one SPOE worker", "no request lost: what it was asked is asked again; respawned at once")
def _spoe_killed(scene: Scene) -> None:
    sidecar = scene.web.sidecar
    before = sidecar.spoe_workers()
    _signal(scene, signal.SIGKILL, before[0])
    scene.mended("its successor", lambda: len(sidecar.spoe_workers()) == len(before) and scene.healthy())


@fault(GROUP, "SIGKILL of all SPOE workers", "new callers are refused until the first is back", Lost.GAP)
def _all_spoe_killed(scene: Scene) -> None:
    sidecar = scene.web.sidecar
    before = sidecar.spoe_workers()
    _signal(scene, signal.SIGKILL, *before)
    scene.mended(
        "their successors",
        lambda: len(set(sidecar.spoe_workers()) - set(before)) == len(before) and scene.healthy(),
    )


@fault(GROUP, "SIGSTOP of one SPOE worker", "no request lost: another one is asked after 0.5 s; it is replaced")
def _spoe_stopped(scene: Scene) -> None:
    sidecar = scene.web.sidecar
    before = sidecar.spoe_workers()
    _signal(scene, signal.SIGSTOP, before[0])
    scene.mended(
        "its successor",
        lambda: before[0] not in (now := sidecar.spoe_workers()) and len(now) == len(before) and scene.healthy(),
    )


@fault(GROUP, "SIGKILL of the SPOE zygote", "no request lost")
def _zygote_killed(scene: Scene) -> None:
    sidecar = scene.web.sidecar
    (zygote,) = sidecar.zygotes()
    _signal(scene, signal.SIGKILL, zygote)
    scene.mended("another zygote", lambda: sidecar.zygotes() and zygote not in sidecar.zygotes() and scene.healthy())


@fault(
    GROUP, "SIGSTOP of the SPOE zygote, then SIGKILL of a worker", "zygote and worker are replaced", Lost.FEW, slow=True
)
def _zygote_stopped(scene: Scene) -> None:
    sidecar = scene.web.sidecar
    (zygote,), before = sidecar.zygotes(), sidecar.spoe_workers()
    os.kill(zygote, signal.SIGSTOP)
    _signal(scene, signal.SIGKILL, before[0])
    scene.mended(
        "both successors",
        lambda: not is_running(zygote) and len(sidecar.spoe_workers()) == len(before) and scene.healthy(),
    )


@fault(GROUP, "SIGSTOP of hcc for 3 s", "no request lost", slow=True)
def _hcc_stopped(scene: Scene) -> None:
    for member in (scene.web, scene.caller):
        os.kill(member.sidecar.process.pid, signal.SIGSTOP)
    scene.inject()
    try:
        scene.wait(3.0)
    finally:
        for member in (scene.web, scene.caller):
            os.kill(member.sidecar.process.pid, signal.SIGCONT)
    scene.mended("readiness", scene.healthy)


def _dataplane(scene: Scene, number: signal.Signals) -> None:
    sidecar = scene.plane.sidecar
    pid = _dataplane_pid(sidecar)
    _signal(scene, number, pid)
    scene.mended("another Data Plane API", lambda: _dataplane_pid(sidecar) != pid and scene.healthy())
    assert not is_running(pid)
    with scene.more_upstreams(scene.plane, SPARE_PORT):
        scene.mended("a change by the new one", lambda: tcp_ask(scene.plane.namespace, SPARE_PORT) == "fdb")


fault(GROUP, "SIGKILL of the Data Plane API", "no request lost; replaced")(partial(_dataplane, number=signal.SIGKILL))
fault(GROUP, "SIGSTOP of the Data Plane API", "no request lost; replaced once hcc sees that it hangs", slow=True)(
    partial(_dataplane, number=signal.SIGSTOP)
)


def _dataplane_pid(sidecar: Sidecar) -> int:
    return int((sidecar.state_dir / "dataplane.pid").read_text().split()[0])


def _any_of(pids: tuple[int, ...]) -> bool:
    return any(is_running(pid) for pid in pids)
