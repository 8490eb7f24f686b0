"""A real HAProxy's public listener with all that decides about callers, and no Consul: the test says the policy.

HAProxy runs the configuration that `hcc run` would give it; workers, SPOEPool and Authoriser are the real ones.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Self

from hcc.actors.authoriser import Authoriser
from hcc.actors.child import ChildSpec
from hcc.actors.messages import (
    ADMIN,
    AUTHORISER,
    CONFIG_RECONCILER,
    CONSUL_WATCHER,
    SPOE_POOL,
    HAProxyUp,
    PolicyChanged,
    WorkerReplaced,
)
from hcc.actors.restart import Intensity
from hcc.actors.spoe_pool import SPOEPool
from hcc.actors.tree import start_tree
from hcc.haproxy.caller_maps import CallerMaps
from hcc.haproxy.render import render
from hcc.mesh.intentions import Intention, Policy
from hcc.mesh.snapshot import Protocol
from hcc.metrics import Metrics
from hcc.settings import Enforcement
from hcc.spoe.pool import WorkerPool
from tests.builders import proxy, snapshot
from tests.fakes import Ear
from tests.forgeries import MESH
from tests.haproxy_stage import Stage, stage, wait_until
from tests.ports import free_port
from tests.spoe_certificates import TRUST_DOMAIN, Leaf

ALLOWED, DENIED = "allowed", "denied"
# What HAProxy answers to a request whose session is ended while it waits for the application.
CUT = "502"
# What a few of them get from 3.0 on. Tried with `shutdown sessions server` under load: 3 of 21,781 requests on
# 3.0.11, 22 of 16,729 on 3.2.26; none of 19,884 on 2.6.12, none of 22,119 on 2.8.25.
CUT_SINCE_3_0 = "500"
# How long HAProxy waits for a worker's answer: longer than usual, as one may wait for a core.
PROCESSING_MS = 3_000
# Callers with a server line of their own, where HAProxy can have those; the reconciler is not here to make them.
LINES = ("db:dc1", "web:dc1")


class Gate:
    """The listener; `ask` comes in with a certificate and tells what happened."""

    def __init__(
        self,
        made: Stage,
        protocol: Protocol,
        pool: WorkerPool,
        appname_header: str,
        app_port: int = 0,
        processing_ms: int = PROCESSING_MS,
    ) -> None:
        self.stage = made
        self.pool = pool
        self.maps = CallerMaps(made.layout, made.capabilities)
        self.port = free_port()
        self.metrics = Metrics()
        self._http = protocol.is_http
        local = app_port or made.app(http=self._http).port
        self._proxy = proxy(protocol=protocol, bind_port=self.port, local_port=local, appname_header=appname_header)
        self._version = 0
        self._processing_ms = processing_ms
        self.policy = Policy("server", TRUST_DOMAIN, (), default_allow=None, http=self._http)
        made.authorities.append(MESH)  # type: ignore[arg-type]  # what is asked of one it has
        ears = (ADMIN, CONSUL_WATCHER, CONFIG_RECONCILER)
        maps = CallerMaps(made.layout, made.capabilities)
        self.tree = start_tree(
            (
                *(ChildSpec(name, Ear, {"heard": []}) for name in ears),
                ChildSpec(SPOE_POOL, SPOEPool, {"pool": pool, "metrics": self.metrics}),
                ChildSpec(AUTHORISER, Authoriser, {"maps": maps, "metrics": self.metrics, "resync_s": 300.0}),
            ),
            intensity=Intensity(100, 60.0),
            on_exit=lambda _: None,
        )

    def open(self) -> None:
        """Let HAProxy run."""
        self._converge()
        self.tree.tell(AUTHORISER, HAProxyUp(1))

    def reload(self) -> None:
        """Another structure, and with it another worker."""
        worker = self.stage.worker()
        timeout_ms = self._proxy.local_connect_timeout_ms + 1
        self._proxy = replace(self._proxy, local_connect_timeout_ms=timeout_ms)
        self._converge()
        assert self.stage.worker() != worker
        self.tree.tell(AUTHORISER, WorkerReplaced())

    def decide_by(self, *intentions: Intention, default: bool = False, workers_too: bool = True) -> None:
        """Return when every worker, and HAProxy about those it knows, decides by these; or HAProxy alone."""
        self._version += 1
        self.policy = replace(self.policy, intentions=intentions, default_allow=default, version=self._version)
        for name in (AUTHORISER, SPOE_POOL) if workers_too else (AUTHORISER,):
            self.tree.tell(name, PolicyChanged(self.policy))
        if workers_too:
            self.wait_whole()
        # Its mailbox is served in order: it answers when the policy before is in HAProxy.
        self.tree.ask_actor(AUTHORISER, None, 10.0)

    def wait_whole(self) -> None:
        """Return when every worker has the policy."""
        wait_until(lambda: all(one.policy_version == self._version for one in self.pool.workers()), "the policy")

    def kill_worker(self, index: int) -> None:
        """One of them, once all are there; return when its death is known: until then it counts as there."""
        self.wait_whole()
        pid = self.pool.workers()[index].pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.pool.workers()[index].pid != pid, "its death is known")

    def context(self, leaf: Leaf) -> ssl.SSLContext:
        """For a client with that certificate. TLS 1.2: a session can be resumed as soon as there is one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = False
        context.load_verify_locations(cadata="".join(each.pem for each in self.stage.authorities))
        with tempfile.NamedTemporaryFile(dir=self.stage.directory, suffix=".pem") as file:
            context.load_cert_chain(leaf.write_pem(Path(file.name)))
        return context

    def ask(self, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> tuple[str, ssl.SSLSession | None]:
        """ALLOWED or DENIED (closed, or 403) and the session, or what else came; a session given must be resumed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain:
            try:
                with context.wrap_socket(plain, session=session) as tls:
                    assert session is None or tls.session_reused, "the session was not resumed"
                    return (self._request(tls) if self._http else _greeted(tls)), tls.session
            except (ConnectionError, ssl.SSLEOFError):
                return DENIED, None

    def head_told(self, context: ssl.SSLContext, *headers: str) -> str:
        """What the application gets of a request with these lines."""
        return self.answer(context, "GET / HTTP/1.1", "Host: here", *headers)[1]

    def answer(self, context: ssl.SSLContext, *head: str) -> tuple[int, str]:
        """Status and body of what comes back for these lines."""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain,
            context.wrap_socket(plain) as tls,
        ):
            tls.sendall("\r\n".join((*head, "", "")).encode())
            answer = http.client.HTTPResponse(tls)
            answer.begin()
            return answer.status, answer.read().decode()

    def remembered(self) -> set[str]:
        """The services that HAProxy knows."""
        return {text.partition(":")[0] for text in (self.maps.identities() or {}).values()}

    def memory_kb(self) -> int:
        """Resident memory of HAProxy's worker and of the SPOE workers."""
        pids = (self.stage.worker(), *(worker.pid for worker in self.pool.workers()))
        texts = (Path(f"/proc/{pid}/status").read_text() for pid in pids)
        return sum(int(text.partition("VmRSS:")[2].split()[0]) for text in texts)

    def _request(self, tls: ssl.SSLSocket) -> str:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = tls
        connection.request("GET", "/")
        status = connection.getresponse().status
        return {200: ALLOWED, 403: DENIED}.get(status, str(status))

    def _converge(self) -> None:
        here = snapshot(proxy_=self._proxy, policy_=self.policy)
        wanted = self.stage.rendered(here, intentions=Enforcement.ENFORCE, callers=LINES).desired
        assert wanted.authorisation is not None
        patient = replace(wanted.authorisation, processing_timeout_ms=self._processing_ms)
        made = self.stage
        made.converge(render(replace(wanted, authorisation=patient), made.capabilities, made.control.servers()))


def _greeted(tls: ssl.SSLSocket) -> str:
    received = tls.recv(100)
    return {b"app\n": ALLOWED, b"": DENIED}.get(received, repr(received))


@contextmanager
def gate(
    branch: str,
    protocol: Protocol,
    identities: Mapping[str, str] = MappingProxyType({}),
    *,
    appname_header: str = "",
    app_port: int = 0,
    processing_ms: int = PROCESSING_MS,
) -> Iterator[Gate]:
    """A gate that lets nobody in yet, and remembers these certificates from before; to an application of its own."""
    with stage(branch) as made:
        CallerMaps(made.layout, made.capabilities).store_identities(identities)
        pool = WorkerPool((made.layout.agent_socket(1), made.layout.agent_socket(2)))
        pool.start()
        try:
            opened = Gate(made, protocol, pool, appname_header, app_port, processing_ms)
            try:
                opened.open()
                yield opened
            finally:
                opened.tree.stop(10.0)
        finally:
            pool.close(0)


class Callers:
    """Threads that call again and again, until the block ends; what came is counted."""

    def __init__(self, call: Callable[[], str], threads: int) -> None:
        self.answers: list[str] = []
        self._call = call
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._go_on) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)

    def go_on(self, more: int) -> None:
        """Return after so many more answers."""
        wanted = len(self.answers) + more
        wait_until(lambda: len(self.answers) >= wanted, "more answers")

    def _go_on(self) -> None:
        while not self._stopping.is_set():
            try:
                self.answers.append(self._call())
            except Exception as exc:  # noqa: BLE001 (an answer of its own kind, which the test shows)
                self.answers.append(repr(exc))
            time.sleep(0.002)
