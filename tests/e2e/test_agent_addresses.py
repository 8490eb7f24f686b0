"""An agent without plain HTTP on TCP, with ACLs that deny by default: reached by TLS both ways, or by a unix socket."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest
import trustme

from tests.consul_agent import acls
from tests.e2e.agents import ConsulAgent, server_config
from tests.e2e.clients import http_get
from tests.e2e.mesh import Member, Mesh, Service, Site, upstream
from tests.e2e.namespaces import namespace
from tests.e2e.versions import on_2_8
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
HTTPS_PORT, WEB_PORT = 8501, 9661


class UnixAgent(ConsulAgent):
    """An agent whose plain HTTP API is a unix socket."""

    path = ""

    def connection(self) -> HTTPConnection:
        return _UnixConnection(self.path)


class _UnixConnection(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=15)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(15)
        self.sock.connect(self._path)


@dataclass
class Fortress:
    """One such agent, and what a client needs to be let in."""

    mesh: Mesh
    agent: UnixAgent
    directory: Path

    def add(self, service: Service, *flags: str) -> Member:
        """A member whose token, in a file, has the service's identity."""
        token = self.agent.put("/v1/acl/token", {"ServiceIdentities": [{"ServiceName": service.name}]})
        file = self.directory / f"{service.name}.token"
        file.touch(mode=0o600)
        file.write_text(token["SecretID"])
        return self.mesh.add(service, "--token-file", str(file), *flags)

    def by_tls(self) -> tuple[str, ...]:
        pems = {flag: str(self.directory / name) for flag, name in TLS_FLAGS.items()}
        words = [word for pair in pems.items() for word in pair]
        return ("--http-addr", f"https://127.0.0.1:{HTTPS_PORT}", *words, "--tls-server-name", "server.dc1.consul")

    def by_socket(self) -> tuple[str, ...]:
        return ("--http-addr", f"unix://{self.agent.path}")


TLS_FLAGS = {"--ca-file": "ca.pem", "--client-cert": "client.pem", "--client-key": "client.key"}


def certificates(directory: Path) -> dict[str, object]:
    """What the agent is told of TLS; the files are beside."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    for name in ("server.dc1.consul", "client"):
        made = ca.issue_cert(name)
        stem = name.partition(".")[0]
        made.cert_chain_pems[0].write_to_path(str(directory / f"{stem}.pem"))
        made.private_key_pem.write_to_path(str(directory / f"{stem}.key"))
    files = {"ca_file": "ca.pem", "cert_file": "server.pem", "key_file": "server.key"}
    # Both, as it is a client of itself.
    verified = {"verify_incoming": True, "verify_outgoing": True}
    return verified | {key: str(directory / name) for key, name in files.items()}


@pytest.fixture
def fortress(site: Site, haproxy: str) -> Iterator[Fortress]:
    secret, directory = str(uuid.uuid4()), site.directory / f"fort-{site.number()}"
    directory.mkdir()
    with namespace("f") as place:
        path = str(directory / "http.sock")
        addresses = {"http": f"unix://{path}", "https": "127.0.0.1"}
        ports = {"http": 1, "https": HTTPS_PORT, "dns": -1, "grpc": -1, "grpc_tls": -1}
        config = server_config("delta", "127.0.0.1") | acls("", secret) | certificates(directory)
        agent = UnixAgent(place, directory / "delta", config | {"addresses": addresses, "ports": ports}, secret)
        agent.path = path
        try:
            agent.start()
            agent.wait_ready()
            mesh = Mesh(Site(agent, agent, directory, site.numbers), haproxy)
            try:
                yield Fortress(mesh, agent, directory)
            finally:
                mesh.close()
        finally:
            agent.process.kill()
            agent.process.forget()


@on_2_8
def test_a_mesh_stands_on_an_agent_reached_by_mutual_tls_and_by_its_unix_socket(fortress: Fortress) -> None:
    web = fortress.add(Service("web", "http"), *fortress.by_socket())
    caller = fortress.add(Service("caller", upstreams=(upstream("web", WEB_PORT),)), *fortress.by_tls())
    for member in (web, caller):
        member.wait_ready()
    wait_until("the refusal of default deny", lambda: http_get(caller.namespace, WEB_PORT).status == 403)
    fortress.mesh.intend("caller", "web", "allow")
    wait_until("an answer", lambda: http_get(caller.namespace, WEB_PORT).text == "web")
