"""The example's cases in one pass, on one combination of HAProxy, control and Consul.

Two services, one http and one tcp, and a caller of both; a second instance of the first comes and goes. Everything that
changes must be seen by the caller's application, and what need not cost a request costs none.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from hcc.haproxy.capabilities import Feature
from tests.e2e.agents import ConsulError
from tests.e2e.certificates import mesh_certificate, served_certificate
from tests.e2e.clients import fresh_requests, http_get, is_refused, tcp_ask, tcp_requests
from tests.e2e.load import Load
from tests.e2e.mesh import Member, Mesh, Service, upstream
from tests.e2e.namespaces import Namespace
from tests.e2e.versions import can
from tests.e2e.waiting import wait_until

API_PORT, DB_PORT = 9501, 9502
# Long, as four sidecars, perhaps with a Data Plane API each, may share the machine with another run.
CHANGED_S = 40.0


@dataclass
class Cases:
    """The mesh of one combination."""

    mesh: Mesh
    branch: str
    directory: Path
    api: Member
    db: Member
    caller: Member

    @property
    def client(self) -> Namespace:
        return self.caller.namespace

    def run(self) -> None:
        """All cases, in an order in which each leaves the mesh as the next needs it."""
        self.allowed()
        self.a_permission_decides_each_request()
        self.denied_and_allowed_again()
        self.an_endpoint_comes_and_goes()
        self.the_leaf_rotates()
        self.hcc_restarts()
        self.haproxy_restarts()

    def allowed(self) -> None:
        assert http_get(self.client, API_PORT).text == "api"
        assert tcp_ask(self.client, DB_PORT) == "db"

    def a_permission_decides_each_request(self) -> None:
        server = self.mesh.site.server
        rules = [{"Action": "deny", "HTTP": {"PathExact": "/seen"}}]
        entry = {"Kind": "service-intentions", "Name": "api", "Sources": [{"Name": "caller", "Permissions": rules}]}
        try:
            server.put("/v1/config", entry)
        except ConsulError as exc:
            if "invalid config entry kind" in str(exc):
                return
            raise
        try:
            wait_until("a request to be refused", lambda: self._status("/seen") == 403, CHANGED_S)
            assert [self._status(path) for path in ("/seen", "/who", "/seen")] == [403, 200, 403]
        finally:
            server.delete("/v1/config/service-intentions/api")
        wait_until("a request to be allowed", lambda: self._status("/seen") == 200, CHANGED_S)

    def _status(self, path: str) -> int:
        return http_get(self.client, API_PORT, path).status

    def denied_and_allowed_again(self) -> None:
        for service in ("api", "db"):
            self.mesh.intend("caller", service, "deny")
        wait_until("http to be refused", lambda: http_get(self.client, API_PORT).status == 403, CHANGED_S)
        wait_until("tcp to be refused", lambda: is_refused(lambda: tcp_ask(self.client, DB_PORT)), CHANGED_S)
        for service in ("api", "db"):
            self.mesh.intend("caller", service, "allow")
        self.wait_answers()

    def an_endpoint_comes_and_goes(self) -> None:
        worker = self.caller.sidecar.worker_pid()
        with self._unharmed("api", "api-2"):
            second = self.mesh.add(Service("api", "http", id="api-2"))
            second.wait_ready()
            second.wait_healthy(self.mesh.site.client)
            wait_until("both instances", lambda: self._names(10) == {"api", "api-2"}, CHANGED_S)
            self.mesh.site.server.deregister("api-2")
            wait_until("the first instance alone", lambda: self._names(20) == {"api"}, CHANGED_S)
        second.remove()
        if can(self.branch, Feature.DYNAMIC_SERVERS):
            assert self.caller.sidecar.worker_pid() == worker, "an endpoint reloaded"

    def the_leaf_rotates(self) -> None:
        """A client agent keeps leaves in memory only: after its restart every service gets a new one at once."""
        worker, agent = self.caller.sidecar.worker_pid(), self.caller.agent
        with self._unharmed("api"):
            old = self._served(self.caller).serial_number
            agent.process.kill()
            agent.start()
            wait_until("another leaf", lambda: self._served(self.caller).serial_number != old, CHANGED_S)
        if can(self.branch, Feature.SERVER_CERT_UPDATE):
            assert self.caller.sidecar.worker_pid() == worker, "a leaf reloaded"

    def hcc_restarts(self) -> None:
        sidecar = self.caller.sidecar
        worker = sidecar.worker_pid()
        sidecar.kill()
        self.allowed()
        sidecar.start()
        sidecar.wait_ready()
        assert sidecar.worker_pid() == worker, "the HAProxy that ran on was not taken over"
        self.allowed()

    def haproxy_restarts(self) -> None:
        sidecar = self.caller.sidecar
        worker, (master,) = sidecar.worker_pid(), sidecar.haproxy_masters()
        os.kill(master, signal.SIGKILL)
        wait_until("another HAProxy", lambda: sidecar.worker_pid() != worker, CHANGED_S)
        self.wait_answers()

    def wait_answers(self) -> None:
        wait_until("http to be answered", lambda: http_get(self.client, API_PORT).status == 200, CHANGED_S)
        wait_until("tcp to be answered", lambda: tcp_ask(self.client, DB_PORT) == "db", CHANGED_S)

    @contextmanager
    def _unharmed(self, *names: str) -> Iterator[None]:
        """Requests all the while, of which none may fail."""
        with ExitStack() as stack:
            loads = [
                stack.enter_context(Load(fresh_requests(self.client, API_PORT, *names), 1, 0.02)),
                stack.enter_context(Load(tcp_requests(self.client, DB_PORT, "db"), 1, 0.02)),
            ]
            yield
            for load in loads:
                load.go_on(10)
        for load in loads:
            load.assert_clean()

    def _names(self, requests: int) -> set[str]:
        return {http_get(self.client, API_PORT).text for _ in range(requests)}

    def _served(self, member: Member) -> x509.Certificate:
        server = self.mesh.site.server
        own = mesh_certificate(server, "prober", self.directory)
        return served_certificate(
            server.namespace, member.namespace.address, member.public_port, server.root_pems(), own
        )


def cases(mesh: Mesh, branch: str, directory: Path) -> Cases:
    """The mesh with its services up: those called on Consul's server, the caller on the client agent."""
    calls = (upstream("api", API_PORT), upstream("db", DB_PORT))
    api, db = mesh.add(Service("api", "http")), mesh.add(Service("db"))
    caller = mesh.add(Service("caller", host="b", app=False, upstreams=calls))
    made = Cases(mesh, branch, directory, api, db, caller)
    for member in (api, db, caller):
        member.wait_ready()
        member.wait_healthy(mesh.site.client)
    made.wait_answers()
    return made
