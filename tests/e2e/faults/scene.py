"""The mesh that all faults of the table share: three services, one caller, constant load on all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tests.binaries import dataplaneapi
from tests.e2e.clients import fresh_requests, http_get, kept_requests, read_line, tcp_ask, tcp_requests
from tests.e2e.faults.agent_proxy import AgentProxy
from tests.e2e.load import Client, Load
from tests.e2e.mesh import Member, Mesh, Service, Site, upstream
from tests.e2e.namespaces import Namespace
from tests.e2e.sidecar import Sidecar
from tests.e2e.waiting import wait_until

WEB_PORT, DB_PORT, PLANE_PORT, SPARE_PORT = 9601, 9602, 9603, 9604
SABOTEUR = (sys.executable, "-m", "tests.e2e.faults.saboteur")
LOADS = ("http", "http kept", "tcp", "tcp established", "http to fplane")
LONGEST_S = 3600.0
MENDED_S = 30.0
"""How long anything may take to mend before a row counts as failed."""


class Scene:
    """fweb (http), fdb (tcp) and fplane (http, by the Data Plane API) on host a, fcaller on host b.

    fcaller talks to its agent through `proxy`, and its state directory is a file system of its own, of 8 MB.
    """

    def __init__(self, site: Site, haproxy: str) -> None:
        self.site = site
        self.mesh = Mesh(site, haproxy)
        self._stack = ExitStack()
        self.injected_s = 0.0
        self.mended_s = 0.0
        self.loads: tuple[Load, ...] = ()
        self._renew = threading.Event()
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        calls = (upstream("fweb", WEB_PORT), upstream("fdb", DB_PORT), upstream("fplane", PLANE_PORT))
        self.disk = self._stack.enter_context(small_disk(self.site.directory / f"disk-{self.site.number()}"))
        self.proxy = self._stack.enter_context(AgentProxy(self.site.client.namespace))
        self.orders = {name: self.site.directory / f"orders-{self.site.number()}" for name in ("called", "calling")}
        flags = ("--on-exit", "leave")
        self.web = self._add(Service("fweb", "http"), "called", *flags)
        self.db = self.mesh.add(Service("fdb"), *flags)
        self.plane = self.mesh.add(Service("fplane", "http"), *flags, "--dataplane", dataplaneapi())
        caller = Service("fcaller", host="b", upstreams=calls)
        self.caller = self._add(
            caller, "calling", *flags, "--http-addr", f"127.0.0.1:{self.proxy.port}", state_base=self.disk
        )
        for member in self.members():
            member.wait_ready()
        for member in self.members():
            member.wait_healthy(self.site.client)
        self.loads = tuple(self._stack.enter_context(load) for load in self._loads())

    def _add(self, service: Service, name: str, *flags: str, state_base: Path | None = None) -> Member:
        program = (*SABOTEUR, str(self.orders[name]))
        return self.mesh.add(service, *flags, program=program, state_base=state_base)

    def close(self) -> None:
        # The load first, then what it goes through, then what that stands on.
        for load in self.loads:
            load.stop()
        self.mesh.close()
        self._stack.close()

    def members(self) -> tuple[Member, ...]:
        return (self.web, self.db, self.plane, self.caller)

    def _loads(self) -> tuple[Load, ...]:
        """Http on new and on kept connections, tcp on new ones and on one that stays open, http by way of fplane."""
        place = self.caller.namespace
        return (
            Load(fresh_requests(place, WEB_PORT, "fweb"), 1, 0.02, LONGEST_S),
            Load(kept_requests(place, WEB_PORT, "fweb"), 1, 0.02, LONGEST_S),
            Load(tcp_requests(place, DB_PORT, "fdb"), 1, 0.02, LONGEST_S),
            Load(established(place, DB_PORT, self._renew), 1, 0.02, LONGEST_S),
            Load(fresh_requests(place, PLANE_PORT, "fplane"), 1, 0.04, LONGEST_S),
        )

    # What rows use.

    def inject(self) -> None:
        """The fault happens now."""
        self.injected_s = time.monotonic()

    def mended(self, what: str, condition: Callable[[], object], deadline_s: float = MENDED_S) -> None:
        """Wait for what makes the fault a thing of the past; recovery is measured until then."""
        wait_until(what, condition, deadline_s)
        self.mended_s = time.monotonic()

    def heal(self) -> None:
        """After a row that failed: let what was stopped go on, and start what was killed."""
        for namespace in {member.namespace.name: member.namespace for member in self.members()}.values():
            for pid in namespace.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        for member in self.members():
            if member.sidecar.process.status() is not None:
                member.sidecar.start()

    def begin(self) -> None:
        """Before each row. The open connection is a new one, as a worker that serves it ends after many reloads."""
        self.mended_s = self.injected_s = 0.0
        self._renew.set()

    def wait(self, seconds: float) -> None:
        """Let that time pass: some faults are about time."""
        time.sleep(seconds)

    @contextlib.contextmanager
    def more_upstreams(self, member: Member, port: int) -> Iterator[None]:
        """The member calls fdb on one port more, for the time of the block."""
        usual = member.service
        member.register(replace(usual, upstreams=(*usual.upstreams, upstream("fdb", port, Datacenter="dc1"))))
        try:
            yield
        finally:
            member.register(usual)
        wait_until("the upstream to be gone", lambda: not member.namespace.listening(port), MENDED_S)
        # The next row may keep news from it, or count reloads.
        member.sidecar.wait_rest()

    def wait_back(self) -> None:
        """Return when Consul calls those that are called healthy, and the caller has heard."""
        for member in (self.web, self.db, self.plane):
            member.wait_healthy(self.site.client)
        place = self.caller.namespace
        wait_until("fweb to answer", lambda: http_get(place, WEB_PORT).text == "fweb")
        wait_until("fplane to answer", lambda: http_get(place, PLANE_PORT).text == "fplane")
        wait_until("fdb to answer", lambda: tcp_ask(place, DB_PORT) == "fdb")

    def healthy(self) -> bool:
        """Whether all sidecars are ready, with nothing stale."""
        return all(member.sidecar.ready() == (200, "ready\n") for member in self.members())


class Established:
    """One tcp connection that stays open; opened anew when it broke."""

    def __init__(self, namespace: Namespace, port: int, renew: threading.Event) -> None:
        self._namespace = namespace
        self._port = port
        self._renew = renew
        self._sock: socket.socket | None = None

    def ask(self) -> None:
        """One question and its answer."""
        if self._renew.is_set():
            self._renew.clear()
            self.close()
        try:
            if self._sock is None:
                self._sock = self._namespace.connect("127.0.0.1", self._port)
            self._sock.sendall(b"WHO\n")
            answer = read_line(self._sock)
        except OSError:
            self.close()
            raise
        assert answer == "fdb", answer

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
        self._sock = None


def established(namespace: Namespace, port: int, renew: threading.Event) -> Client:
    """For Load: questions over one connection, another one when that is asked for."""

    @contextlib.contextmanager
    def client() -> Iterator[Callable[[], None]]:
        with contextlib.closing(Established(namespace, port, renew)) as connection:
            yield connection.ask

    return client


@contextlib.contextmanager
def small_disk(path: Path, size: str = "8m") -> Iterator[Path]:
    """A file system in memory that can be filled and made read-only; gone afterwards."""
    path.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size},mode=700", "hcc-test", str(path))
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=10)


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """No room left on that file system, until its `filler` is removed."""
    filler = disk / "filler"
    try:
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        yield
    finally:
        filler.unlink(missing_ok=True)


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, timeout=10)


def sidecar_of(scene: Scene, side: str) -> Sidecar:
    """That of the called or the calling side."""
    return {"called": scene.web.sidecar, "calling": scene.caller.sidecar}[side]
