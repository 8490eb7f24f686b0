"""Faults of what the machine gives: disk, ports, file descriptors, time."""

from __future__ import annotations

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.clients import tcp_ask
from tests.e2e.faults.actors import order
from tests.e2e.faults.scene import SPARE_PORT, Scene, filled
from tests.e2e.faults.table import Lost, fault
from tests.e2e.namespaces import is_running
from tests.e2e.waiting import wait_until

GROUP = "resources"
TEN_YEARS_S = 10 * 365 * 86_400


@fault(GROUP, "the disk of the state directory is full", "no request lost; a change is applied once there is room")
def _disk_full(scene: Scene) -> None:
    with filled(scene.disk):
        scene.inject()
        with scene.more_upstreams(scene.caller, SPARE_PORT):
            wait_until("a complaint", lambda: "No space left" in scene.caller.sidecar.log_text(), 20)
            (scene.disk / "filler").unlink()
            scene.mended("the change", lambda: tcp_ask(scene.caller.namespace, SPARE_PORT) == "fdb")
    scene.mended("health", scene.healthy)


@fault(GROUP, "the state directory is read-only", "no request lost; a change is applied once it can be written")
def _read_only(scene: Scene) -> None:
    with contextlib.ExitStack() as stack:
        # Mounted over itself, as a file system with files open for writing cannot be made read-only; and where hcc
        # sees it, as `ip netns exec` gave it mounts of its own.
        inside = ("nsenter", "-m", "-t", str(scene.caller.sidecar.process.pid))
        disk = str(scene.disk)
        subprocess.run([*inside, "mount", "--bind", disk, disk], check=True, timeout=10)
        stack.callback(subprocess.run, [*inside, "umount", "-l", disk], check=True, timeout=10)
        subprocess.run([*inside, "mount", "-o", "remount,ro,bind", disk], check=True, timeout=10)
        scene.inject()
        with scene.more_upstreams(scene.caller, SPARE_PORT):
            wait_until("a complaint", lambda: "Read-only" in scene.caller.sidecar.log_text(), 20)
            stack.close()
            scene.mended("the change", lambda: tcp_ask(scene.caller.namespace, SPARE_PORT) == "fdb")
    scene.mended("health", scene.healthy)


@fault(
    GROUP,
    "HAProxy's sockets are removed, called side",
    "not ready; a gap when hcc starts it again, as nothing can be enforced",
    Lost.GAP,
    slow=True,
)
def _sockets_removed(scene: Scene) -> None:
    sidecar = scene.web.sidecar
    worker, sockets = sidecar.worker_pid(), [sidecar.state_dir / name for name in ("stats.sock", "master.sock")]
    scene.inject()
    for socket in sockets:
        socket.unlink()
    wait_until("a complaint in /ready", lambda: "sockets" in sidecar.ready()[1], 20)
    scene.mended("another HAProxy", lambda: not is_running(worker) and scene.healthy())
    assert all(socket.is_socket() for socket in sockets)


@fault(
    GROUP, "the socket of HAProxy's master is removed, calling side", "no request lost; made anew by the next reload"
)
def _master_socket_removed(scene: Scene) -> None:
    sidecar = scene.caller.sidecar
    masters = sidecar.haproxy_masters()
    scene.inject()
    (sidecar.state_dir / "master.sock").unlink()
    with scene.more_upstreams(scene.caller, SPARE_PORT):
        scene.mended("the change", lambda: tcp_ask(scene.caller.namespace, SPARE_PORT) == "fdb")
    scene.mended("health", scene.healthy)
    assert (sidecar.state_dir / "master.sock").is_socket()
    assert sidecar.haproxy_masters() == masters


@fault(GROUP, "the sockets of the SPOE workers are removed", "no request lost; they are bound anew")
def _spoe_sockets_removed(scene: Scene) -> None:
    sidecar = scene.web.sidecar
    sockets = sorted(sidecar.state_dir.glob("spoe-*.sock"))
    assert len(sockets) == 2
    scene.inject()
    for socket in sockets:
        socket.unlink()
    scene.mended("sockets", lambda: all(socket.is_socket() for socket in sockets) and scene.healthy())


@fault(GROUP, "the port of a new upstream is taken", "no request lost; an error names it; it is bound once it is free")
def _port_taken(scene: Scene) -> None:
    with scene.caller.namespace.tcp_socket() as foreign:
        foreign.bind(("127.0.0.1", SPARE_PORT))
        foreign.listen()
        scene.inject()
        with scene.more_upstreams(scene.caller, SPARE_PORT):
            wait_until(
                "a complaint", lambda: f"cannot listen on 127.0.0.1:{SPARE_PORT}" in scene.caller.sidecar.log_text(), 20
            )
            foreign.close()
            scene.mended("the listener", lambda: tcp_ask(scene.caller.namespace, SPARE_PORT) == "fdb")
    scene.mended("health", scene.healthy)


@fault(GROUP, "hcc has no file descriptor left", "no request lost; all works again once there are some")
def _no_descriptors(scene: Scene) -> None:
    pid = scene.caller.sidecar.process.pid
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(list(Path(f"/proc/{pid}/fd").iterdir())), usual[1]))
    scene.inject()
    with contextlib.ExitStack() as scarce:
        scarce.callback(resource.prlimit, pid, resource.RLIMIT_NOFILE, usual)
        for _ in range(20):
            with contextlib.suppress(OSError):
                scene.caller.sidecar.fetch("/metrics")
        with scene.more_upstreams(scene.caller, SPARE_PORT):
            scene.wait(2.0)
            scarce.close()
    with scene.more_upstreams(scene.caller, SPARE_PORT):
        scene.mended("a change", lambda: tcp_ask(scene.caller.namespace, SPARE_PORT) == "fdb")
    scene.mended("health", scene.healthy)


@fault(
    GROUP,
    "the wall clock jumps ten years ahead and back, CertManager restarts meanwhile",
    "no request lost; the leaf is refused until the clock is right",
)
def _clock_jumps(scene: Scene) -> None:
    sidecar = scene.caller.sidecar
    scene.inject()
    with _another_time(scene):
        sidecar.restart("CertManager")
        wait_until("the leaf to be refused", lambda: "expected a leaf that is valid now" in sidecar.log_text(), 20)
    scene.mended("health", scene.healthy)


@contextlib.contextmanager
def _another_time(scene: Scene) -> Iterator[None]:
    order(scene, "calling", kind="clock", seconds=TEN_YEARS_S)
    wait_until("the clock to jump", lambda: not scene.orders["calling"].exists())
    try:
        yield
    finally:
        order(scene, "calling", kind="clock", seconds=0)
