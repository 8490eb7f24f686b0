"""Faults of Consul, as the calling side sees them: a spoiled agent, and agents that stop."""

from __future__ import annotations

import os
import signal
from functools import partial

from tests.e2e.clients import tcp_ask
from tests.e2e.faults.agent_proxy import Spoil, backwards, body, reshaped, status, truncated, wordless
from tests.e2e.faults.scene import SPARE_PORT, Scene
from tests.e2e.faults.table import fault

GROUP = "Consul"
KEPT = "no request lost, what Consul said last stays; a change arrives afterwards, without a restart"
LARGE = b"[" + b'{"padding": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"},' * 400_000 + b"{}]"


def _spoiled(scene: Scene, spoil: Spoil, *, noticed: bool = True) -> None:
    sidecar = scene.caller.sidecar
    before = _failures(scene)
    worker = sidecar.worker_pid()
    scene.inject()
    with scene.proxy.spoiling(spoil):
        if noticed:
            scene.mended("the failure to be noticed", lambda: _failures(scene) > before)
        scene.wait(1.0)
        assert sidecar.ready()[0] == 200
    _a_change_arrives(scene)
    assert sidecar.worker_pid() != worker, "a new listener comes by a reload"


def _a_change_arrives(scene: Scene) -> None:
    with scene.more_upstreams(scene.caller, SPARE_PORT):
        scene.mended("a change", lambda: tcp_ask(scene.caller.namespace, SPARE_PORT) == "fdb")
    scene.mended("health", scene.healthy)


def _failures(scene: Scene) -> float:
    metrics = scene.caller.sidecar.metrics()
    return sum(value for name, value in metrics.items() if name.startswith("hcc_watch_failures_total"))


def _silent(scene: Scene) -> None:
    scene.inject()
    with scene.proxy.silent():
        scene.wait(3.0)
    _a_change_arrives(scene)


fault(GROUP, "429 on every question", KEPT)(partial(_spoiled, spoil=status(429)))
fault(GROUP, "500 No cluster leader", KEPT, slow=True)(partial(_spoiled, spoil=status(500, "No cluster leader")))
fault(GROUP, "403: every right is lost", KEPT, slow=True)(partial(_spoiled, spoil=status(403, "Permission denied")))
fault(GROUP, "answers that are not JSON", KEPT, slow=True)(partial(_spoiled, spoil=body(b"<html>")))
fault(GROUP, "truncated answers", KEPT)(partial(_spoiled, spoil=truncated))
fault(GROUP, "answers of another shape", KEPT)(partial(_spoiled, spoil=reshaped))
fault(GROUP, "answers of 20 MB that mean nothing", KEPT, slow=True)(partial(_spoiled, spoil=body(LARGE)))
fault(GROUP, "an index that goes backwards", KEPT, slow=True)(partial(_spoiled, spoil=backwards, noticed=False))
fault(GROUP, "connections closed without a word, as at the agent's connection cap", KEPT, slow=True)(
    partial(_spoiled, spoil=wordless)
)
fault(GROUP, "an agent that takes questions and is silent", KEPT)(_silent)


def _agent_stopped(scene: Scene, seconds: float) -> None:
    agent = scene.site.client
    scene.inject()
    agent.stop()
    try:
        scene.wait(seconds)
    finally:
        agent.start()
        agent.wait_ready()
    _a_change_arrives(scene)


fault(GROUP, "the agent of the calling side stopped and started", KEPT)(partial(_agent_stopped, seconds=1.0))
fault(GROUP, "the same, stopped for a minute", KEPT, slow=True)(partial(_agent_stopped, seconds=60.0))


@fault(GROUP, "SIGSTOP of the only server for 3 s: no leader", KEPT, slow=True)
def _no_leader(scene: Scene) -> None:
    pid = scene.site.server.process.pid
    os.kill(pid, signal.SIGSTOP)
    scene.inject()
    try:
        scene.wait(3.0)
    finally:
        os.kill(pid, signal.SIGCONT)
    scene.site.server.wait_ready()
    _a_change_arrives(scene)
